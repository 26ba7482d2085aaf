"""A backup is whole or there is none, and so is what it is restored to."""

import os
import shutil
import signal
import subprocess
import threading
import time

import psycopg
import pytest

from tests.support.deployed import called, settings
from tests.support.postgres import PASSWORD
from tests.support.sleepers import ROOT, wait_for, with_programs

pytestmark = pytest.mark.slow


class Stores:
    """Three databases, with a table in one, and two files of artifacts, for a user to whom files can be closed."""

    def __init__(self, postgres):
        name = f"stores_{time.time_ns()}"
        self.folder = postgres.folder / name
        self.artifacts, self.backup = self.folder / "artifacts", self.folder / "backup"
        (self.artifacts / "one").mkdir(parents=True)
        (self.artifacts / "one" / "model").write_text("weights")
        (self.artifacts / "two").write_text("figures")
        self.databases = {kind: postgres.database(f"{name}_{kind}") for kind in ("tracking", "auth", "studies")}
        self.variables = settings(self.databases, self.artifacts) | {"PATH": with_programs(postgres)}
        self.user = {}
        if os.geteuid() == 0:  # to whom none can
            self.user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            for path in (self.folder, self.artifacts):
                shutil.chown(path, "nobody", "nogroup")
        with self.connected("tracking") as line:
            line.execute("CREATE TABLE runs (name text)")

    def connected(self, kind):
        return psycopg.connect(self.databases[kind].replace("+psycopg", ""), password=PASSWORD)

    def tables(self):
        with self.connected("tracking") as line:
            return [name for (name,) in line.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]

    def called(self, script, **changes):
        return called(script, self.backup, self.variables | changes, cwd=self.folder, **self.user)

    def left(self):
        """What scripts have made beside the artifacts."""
        return {path.name for path in self.folder.iterdir()} - {"artifacts", "bin"}


@pytest.fixture
def stores(postgres):
    return Stores(postgres)


def test_a_backup_of_artifacts_that_cannot_all_be_read_fails_and_leaves_nothing(stores):
    (stores.artifacts / "one").chmod(0)
    done = stores.called("backup.sh")
    (stores.artifacts / "one").chmod(0o755)
    assert done.returncode != 0 and "could not be copied" in done.stderr
    assert stores.left() == set()


def test_a_backup_without_one_of_its_databases_fails_and_leaves_nothing(stores):
    done = stores.called("backup.sh", STUDIES_DATABASE=stores.variables["STUDIES_DATABASE"] + "_gone")
    assert done.returncode != 0 and "_gone" in done.stderr
    assert stores.left() == set()


def test_a_backup_that_is_ended_meanwhile_leaves_nothing(stores):
    slow = stores.folder / "bin" / "pg_dump"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nsleep 30\n")
    slow.chmod(0o755)
    variables = stores.variables | {"PATH": f"{slow.parent}{os.pathsep}{stores.variables['PATH']}"}
    command = [str(ROOT / "deploy" / "backup.sh"), str(stores.backup)]
    process = subprocess.Popen(command, env=variables, start_new_session=True, **stores.user)
    wait_for(lambda: stores.left() == {"backup.unfinished"})
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(20) != 0
    assert stores.left() == set()


def test_a_backup_touches_no_folder_that_is_there(stores):
    assert stores.called("backup.sh").returncode == 0
    before = {path.name: path.read_bytes() for path in stores.backup.iterdir()}
    done = stores.called("backup.sh")
    assert done.returncode != 0 and "must be a new folder" in done.stderr
    assert {path.name: path.read_bytes() for path in stores.backup.iterdir()} == before
    assert stores.left() == {"backup"}


def test_a_file_that_grows_while_it_is_copied_is_no_failure_of_a_backup(stores):
    growing, over = stores.artifacts / "growing", threading.Event()

    def grow():
        with open(growing, "ab", buffering=0) as file:
            file.write(bytes(50_000_000))
            while not over.wait(0.0001):
                file.write(b"more")

    thread = threading.Thread(target=grow)
    thread.start()
    wait_for(lambda: growing.exists() and growing.stat().st_size > 50_000_000)
    done = stores.called("backup.sh")
    over.set()
    thread.join()
    assert "changed as we read it" in done.stderr
    assert done.returncode == 0 and stores.left() == {"backup"}


def test_a_restore_of_what_is_no_whole_backup_changes_nothing(stores):
    assert stores.called("backup.sh").returncode == 0
    (stores.backup / "studies.dump").unlink()
    with stores.connected("tracking") as line:
        line.execute("DROP TABLE runs")
    done = stores.called("restore.sh", ARTIFACTS=str(stores.folder / "new"))
    assert done.returncode != 0 and "no complete backup: it has no studies.dump" in done.stderr
    assert stores.tables() == []


def test_a_restore_over_other_artifacts_changes_nothing(stores):
    assert stores.called("backup.sh").returncode == 0
    with stores.connected("tracking") as line:
        line.execute("DROP TABLE runs")
    done = stores.called("restore.sh")
    assert done.returncode != 0 and "must be empty: it holds one" in done.stderr
    assert stores.tables() == []


def test_a_database_whose_dump_is_damaged_stays_empty(stores):
    with stores.connected("tracking") as line:
        line.execute("INSERT INTO runs SELECT md5(n::text) FROM generate_series(1, 20000) AS n")
    assert stores.called("backup.sh").returncode == 0
    with stores.connected("tracking") as line:
        line.execute("DROP TABLE runs")
    dump = stores.backup / "tracking.dump"
    dump.write_bytes(dump.read_bytes()[: dump.stat().st_size // 2])
    done = stores.called("restore.sh", ARTIFACTS=str(stores.folder / "new"))
    assert done.returncode != 0 and "tracking.dump could not be restored" in done.stderr
    assert stores.tables() == []
