"""What a study proposes next: enqueued configurations, and draws that no trial has had."""

from itertools import product

import pytest
from optuna.samplers import RandomSampler

from tests.support.scripted import CONTINUOUS, DISCRETE, finish, make_search, open_study, states

EVERY = [{"kernel_size": kernel, "depth": depth} for kernel, depth in product([1, 3, 5], [1, 2])]


def test_ask_returns_enqueued_configurations_first_and_draws_what_they_leave_out(study):
    mine = study(DISCRETE + "enqueue: [{kernel_size: 5, depth: 2}, {kernel_size: 1, depth: 1}, {kernel_size: 3}]")
    proposals = finish(mine, 3)
    first, second, third = (one.params for one in proposals)
    assert (dict(first), dict(second)) == ({"kernel_size": 5, "depth": 2}, {"kernel_size": 1, "depth": 1})
    assert third["kernel_size"] == 3 and third["depth"] in (1, 2)
    assert [one.attempt for one in proposals] == [1, 1, 1]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_same_seed_gives_the_same_trials_and_another_seed_others(tmp_path, sampler):
    def drawn(*flags):
        study = open_study(None, make_search(tmp_path, CONTINUOUS, "--sampler", sampler, *flags))
        return [one.params["learning_rate"] for one in finish(study, 4)]

    first = drawn()
    assert drawn() == first
    assert drawn("--seed", "1") != first


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


def test_retried_configuration_of_a_grid_is_queued_once(study):
    mine = study(DISCRETE, "--sampler", "grid")
    first = mine.ask()
    mine.fail(first.number, retry=True)
    assert mine.ask().params == first.params
    assert states(mine) == ["FAIL", "RUNNING"]


def test_untried_configuration_is_taken_at_random_where_draws_only_repeat(study, monkeypatch):
    monkeypatch.setattr("pipeline.search.proposals.MAX_REDRAWS", 0)
    proposals = [dict(one.params) for one in finish(study(DISCRETE), 6)]
    assert sorted(proposals, key=str) == sorted(EVERY, key=str) and proposals != EVERY


class FixedSampler(RandomSampler):
    """Draws the same configuration each time."""

    def __init__(self, params):
        super().__init__(seed=0)
        self._params = params

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self._params[param_name]


def test_draws_that_repeat_are_skipped_three_times_and_then_an_untried_one_is_taken(study):
    mine = study(DISCRETE)
    skipped = []
    mine.on_skipped = lambda number, params, reason: skipped.append(params)
    (first,) = finish(mine, 1)
    mine.optuna_study.sampler = FixedSampler(first.params)
    assert mine.ask().params != first.params
    assert skipped == [first.params] * 3


def test_feasible_configurations_of_a_space_too_large_to_enumerate_are_found_and_then_no_more(study, monkeypatch):
    monkeypatch.setattr("pipeline.search.feasible_space.MAX_ENUMERATED", 5)
    monkeypatch.setattr("pipeline.search.proposals.MAX_REDRAWS", 1)
    mine = study("recipe: smoke\nspace: {patch_size: {low: 1, high: 20}, depth: [1, 2]}\n", "--sampler", "random")
    proposals = finish(mine, 6)
    assert {(one.params["patch_size"], one.params["depth"]) for one in proposals} == {
        (p, d) for p in (1, 2, 4) for d in (1, 2)
    }
    assert mine.ask() is None
