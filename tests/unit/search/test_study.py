"""What a study proposes, what it counts, and what it remembers from one driver to the next, in real Optuna storage."""

from collections import Counter
from itertools import product

import optuna
import pytest
from optuna.trial import TrialState

from pipeline.runtime.errors import UsageError
from pipeline.search import study as studies
from pipeline.search.attributes import ATTEMPT, DUPLICATE_OF, INFEASIBLE, TRAINABLE
from tests.support.scripted import CONTINUOUS, DISCRETE, make_search, open_study

EVERY = [{"kernel_size": kernel, "depth": depth} for kernel, depth in product([1, 3, 5], [1, 2])]


@pytest.fixture
def study(tmp_path):
    """Opens the one study of the test, again and again as drivers would."""

    def open_it(text=CONTINUOUS, *flags, **images):
        return open_study(tmp_path, make_search(tmp_path, text, *flags), **images)

    return open_it


def finish(study, times=1, value=0.5):
    """Ask and complete so many; returns what was asked."""
    asked = [study.ask() for _ in range(times)]
    for one in asked:
        study.complete(one.number, [value])
    return asked


def states(study):
    return [trial.state.name for trial in study.trials()]


# what comes next


def test_what_is_enqueued_comes_first_in_its_order_and_what_it_leaves_out_is_drawn(study):
    mine = study(DISCRETE + "enqueue: [{kernel_size: 5, depth: 2}, {kernel_size: 1, depth: 1}, {kernel_size: 3}]")
    asked = finish(mine, 3)
    assert [dict(one.params) for one in asked[:2]] == [{"kernel_size": 5, "depth": 2}, {"kernel_size": 1, "depth": 1}]
    assert asked[2].params["kernel_size"] == 3 and asked[2].params["depth"] in (1, 2)
    assert [one.attempt for one in asked] == [1, 1, 1]


def test_a_study_that_goes_on_enqueues_nothing_anew(study):
    text = CONTINUOUS + "enqueue: [{learning_rate: 0.01}]"
    assert finish(study(text))[0].params == {"learning_rate": 0.01}
    assert finish(study(text))[0].params != {"learning_rate": 0.01}
    assert states(study(text)) == ["COMPLETE", "COMPLETE"]


def test_a_kill_between_two_that_are_enqueued_loses_neither(study, monkeypatch):
    text = DISCRETE + "enqueue: [{kernel_size: 5, depth: 2}, {kernel_size: 3}, {kernel_size: 1, depth: 1}]"
    enqueue, calls = optuna.Study.enqueue_trial, []

    def killed_at_the_third(*given, **more):
        calls.append(given)
        return enqueue(*given, **more) if len(calls) < 3 else 1 / 0

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(optuna.Study, "enqueue_trial", killed_at_the_third)
        study(text)
    asked = finish(study(text), 3)
    assert [one.params["kernel_size"] for one in asked] == [5, 3, 1]
    assert [dict(asked[place].params) for place in (0, 2)] == [
        {"kernel_size": 5, "depth": 2},
        {"kernel_size": 1, "depth": 1},
    ]
    assert states(study(text)) == ["COMPLETE"] * 3


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_seed_gives_the_same_trials_and_another_seed_others(tmp_path, sampler):
    def drawn(folder, *flags):
        (tmp_path / folder).mkdir()
        study = open_study(tmp_path / folder, make_search(tmp_path, CONTINUOUS, "--sampler", sampler, *flags))
        return [one.params["learning_rate"] for one in finish(study, 4)]

    first = drawn("first")
    assert drawn("again") == first
    assert drawn("other", "--seed", "1") != first


def test_a_study_that_goes_on_does_not_repeat_its_draws(study):
    first = [one.params["learning_rate"] for one in finish(study(), 3)]
    then = [one.params["learning_rate"] for one in finish(study(), 3)]
    assert not set(first) & set(then)


@pytest.mark.parametrize("sampler", ["grid", "tpe", "random"])
def test_a_finite_space_is_visited_once_each_and_then_used_up(study, sampler):
    mine = study(DISCRETE, "--sampler", sampler)
    asked = []
    while one := mine.ask():
        asked.append(dict(one.params))
        mine.complete(one.number, [0.1 * len(asked)])
    assert sorted(asked, key=str) == sorted(EVERY, key=str)
    assert sampler != "grid" or asked == EVERY
    assert mine.n_finished() == 6
    assert study(DISCRETE, "--sampler", sampler).ask() is None


def test_tpe_repeats_itself_before_a_small_space_is_used_up(study):
    mine = study(DISCRETE)
    for number in range(6):  # what makes the record worth keeping
        mine.complete(mine.ask().number, [0.1 * number])
    assert any(DUPLICATE_OF in trial.user_attrs for trial in mine.trials())


def test_a_grid_that_was_broken_off_goes_on_where_it_was(study):
    first = finish(study(DISCRETE, "--sampler", "grid"), 2)
    lost = study(DISCRETE, "--sampler", "grid")
    third = lost.ask()
    again = study(DISCRETE, "--sampler", "grid")
    again.requeue_stale()
    rest = finish(again, 4)
    assert [dict(one.params) for one in [*first, *rest]] == EVERY
    assert rest[0].params == third.params


def test_steps_that_optuna_adds_up_are_one_configuration_and_come_as_they_are_written(study):
    mine = study("recipe: smoke\nspace: {label_smoothing: {low: 0, high: 0.3, step: 0.1}}", "--sampler", "random")
    assert sorted(one.params["label_smoothing"] for one in finish(mine, 4)) == [0.0, 0.1, 0.2, 0.3]
    assert mine.ask() is None


# what costs nothing


def test_a_duplicate_is_answered_from_the_record_and_costs_no_budget(study):
    mine = study(DISCRETE)
    (first,) = finish(mine, value=0.7)
    pruned = mine.ask()
    mine.report(pruned.number, 1, 0.2)
    mine.prune(pruned.number, violation=True)
    for params in (first.params, pruned.params):
        mine._enqueue(params)
    asked = mine.ask()
    again, pruned_again = mine.trials()[2:4]
    assert asked.params not in (first.params, pruned.params)
    assert (again.user_attrs[DUPLICATE_OF], again.state, again.values) == (0, TrialState.COMPLETE, [0.7])
    assert (pruned_again.user_attrs[DUPLICATE_OF], pruned_again.state) == (1, TrialState.PRUNED)
    assert pruned_again.intermediate_values == {1: 0.2}
    assert pruned_again.constraints == {TRAINABLE: 1.0}
    assert mine.n_finished() == 2
    assert [trial.number for trial in mine.ranked()] == [0]


def test_what_is_running_is_not_started_a_second_time(study):
    mine = study(DISCRETE)
    running = mine.ask()
    mine._enqueue(running.params)
    assert mine.ask().params != running.params
    assert states(mine)[1] == "FAIL"
    assert mine.trials()[1].user_attrs[DUPLICATE_OF] == 0


def test_the_budget_counts_what_was_completed_or_pruned_but_nothing_that_failed_or_was_free(study):
    mine = study(DISCRETE + "enqueue: [{kernel_size: 1, depth: 1}, {kernel_size: 5, depth: 2}]", image_shape=(4, 4, 1))
    (first,) = finish(mine)
    mine.prune(mine.ask().number)
    mine._enqueue(first.params)
    mine.fail(mine.ask().number, retry=False)
    assert states(mine).count("COMPLETE") == 2  # the duplicate is one of them
    assert any(INFEASIBLE in trial.user_attrs for trial in mine.trials())  # kernel 5 on 2 x 2 patches
    assert mine.n_finished() == 2
    assert study(DISCRETE, image_shape=(4, 4, 1)).n_finished() == 2


def test_what_cannot_be_built_for_the_images_is_told_as_a_violated_constraint_and_never_started(study):
    text = "recipe: smoke\nspace: {kernel_size: [3, 9], patch_size: [1, 4]}\n"
    mine = study(text + "enqueue: [{kernel_size: 9, patch_size: 4}]")
    asked = [dict(one.params) for one in finish(mine, 3)]
    assert mine.ask() is None
    assert {"kernel_size": 9, "patch_size": 4} not in asked and len(asked) == 3
    first = mine.trials()[0]
    assert (first.state, first.constraints) == (TrialState.PRUNED, {TRAINABLE: 1.0})
    assert "make a grid of 2, got kernel_size=9" in first.user_attrs[INFEASIBLE]


def test_a_large_space_is_judged_once_and_not_for_every_trial(study, monkeypatch):
    mine = study("recipe: smoke\nspace: {depth: {low: 1, high: 20}, filters: {low: 1, high: 40}}")
    judged = Counter()
    fits = mine._infeasibility
    monkeypatch.setattr(mine, "_infeasibility", lambda params: judged.update([str(params)]) or fits(params))
    finish(mine, 5)
    assert max(judged.values()) <= 2 and len(judged) == 800  # once for the list, once when it is drawn


def ooms_proposed(study, trials, tell):
    """How often a configuration that wants more memory than there is was trained in so many trials."""
    ooms = 0
    for _ in range(trials):
        asked = study.ask()
        filters, depth = asked.params["filters"], asked.params["depth"]
        if filters * depth > 900:  # the best there would be, were there the memory
            ooms += 1
            tell(study, asked.number)
        else:
            study.complete(asked.number, [filters * depth / 3000 + asked.number / 1e6])
    return ooms


def test_the_out_of_memory_trap_is_left_where_it_is_told_as_a_constraint_and_not_where_it_is_told_as_failed(
    tmp_path, monkeypatch
):
    """Accuracy grows with the size up to where memory ends, as it does in life: failed trials teach TPE nothing."""
    monkeypatch.setattr(
        studies, "MAX_ENUMERATED", 0
    )  # to write out 5,964 configurations takes seconds and changes nothing
    search = make_search(tmp_path, "recipe: smoke\nspace: {filters: {low: 16, high: 512}, depth: {low: 1, high: 12}}\n")
    counts = {}
    for name, tell in {
        "failed": lambda study, number: study.fail(number, retry=False),
        "constraint": lambda study, number: study.prune(number, violation=True),
    }.items():
        (tmp_path / name).mkdir()
        counts[name] = ooms_proposed(open_study(tmp_path / name, search), 60, tell)
    assert counts["failed"] >= 1.5 * counts["constraint"], counts


# what died


def test_what_a_driver_left_running_is_failed_and_queued_again_at_its_attempt(study):
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


def test_a_kill_while_a_lost_trial_is_given_up_loses_no_configuration(study, monkeypatch):
    lost = study().ask()
    next_one = study()
    monkeypatch.setattr(next_one._study, "tell", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next_one.requeue_stale()
    last = study()
    last.requeue_stale()
    assert last.ask().params == lost.params


def test_a_failed_trial_is_queued_again_only_where_asked_for_and_its_attempts_are_counted(study):
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


def test_a_trial_that_was_stopped_is_put_back_and_has_used_up_no_attempt(study):
    mine = study()
    first = mine.ask()
    mine.fail(first.number, retry=True)
    second = mine.ask()
    mine.requeue(second.number)
    third = mine.ask()
    assert (third.params, third.attempt) == (first.params, second.attempt) == (first.params, 2)
    assert states(mine) == ["FAIL", "FAIL", "RUNNING"]


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_what_failed_for_good_is_not_asked_again_until_another_driver_comes(study, sampler):
    mine = study(DISCRETE, "--sampler", sampler)
    bad = mine.ask()
    mine.fail(bad.number, retry=False)
    assert bad.params not in [one.params for one in finish(mine, 5)]
    assert mine.ask() is None
    assert study(DISCRETE, "--sampler", sampler).ask().params == bad.params  # its cause may have been mended


# values


def test_a_trial_below_the_median_is_pruned_after_the_warm_up_and_one_above_is_not(study):
    mine = study(CONTINUOUS, "--pruner_trials", "2", "--pruner_epochs", "2")
    for value in (0.5, 0.6):
        one = mine.ask()
        assert [mine.report(one.number, epoch, value) for epoch in (1, 2, 3)] == [False, False, False]
        mine.complete(one.number, [value])
    bad, good = mine.ask(), mine.ask()
    assert [mine.report(bad.number, epoch, 0.1) for epoch in (1, 2)] == [False, True]  # it has had its two epochs
    assert [mine.report(good.number, epoch, 0.9) for epoch in (1, 2)] == [False, False]


@pytest.mark.parametrize(("epochs", "first"), [(8, 4), (5, 2), (1, 1)])
def test_unless_told_otherwise_every_trial_gets_half_its_epochs(study, epochs, first):
    mine = study(CONTINUOUS, "--pruner_trials", "1", "--epochs", str(epochs))
    good, bad = mine.ask(), mine.ask()
    for epoch in range(1, epochs + 1):
        mine.report(good.number, epoch, 0.9)
    mine.complete(good.number, [0.9])
    pruned = [epoch for epoch in range(1, epochs + 1) if mine.report(bad.number, epoch, 0.1)]
    assert pruned[0] == first


def test_without_a_pruner_none_is_pruned(study):
    mine = study(CONTINUOUS, "--pruner", "none")
    finish(mine, 8, value=0.5)
    one = mine.ask()
    assert not any(mine.report(one.number, epoch, 0.0) for epoch in range(1, 9))


def test_two_metrics_keep_their_values_in_order_and_prune_nothing(study):
    mine = study(CONTINUOUS, "--metric", "val_accuracy,parameters")
    for values in ([0.5, 10.0], [0.9, 30.0]):
        mine.complete(mine.ask().number, values)
    one = mine.ask()
    assert not mine.report(one.number, 9, 0.0)
    mine.prune(one.number, violation=True)
    assert [trial.values for trial in mine.ranked()] == [[0.9, 30.0], [0.5, 10.0]]
    assert mine._study.directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    assert states(mine)[2] == "PRUNED" and mine.n_finished() == 3


@pytest.mark.parametrize(("metric", "order"), [("val_accuracy", [1, 2, 0]), ("val_loss", [0, 1, 2])])
def test_the_best_comes_first_in_the_metrics_direction_and_the_earlier_of_equals(study, metric, order):
    mine = study(CONTINUOUS, "--metric", metric)
    assert mine.best() is None
    for value in (0.1, 0.6, 0.6):
        finish(mine, value=value)
    assert [trial.number for trial in mine.ranked()] == order
    assert mine.best().number == order[0]


def test_importances_say_which_setting_matters_and_are_empty_below_four_values(study):
    mine = study(DISCRETE, "--sampler", "grid")
    finish(mine, 3)
    assert mine.importances() == {}
    for _ in range(3):
        one = mine.ask()
        mine.complete(one.number, [one.params["kernel_size"] + 0.01 * one.params["depth"]])
    shares = mine.importances()
    assert list(shares) == ["kernel_size", "depth"] and sum(shares.values()) == pytest.approx(1)


def test_notes_are_kept_and_read_from_the_storage_where_another_process_may_have_written(study):
    one, other = study(), study()
    assert one.get_attr("lease") is None
    other.set_attr("lease", {"host": "there", "beat": 1.5})
    assert one.get_attr("lease") == {"host": "there", "beat": 1.5}
    one.set_attr("lease", None)
    assert other.get_attr("lease") is None


def test_figures_of_a_trial_are_kept(study):
    mine = study()
    one = mine.ask()
    mine.set_trial_attrs(one.number, {"parameters": 1234, "run_id": "abc"})
    assert study().trials()[0].user_attrs == {"parameters": 1234, "run_id": "abc"}


def test_a_space_too_large_to_write_out_is_left_to_the_sampler(study, monkeypatch):
    monkeypatch.setattr(studies, "MAX_ENUMERATED", 5)
    mine = study(DISCRETE)
    assert len({str(one.params) for one in finish(mine, 3)}) == 3


def test_in_a_space_too_large_to_write_out_the_few_that_fit_are_found_and_then_no_more(study, monkeypatch):
    monkeypatch.setattr(studies, "MAX_ENUMERATED", 5)
    monkeypatch.setattr(studies, "MAX_REDRAWS", 1)
    mine = study("recipe: smoke\nspace: {patch_size: {low: 1, high: 200}, depth: [1, 2]}\n", "--sampler", "random")
    asked = finish(mine, 6)
    assert {(one.params["patch_size"], one.params["depth"]) for one in asked} == {
        (p, d) for p in (1, 2, 4) for d in (1, 2)
    }
    assert mine.ask() is None


@pytest.mark.parametrize("url", ["sqlite:////dev/null/x.db", "nonsense://me:secret@host/db"])
def test_a_storage_that_cannot_be_opened_is_refused_in_one_line_without_its_password(tmp_path, url):
    with pytest.raises(UsageError, match="^the study's storage must be there and writable: ") as refused:
        studies.Study(make_search(tmp_path), url=url, name="mine", image_shape=(8, 8, 1), training_images=180)
    assert "secret" not in str(refused.value)
