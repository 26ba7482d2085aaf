"""Configurations that fit the images: how many there are, and what becomes of the others."""

from collections import Counter

import pytest
from optuna.trial import TrialState

from pipeline.search.attributes import INFEASIBLE, TRAINABLE
from tests.support.scripted import DISCRETE, finish


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
    fits = mine.space.why_not
    monkeypatch.setattr(mine.space, "why_not", lambda params: judged.update([str(params)]) or fits(params))
    finish(mine, 5)
    assert max(judged.values()) <= 2 and len(judged) == 800  # once for the list, once when it is drawn


@pytest.mark.parametrize(("most", "enumerable"), [(5, False), (6, True)])
def test_space_is_enumerable_up_to_the_bound(study, monkeypatch, most, enumerable):
    monkeypatch.setattr("pipeline.search.feasible_space.MAX_ENUMERATED", most)
    assert study(DISCRETE).space.is_enumerable() is enumerable


def test_space_too_large_to_enumerate_is_left_to_the_sampler(study, monkeypatch):
    monkeypatch.setattr("pipeline.search.feasible_space.MAX_ENUMERATED", 5)
    mine = study(DISCRETE)
    assert len({str(one.params) for one in finish(mine, 3)}) == 3
