"""Tests of the events of a search: scripted trials, a real study."""

from types import SimpleNamespace

import pytest

from pipeline.search.attributes import WINNER
from pipeline.search.events import SearchEvents
from pipeline.search.loop import SearchLoop
from pipeline.tracking.tags import RunOutcome
from tests.support.scripted import (
    CONTINUOUS,
    ScriptedExecutor,
    make_search,
    open_study,
    search_context,
    successful_trial,
)


@pytest.fixture
def sent():
    return []


@pytest.fixture
def drive(tmp_path, sent):
    """Return a function that runs a search whose trials have the given accuracies, one at a time."""

    def drive_it(accuracies, *flags, best_seconds=0.0):
        study = open_study(tmp_path, make_search(tmp_path, CONTINUOUS, "--trials", str(len(accuracies)), *flags))
        study.requeue_stale()
        beats = []
        record = SimpleNamespace(
            send=lambda kind, text, **more: sent.append((kind, text, more)), beat=lambda: beats.append(1)
        )
        notify = SearchEvents(study, record, best_seconds=best_seconds)
        executor = ScriptedExecutor(lambda job: successful_trial(job, accuracies[job.number]))
        SearchLoop(search_context(study, executor, notify=notify)).run()
        drive_it.beats = len(beats)
        return study, notify

    return drive_it


def texts(sent, kind):
    return [text for each, text, _ in sent if each == kind]


def test_new_best_is_said_of_each_trial_that_beats_an_earlier_one(drive, sent):
    drive([0.5, 0.4, 0.6, 0.55, 0.7])
    best = texts(sent, "new_best")
    assert [text.split(",")[0].split()[2] for text in best] == ["t002", "t004"]
    assert best[0].endswith("val_accuracy 60.00 %; 3 of 5 trials are done")
    assert sent[0][2]["metrics"] == {"val_accuracy": 0.6}


def test_new_best_is_said_at_most_once_in_a_while(drive, sent):
    drive([0.1, 0.2, 0.3, 0.4, 0.5], best_seconds=3600)
    assert len(texts(sent, "new_best")) == 1


def test_new_best_of_two_metrics_is_not_said(drive, sent):
    drive([0.5, 0.6, 0.7], "--metric", "val_accuracy,parameters")
    assert texts(sent, "new_best") == []


def test_budget_that_is_nearly_spent_is_said_once_for_each_budget(drive, sent):
    drive([0.5] * 10)
    (said,) = texts(sent, "budget")
    assert said.startswith("90 % of its 10 trials are spent; best so far: t000 ")
    drive([0.5] * 11)
    assert len(texts(sent, "budget")) == 2


def test_each_batch_of_reports_and_results_is_a_beat(drive):
    drive([0.5, 0.6])
    assert drive.beats == 4


def test_ended_names_the_winner_or_else_the_best_trial(drive, sent):
    study, notify = drive([0.5, 0.6])
    notify.ended(RunOutcome.FINISHED, "")
    winner = {"trial": 1, "params": {"depth": 2}, "test_accuracy": 0.55, "seed": 0, "val_accuracy_mean": 0.6}
    study.set_attr(WINNER, winner)
    notify.ended(RunOutcome.FINISHED, "")
    trial, final = texts(sent, "finished")
    assert trial.startswith("finished: t001 ") and trial.endswith("val_accuracy 60.00 %")
    assert final == "finished: winner t001 d2, test accuracy 55.00 %"
    assert sent[-1][2]["metrics"] == {"test_accuracy": 0.55, "val_accuracy_mean": 0.6}


@pytest.mark.parametrize(("outcome", "kind"), [(RunOutcome.FAILED, "failed"), (RunOutcome.STOPPED, "stopped")])
def test_ended_otherwise_says_why(drive, sent, outcome, kind):
    _, notify = drive([0.5])
    notify.ended(outcome, "the cluster is lost")
    assert sent[-1] == (kind, f"{kind}: the cluster is lost", {"reason": "the cluster is lost"})
