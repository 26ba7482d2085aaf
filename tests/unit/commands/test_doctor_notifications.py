"""Tests of the doctor's check of notifications."""

import pytest

from pipeline.commands.doctor_notifications import check_notifications
from pipeline.notifications.queue import EventQueue
from pipeline.notifications.receivers import Webhook
from tests.support.ports import free_port
from tests.support.webhooks import Hook, webhook

PATH = "/services/T0/Pl4nted-path"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("CONVMIXER_NOTIFY_URL", "CONVMIXER_NOTIFY_COMMAND"):
        monkeypatch.delenv(name, raising=False)


def lines(**options):
    return [str(result) for result in check_notifications(**options)]


def put(url):
    queue = EventQueue(Webhook(url).folder)
    queue.put({"text": "left", "id": "00000001"}, receiver=Webhook(url).name)
    return queue


def test_check_notifications_has_nothing_to_say_where_nobody_is_notified():
    assert lines() == []


def test_check_notifications_delivers_what_waits_and_sends_nothing_else(monkeypatch):
    hook = Hook()
    with webhook(hook) as url:
        put(url)
        monkeypatch.setenv("CONVMIXER_NOTIFY_URL", url)
        assert lines() == lines() == [f"ok       notifications go to {Webhook(url).name}"]
    assert [event["text"] for event in hook.events] == ["left"]


def test_check_notifications_names_what_waits_for_a_receiver_without_its_address(monkeypatch):
    url = f"http://127.0.0.1:{free_port()}{PATH}"
    put(url)
    (line,) = lines()
    assert line.startswith(f"warning  1 notification for {Webhook(url).name} in ") and "CONVMIXER_NOTIFY_URL" in line
    monkeypatch.setenv("CONVMIXER_NOTIFY_URL", url)
    assert "sent when it answers" in lines()[1] and "Pl4nted" not in "".join(lines())


def test_check_notifications_resends_what_was_refused_if_it_is_told_to(monkeypatch):
    hook = Hook()
    hook.statuses = [404]
    with webhook(hook) as url:
        put(url)
        monkeypatch.setenv("CONVMIXER_NOTIFY_URL", url)
        assert "1 notification refused by" in lines()[1]
        assert len(lines()) == 2 and not hook.events
        assert len(lines(resend=True)) == 1
    assert [event["text"] for event in hook.events] == ["left"]


def test_check_notifications_with_an_unusable_address_is_an_error(monkeypatch):
    monkeypatch.setenv("CONVMIXER_NOTIFY_URL", "Pl4nted")
    (line,) = lines()
    assert line.startswith("error    CONVMIXER_NOTIFY_URL must be an http:// or https://") and "Pl4nted" not in line
