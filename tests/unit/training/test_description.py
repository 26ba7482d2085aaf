"""Names and descriptions of training runs."""

import json
from types import SimpleNamespace

import pytest

from pipeline.config.recipe import read_recipe
from pipeline.config.training import TrainingConfig
from pipeline.training.description import (
    Change,
    changes_to_recipe,
    describe_splits,
    parse_changes,
    run_description,
    run_name,
)

DIGITS = SimpleNamespace(
    name="digits", train=range(1149), validation=range(288), test=range(360), classes=range(10), folds=()
)


def name_of(recipe, **flags):
    """Return the name of a run of a recipe with these flags."""
    settings = read_recipe(recipe)
    config = TrainingConfig.build({**settings, **flags})
    changes = changes_to_recipe(config, TrainingConfig.build(settings))
    return run_name(recipe, changes, DIGITS, refit=config.refit)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({}, "digits"),
        ({"depth": "6", "learning_rate": "0.1"}, "digits depth=6 lr=0.1"),
        ({"depth": "4"}, "digits"),  # as in the recipe
        ({"register_as": "best", "jit_compile": "false", "filter_steps": "4"}, "digits"),  # decide no result
        ({"precision": "float32"}, "digits precision=float32"),
        ({"depth": "6", "refit": "true"}, "digits depth=6, refit"),
        ({"teacher": "models:/m-0123"}, "digits teacher=m-0123"),
        ({"dataset": "/home/me/my pictures"}, "digits dataset=digits"),  # by the name of the data, not by a path
    ],
)
def test_run_name_says_what_differs_from_the_recipe(flags, name):
    assert name_of("digits", **flags) == name


def test_run_name_with_many_changes_counts_the_last_ones():
    name = name_of("digits", depth=2, filters=8, kernel_size=5, epochs=3, batch_size=32, seed=7)
    assert name.startswith("digits ") and name.endswith(" +2 more") and name.count("=") == 4


def test_describe_splits_of_folds_counts_their_images_together():
    assert describe_splits(DIGITS) == "1,149 training, 288 validation and 360 test images"
    folds = SimpleNamespace(**vars(DIGITS) | {"folds": (1, 2, 3, 4, 5)})
    assert describe_splits(folds) == "1,437 images in 5 folds and 360 test images"


def test_run_name_of_an_earlier_config_is_that_of_the_data():
    assert run_name("/store/abc/artifacts/config.yaml", {}, DIGITS) == "digits"


def test_parse_changes_reads_what_json_has_made_of_them():
    changes = {"depth": Change("6", "4")}
    assert parse_changes(json.dumps(changes)) == changes
    for damaged in ("", "[]", '{"depth": 3}', '{"depth": ["6"]}', "no JSON"):
        assert parse_changes(damaged) == {}


def test_run_description_is_a_table_that_foreign_text_cannot_break():
    text = run_description(
        "my|recipe",
        {"depth": Change("6", "4")},
        DIGITS,
        device="CPU",
        result="test accuracy 97.22 %\nand more",
        commands={"serve": "mlflow models serve"},
        seconds=100,
    )
    head, rule, *rows = text.splitlines()
    assert (head, rule) == ("| | |", "|---|---|")
    cells = [row.replace(r"\|", "").split("|")[1:-1] for row in rows]
    assert [first.strip() for first, _ in cells] == [
        f"**{name}**" for name in ("result", "recipe", "data", "device", "time", "serve")
    ]
    assert "`depth` 6 instead of 4" in text and r"my\|recipe" in text and "1,149 training" in text


def test_describe_splits_without_validation_says_where_its_images_are():
    assert describe_splits(DIGITS) == "1,149 training, 288 validation and 360 test images"
    joined = SimpleNamespace(train=range(1437), validation=range(0), test=range(360), folds=())
    assert describe_splits(joined) == "1,437 training images, those for validation among them, and 360 test images"


def test_run_description_of_an_unchanged_recipe_says_so():
    text = run_description("digits", {}, DIGITS, device="CPU", result="not finished yet", commands={})
    assert "digits, as it is" in text and "**time**" not in text


def test_run_description_shows_markup_in_names_as_text():
    text = run_description(
        "<img src=x>", {"dataset": Change("[a](b)", "*c*")}, DIGITS, device="CPU", result="done", commands={}
    )
    assert r"\<img src=x\>" in text and r"\[a\](b) instead of \*c\*" in text


def test_run_name_shortens_the_origin_of_weights_and_one_line_of_changes():
    file = name_of("digits", weights_from="/home/me/a-very-long-name-of-a-file.keras", weight_decay="0.5")
    assert sorted(file.split()) == ["digits", "wd=0.5", "weights_from=a-very-long-name-of-"]
    changes = {name: Change("1", "2") for name in ("depth", "filters", "kernel_size", "patch_size")}
    assert run_name("digits", changes, DIGITS) == "digits depth=1 filters=1 kernel_size=1 patch_size=1"
    changes["seed"] = Change("1", "2")
    assert run_name("a/digits.yaml", changes, DIGITS).endswith("patch_size=1 +1 more")
    # 120 characters, and dots in place of the others
    assert len(run_name("digits", {"dataset": Change("x", "y"), "optimizer": Change("z" * 500, "")}, DIGITS)) == 125


def test_changes_to_recipe_are_the_settings_that_differ_as_text():
    config, recipe = TrainingConfig.build({"depth": 6, "refit": True}), TrainingConfig.build({"depth": 4})
    assert changes_to_recipe(config, recipe) == {"depth": ("6", "4"), "refit": ("true", "false")}
    assert changes_to_recipe(config, config) == {}


def test_run_description_has_a_row_for_each_fact():
    changes = {"depth": Change("6", "4"), "filters": Change("8", "16")}
    text = run_description(
        "mine",
        changes,
        DIGITS,
        device="CPU any",
        result="good",
        commands={"serve": "mlflow x", "resume": "y"},
        seconds=5,
    )
    assert text.splitlines()[2:] == [
        "| **result** | good |",
        "| **recipe** | mine, `depth` 6 instead of 4, `filters` 8 instead of 16 |",
        "| **data** | digits: 1,149 training, 288 validation and 360 test images, 10 classes |",
        "| **device** | CPU any |",
        "| **time** | 5 s |",
        "| **serve** | `mlflow x` |",
        "| **resume** | `y` |",
    ]
