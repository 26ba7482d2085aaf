"""The identity of a process, and the liveness of processes of this host, another host, namespace and boot."""

import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import psutil
import pytest

import pipeline.runtime.process
from pipeline.runtime.process import (
    HOST,
    PROCESS,
    PROCESS_STARTED,
    ProcessIdentity,
    announce_process,
    liveness,
    process_of,
    this_process,
)
from tests.support.paths import ROOT

ANNOUNCE = """
import sys
from pipeline.runtime.process import announce_process
print(announce_process(), flush=True)
sys.stdin.read()
"""


@contextmanager
def announced(cache, monkeypatch):
    """A live process that holds its lock in this cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    command = [sys.executable, "-c", ANNOUNCE]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith(f"process {process.pid} on ")
        yield process
        process.kill()


@pytest.fixture
def ended():
    """A process that has ended and whose id nobody else bears yet."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        return process_of(process.pid)


def test_from_tags_reads_back_what_tags_wrote():
    assert ProcessIdentity.from_tags(this_process().tags() | {"other": "tag"}) == this_process()


@pytest.mark.parametrize(
    "tags", [{}, {HOST: "a"}, {**this_process().tags(), PROCESS: "many"}, {PROCESS_STARTED: "1.5"}]
)
def test_from_tags_of_other_tags_is_none(tags):
    assert ProcessIdentity.from_tags(tags) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the time of the boot comes from /proc")
def test_identity_stays_when_the_clock_is_set(monkeypatch):
    """A step of the clock moves the time of the boot, from which psutil computes when a process was created."""
    before, created = process_of(this_process().id), psutil.Process().create_time()
    boot_time = psutil._pslinux.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot_time + 1)
    assert psutil.Process().create_time() > created
    assert process_of(this_process().id) == before == this_process()
    assert liveness(before) == "alive"


def test_identity_stays_when_the_host_is_renamed(monkeypatch):
    before = this_process()
    monkeypatch.setattr(pipeline.runtime.process.socket, "gethostname", lambda: "renamed")
    assert this_process() == before


def test_process_of_an_ended_process_raises(ended):
    with pytest.raises(ProcessLookupError):
        process_of(ended.id)


def test_liveness_of_this_process_is_alive():
    assert liveness(this_process()) == "alive"


def test_liveness_of_an_ended_process_is_dead(ended):
    assert liveness(ended) == "dead"


def test_liveness_of_a_reused_process_id_is_dead():
    assert liveness(replace(this_process(), started=this_process().started - 1)) == "dead"


def test_liveness_of_a_zombie_is_dead():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    zombie = process_of(process.pid)
    process.stdin.close()
    deadline = time.monotonic() + 30
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
    assert liveness(zombie) == "dead"
    process.wait()


def test_liveness_of_another_users_process_that_proc_hides_is_unknown(ended, monkeypatch):
    """As with hidepid=2: there is no entry in /proc, but the process cannot be signalled either."""

    def kill(pid, number):
        raise PermissionError

    monkeypatch.setattr(pipeline.runtime.process.os, "kill", kill)
    assert liveness(ended) == "unknown"


@pytest.mark.parametrize("change", [{"host": "another"}, {"namespace": "pid:[1]"}, {"boot": "another"}])
def test_liveness_elsewhere_without_a_lock_is_unknown(ended, change):
    assert liveness(replace(ended, **change)) == "unknown"


def test_liveness_in_another_namespace_or_after_a_restart_follows_the_lock(tmp_path, monkeypatch):
    with announced(tmp_path, monkeypatch) as process:
        identity = process_of(process.pid)
        # what a process of another PID namespace, or of the next boot, finds
        for change in ({"namespace": "pid:[1]"}, {"boot": "another"}):
            monkeypatch.setattr(
                pipeline.runtime.process, "this_process", lambda change=change: replace(this_process(), **change)
            )
            assert liveness(identity) == "alive"
        process.kill()
        process.wait()
        assert liveness(identity) == "dead"
        monkeypatch.setattr(
            pipeline.runtime.process, "this_process", lambda: replace(this_process(), host="another", boot="2")
        )
        assert liveness(identity) == "unknown", "another host need not see its lock"


def test_announce_process_returns_this_process_without_a_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    pipeline.runtime.process._hold_lock.cache_clear()
    assert announce_process() == this_process()
    pipeline.runtime.process._hold_lock.cache_clear()


def test_announce_process_removes_the_old_locks_of_ended_processes(tmp_path, monkeypatch):
    with announced(tmp_path, monkeypatch):
        folder = tmp_path / "convmixer" / "processes"
        (live,) = folder.iterdir()
        (folder / "recent").touch()
        (folder / "old").touch()
        long_ago = time.time() - 86_400 * (pipeline.runtime.process.LOCK_DAYS + 1)
        for file in (live, folder / "old"):
            pipeline.runtime.process.os.utime(file, (long_ago, long_ago))
        with announced(tmp_path, monkeypatch):
            assert {live.name, "recent"} <= {file.name for file in folder.iterdir()}
            assert not (folder / "old").exists()
