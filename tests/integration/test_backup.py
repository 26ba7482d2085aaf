"""deploy/backup.sh and deploy/restore.sh: a backup is complete or absent, and so is what it is restored to."""

import os
import shutil
import signal
import subprocess
import threading
import time

import psycopg
import pytest

from tests.support.deploy_scripts import run_script, team_settings
from tests.support.paths import ROOT
from tests.support.postgres import PASSWORD
from tests.support.sleepers import wait_for, with_programs

pytestmark = pytest.mark.slow


class Stores:
    """Three databases, with a table in one, and two artifact files, of a user who can be denied access to files."""

    def __init__(self, postgres):
        name = f"stores_{time.time_ns()}"
        self.folder = postgres.folder / name
        self.artifacts, self.backup = self.folder / "artifacts", self.folder / "backup"
        (self.artifacts / "one").mkdir(parents=True)
        (self.artifacts / "one" / "model").write_text("weights")
        (self.artifacts / "two").write_text("figures")
        self.databases = {kind: postgres.database(f"{name}_{kind}") for kind in ("tracking", "auth", "studies")}
        self.variables = team_settings(self.databases, self.artifacts) | {"PATH": with_programs(postgres)}
        self.user = {}
        # root may read every file
        if os.geteuid() == 0:
            self.user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            for path in (self.folder, self.artifacts):
                shutil.chown(path, "nobody", "nogroup")
        with self.connect("tracking") as connection:
            connection.execute("CREATE TABLE runs (name text)")

    def connect(self, kind):
        return psycopg.connect(self.databases[kind].replace("+psycopg", ""), password=PASSWORD)

    def tables(self):
        query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        with self.connect("tracking") as connection:
            return [name for (name,) in connection.execute(query)]

    def run_script(self, script, **changes):
        return run_script(script, self.backup, self.variables | changes, cwd=self.folder, **self.user)

    def created(self):
        """Return the names of what scripts have made beside the artifacts."""
        return {path.name for path in self.folder.iterdir()} - {"artifacts", "bin"}


@pytest.fixture
def stores(postgres):
    """Return new stores on the shared PostgreSQL server."""
    return Stores(postgres)


def test_backup_with_unreadable_artifacts_fails_and_leaves_nothing(stores):
    (stores.artifacts / "one").chmod(0)
    completed = stores.run_script("backup.sh")
    (stores.artifacts / "one").chmod(0o755)
    assert completed.returncode != 0 and "could not be copied" in completed.stderr
    assert stores.created() == set()


def test_backup_with_a_missing_database_fails_and_leaves_nothing(stores):
    completed = stores.run_script("backup.sh", STUDIES_DATABASE=stores.variables["STUDIES_DATABASE"] + "_gone")
    assert completed.returncode != 0 and "_gone" in completed.stderr
    assert stores.created() == set()


def test_backup_terminated_midway_leaves_nothing(stores):
    slow = stores.folder / "bin" / "pg_dump"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nsleep 30\n")
    slow.chmod(0o755)
    variables = stores.variables | {"PATH": f"{slow.parent}{os.pathsep}{stores.variables['PATH']}"}
    command = [str(ROOT / "deploy" / "backup.sh"), str(stores.backup)]
    process = subprocess.Popen(command, env=variables, start_new_session=True, **stores.user)
    wait_for(lambda: stores.created() == {"backup.unfinished"})
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(20) != 0
    assert stores.created() == set()


def test_backup_into_an_existing_folder_is_refused_and_changes_nothing(stores):
    assert stores.run_script("backup.sh").returncode == 0
    before = {path.name: path.read_bytes() for path in stores.backup.iterdir()}
    completed = stores.run_script("backup.sh")
    assert completed.returncode != 0 and "must be a new folder" in completed.stderr
    assert {path.name: path.read_bytes() for path in stores.backup.iterdir()} == before
    assert stores.created() == {"backup"}


def test_backup_of_a_file_that_grows_meanwhile_succeeds(stores):
    growing, finished = stores.artifacts / "growing", threading.Event()

    def grow():
        with open(growing, "ab", buffering=0) as file:
            file.write(bytes(50_000_000))
            while not finished.wait(0.0001):
                file.write(b"more")

    thread = threading.Thread(target=grow)
    thread.start()
    wait_for(lambda: growing.exists() and growing.stat().st_size > 50_000_000)
    completed = stores.run_script("backup.sh")
    finished.set()
    thread.join()
    assert "changed as we read it" in completed.stderr
    assert completed.returncode == 0 and stores.created() == {"backup"}


def test_restore_finds_a_backup_whose_path_a_shell_has_completed(stores):
    stores.backup = stores.folder / "of [today]"
    assert stores.run_script("backup.sh").returncode == 0
    with stores.connect("tracking") as connection:
        connection.execute("DROP TABLE runs")
    stores.backup = f"{stores.backup}/"
    completed = stores.run_script("restore.sh", ARTIFACTS=str(stores.folder / "new"))
    assert completed.returncode == 0, completed.stderr
    assert stores.tables() == ["runs"] and (stores.folder / "new" / "two").read_text() == "figures"


def test_restore_of_an_incomplete_backup_changes_nothing(stores):
    assert stores.run_script("backup.sh").returncode == 0
    (stores.backup / "studies.dump").unlink()
    with stores.connect("tracking") as connection:
        connection.execute("DROP TABLE runs")
    completed = stores.run_script("restore.sh", ARTIFACTS=str(stores.folder / "new"))
    assert completed.returncode != 0 and "no complete backup: it has no studies.dump" in completed.stderr
    assert stores.tables() == []


def test_restore_over_other_artifacts_changes_nothing(stores):
    assert stores.run_script("backup.sh").returncode == 0
    with stores.connect("tracking") as connection:
        connection.execute("DROP TABLE runs")
    completed = stores.run_script("restore.sh")
    assert completed.returncode != 0 and "must be empty: it holds one" in completed.stderr
    assert stores.tables() == []


def test_restore_of_a_dump_that_postgresql_refuses_leaves_the_database_empty(stores):
    with stores.connect("tracking") as connection:
        connection.execute("INSERT INTO runs SELECT md5(n::text) FROM generate_series(1, 20000) AS n")
    assert stores.run_script("backup.sh").returncode == 0
    with stores.connect("tracking") as connection:
        connection.execute("DROP TABLE runs")
    dump = stores.backup / "tracking.dump"
    dump.write_bytes(dump.read_bytes()[: dump.stat().st_size // 2])
    # its digest is right: it was damaged before
    command = "find . -type f ! -name SHA256SUMS -exec sha256sum {} + >SHA256SUMS"
    subprocess.run(["sh", "-c", command], cwd=stores.backup, check=True)
    completed = stores.run_script("restore.sh", ARTIFACTS=str(stores.folder / "new"))
    assert completed.returncode != 0 and "tracking.dump could not be restored" in completed.stderr
    assert stores.tables() == []
