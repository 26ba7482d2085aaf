"""The scripts of deploy/ with stand-ins for PostgreSQL's programs and MLflow: digests, addresses and permissions."""

import configparser
import os
import stat
import subprocess

import pytest

from tests.support.deploy_scripts import run_script
from tests.support.paths import ROOT

DUMP = """#!/bin/sh
for argument; do case "$argument" in --file=*) echo dump >"${argument#--file=}" ;; esac; done
"""
RESTORE = """#!/bin/sh
echo "$@" >>"$RESTORED"
"""
# Stands for `python -m mlflow server`: it keeps its arguments and its configuration, and stores an artifact.
PYTHON = """#!/bin/sh
printf '%s\\n' "$@" >"$SERVED/arguments"
cat "$MLFLOW_AUTH_CONFIG_PATH" >"$SERVED/auth.ini"
mkdir "$SERVED/stored" && echo model >"$SERVED/stored/model"
"""
FILES = 40


class Scripts:
    """A folder of artifacts, and the environment of the scripts."""

    def __init__(self, folder):
        self.folder, self.artifacts, self.backup = folder, folder / "artifacts", folder / "backup"
        self.restored = folder / "restored.txt"
        (folder / "bin").mkdir()
        for name, script in {"pg_dump": DUMP, "pg_restore": RESTORE, "python": PYTHON}.items():
            (folder / "bin" / name).write_text(script)
            (folder / "bin" / name).chmod(0o755)
        self.artifacts.mkdir()
        self.artifacts.chmod(0o755)
        for number in range(FILES):
            (self.artifacts / f"odd\n name {number}").write_text(str(number))
            (self.artifacts / f"odd\n name {number}").chmod(0o644)
        self.variables = {
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "TRACKING_DATABASE": "postgresql://a@h/t",
            "AUTH_DATABASE": "postgresql://a@h/a",
            "STUDIES_DATABASE": "postgresql://a@h/s",
            "ARTIFACTS": str(self.artifacts),
            "RESTORED": str(self.restored),
            "SERVED": str(folder),
        }

    def run(self, script, **changes):
        return run_script(script, self.backup, self.variables | changes, cwd=self.folder)

    def restore(self, umask=0o022):
        return run_script(
            "restore.sh",
            self.backup,
            self.variables | {"ARTIFACTS": str(self.folder / "back")},
            cwd=self.folder,
            umask=umask,
        )


@pytest.fixture
def scripts(tmp_path):
    """Return the scripts, with a backup."""
    scripts = Scripts(tmp_path)
    completed = scripts.run("backup.sh")
    assert completed.returncode == 0, completed.stderr
    return scripts


def cut_at_a_members_end(backup):
    content = (backup / "artifacts.tar").read_bytes()
    (backup / "artifacts.tar").write_bytes(content[:16896])


def cut_to_nothing(backup):
    (backup / "artifacts.tar").write_bytes(b"")


def cut_a_dump(backup):
    (backup / "auth.dump").write_text("du")


def change_a_byte(backup):
    content = bytearray((backup / "artifacts.tar").read_bytes())
    content[600] ^= 1
    (backup / "artifacts.tar").write_bytes(content)


def cut_the_digests_at_a_line(backup):
    lines = (backup / "SHA256SUMS").read_text().splitlines(keepends=True)
    (backup / "SHA256SUMS").write_text("".join(lines[:-1]))


def cut_the_digests(backup):
    content = (backup / "SHA256SUMS").read_text()
    (backup / "SHA256SUMS").write_text(content[:-5])


def empty_the_digests(backup):
    (backup / "SHA256SUMS").write_text("")


def remove_the_digests(backup):
    (backup / "SHA256SUMS").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        cut_at_a_members_end,
        cut_to_nothing,
        cut_a_dump,
        change_a_byte,
        cut_the_digests_at_a_line,
        cut_the_digests,
        empty_the_digests,
        remove_the_digests,
    ],
    ids=lambda damage: damage.__name__,
)
def test_restore_of_a_damaged_backup_is_refused_and_writes_nothing(scripts, damage):
    damage(scripts.backup)
    completed = scripts.restore()
    assert completed.returncode != 0
    assert "deploy/restore.sh: " in completed.stderr and str(scripts.backup) in completed.stderr
    assert not scripts.restored.exists() and not (scripts.folder / "back").exists()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_restored_artifacts_are_complete_and_their_owners_alone(scripts, umask):
    completed = scripts.restore(umask)
    assert (completed.returncode, completed.stderr) == (0, "")
    back = scripts.folder / "back"
    assert len(scripts.restored.read_text().splitlines()) == 3
    assert sorted(path.read_text() for path in back.iterdir()) == sorted(map(str, range(FILES)))
    assert {stat.S_IMODE(path.stat().st_mode) for path in back.iterdir()} == {0o600}
    assert stat.S_IMODE(back.stat().st_mode) == 0o700


def test_restore_into_a_bucket_checks_its_files(scripts):
    (scripts.backup / "artifacts.tar").unlink()
    (scripts.backup / "artifacts").mkdir()
    (scripts.backup / "artifacts" / "model").write_text("weights")
    aws = scripts.folder / "bin" / "aws"
    aws.write_text(RESTORE)
    aws.chmod(0o755)
    command = "find . -type f ! -name SHA256SUMS -exec sha256sum {} + >SHA256SUMS"
    subprocess.run(["sh", "-c", command], cwd=scripts.backup, check=True)
    (scripts.backup / "artifacts" / "model").write_text("weight")
    assert scripts.run("restore.sh", ARTIFACTS="s3://bucket").returncode != 0
    assert not scripts.restored.exists()
    (scripts.backup / "artifacts" / "model").write_text("weights")
    assert scripts.run("restore.sh", ARTIFACTS="s3://bucket").returncode == 0
    assert "s3 sync" in scripts.restored.read_text()


@pytest.mark.parametrize("name", ["me%40team", "50%", "%s%d%%", "a&b\\1", "%(here)s"])
def test_serve_passes_the_addresses_of_databases_on_as_they_are(scripts, name):
    addresses = {f"{which}_DATABASE": f"postgresql://{name}@host/{which}" for which in ("TRACKING", "AUTH")}
    variables = scripts.variables | addresses | {"ALLOWED_HOSTS": "*", "MLFLOW_FLASK_SERVER_SECRET_KEY": "secret"}
    subprocess.run([str(ROOT / "deploy" / "serve.sh")], env=variables, check=True, umask=0)
    # as MLflow reads it
    config = configparser.ConfigParser()
    config.read(scripts.folder / "auth.ini")
    assert config["mlflow"]["database_uri"] == f"postgresql+psycopg://{name}@host/AUTH"
    arguments = (scripts.folder / "arguments").read_text().splitlines()
    assert arguments[arguments.index("--backend-store-uri") + 1] == f"postgresql+psycopg://{name}@host/TRACKING"


def test_what_the_server_stores_is_its_users_alone(scripts):
    variables = scripts.variables | {"ALLOWED_HOSTS": "*", "MLFLOW_FLASK_SERVER_SECRET_KEY": "secret"}
    subprocess.run([str(ROOT / "deploy" / "serve.sh")], env=variables, check=True, umask=0)
    stored = scripts.folder / "stored"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (stored, stored / "model")] == [0o700, 0o600]
