"""One driver a study: who is refused, and when the lease is another's to take."""

import socket
import subprocess
import sys
import time

import psutil
import pytest

from pipeline.runtime.errors import UsageError
from pipeline.search import coordination
from pipeline.search.coordination import LEASE_SILENCE_SECONDS, Lease
from tests.support.paths import ROOT
from tests.support.scripted import made_search, opened

HOLDER = """
import sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from tests.support.scripted import made_search, opened
from pipeline.search.coordination import Lease
study = opened(Path(sys.argv[3]), made_search(Path(sys.argv[3])))
lease = Lease(lambda: study.get_attr("lease"), lambda value: study.set_attr("lease", value))
print("held", flush=True)
sys.stdin.read()
"""


class Noted:
    """A study's note, in memory."""

    def __init__(self, value=None):
        self.value, self.written = value, 0

    def read(self):
        return self.value

    def write(self, value):
        self.value, self.written = value, self.written + 1


@pytest.fixture
def noted(monkeypatch):
    monkeypatch.setattr(coordination, "SETTLE_SECONDS", 0.0)
    return Noted()


def held_by(process, *, host=None, started=None, beat=None):
    return {
        "host": host or socket.gethostname(),
        "process": process.pid,
        "started": started or psutil.Process(process.pid).create_time(),
        "beat": beat or time.time(),
    }


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_a_second_driver_is_refused_in_one_line_while_the_first_lives_and_not_after_a_kill(tmp_path):
    search = made_search(tmp_path)
    study = opened(tmp_path, search)
    paths = [str(coordination.__file__).rsplit("/pipeline/", 1)[0], str(ROOT), str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UsageError) as refused:
            Lease(lambda: study.get_attr("lease"), lambda value: study.set_attr("lease", value))
        assert f"process {process.pid} on {socket.gethostname()} holds this one" in str(refused.value)
        assert "\n" not in str(refused.value)
        process.kill()
        process.wait()
    Lease(lambda: study.get_attr("lease"), lambda value: study.set_attr("lease", value))
    assert study.get_attr("lease")["process"] == psutil.Process().pid


def test_a_killed_driver_that_nobody_has_waited_for_is_gone(noted, sleeper):
    noted.value = held_by(sleeper)
    sleeper.kill()
    while psutil.Process(sleeper.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    Lease(noted.read, noted.write)


def test_a_process_number_that_went_to_another_process_holds_nothing(noted, sleeper):
    noted.value = held_by(sleeper, started=psutil.Process(sleeper.pid).create_time() - 100)
    Lease(noted.read, noted.write)


def test_a_clock_that_was_corrected_does_not_free_the_lease_of_a_living_driver(noted, sleeper):
    noted.value = held_by(sleeper, started=psutil.Process(sleeper.pid).create_time() + 1)
    with pytest.raises(UsageError):
        Lease(noted.read, noted.write)


def test_the_driver_of_this_host_holds_the_study_however_long_it_is_silent(noted, sleeper):
    noted.value = held_by(sleeper, beat=time.time() - 10 * LEASE_SILENCE_SECONDS)
    with pytest.raises(UsageError, match="one driver at a time"):
        Lease(noted.read, noted.write)


def test_the_driver_of_another_host_is_judged_by_its_silence(noted, sleeper):
    noted.value = held_by(sleeper, host="elsewhere", beat=time.time() - LEASE_SILENCE_SECONDS / 2)
    with pytest.raises(UsageError, match="on elsewhere holds this one"):
        Lease(noted.read, noted.write)
    noted.value = held_by(sleeper, host="elsewhere", beat=time.time() - LEASE_SILENCE_SECONDS - 1)
    Lease(noted.read, noted.write)


def test_of_two_that_begin_at_once_the_later_write_stands(noted, sleeper, monkeypatch):
    monkeypatch.setattr(coordination.time, "sleep", lambda seconds: noted.write(held_by(sleeper, host="elsewhere")))
    with pytest.raises(UsageError, match="began at this moment"):
        Lease(noted.read, noted.write)


def test_a_lease_is_renewed_now_and_then_and_let_go(noted, monkeypatch):
    lease = Lease(noted.read, noted.write)
    first = noted.value["beat"]
    lease.beat()
    assert noted.written == 1
    now = time.time()
    monkeypatch.setattr(coordination.time, "time", lambda: now + 60)
    lease.beat()
    assert noted.value["beat"] > first and noted.written == 2
    lease.release()
    assert noted.value is None


def test_a_driver_that_was_taken_for_gone_stops_and_leaves_the_lease_to_the_other(noted, sleeper, monkeypatch):
    lease = Lease(noted.read, noted.write)
    taken = noted.value = held_by(sleeper, host="elsewhere")
    lease.beat()  # too soon after the last one to ask
    now = time.time()
    monkeypatch.setattr(coordination.time, "time", lambda: now + 10 * LEASE_SILENCE_SECONDS)
    with pytest.raises(UsageError, match="another one went on"):
        lease.beat()
    lease.release()
    assert noted.value == taken
