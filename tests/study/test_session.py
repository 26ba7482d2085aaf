"""A search opens no run while the tracking server is away, waits for it, and can be stopped meanwhile."""

import pytest

from pipeline.study import session
from pipeline.study.session import Session
from pipeline.study.track_study import Away


class Runs:
    """Begins a run when it has been asked so often."""

    def __init__(self, away):
        self.away = away

    def child(self, name, *, role, tags, under=None):
        self.away -= 1
        if self.away >= 0:
            raise Away("nobody answers")
        return f"run of {name}"


@pytest.fixture
def beats(monkeypatch):
    monkeypatch.setattr(session, "WAIT_SECONDS", 0)
    return []


def opened(runs, beats, interrupts=lambda: 0):
    return Session(None, runs, None, interrupts, lambda: beats.append(1), print)


def test_a_run_is_begun_when_the_server_is_back_and_the_study_is_held_meanwhile(beats):
    assert opened(Runs(3), beats).child("t000", role="trial", tags={}) == "run of t000"
    assert len(beats) == 3


def test_who_is_asked_to_stop_waits_no_longer(beats):
    def interrupts():
        return int(len(beats) >= 2)

    assert opened(Runs(1_000_000), beats, interrupts).child("t000", role="trial", tags={}) is None
    assert len(beats) == 2
