"""What a search that goes on forgets; trials are scripted."""

import sys

import pytest
from scripted import RANGE, Runs, Scripted, ended, made_search, opened, trained

from pipeline.study.driver import Failing
from pipeline.study.final import NOTE
from pipeline.study.searching import _drive, dashboard
from pipeline.study.session import Session
from pipeline.study.study_report import WINNER
from pipeline.workers.jobs import Outcome


@pytest.fixture
def go_on(tmp_path):
    """Drives a study that has a winner among two trials; returns the study."""

    def run(trials, answer):
        study = opened(tmp_path, made_search(tmp_path, RANGE, "--trials", str(trials)))
        for _ in range(2):
            study.complete(study.ask().number, [0.5])
        study.note(WINNER, {"test_accuracy": 0.7})
        study.note(NOTE, ["finalist"])
        _drive(Session(study, Runs(), Scripted(answer), lambda: 0, beat=lambda: None, say=lambda line: None))
        return study

    return run


def test_with_nothing_more_to_try_the_winner_stays(go_on):
    study = go_on(2, lambda job: trained(job, 0.9))
    assert (study.noted(WINNER), study.noted(NOTE)) == ({"test_accuracy": 0.7}, ["finalist"])


def test_a_winner_among_fewer_trials_is_none_any_more(go_on):
    study = go_on(3, lambda job: trained(job, 0.9))
    assert (study.noted(WINNER), study.noted(NOTE)) == (None, None)


def test_nor_is_it_where_the_trials_that_were_added_end_in_failures(go_on, tmp_path):
    answers = iter([True, False, False, False])
    with pytest.raises(Failing):
        go_on(9, lambda job: trained(job, 0.9) if next(answers) else [ended(job, Outcome.RAISED, "no such thing")])
    study = opened(tmp_path, made_search(tmp_path, RANGE, "--trials", "9"))
    assert (study.noted(WINNER), study.noted(NOTE)) == (None, None)


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("sqlite:////my runs/optuna.db", "uvx optuna-dashboard 'sqlite:////my runs/optuna.db'"),
        (
            "postgresql://me:secret@host/studies",
            "uvx --with 'psycopg[binary]' optuna-dashboard 'postgresql://me:***@host/studies'",
        ),
    ],
)
def test_the_command_of_optuna_s_own_pages_holds_no_password(url, command, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert dashboard(url) == command


def test_optuna_s_own_pages_are_fetched_by_the_uv_beside_python_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "uv").touch()
    assert dashboard("sqlite:///optuna.db") == f"{tmp_path}/uv tool run optuna-dashboard sqlite:///optuna.db"
