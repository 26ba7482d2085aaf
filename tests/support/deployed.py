"""The scripts of deploy/ as people call them, with the settings that deploy/team.env holds."""

import subprocess

from tests.support.postgres import PASSWORD
from tests.support.sleepers import ROOT


def settings(databases, artifacts):
    """What deploy/team.env holds."""
    named = {f"{name.upper()}_DATABASE": url.replace("+psycopg", "") for name, url in databases.items()}
    return named | {"ARTIFACTS": str(artifacts), "PGPASSWORD": PASSWORD}


def called(script, folder, variables, **more):
    """A script of deploy/ with a folder, as it ended."""
    command = [str(ROOT / "deploy" / script), str(folder)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, **more)
