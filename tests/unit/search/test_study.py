"""Studies in a real Optuna storage: what they propose, count, and keep from one driver to the next."""

from collections import Counter
from itertools import product

import optuna
import pytest
from optuna.trial import TrialState

from pipeline.runtime.errors import UsageError
from pipeline.search.attributes import ATTEMPT, DUPLICATE_OF, INFEASIBLE, TRAINABLE
from pipeline.search.study import Study
from tests.support.scripted import CONTINUOUS, DISCRETE, make_search, open_study

EVERY = [{"kernel_size": kernel, "depth": depth} for kernel, depth in product([1, 3, 5], [1, 2])]


@pytest.fixture
def study(tmp_path):
    """Return a function that opens the study of the test, again and again as drivers would."""

    def open_it(text=CONTINUOUS, *flags, **images):
        return open_study(tmp_path, make_search(tmp_path, text, *flags), **images)

    return open_it


def finish(study, times=1, value=0.5):
    """Ask and complete so many trials, and return the proposals."""
    proposals = [study.ask() for _ in range(times)]
    for one in proposals:
        study.complete(one.number, [value])
    return proposals


def states(study):
    return [trial.state.name for trial in study.trials()]


# what comes next


def test_ask_returns_enqueued_configurations_first_and_draws_what_they_leave_out(study):
    mine = study(DISCRETE + "enqueue: [{kernel_size: 5, depth: 2}, {kernel_size: 1, depth: 1}, {kernel_size: 3}]")
    proposals = finish(mine, 3)
    first, second, third = (one.params for one in proposals)
    assert (dict(first), dict(second)) == ({"kernel_size": 5, "depth": 2}, {"kernel_size": 1, "depth": 1})
    assert third["kernel_size"] == 3 and third["depth"] in (1, 2)
    assert [one.attempt for one in proposals] == [1, 1, 1]


def test_resumed_study_enqueues_nothing_again(study):
    text = CONTINUOUS + "enqueue: [{learning_rate: 0.01}]"
    assert finish(study(text))[0].params == {"learning_rate": 0.01}
    assert finish(study(text))[0].params != {"learning_rate": 0.01}
    assert states(study(text)) == ["COMPLETE", "COMPLETE"]


def test_kill_between_two_enqueued_configurations_loses_neither(study, monkeypatch):
    text = DISCRETE + "enqueue: [{kernel_size: 5, depth: 2}, {kernel_size: 3}, {kernel_size: 1, depth: 1}]"
    enqueue, calls = optuna.Study.enqueue_trial, []

    def killed_at_the_third(*given, **more):
        calls.append(given)
        return enqueue(*given, **more) if len(calls) < 3 else 1 / 0

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


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_same_seed_gives_the_same_trials_and_another_seed_others(tmp_path, sampler):
    def drawn(folder, *flags):
        (tmp_path / folder).mkdir()
        study = open_study(tmp_path / folder, make_search(tmp_path, CONTINUOUS, "--sampler", sampler, *flags))
        return [one.params["learning_rate"] for one in finish(study, 4)]

    first = drawn("first")
    assert drawn("again") == first
    assert drawn("other", "--seed", "1") != first


def test_resumed_study_does_not_repeat_its_draws(study):
    first = [one.params["learning_rate"] for one in finish(study(), 3)]
    then = [one.params["learning_rate"] for one in finish(study(), 3)]
    assert not set(first) & set(then)


@pytest.mark.parametrize("sampler", ["grid", "tpe", "random"])
def test_every_configuration_of_a_finite_space_is_proposed_once(study, sampler):
    mine = study(DISCRETE, "--sampler", sampler)
    proposals = []
    while one := mine.ask():
        proposals.append(dict(one.params))
        mine.complete(one.number, [0.1 * len(proposals)])
    assert sorted(proposals, key=str) == sorted(EVERY, key=str)
    assert sampler != "grid" or proposals == EVERY
    assert mine.n_finished() == 6
    assert study(DISCRETE, "--sampler", sampler).ask() is None


CONDITIONAL = """recipe: smoke
space:
  adam_epsilon: {values: [1e-8, 1e-7], when: {optimizer: adamw}}
  schedule: [constant, cosine]
  optimizer: [adamw, muon]
  warmup_fraction: {values: [0.1, 0.2], when: {schedule: cosine, optimizer: [muon]}}
"""


@pytest.mark.parametrize("sampler", ["grid", "tpe", "random"])
def test_settings_are_drawn_only_where_their_conditions_hold(study, sampler):
    mine = study(CONDITIONAL, "--sampler", sampler)
    proposals = []
    while one := mine.ask():
        proposals.append(dict(one.params))
        mine.complete(one.number, [0.1 * len(proposals)])
    adamw = [
        {"schedule": schedule, "optimizer": "adamw", "adam_epsilon": epsilon}
        for schedule in ("constant", "cosine")
        for epsilon in (1e-8, 1e-7)
    ]
    muon = [{"schedule": "cosine", "optimizer": "muon", "warmup_fraction": warmup} for warmup in (0.1, 0.2)]
    expected = [*adamw, {"schedule": "constant", "optimizer": "muon"}, *muon]
    assert sorted(map(sorted, map(dict.items, proposals))) == sorted(map(sorted, map(dict.items, expected)))
    assert mine.n_feasible() == mine.search.n_configurations() == 7


def test_configurations_that_train_alike_are_trained_once(study):
    text = "recipe: smoke\nrandaugment_layers: 0\nspace: {randaugment_magnitude: [3, 6, 9], depth: [1, 2]}\n"
    mine = study(text, "--sampler", "random")
    assert len(finish(mine, 2)) == 2 and mine.ask() is None
    assert mine.n_feasible() == 2 and mine.search.n_configurations() == 6
    assert study(text, "--sampler", "random").ask() is None


def test_enqueued_configuration_that_trains_like_another_is_skipped_and_named(study):
    enqueue = "enqueue: [{layers: 0, magnitude: 3}, {layers: 0, magnitude: 9}]"
    enqueue = enqueue.replace("layers", "randaugment_layers").replace("magnitude", "randaugment_magnitude")
    mine = study("recipe: smoke\nspace: {randaugment_layers: [0, 1], randaugment_magnitude: [3, 9]}\n" + enqueue)
    skipped = []
    mine.on_skipped = lambda number, params, reason: skipped.append((number, reason))
    first, second = finish(mine, 2)
    assert first.params["randaugment_layers"] == 0 and second.params["randaugment_layers"] == 1
    assert skipped[0] == (1, "the same as t000, not trained again")


def test_trial_that_died_while_it_was_drawn_is_like_no_other(study):
    mine = study(DISCRETE)
    mine.optuna_study.ask()
    first, second = finish(study(DISCRETE), 2)
    assert first.params.keys() == second.params.keys() == {"kernel_size", "depth"}


def test_tpe_draws_duplicates_before_a_small_space_is_exhausted(study):
    mine = study(DISCRETE)
    for number in range(6):  # what makes the record worth keeping
        mine.complete(mine.ask().number, [0.1 * number])
    assert any(DUPLICATE_OF in trial.user_attrs for trial in mine.trials())


def test_interrupted_grid_is_resumed_where_it_was(study):
    first = finish(study(DISCRETE, "--sampler", "grid"), 2)
    lost = study(DISCRETE, "--sampler", "grid")
    third = lost.ask()
    again = study(DISCRETE, "--sampler", "grid")
    again.requeue_stale()
    rest = finish(again, 4)
    assert [dict(one.params) for one in [*first, *rest]] == EVERY
    assert rest[0].params == third.params


def test_inexact_steps_of_optuna_are_one_configuration_as_it_was_written(study):
    mine = study("recipe: smoke\nspace: {label_smoothing: {low: 0, high: 0.3, step: 0.1}}", "--sampler", "random")
    assert sorted(one.params["label_smoothing"] for one in finish(mine, 4)) == [0.0, 0.1, 0.2, 0.3]
    assert mine.ask() is None


# what costs nothing


def test_duplicate_takes_over_the_earlier_result_and_costs_no_budget(study):
    mine = study(DISCRETE)
    (first,) = finish(mine, value=0.7)
    pruned = mine.ask()
    mine.report(pruned.number, 1, 0.2)
    mine.prune(pruned.number, violation=True)
    for params in (first.params, pruned.params):
        mine._enqueue(params)
    proposal = mine.ask()
    again, pruned_again = mine.trials()[2:4]
    assert proposal.params not in (first.params, pruned.params)
    assert (again.user_attrs[DUPLICATE_OF], again.state, again.values) == (0, TrialState.COMPLETE, [0.7])
    assert (pruned_again.user_attrs[DUPLICATE_OF], pruned_again.state) == (1, TrialState.PRUNED)
    assert pruned_again.intermediate_values == {1: 0.2}
    assert pruned_again.constraints == {TRAINABLE: 1.0}
    assert mine.n_finished() == 2
    assert [trial.number for trial in mine.ranked()] == [0]


def test_running_configuration_is_not_proposed_again(study):
    mine = study(DISCRETE)
    running = mine.ask()
    mine._enqueue(running.params)
    assert mine.ask().params != running.params
    assert states(mine)[1] == "FAIL"
    assert mine.trials()[1].user_attrs[DUPLICATE_OF] == 0


def test_n_finished_counts_complete_and_pruned_trials_without_duplicates_and_infeasible_ones(study):
    mine = study(DISCRETE + "enqueue: [{kernel_size: 1, depth: 1}, {kernel_size: 5, depth: 2}]", image_shape=(4, 4, 1))
    (first,) = finish(mine)
    mine.prune(mine.ask().number)
    mine._enqueue(first.params)
    mine.fail(mine.ask().number, retry=False)
    assert states(mine).count("COMPLETE") == 2  # the duplicate is one of them
    assert any(INFEASIBLE in trial.user_attrs for trial in mine.trials())  # kernel 5 on 2 x 2 patches
    assert mine.n_finished() == 2
    assert study(DISCRETE, image_shape=(4, 4, 1)).n_finished() == 2


def test_infeasible_configuration_violates_the_constraint_and_is_never_proposed(study):
    text = "recipe: smoke\nspace: {kernel_size: [3, 9], patch_size: [1, 4]}\n"
    mine = study(text + "enqueue: [{kernel_size: 9, patch_size: 4}]")
    proposals = [dict(one.params) for one in finish(mine, 3)]
    assert mine.ask() is None
    assert {"kernel_size": 9, "patch_size": 4} not in proposals and len(proposals) == 3
    first = mine.trials()[0]
    assert (first.state, first.constraints) == (TrialState.PRUNED, {TRAINABLE: 1.0})
    assert "make a grid of 2, got kernel_size=9" in first.user_attrs[INFEASIBLE]


def test_feasibility_of_a_large_space_is_checked_once_and_not_for_every_trial(study, monkeypatch):
    mine = study("recipe: smoke\nspace: {depth: {low: 1, high: 20}, filters: {low: 1, high: 40}}")
    judged = Counter()
    fits = mine._infeasibility
    monkeypatch.setattr(mine, "_infeasibility", lambda params: judged.update([str(params)]) or fits(params))
    finish(mine, 5)
    assert max(judged.values()) <= 2 and len(judged) == 800  # once for the list, once when it is drawn


def ooms_proposed(study, trials, tell):
    """Return how many of so many trials were of a configuration that needs more memory than there is."""
    ooms = 0
    for _ in range(trials):
        proposal = study.ask()
        filters, depth = proposal.params["filters"], proposal.params["depth"]
        if filters * depth > 900:  # the best there would be, were there the memory
            ooms += 1
            tell(study, proposal.number)
        else:
            study.complete(proposal.number, [filters * depth / 3000 + proposal.number / 1e6])
    return ooms


def test_tpe_proposes_less_out_of_memory_when_it_violates_a_constraint_than_when_it_fails(tmp_path, monkeypatch):
    """Accuracy grows with the size up to the limit of memory, as in practice: failed trials teach TPE nothing."""
    monkeypatch.setattr(
        "pipeline.search.study.MAX_ENUMERATED", 0
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
    monkeypatch.setattr(next_one._study, "tell", lambda *_, **__: 1 / 0)
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
    monkeypatch.setattr(driver, "_enqueue", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        end(driver, lost.number)
    last = study()
    last.requeue_stale()
    assert last.ask().params == lost.params


def test_trial_that_was_taken_from_the_queue_but_given_no_settings_is_requeued_with_the_queued_ones(study):
    mine = study()
    mine._enqueue({"learning_rate": 0.0123}, attempt=2, node_losses=3)
    mine._study._pop_waiting_trial_id()
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


def test_retried_configuration_of_a_grid_is_queued_once(study):
    mine = study(DISCRETE, "--sampler", "grid")
    first = mine.ask()
    mine.fail(first.number, retry=True)
    assert mine.ask().params == first.params
    assert states(mine) == ["FAIL", "RUNNING"]


def test_stopped_trial_is_requeued_as_the_same_attempt(study):
    mine = study()
    first = mine.ask()
    mine.fail(first.number, retry=True)
    second = mine.ask()
    mine.requeue(second.number)
    third = mine.ask()
    assert (third.params, third.attempt) == (first.params, second.attempt) == (first.params, 2)
    assert states(mine) == ["FAIL", "FAIL", "RUNNING"]


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_abandoned_configuration_is_not_proposed_again_until_another_driver_starts(study, sampler):
    mine = study(DISCRETE, "--sampler", sampler)
    bad = mine.ask()
    mine.fail(bad.number, retry=False)
    assert bad.params not in [one.params for one in finish(mine, 5)]
    assert mine.ask() is None
    assert study(DISCRETE, "--sampler", sampler).ask().params == bad.params  # its cause may have been mended


# values


def test_trial_below_the_median_is_pruned_after_the_warm_up_and_one_above_is_not(study):
    mine = study(CONTINUOUS, "--pruner_trials", "2", "--pruner_epochs", "2")
    for value in (0.5, 0.6):
        one = mine.ask()
        assert [mine.report(one.number, epoch, value) for epoch in (1, 2, 3)] == [False, False, False]
        mine.complete(one.number, [value])
    bad, good = mine.ask(), mine.ask()
    assert [mine.report(bad.number, epoch, 0.1) for epoch in (1, 2)] == [False, True]  # it has had its two epochs
    assert [mine.report(good.number, epoch, 0.9) for epoch in (1, 2)] == [False, False]


@pytest.mark.parametrize(("epochs", "first"), [(8, 4), (5, 2), (1, 1)])
def test_pruner_by_default_leaves_each_trial_half_its_epochs(study, epochs, first):
    mine = study(CONTINUOUS, "--pruner_trials", "1", "--epochs", str(epochs))
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
    assert mine._study.directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    assert states(mine)[2] == "PRUNED" and mine.n_finished() == 3


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
    mine._enqueue(best.params)
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


def test_space_too_large_to_enumerate_is_left_to_the_sampler(study, monkeypatch):
    monkeypatch.setattr("pipeline.search.study.MAX_ENUMERATED", 5)
    mine = study(DISCRETE)
    assert len({str(one.params) for one in finish(mine, 3)}) == 3


@pytest.mark.parametrize(("most", "enumerable"), [(5, False), (6, True)])
def test_space_is_enumerable_up_to_the_bound(study, monkeypatch, most, enumerable):
    monkeypatch.setattr("pipeline.search.study.MAX_ENUMERATED", most)
    assert study(DISCRETE).is_enumerable() is enumerable


def test_untried_configuration_is_taken_at_random_where_draws_only_repeat(study, monkeypatch):
    monkeypatch.setattr("pipeline.search.study.MAX_REDRAWS", 0)
    proposals = [dict(one.params) for one in finish(study(DISCRETE), 6)]
    assert sorted(proposals, key=str) == sorted(EVERY, key=str) and proposals != EVERY


def test_feasible_configurations_of_a_space_too_large_to_enumerate_are_found_and_then_no_more(study, monkeypatch):
    monkeypatch.setattr("pipeline.search.study.MAX_ENUMERATED", 5)
    monkeypatch.setattr("pipeline.search.study.MAX_REDRAWS", 1)
    mine = study("recipe: smoke\nspace: {patch_size: {low: 1, high: 200}, depth: [1, 2]}\n", "--sampler", "random")
    proposals = finish(mine, 6)
    assert {(one.params["patch_size"], one.params["depth"]) for one in proposals} == {
        (p, d) for p in (1, 2, 4) for d in (1, 2)
    }
    assert mine.ask() is None


@pytest.mark.parametrize("url", ["sqlite:////dev/null/x.db", "nonsense://me:secret@host/db"])
def test_storage_that_cannot_be_opened_is_refused_in_one_line_without_its_password(tmp_path, url):
    with pytest.raises(UsageError, match="^the study's storage must be there and writable: ") as refused:
        Study(make_search(tmp_path), url=url, name="mine", image_shape=(8, 8, 1), training_images=180, classes=10)
    assert "secret" not in str(refused.value)
