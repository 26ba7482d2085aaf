"""Studies in a real Optuna storage: what they count and keep from one driver to the next."""

import optuna
import pytest

from pipeline.runtime.errors import UsageError
from pipeline.search.attributes import ATTEMPT, INFEASIBLE
from pipeline.search.study import Study
from pipeline.search.trial_states import enqueue
from tests.support.scripted import CONTINUOUS, DISCRETE, finish, make_search, states

# what comes next


def test_resumed_study_enqueues_nothing_again(study):
    text = CONTINUOUS + "enqueue: [{learning_rate: 0.01}]"
    assert finish(study(text))[0].params == {"learning_rate": 0.01}
    assert finish(study(text))[0].params != {"learning_rate": 0.01}
    assert states(study(text)) == ["COMPLETE", "COMPLETE"]


def test_kill_between_two_enqueued_configurations_loses_neither(study, monkeypatch):
    text = DISCRETE + "enqueue: [{kernel_size: 5, depth: 2}, {kernel_size: 3}, {kernel_size: 1, depth: 1}]"
    enqueue_trial, calls = optuna.Study.enqueue_trial, []

    def killed_at_the_third(*given, **more):
        calls.append(given)
        return enqueue_trial(*given, **more) if len(calls) < 3 else 1 / 0

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(optuna.Study, "enqueue_trial", killed_at_the_third)
        study(text)
    proposals = finish(study(text), 3)
    assert [one.params["kernel_size"] for one in proposals] == [5, 3, 1]
    assert [dict(proposals[place].params) for place in (0, 2)] == [
        {"kernel_size": 5, "depth": 2},
        {"kernel_size": 1, "depth": 1},
    ]
    assert states(study(text)) == ["COMPLETE"] * 3


# what died


def test_stale_trial_is_failed_and_requeued_as_the_same_attempt(study):
    mine = study()
    (done,) = finish(mine)
    first = mine.ask()
    mine.fail(first.number, retry=True)
    lost = mine.ask()
    assert (lost.params, lost.attempt) == (first.params, 2)
    next_one = study()
    assert [trial.number for trial in next_one.requeue_stale()] == [lost.number]
    again = next_one.ask()
    assert (again.params, again.attempt) == (first.params, 2)
    assert states(next_one) == ["COMPLETE", "FAIL", "FAIL", "RUNNING"]
    assert done.params != again.params


def test_kill_while_a_stale_trial_is_requeued_loses_no_configuration(study, monkeypatch):
    lost = study().ask()
    next_one = study()
    monkeypatch.setattr(next_one.optuna_study, "tell", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next_one.requeue_stale()
    last = study()
    last.requeue_stale()
    assert last.ask().params == lost.params


def test_failed_trial_is_requeued_only_with_retry_and_its_attempts_are_counted(study):
    mine = study()
    one = mine.ask()
    for attempt in (1, 2):
        mine.fail(one.number, retry=True)
        again = mine.ask()
        assert (again.params, again.attempt) == (one.params, attempt + 1)
        one = again
    mine.fail(one.number, retry=False)
    assert mine.ask().params != one.params
    assert [trial.user_attrs.get(ATTEMPT, 1) for trial in mine.trials()] == [1, 2, 3, 1]


@pytest.mark.parametrize(
    ("end", "next_driver"),
    [
        (lambda study, number: study.requeue(number), False),
        (lambda study, number: study.fail(number, retry=True), False),
        (lambda study, number: study.requeue_stale(), True),
    ],
    ids=["requeue", "fail", "requeue_stale"],
)
def test_kill_before_a_configuration_is_queued_again_leaves_its_trial_to_the_next_driver(
    study, monkeypatch, end, next_driver
):
    driver = study()
    lost = driver.ask()
    if next_driver:
        driver = study()
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("pipeline.search.study.enqueue", lambda *_, **__: 1 / 0)
        end(driver, lost.number)
    last = study()
    last.requeue_stale()
    assert last.ask().params == lost.params


def test_trial_that_was_taken_from_the_queue_but_given_no_settings_is_requeued_with_the_queued_ones(study):
    mine = study()
    enqueue(mine.optuna_study, {"learning_rate": 0.0123}, attempt=2, node_losses=3)
    mine.optuna_study._pop_waiting_trial_id()
    (stale,) = study().requeue_stale()
    assert stale.params == {}
    again = study().ask()
    assert (again.params, again.attempt, again.node_losses) == ({"learning_rate": 0.0123}, 2, 3)


def test_requeued_trial_counts_the_loss_of_its_node_only_where_it_was_lost(study):
    mine = study()
    losses = []
    for lost in (True, True, False):
        mine.requeue(mine.ask().number, node_lost=lost)
        losses.append(mine.trials()[-1].user_attrs["node_losses"])
    assert losses == [1, 2, 2]
    assert mine.ask().node_losses == 2


def test_stopped_trial_is_requeued_as_the_same_attempt(study):
    mine = study()
    first = mine.ask()
    mine.fail(first.number, retry=True)
    second = mine.ask()
    mine.requeue(second.number)
    third = mine.ask()
    assert (third.params, third.attempt) == (first.params, second.attempt) == (first.params, 2)
    assert states(mine) == ["FAIL", "FAIL", "RUNNING"]


# values


def test_trial_below_the_median_is_pruned_after_the_warm_up_and_one_above_is_not(study):
    mine = study(CONTINUOUS, "--pruner", "median", "--pruner_trials", "2", "--pruner_epochs", "2")
    for value in (0.5, 0.6):
        one = mine.ask()
        assert [mine.report(one.number, epoch, value) for epoch in (1, 2, 3)] == [False, False, False]
        mine.complete(one.number, [value])
    bad, good = mine.ask(), mine.ask()
    assert [mine.report(bad.number, epoch, 0.1) for epoch in (1, 2)] == [False, True]  # it has had its two epochs
    assert [mine.report(good.number, epoch, 0.9) for epoch in (1, 2)] == [False, False]


@pytest.mark.parametrize(("epochs", "first"), [(8, 4), (5, 2), (1, 1)])
def test_median_by_default_leaves_each_trial_half_its_epochs(study, epochs, first):
    mine = study(CONTINUOUS, "--pruner", "median", "--pruner_trials", "1", "--epochs", str(epochs))
    good, bad = mine.ask(), mine.ask()
    for epoch in range(1, epochs + 1):
        mine.report(good.number, epoch, 0.9)
    mine.complete(good.number, [0.9])
    pruned = [epoch for epoch in range(1, epochs + 1) if mine.report(bad.number, epoch, 0.1)]
    assert pruned[0] == first


def test_study_without_pruner_prunes_no_trial(study):
    mine = study(CONTINUOUS, "--pruner", "none")
    finish(mine, 8, value=0.5)
    one = mine.ask()
    assert not any(mine.report(one.number, epoch, 0.0) for epoch in range(1, 9))


def test_study_with_two_metrics_keeps_values_in_order_and_prunes_no_trial(study):
    mine = study(CONTINUOUS, "--metric", "val_accuracy,parameters")
    for values in ([0.5, 10.0], [0.9, 30.0]):
        mine.complete(mine.ask().number, values)
    one = mine.ask()
    assert not mine.report(one.number, 9, 0.0)
    mine.prune(one.number, violation=True)
    assert [trial.values for trial in mine.ranked()] == [[0.9, 30.0], [0.5, 10.0]]
    assert mine.optuna_study.directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    assert states(mine)[2] == "PRUNED" and mine.n_finished() == 3


def test_refused_trial_is_pruned_as_infeasible_with_its_reason(study):
    mine = study(CONTINUOUS)
    mine.refuse(mine.ask().number, "too slow")
    (trial,) = mine.trials()
    assert states(mine) == ["PRUNED"] and trial.user_attrs[INFEASIBLE] == "too slow"
    assert trial.constraints == {"trainable": 1.0}


def test_lock_file_of_a_study_on_sqlite_is_held_by_one(study):
    mine = study(CONTINUOUS)
    with mine.lock_file() as first, mine.lock_file() as second:
        assert (first, second) == (True, False)


@pytest.mark.parametrize(("metric", "order"), [("val_accuracy", [1, 2, 0]), ("val_loss", [0, 1, 2])])
def test_ranked_puts_the_best_first_in_the_metrics_direction_and_the_earlier_of_equals(study, metric, order):
    mine = study(CONTINUOUS, "--metric", metric)
    assert mine.best() is None
    for value in (0.1, 0.6, 0.6):
        finish(mine, value=value)
    assert [trial.number for trial in mine.ranked()] == order
    assert mine.best().number == order[0]


def test_pareto_front_has_no_duplicates(study):
    mine = study(DISCRETE, "--metric", "val_accuracy,parameters")
    best = mine.ask()
    mine.complete(best.number, [0.9, 10.0])
    enqueue(mine.optuna_study, best.params)
    mine.complete(mine.ask().number, [0.1, 90.0])
    assert states(mine) == ["COMPLETE"] * 3
    assert mine.pareto_front() == [best.number]


def test_recorded_seconds_of_searching_never_decrease(study):
    mine = study()
    for seconds in (100.0, 50.0):
        mine.record_searched_seconds(seconds)
    assert study().searched_seconds() == 100.0


def test_attributes_are_read_from_the_storage_where_another_process_may_have_written(study):
    one, other = study(), study()
    assert one.get_attr("lease") is None
    other.set_attr("lease", {"host": "there", "beat": 1.5})
    assert one.get_attr("lease") == {"host": "there", "beat": 1.5}
    one.set_attr("lease", None)
    assert other.get_attr("lease") is None


def test_attributes_of_a_trial_are_kept(study):
    mine = study()
    one = mine.ask()
    mine.set_trial_attrs(one.number, {"parameters": 1234, "run_id": "abc"})
    assert study().trials()[0].user_attrs == {"parameters": 1234, "run_id": "abc"}


@pytest.mark.parametrize("url", ["sqlite:////dev/null/x.db", "nonsense://me:secret@host/db"])
def test_storage_that_cannot_be_opened_is_refused_in_one_line_without_its_password(tmp_path, url):
    with pytest.raises(UsageError, match="^the study's storage must be there and writable: ") as refused:
        Study(make_search(tmp_path), url=url, name="mine", image_shape=(8, 8, 1), training_images=180, classes=10)
    assert "secret" not in str(refused.value)
