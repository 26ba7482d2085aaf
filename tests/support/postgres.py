"""A PostgreSQL server on 127.0.0.1 with its data in a temporary folder."""

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
    """Return the paths of PostgreSQL's programs by name; skip the test if one is missing."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    search_path = os.pathsep.join([os.environ["PATH"], *map(str, folders)])
    paths = {name: shutil.which(name, path=search_path) for name in PROGRAMS}
    if missing := [name for name, path in paths.items() if path is None]:
        pytest.skip(f"PostgreSQL is not installed here: no {', '.join(missing)}")
    return paths


class Postgres:
    """A server that requires a password; it can be stopped and started again."""

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
        """Return the variables of a program that gets an address without a password."""
        return {"PGPASSWORD": PASSWORD}

    def _run(self, name, *arguments):
        command = [self.programs[name], *map(str, arguments)]
        subprocess.run(command, **self._as, cwd=self.folder, check=True, capture_output=True)

    def start(self):
        """Start the server, and wait until it accepts connections."""
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
        """Close all connections and shut down, as a restart of the service does."""
        self._server.send_signal(signal.SIGINT)
        self._server.wait(60)

    def restart(self):
        self.stop()
        self.start()

    def database(self, name):
        """Create an empty database, and return its URL."""
        with psycopg.connect(self.url("postgres", driver=""), password=PASSWORD, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def url(self, database, *, driver="+psycopg"):
        """Return the address of a database, without a password."""
        return f"postgresql{driver}://{USER}@127.0.0.1:{self.port}/{database}"


@contextmanager
def running_postgres():
    """Start a server, and stop it at the end."""
    # pytest's own folder is accessible to its user only
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="postgres-") as folder:
        server = Postgres(folder)
        try:
            yield server
        finally:
            server.stop()
