"""Distributions: which values a list or a range of a search file stands for, and which of them are refused."""

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from pipeline.config.training import TrainingConfig
from pipeline.search.distributions import (
    bounds,
    contains,
    describe,
    parse_distribution,
    sample,
    snap_to_step,
    suggest,
    values,
)
from tests.support.errors import usage_error


@pytest.mark.parametrize(
    ("setting", "entry", "expected"),
    [
        ("depth", [2, "3"], CategoricalDistribution([2, 3])),
        ("learning_rate", ["1e-3", 1], CategoricalDistribution([0.001, 1.0])),  # PyYAML reads 1e-3 as text
        ("flip", [False, "true"], CategoricalDistribution([False, True])),
        ("clip_norm", ["none", 1], CategoricalDistribution([None, 1.0])),
        ("jit_compile", ["auto", False], CategoricalDistribution(["auto", False])),
        ("schedule", ["cosine", "one_cycle"], CategoricalDistribution(["cosine", "one_cycle"])),
        ("depth", {"low": 4, "high": 12}, IntDistribution(4, 12)),
        ("depth", {"low": 4, "high": 12, "step": 2}, IntDistribution(4, 12, step=2)),
        ("filters", {"low": 4, "high": 512, "log": True}, IntDistribution(4, 512, log=True)),
        ("clip_norm", {"low": 1, "high": 2}, FloatDistribution(1, 2)),
        ("learning_rate", {"low": "1e-4", "high": "1e-1", "log": True}, FloatDistribution(1e-4, 1e-1, log=True)),
        ("label_smoothing", {"low": 0, "high": 0.3, "step": 0.1}, FloatDistribution(0, 0.3, step=0.1)),
        ("depth", {"low": 3, "high": 3}, IntDistribution(3, 3)),
    ],
)
def test_parse_distribution_makes_lists_categorical_and_gives_ranges_the_settings_type(setting, entry, expected):
    distribution = parse_distribution(setting, entry)
    assert distribution == expected
    assert repr(distribution) == repr(expected)  # 1 == 1.0 == True
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        drawn = study.ask({setting: distribution}).params[setting]
        assert contains(distribution, drawn)
        assert getattr(TrainingConfig.build({setting: drawn}), setting) == drawn


@pytest.mark.parametrize(
    "distribution",
    [
        CategoricalDistribution([True, None, 3]),
        IntDistribution(4, 8, step=2),
        IntDistribution(4, 512, log=True),
        FloatDistribution(0, 0.3, step=0.1),
        FloatDistribution(1e-4, 1e-1, log=True),
    ],
)
def test_suggest_lets_a_trial_draw_from_the_distribution(distribution):
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    suggest(trial, "setting", distribution)
    assert trial.distributions == {"setting": distribution}
    assert contains(distribution, trial.params["setting"])


@pytest.mark.parametrize(
    ("distribution", "known", "words"),
    [
        (CategoricalDistribution([True, None, 3]), [True, None, 3], "one of true, none, 3"),
        (IntDistribution(4, 8, step=2), [4, 6, 8], "4 to 8 by 2"),
        (FloatDistribution(0, 0.3, step=0.1), [0.0, 0.1, 0.2, 0.3], "0 to 0.3 by 0.1"),  # not 0.30000000000000004
        (FloatDistribution(0.5, 0.5), [0.5], "0.5 to 0.5"),
        (FloatDistribution(1e-4, 0.1, log=True), None, "0.0001 to 0.1, log"),
    ],
)
def test_values_and_description_of_a_distribution(distribution, known, words):
    found = values(distribution)
    assert (found if found is None else list(found)) == known
    assert describe(distribution) == words


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("depth: 3", "depth must have a [list, of, values] or a range {low: , high: }, got '3'"),
        ("depth: []", "depth must have one value or more, got an empty list"),
        ("depth: [1, 0]", "depth must be a whole number from 1 to 256, got '0'"),
        ("depth: [1, [2]]", "depth must be a whole number from 1 to 256, got ['2']"),
        ("depth: [1, 2, '1']", "depth must have each value once, got '1' twice"),
        ("flip: [maybe]", "flip must be true, false or alternating, got 'maybe'"),
        ("schedule: [cosine, cosin]", "schedule must be constant, one_cycle or cosine, got 'cosin'"),
        ("depth: {low: 4}", "depth: a range must have a low and a high, got {'low': '4'}"),
        (
            "depth: {low: 4, hihg: 5}",
            "depth: a range has low, high, step, log and when, got 'hihg'; did you mean high?",
        ),
        ("depth: {low: 0, high: 5}", "depth must be a whole number from 1 to 256, got '0'"),
        ("depth: {low: 1, high: 500}", "depth must be a whole number from 1 to 256, got '500'"),
        ("depth: {low: 5, high: 4}", "depth: low must be at most high, got 5 and 4"),
        ("depth: {low: 4, high: 7, step: 2}", "depth: whole steps must lead from low to high, got 4 to 7 by 2"),
        ("depth: {low: 4, high: 8, step: 0.5}", "depth: step must be a whole number, got 0.5"),
        ("depth: {low: 4, high: 8, step: 0}", "depth: step must be a number above 0 or none, got '0'"),
        ("depth: {low: 4, high: 8, step: 2, log: true}", "depth: a log range has no step, got 2"),
        ("depth: {low: 4, high: 8, log: 2}", "depth: log must be true or false, got '2'"),
        ("weight_decay: {low: 0, high: 1, log: true}", "weight_decay: low must be above 0 in a log range, got 0.0"),
        ("weight_decay: {low: 0, high: 1, step: 1e-9}", "a range has at most 10,000 steps, got 1,000,000,000"),
        ("flip: {low: false, high: true}", "flip: a range must go from number to number"),
        ("clip_norm: {low: none, high: 1}", "clip_norm: a range must go from number to number"),
        ("schedule: {low: constant, high: cosine}", "schedule: a range must go from number to number"),
    ],
)
def test_space_with_values_that_no_run_may_have_is_refused(search, line, message):
    assert message in usage_error(search, f"recipe: smoke\nspace: {{{line}}}")


def test_step_that_optuna_sums_inexactly_becomes_the_value_that_was_written(search):
    found = search("recipe: smoke\nspace: {label_smoothing: {low: 0, high: 0.2, step: 0.05}}")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = {study.ask(dict(found.space)).params["label_smoothing"] for _ in range(60)}
    assert 0.15000000000000002 in drawn
    assert {found.config({"label_smoothing": each}).label_smoothing for each in drawn} == {0, 0.05, 0.1, 0.15, 0.2}


def test_snap_to_step_leaves_other_values_alone():
    steps = FloatDistribution(0, 0.2, step=0.05)
    assert snap_to_step(steps, 0.15000000000000002) == 0.15
    assert snap_to_step(FloatDistribution(0.02, 0.2, step=0.03), 0.08000000000000002) == 0.08
    assert snap_to_step(FloatDistribution(0, 1), 0.15000000000000002) == 0.15000000000000002
    assert snap_to_step(CategoricalDistribution(["cosine"]), "cosine") == "cosine"
    assert snap_to_step(None, 0.3) == 0.3


@pytest.mark.parametrize(
    "distribution",
    [
        CategoricalDistribution(["cosine", "one_cycle"]),
        IntDistribution(4, 8, step=2),
        FloatDistribution(0, 0.3, step=0.1),
        FloatDistribution(0.5, 2.0),
        FloatDistribution(1e-4, 0.1, log=True),
    ],
)
def test_sample_draws_only_values_of_the_distribution_and_bounds_are_among_them(distribution):
    random = np.random.default_rng(0)
    drawn = [sample(distribution, random) for _ in range(200)]
    assert all(contains(distribution, value) for value in drawn)
    assert all(contains(distribution, value) for value in bounds(distribution))
    if (known := values(distribution)) is not None:
        assert set(drawn) == set(known)


@pytest.mark.parametrize("end", ["low", "high"])
def test_sample_of_a_log_range_stays_within_it_however_its_ends_are_rounded(end):
    class End:
        def uniform(self, low, high):
            return {"low": low, "high": high}[end]

    for low, high in ((1e-4, 0.1), (0.003, 0.7), (1e-5, 0.3)):
        distribution = FloatDistribution(low, high, log=True)
        assert contains(distribution, sample(distribution, End()))


def test_range_of_ten_thousand_steps_is_accepted():
    assert len(values(parse_distribution("weight_decay", {"low": 0, "high": 1, "step": 1e-4}))) == 10_001


def test_sample_of_a_log_range_draws_every_magnitude_as_often():
    random = np.random.default_rng(0)
    drawn = [sample(FloatDistribution(1e-4, 1e-2, log=True), random) for _ in range(1000)]
    assert 400 < sum(value < 1e-3 for value in drawn) < 600
