"""Who a process is, and what another host's, another boot's or a dead one's looks like from here."""

import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from pipeline.runtime.process import ProcessIdentity, liveness, this_process

NOW = time.time()


@pytest.fixture
def ended():
    """A process that has ended and whose id nobody else bears yet."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        return replace(this_process(), id=process.pid, started=psutil.Process(process.pid).create_time())


def test_a_process_is_read_back_from_its_tags():
    me = this_process()
    found = ProcessIdentity.from_tags(me.tags() | {"other": "tag"})
    assert replace(found, started=me.started) == me
    assert found.started == pytest.approx(me.started, abs=0.01)


@pytest.mark.parametrize("tags", [{}, {"host": "a"}, {**this_process().tags(), "process": "many"}])
def test_tags_that_name_no_process_name_none(tags):
    assert ProcessIdentity.from_tags(tags) is None


def test_this_process_lives():
    assert liveness(ProcessIdentity.from_tags(this_process().tags()), last_seen=NOW) == "alive"


def test_a_process_that_has_ended_is_gone(ended):
    assert liveness(ended, last_seen=NOW) == "dead"


def test_a_process_whose_id_went_to_another_is_gone():
    me = this_process()
    assert liveness(replace(me, started=me.started - 100), last_seen=NOW) == "dead"


def test_a_process_that_has_ended_and_that_nobody_took_leave_of_is_gone():
    process = subprocess.Popen([sys.executable, "-c", ""])
    zombie = replace(this_process(), id=process.pid, started=psutil.Process(process.pid).create_time())
    deadline = time.monotonic() + 30
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
    assert liveness(zombie, last_seen=NOW) == "dead"
    process.wait()


def test_what_ran_before_this_host_was_started_again_is_gone():
    before = psutil.boot_time() - 60
    assert liveness(replace(this_process(), boot="another"), last_seen=before) == "dead"


def test_what_gave_a_sign_since_this_host_was_started_and_knows_of_another_start_is_on_a_namesake():
    assert liveness(replace(this_process(), boot="another"), last_seen=NOW) == "unknown"


def test_what_runs_on_another_host_or_in_another_container_cannot_be_judged(ended):
    assert liveness(replace(ended, host="another"), last_seen=NOW) == "unknown"
    assert liveness(replace(ended, namespace="pid:[1]"), last_seen=NOW) == "unknown"
