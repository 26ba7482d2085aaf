"""Tests of the events of a run."""

import signal
import statistics
from functools import partialmethod

import pytest

from pipeline.notifications.notifier import Notifier
from pipeline.notifications.receivers import Webhook
from pipeline.notifications.stall import StallWatch
from pipeline.runtime.errors import Diverged, OutOfMemory, Stopped, Unavailable
from pipeline.tracking import run_events
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.experiment_page import run_url
from pipeline.tracking.lifecycle import start_run
from pipeline.tracking.run_events import RunEvents, send_events
from pipeline.tracking.tags import Role
from tests.support.webhooks import Hook, webhook


@pytest.fixture
def hook():
    hook = Hook()
    with webhook(hook) as url, Notifier([Webhook(url)]) as hook.notifier:
        yield hook


@pytest.mark.parametrize(
    ("error", "kind", "text", "reason"),
    [
        (Diverged("loss became nan"), "diverged", "diverged: loss became nan", "loss became nan"),
        (Stopped(signal.SIGTERM), "stopped", "stopped by SIGTERM", "by SIGTERM"),
        (KeyboardInterrupt(), "stopped", "stopped by SIGINT", "by SIGINT"),
        (OutOfMemory("no room"), "failed", "failed: no room", "no room"),
        (KeyError("x"), "failed", "failed: KeyError: 'x'", "KeyError: 'x'"),
    ],
)
def test_send_events_says_what_ended_the_run(store, hook, error, kind, text, reason):
    with pytest.raises(type(error)), start_run(role=Role.RUN) as run, send_events(run, hook.notifier):
        run.set_name("mine")
        raise error
    (event,) = hook.wait(1)
    assert (event["event"], event["reason"]) == (kind, reason)
    assert event["text"] == f"{run.name}: {text}" and run.name.startswith("mine")
    assert (event["run_id"], event["role"], event["experiment"], event["url"]) == (run.id, "run", "mine", "")


def test_send_events_says_nothing_of_a_run_that_ends_well_but_what_it_is_told(store, hook):
    with start_run(role=Role.RUN) as run, send_events(run, hook.notifier) as events:
        events.send("finished", "finished: test accuracy 97%", metrics={"test_accuracy": 0.97})
    hook.notifier.flush(5)
    assert [event["metrics"] for event in hook.events] == [{"test_accuracy": 0.97}]


def test_watch_epochs_says_that_a_training_stalls_and_goes_on(store, hook, monkeypatch):
    stall = lambda *arguments, usual: StallWatch(*arguments, usual=usual, least_seconds=0.2)  # noqa: E731
    monkeypatch.setattr(run_events, "StallWatch", stall)
    monkeypatch.setattr(StallWatch, "watching", partialmethod(StallWatch.watching, check_seconds=0.01))
    with start_run(role=Role.RUN) as run:
        events = RunEvents(hook.notifier, run, Role.RUN)
        with events.watch_epochs():
            events.beat()
            hook.wait(1)
            events.beat()
            hook.wait(2)
    assert hook.kinds() == ["stalled", "recovered"]
    assert [event["reason"] for event in hook.events] == ["", ""]
    assert "stalled: no epoch has ended for 0 s; usually one takes 0 s" in hook.events[0]["text"]


def test_run_events_ask_nothing_of_mlflow_where_nobody_is_notified(store, monkeypatch):
    with start_run(role=Role.RUN) as run:
        monkeypatch.setattr(run_events, "TrackingClient", None)
        events = RunEvents(Notifier(), run, Role.RUN)
        events.send("finished", "finished")
        with events.watch_epochs():
            events.beat()


def test_run_events_name_the_run_its_experiment_and_its_page_on_a_server(store, hook, monkeypatch):
    monkeypatch.setattr(run_events, "ui_command", lambda: "")
    with start_run(role=Role.SEARCH) as run:
        RunEvents(hook.notifier, run, Role.SEARCH).send("new_best", "a new best", reason="why")
    (event,) = hook.wait(1)
    assert (event["event"], event["role"], event["name"], event["reason"]) == ("new_best", "search", run.name, "why")
    assert event["url"] == run_url(run.experiment_id, run.id) and event["experiment"] == "mine"
    assert event["text"] == f"{run.name}: a new best" and event["metrics"] == {}


def test_run_events_of_a_server_that_does_not_answer_have_no_experiment(store, hook, monkeypatch):
    def refuse(self, experiment_id):
        raise Unavailable("away")

    with start_run(role=Role.RUN) as run:
        monkeypatch.setattr(TrackingClient, "experiment_name", refuse)
        RunEvents(hook.notifier, run, Role.RUN).send("finished", "finished")
    (event,) = hook.wait(1)
    assert (event["run_id"], event["experiment"], event["url"]) == (run.id, "", "")


def test_watch_epochs_takes_the_median_for_usual_unless_told_otherwise_and_ends(store, hook, monkeypatch):
    watches = []

    class Watch(StallWatch):
        def __init__(self, *arguments, usual):
            super().__init__(*arguments, usual=usual)
            watches.append((usual, *arguments))

    monkeypatch.setattr(run_events, "StallWatch", Watch)
    with start_run(role=Role.RUN) as run:
        events = RunEvents(hook.notifier, run, Role.RUN)
        events.beat()
        with events.watch_epochs():
            assert events._watch
        with events.watch_epochs(usual=max):
            pass
        assert events._watch is None
        events.beat()
    assert [usual for usual, *_ in watches] == [statistics.median, max]
    _, on_stall, on_recovery = watches[0]
    on_stall(600.0, 60.0)
    on_recovery(720.0)
    assert [event["text"] for event in hook.wait(2)] == [
        f"{run.name}: stalled: no epoch has ended for 10 min; usually one takes 60 s",
        f"{run.name}: goes on: an epoch has ended after 12 min",
    ]
    assert hook.kinds() == ["stalled", "recovered"]
