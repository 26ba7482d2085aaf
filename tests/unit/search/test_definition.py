"""Search files: what one may hold, and what is refused with the file's path."""

import pytest

from pipeline.config.search import SEARCHES, read_search_file
from pipeline.config.yaml_file import names
from pipeline.search.definition import read_definition
from tests.support.errors import usage_error
from tests.support.scripted import SMALL


@pytest.mark.parametrize("name", names(SEARCHES))
def test_search_that_ships_is_found_by_its_name(name):
    definition = read_definition(read_search_file(name))
    assert definition.path.stem == name and definition.space
    assert read_definition(read_search_file(str(definition.path))) == definition


def test_enqueued_values_have_the_type_of_their_settings_and_may_leave_some_to_be_drawn(search):
    found = search(
        "recipe: smoke\nspace: {learning_rate: {low: 1e-4, high: 1e-1, log: true}, depth: [1, 2]}\n"
        "enqueue: [{learning_rate: 1e-3}, {learning_rate: 1e-1, depth: 2}]"
    )
    assert found.enqueue == ({"learning_rate": 0.001}, {"learning_rate": 0.1, "depth": 2})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "space must have a line for each setting that is searched, got None"),
        ("- depth", "a search must be 'setting: value' lines, got list"),
        ("space: {depth: [1]", "is not YAML"),
        ("space: {depth: [1], depth: [2]}", "is not YAML for settings: depth is given twice"),
        ("space: {}", "space must have a line for each setting that is searched, got {}"),
        ("space: {depth: [1, 2]}", "recipe must name the recipe that the search starts from, got None"),
        (SMALL.replace("smoke", "smok"), "recipe must be one of accurate, baseline, "),
        (SMALL.replace("space", "spcae"), "unknown setting 'spcae'; did you mean space?"),
        (SMALL + "trails: 1", "unknown setting 'trails'; did you mean trials?"),
        (SMALL + "epochs: 0", "epochs must be a whole number from 1 to 100000, got '0'"),
        (SMALL + "trials: 0", "trials must be a whole number from 1 to 100000, got '0'"),
        (
            SMALL + "pruner: medain",
            "pruner must be median, percentile, asha, hyperband, patience or none, got 'medain'",
        ),
        (SMALL + "sampler: cma", "sampler must be tpe, random, grid, qmc, nsga2, gp or cmaes, got 'cma'"),
        (SMALL + "metric: test_accuracy", "metric must be up to 2 of val_accuracy, val_loss, val_balanced_accuracy, "),
        (SMALL + "depth: 3", "depth must stand in the space or beside it, got both"),
        (SMALL + "storage: postgresql://me:secret@host/db", "storage must hold no password"),
        (SMALL + "storage: study.db", "storage must be a URL such as sqlite:///"),
        (SMALL + "enqueue: {depth: 1}", "enqueue must be a list of {setting: value}, got {'depth': '1'}"),
        (SMALL + "enqueue: [{}]", "enqueue must be a list of {setting: value}, got [{}]"),
        (SMALL + "enqueue: [{detph: 1}]", "enqueue must name settings of the space, got 'detph'; did you mean depth?"),
        (SMALL + "enqueue: [{filters: 8}]", "enqueue must name settings of the space, got 'filters'"),
        (SMALL + "enqueue: [{depth: 3}]", "enqueue must lie in the space, where depth is one of 1, 2, got 3"),
        (SMALL + "enqueue: [{depth: x}]", "enqueue: depth must be a whole number from 1 to 256, got 'x'"),
        (
            SMALL + "enqueue: [{depth: 1}, {depth: '1'}]",
            "enqueue must have each configuration once, got {'depth': '1'}",
        ),
    ],
)
def test_bad_file_is_refused_in_one_line_that_names_it(search, tmp_path, text, message):
    error = usage_error(search, text)
    assert message in error
    assert str(tmp_path / "mine.yaml") in error
    assert "secret" not in error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("detph: [1]", "space must name settings of a run, got 'detph'; did you mean depth?"),
        ("trials: [1]", "space must name settings of a run, got 'trials'"),
        ("1: [1]", "space must name settings of a run, got '1'"),
        ("seed: [1, 2]", "space must leave the images and their split alone"),
        (
            "register_as: [a, b]",
            "space must name settings that change a result, got register_as: set it beside the space",
        ),
        ("image_size: [16, 32]", "space must leave the images and their split alone"),
        ("resize: [crop, pad]", "space must leave the images and their split alone"),
        ("dataset: [digits, cifar10]", "space must leave the images and their split alone"),
        ("validation_fraction: [0.1, 0.2]", "space must leave the images and their split alone"),
        ("folds: [2, 5]", "space must leave the images and their split alone"),
        ("train_examples: [100, 200]", "space must leave the images and their split alone"),
    ],
)
def test_space_of_other_than_settings_that_change_a_result_is_refused(search, line, message):
    assert message in usage_error(search, f"recipe: smoke\nspace: {{{line}}}")
