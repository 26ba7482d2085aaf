"""A real PostgreSQL in a folder of its own, on 127.0.0.1, for as long as a test wants it."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.support.ports import free_port

PASSWORD = "P0stgres-pass"  # noqa: S105 - of a server that lives for a test
USER = "pipeline"
PROGRAMS = ("postgres", "initdb", "pg_dump", "pg_restore")


def programs():
    """Where PostgreSQL's programs are; a test without them is skipped."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    path = os.pathsep.join([os.environ["PATH"], *map(str, folders)])
    found = {name: shutil.which(name, path=path) for name in PROGRAMS}
    if missing := [name for name, where in found.items() if where is None]:
        pytest.skip(f"PostgreSQL is not installed here: no {', '.join(missing)}")
    return found


class Postgres:
    """A server that asks for a password; it can be stopped and started again."""

    def __init__(self, folder):
        self.programs = programs()
        self.folder, self.port = Path(folder), free_port()
        # PostgreSQL refuses to run as root
        self._as = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        if self._as:
            shutil.chown(folder, "nobody", "nogroup")
        password = self.folder / "password"
        password.write_text(PASSWORD, encoding="ascii")
        password.chmod(0o644)
        self._run("initdb", "-D", self._data, "-U", USER, "-A", "scram-sha-256", "--pwfile", password, "--no-sync")
        self.start()

    @property
    def _data(self):
        return self.folder / "data"

    @property
    def environment(self):
        """What a program needs that is given an address without a password."""
        return {"PGPASSWORD": PASSWORD}

    def _run(self, name, *arguments):
        command = [self.programs[name], *map(str, arguments)]
        subprocess.run(command, **self._as, cwd=self.folder, check=True, capture_output=True)

    def start(self):
        options = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={self.port}", "-c", "fsync=off"]
        with open(self.folder / "log.txt", "ab") as log:
            self._server = subprocess.Popen(
                [self.programs["postgres"], "-D", self._data, "-k", self.folder, *options],
                **self._as,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + 60
        while True:
            try:
                return psycopg.connect(self.url("postgres", driver=""), password=PASSWORD).close()
            except psycopg.OperationalError:
                assert time.monotonic() < until, (self.folder / "log.txt").read_text()
                time.sleep(0.1)

    def stop(self):
        """Break off all connections and shut down, as a restart of the service does."""
        self._server.send_signal(signal.SIGINT)
        self._server.wait(60)

    def restart(self):
        self.stop()
        self.start()

    def database(self, name):
        """Create an empty database; returns its URL."""
        with psycopg.connect(self.url("postgres", driver=""), password=PASSWORD, autocommit=True) as line:
            line.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def url(self, database, *, driver="+psycopg"):
        """An address without a password."""
        return f"postgresql{driver}://{USER}@127.0.0.1:{self.port}/{database}"


@contextmanager
def running_postgres():
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="postgres-") as folder:  # pytest's own is for its user alone
        server = Postgres(folder)
        try:
            yield server
        finally:
            server.stop()
