"""Tests of sending events through outages of their receiver, without waiting for it."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pipeline.notifications.events import Subject, make_event
from pipeline.notifications.notifier import Notifier, deliver_pending
from pipeline.notifications.queue import EventQueue
from pipeline.notifications.receivers import Webhook
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.webhooks import Hook, webhook

PAUSES = (0.05,)
PATH = "/services/T0/Pl4nted-path"


def event(text="finished"):
    return make_event("finished", Subject("run", "0" * 32, "digits", "mine", ""), text)


@pytest.fixture
def hook():
    return Hook()


def receiver(port):
    return Webhook(f"http://127.0.0.1:{port}{PATH}")


def test_send_does_not_wait_for_a_receiver_that_hangs(hook, monkeypatch):
    monkeypatch.setattr("pipeline.notifications.notifier.END_SECONDS", 0.3)
    release = threading.Event()

    class Hanging(Webhook):
        def deliver(self, event):
            release.wait(20)

    began = time.monotonic()
    with Notifier([Hanging("http://127.0.0.1:1/hang")]) as notifier:
        notifier.send(event())
        assert time.monotonic() - began < 0.5
    assert time.monotonic() - began < 2
    release.set()


def test_events_of_an_outage_arrive_in_order_when_it_is_over(hook, caplog):
    port = free_port()
    with caplog.at_level(logging.INFO, "pipeline"), Notifier([receiver(port)], pauses=PAUSES) as notifier:
        notifier.send(event("one"))
        notifier.send(event("two"))
        time.sleep(0.3)
        assert not notifier.flush(5)
        with webhook(hook, port):
            hook.wait(2)
            assert notifier.flush(5)
    assert [one["text"] for one in hook.events] == ["digits: one", "digits: two"]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "does not take notifications now ([Errno 111] Connection refused)" in said[0]
    assert f"http://127.0.0.1:{port} answers again" in said[1] and "Pl4nted" not in "".join(said)


def test_what_is_pending_is_sent_by_the_next_command(hook):
    port = free_port()
    with Notifier([receiver(port)], pauses=PAUSES) as notifier:
        notifier.send(event("left"))
    with webhook(hook, port) as url, deliver_pending(environ := {"OTHER": "stays", "CONVMIXER_NOTIFY_URL": url}):
        hook.wait(1)
    # no process that is started later sees the address
    assert environ == {"OTHER": "stays"}
    assert [one["text"] for one in hook.events] == ["digits: left"]
    assert not EventQueue(receiver(port).folder).pending()


def test_deliver_pending_does_without_a_receiver_that_cannot_be_used():
    with deliver_pending({"CONVMIXER_NOTIFY_URL": "slack"}):
        pass


def test_a_refusal_is_said_once_and_set_aside(hook, caplog):
    hook.statuses = [404, 410]
    with webhook(hook) as url, Notifier([Webhook(url)], pauses=PAUSES) as notifier:
        for text in ("one", "two", "three"):
            notifier.send(event(text))
            notifier.flush(5)
    assert [one["text"] for one in hook.events] == ["digits: three"]
    assert len(EventQueue(Webhook(url).folder).refused()) == 2
    (said,) = [record.getMessage() for record in caplog.records]
    assert "refuses notifications (HTTP 404 Not Found)" in said and "Pl4nted" not in said


def test_events_are_sent_where_the_disk_has_no_room(hook, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EventQueue, "put", full)
    with webhook(hook) as url, Notifier([Webhook(url)], pauses=PAUSES) as notifier:
        notifier.send(event())
        hook.wait(1)
        assert notifier.flush(5)


def test_a_killed_process_loses_nothing_that_was_sent(hook):
    port = free_port()
    code = f"""
import os, signal
from pipeline.notifications.notifier import Notifier
from pipeline.notifications.receivers import Webhook
notifier = Notifier([Webhook("http://127.0.0.1:{port}{PATH}")])
for number in range(3):
    notifier.send({{"event": "finished", "text": str(number), "id": f"{{number:08d}}"}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ}, check=False)
    assert done.returncode == -signal.SIGKILL
    with webhook(hook, port), Notifier([receiver(port)], pauses=PAUSES):
        hook.wait(3)
    assert [one["text"] for one in hook.events] == ["0", "1", "2"]


def test_two_processes_send_each_event_once(hook):
    with webhook(hook) as url:
        notifiers = [Notifier([Webhook(url)], pauses=PAUSES) for _ in range(3)]
        for number in range(30):
            notifiers[number % 3].send(event(str(number)))
        for notifier in notifiers:
            assert notifier.flush(20)
            notifier.close()
    assert sorted(int(one["text"].split()[1]) for one in hook.events) == list(range(30))
