"""Limits on what a configuration may cost: known before its training or measured at its start, and told to Optuna."""

import pytest

from pipeline.config.search import SearchConfig
from pipeline.config.training import TrainingConfig
from pipeline.search.attributes import INFEASIBLE
from pipeline.search.limits import architecture, constraints, known_costs, why_too_costly
from tests.support.scripted import make_search, open_study

# of 8x8 gray images and ten classes: 474 parameters with a depth of 1, 690 with 2
TEXT = "recipe: smoke\nfilters: 8\nkernel_size: 3\npatch_size: 4\nspace: {depth: [1, 2], flip: [true, false]}\n"
SHAPE = {"image_shape": (8, 8, 1), "classes": 10}


@pytest.fixture
def study(tmp_path):
    return lambda *flags: open_study(tmp_path, make_search(tmp_path, TEXT, "--sampler", "grid", *flags))


def test_known_costs_are_the_parameters_and_what_was_measured_of_the_same_network():
    config = TrainingConfig.build({"filters": 8, "depth": 1, "kernel_size": 3, "patch_size": 4})
    (parameters,) = known_costs(config, {}, **SHAPE).values()
    latencies = {architecture(config): 2.5}
    other_training = config.model_copy(update={"learning_rate": 0.5, "epochs": 3})
    assert known_costs(other_training, latencies, **SHAPE) == {"parameters": parameters, "latency_ms": 2.5}
    assert known_costs(config.model_copy(update={"depth": 2}), latencies, **SHAPE).keys() == {"parameters"}
    assert known_costs(config.model_copy(update={"folds": 3}), {}, **SHAPE) == {"parameters": 3 * parameters}


def test_cost_beyond_its_limit_is_named_and_the_violation_is_relative():
    settings = SearchConfig.build({"max_parameters": 1000, "max_latency_ms": 4})
    assert why_too_costly(settings, {"parameters": 1000, "latency_ms": 4.0}) is None
    assert (
        why_too_costly(settings, {"parameters": 1500}) == "parameters must be at most max_parameters: 1,000, got 1,500"
    )
    slow = why_too_costly(settings, {"parameters": 1, "latency_ms": 4.51})
    assert slow == "latency_ms must be at most max_latency_ms: 4.0, got 4.51"
    assert constraints(settings, {"parameters": 1500, "latency_ms": 3.0}) == {"parameters": 0.5, "latency_ms": -0.25}
    assert constraints(SearchConfig.build({}), {"parameters": 1500}) == {}


def test_configuration_with_too_many_parameters_is_infeasible_and_costs_no_budget(study):
    mine = study("--max_parameters", "600")
    proposals = []
    while proposal := mine.ask():
        proposals.append(proposal)
        mine.complete(proposal.number, [0.5])
    assert [one.params["depth"] for one in proposals] == [1, 1] and mine.n_feasible() == 2
    constrained = [trial.constraints["parameters"] for trial in mine.trials()]
    assert all(violation < 0 for violation in constrained)


def test_sampler_is_told_by_how_much_a_configuration_is_too_large(tmp_path):
    mine = open_study(tmp_path, make_search(tmp_path, TEXT + "enqueue: [{depth: 2}]\n", "--max_parameters", "600"))
    assert mine.ask().params["depth"] == 1
    refused = mine.trials()[0]
    assert refused.user_attrs[INFEASIBLE].startswith("parameters must be at most max_parameters: 600, got ")
    assert refused.constraints["parameters"] > 0 and refused.constraints["trainable"] == 1


def test_search_goes_on_behind_any_number_of_enqueued_configurations_that_do_not_fit(tmp_path):
    space = "space: {depth: {low: 1, high: 9}, learning_rate: {low: 0.001, high: 0.1}}"
    enqueue = ", ".join(f"{{depth: {depth}, learning_rate: 0.01}}" for depth in range(2, 9))
    text = f"recipe: smoke\n{space}\nenqueue: [{enqueue}]\n"
    proposal = open_study(tmp_path, make_search(tmp_path, text, "--max_parameters", "400")).ask()
    assert proposal is not None and proposal.params["depth"] == 1


def test_latency_that_was_measured_once_refuses_every_configuration_of_the_network(study):
    mine = study("--max_latency_ms", "2")
    first = mine.ask()
    mine.set_trial_attrs(first.number, {"latency_ms": 3.0})
    mine.record_latency(first.number, 3.0)
    mine.refuse(first.number, "latency_ms must be at most max_latency_ms=2, got 3.00")
    second = mine.ask()
    assert (first.params["depth"], second.params["depth"]) == (1, 2)
    mine.complete(second.number, [0.5])
    third = mine.ask()
    assert third.params["depth"] == 2
    mine.complete(third.number, [0.5])
    assert mine.ask() is None, "the other one of depth 1 is as slow as the first"
    (refused,) = (trial for trial in mine.trials() if INFEASIBLE in trial.user_attrs)
    assert refused.constraints["latency_ms"] == 0.5
    assert mine.n_finished() == 2
    # the next driver knows it, too
    assert study("--max_latency_ms", "2").attrs()["architectures"]
