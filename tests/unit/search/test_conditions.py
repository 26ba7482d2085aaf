"""Conditions of a space: how a file writes them, what is refused, and what they leave of a space."""

from itertools import product

import numpy as np
import pytest

from pipeline.search.conditions import combinations, describe_condition
from pipeline.search.distributions import values
from pipeline.search.space import check_against_data
from tests.support.errors import usage_error
from tests.support.scripted import make_search

NESTED = """recipe: smoke
space:
  randaugment_magnitude: {low: 3, high: 9, step: 3, when: {randaugment_layers: [1, 2]}}
  randaugment_layers: {low: 0, high: 2, when: {flip: true}}
  flip: [true, false]
  depth: [1, 2]
"""


@pytest.fixture
def search(tmp_path):
    return lambda text: make_search(tmp_path, text)


def test_settings_stand_after_those_that_their_conditions_name(search):
    assert list(search(NESTED).space) == ["flip", "randaugment_layers", "randaugment_magnitude", "depth"]


def test_nested_conditions_leave_out_a_setting_with_the_one_that_it_depends_on(search):
    mine = search(NESTED)
    every = list(mine.configurations())
    expected = [{"flip": False, "depth": depth} for depth in (1, 2)]
    expected += [{"flip": True, "randaugment_layers": 0, "depth": depth} for depth in (1, 2)]
    expected += [
        {"flip": True, "randaugment_layers": layers, "randaugment_magnitude": magnitude, "depth": depth}
        for layers, magnitude, depth in product([1, 2], [3, 6, 9], [1, 2])
    ]
    assert len(every) == mine.n_configurations() == len(expected) == 16
    assert all(one in every for one in expected)


def test_random_configurations_are_among_all_of_a_space(search):
    mine, random = search(NESTED), np.random.default_rng(0)
    every = list(mine.configurations())
    drawn = [mine.sample(random) for _ in range(200)]
    assert all(one in every for one in drawn) and all(one in drawn for one in every)


def test_space_without_conditions_is_the_product_of_its_values(search):
    mine = search(
        "recipe: smoke\nspace: {depth: [1, 2], kernel_size: {low: 3, high: 7, step: 2}, flip: [true, false]}\n"
    )
    choices = {name: values(distribution) for name, distribution in mine.space.items()}
    every = [dict(zip(choices, chosen, strict=True)) for chosen in product(*choices.values())]
    assert list(combinations(choices, {})) == every and mine.n_configurations() == len(every)


def test_space_with_a_continuous_conditional_range_has_any_number_of_configurations(search):
    space = "{optimizer: [adamw, muon], adam_epsilon: {low: 1e-8, high: 1e-6, log: true, when: {optimizer: adamw}}}"
    assert search(f"recipe: smoke\nspace: {space}\n").n_configurations() is None


def test_condition_in_words_names_each_setting_and_its_values(search):
    space = "{flip: [true, false], depth: [1, 2, 3], cutout: {values: [0, 2], when: {flip: true, depth: [2, 3]}}}"
    mine = search(f"recipe: smoke\nspace: {space}\n")
    assert describe_condition("cutout", mine.conditions) == "when flip is true and depth is 2 or 3"
    assert describe_condition("depth", mine.conditions) == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "cutout: {values: [0, 2], when: flip}",
            "cutout: when must be {other setting: its value or values}, got 'flip'",
        ),
        ("cutout: {values: [0, 2], when: {}}", "cutout: when must be {other setting: its value or values}, got {}"),
        (
            "cutout: {values: [0, 2], when: {flip: []}}",
            "cutout: when must give flip a value or more, got an empty list",
        ),
        (
            "cutout: {values: [0, 2], when: {flop: true}}",
            "cutout: when must name other settings of the space, got 'flop'; did you mean flip?",
        ),
        (
            "cutout: {values: [0, 2], when: {cutout: 0}}",
            "cutout: when must name other settings of the space, got 'cutout'",
        ),
        (
            "cutout: {values: [0, 2], when: {depth: 4}}",
            "cutout: when must give depth values of the space, one of 1, 2, 3, got 4",
        ),
        ("cutout: {values: [0, 2], when: {depth: two}}", "depth must be a whole number"),
        ("cutout: {values: [0, 2], low: 3, when: {flip: true}}", "cutout: a range has low, high, step, log and when"),
        (
            "learning_rate: {low: 0.1, high: 1}, cutout: {values: [0], when: {learning_rate: 0.1}}",
            "cutout: when must name settings with single values, got learning_rate; give it a step",
        ),
        (
            "cutout: {values: [0, 2], when: {translation: 1}}, translation: {values: [1], when: {cutout: 2}}",
            "cutout: when must not depend on the setting itself: cutout > translation > cutout",
        ),
    ],
)
def test_condition_that_makes_no_sense_is_refused_in_one_line(search, line, message):
    text = f"recipe: smoke\nspace: {{flip: [true, false], depth: [1, 2, 3], {line}}}\n"
    assert message in usage_error(search, text)


def test_enqueued_setting_beside_values_with_which_it_is_not_drawn_is_refused(search):
    refused = usage_error(search, NESTED + "enqueue: [{randaugment_layers: 0, randaugment_magnitude: 3}]\n")
    condition = "when randaugment_layers is 1 or 2"
    assert f"enqueue must have randaugment_magnitude only {condition}, got" in refused
    search(NESTED + "enqueue: [{randaugment_magnitude: 3}, {flip: false}]\n")


def test_fingerprint_changes_with_the_conditions(search):
    one = search(NESTED).fingerprint("data")
    assert search(NESTED.replace("[1, 2]}}", "[1]}}")).fingerprint("data") != one
    assert search(NESTED).fingerprint("data") == one


def test_value_that_fits_no_image_is_refused_beside_its_condition(search):
    mine = search("recipe: smoke\nspace: {flip: [true, false], patch_size: {values: [2, 3], when: {flip: true}}}\n")
    shape = {"image_shape": (8, 8, 1), "training_images": 100}
    assert "patch_size must divide the image side" in usage_error(check_against_data, mine, **shape)
