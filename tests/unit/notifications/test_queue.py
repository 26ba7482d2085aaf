"""Tests of the events that wait on this machine's disk."""

import json
import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from pipeline.notifications.queue import LOCK, MAX_AGE_SECONDS, EventQueue, queues
from pipeline.notifications.receivers import FOLDER, Away, Refused
from pipeline.runtime.files import cache_folder, try_lock
from tests.support.paths import ROOT


def event(number):
    return {"text": f"number {number}", "id": f"{number:08d}"}


@pytest.fixture
def queue(tmp_path):
    return EventQueue(tmp_path / "queue")


def put(queue, *numbers):
    for number in numbers:
        queue.put(event(number), receiver="https://host")


def test_drain_delivers_in_order_and_once(queue):
    put(queue, 3, 1, 2)
    got = []
    assert queue.drain(got.append) == ""
    queue.drain(got.append)
    assert got == [event(3), event(1), event(2)] and not queue.pending()


def test_drain_keeps_what_the_receiver_does_not_take_now(queue):
    put(queue, 1, 2)
    got = []

    def deliver(one):
        if one == event(2):
            raise Away("later")
        got.append(one)

    with pytest.raises(Away):
        queue.drain(deliver)
    assert got == [event(1)] and len(queue.pending()) == 1


def test_drain_sets_aside_what_the_receiver_refuses(queue):
    put(queue, 1, 2)
    got = []

    def deliver(one):
        if one == event(1):
            raise Refused("HTTP 404")
        got.append(one)

    assert queue.drain(deliver) == "HTTP 404"
    assert got == [event(2)] and len(queue.refused()) == 1 and not queue.pending()
    assert queue.take_back() == 1
    queue.drain(got.append)
    assert got == [event(2), event(1)]


def test_drain_leaves_events_to_the_process_that_delivers_them(queue):
    put(queue, 1)
    with try_lock(queue.folder / LOCK), pytest.raises(BlockingIOError):
        queue.drain(lambda one: pytest.fail("delivered twice"))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": 1}', b"\xff", b"[" * 100_000])
def test_drain_removes_a_damaged_file(queue, content):
    put(queue, 1)
    (queue.folder / "00000000000000000000-damaged.json").write_bytes(content)
    got = []
    queue.drain(got.append)
    assert got == [event(1)] and not queue.pending()


def test_put_keeps_the_newest_events_of_the_last_days(queue, monkeypatch):
    monkeypatch.setattr("pipeline.notifications.queue.MAX_EVENTS", 3)
    put(queue, *range(5))
    assert [json.loads(path.read_bytes()) for path in queue.pending()] == [event(2), event(3), event(4)]
    week_ago = time.time() - MAX_AGE_SECONDS - 60
    os.utime(queue.pending()[0], (week_ago, week_ago))
    got = []
    queue.drain(got.append)
    assert got == [event(3), event(4)]


def test_put_writes_private_files(queue):
    put(queue, 1)
    assert stat.S_IMODE(queue.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in queue.folder.iterdir()} == {0o600}
    assert queue.receiver() == "https://host"


def test_put_survives_a_kill(queue):
    code = (
        "import os, signal; from pathlib import Path; from pipeline.notifications.queue import EventQueue\n"
        f"EventQueue(Path({str(queue.folder)!r})).put({event(7)!r}, receiver='https://host')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    got = []
    queue.drain(got.append)
    assert got == [event(7)]


def test_queues_are_those_in_which_something_waits():
    waiting, empty = (EventQueue(cache_folder(FOLDER, name)) for name in ("test-waiting", "test-empty"))
    put(waiting, 1)
    put(empty, 1)
    empty.drain(lambda one: None)
    folders = {one.folder for one in queues()}
    assert waiting.folder in folders and empty.folder not in folders
    waiting.drain(lambda one: None)
