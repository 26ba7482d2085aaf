"""The identity of a process, and the liveness of processes of this host, another host and another boot."""

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


def test_from_tags_reads_back_what_tags_wrote():
    me = this_process()
    read_back = ProcessIdentity.from_tags(me.tags() | {"other": "tag"})
    assert replace(read_back, started=me.started) == me
    assert read_back.started == pytest.approx(me.started, abs=0.01)


@pytest.mark.parametrize("tags", [{}, {"host": "a"}, {**this_process().tags(), "process": "many"}])
def test_from_tags_of_other_tags_is_none(tags):
    assert ProcessIdentity.from_tags(tags) is None


def test_liveness_of_this_process_is_alive():
    assert liveness(ProcessIdentity.from_tags(this_process().tags()), last_seen=NOW) == "alive"


def test_liveness_of_an_ended_process_is_dead(ended):
    assert liveness(ended, last_seen=NOW) == "dead"


def test_liveness_of_a_reused_process_id_is_dead():
    me = this_process()
    assert liveness(replace(me, started=me.started - 100), last_seen=NOW) == "dead"


def test_liveness_of_a_zombie_is_dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    zombie = replace(this_process(), id=process.pid, started=psutil.Process(process.pid).create_time())
    deadline = time.monotonic() + 30
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
    assert liveness(zombie, last_seen=NOW) == "dead"
    process.wait()


def test_liveness_of_a_process_of_an_earlier_boot_is_dead():
    before = psutil.boot_time() - 60
    assert liveness(replace(this_process(), boot="another"), last_seen=before) == "dead"


def test_liveness_on_a_host_of_the_same_name_is_unknown():
    assert liveness(replace(this_process(), boot="another"), last_seen=NOW) == "unknown"


def test_liveness_on_another_host_or_in_another_container_is_unknown(ended):
    assert liveness(replace(ended, host="another"), last_seen=NOW) == "unknown"
    assert liveness(replace(ended, namespace="pid:[1]"), last_seen=NOW) == "unknown"
