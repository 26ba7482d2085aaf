"""The scripts of deploy/, called as users call them, and the settings that deploy/team.env holds."""

import subprocess

from tests.support.paths import ROOT
from tests.support.postgres import PASSWORD


def team_settings(databases, artifacts):
    """Return what deploy/team.env holds: the address of each database, the artifacts' folder and the password."""
    addresses = {f"{name.upper()}_DATABASE": url.replace("+psycopg", "") for name, url in databases.items()}
    return addresses | {"ARTIFACTS": str(artifacts), "PGPASSWORD": PASSWORD}


def run_script(script, folder, variables, **options):
    """Run a script of deploy/ on a folder and return it completed, whatever its exit code."""
    command = [str(ROOT / "deploy" / script), str(folder)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, **options)
