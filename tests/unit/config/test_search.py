"""The settings of a search beside those of its runs, and its file, as far as they are read without Optuna."""

import pytest

from pipeline.config.recipe import read_recipe
from pipeline.config.search import (
    PARTS,
    SEARCHES,
    SearchConfig,
    SearchFlags,
    parse_search_command,
    read_search_file,
)
from pipeline.config.training import TrainingConfig
from pipeline.config.yaml_file import names
from pipeline.runtime.errors import UsageError

FILE = "recipe: smoke\ntrials: 7\nbatch_size: 16\nspace:\n  depth: [1, 2]\n"


@pytest.fixture
def search(tmp_path):
    """Writes a search's file and returns its path."""

    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_search_flags_are_the_settings_of_a_search_and_of_a_run_in_this_order():
    assert list(SearchFlags.model_fields) == [*SearchConfig.model_fields, *TrainingConfig.model_fields]
    assert not set(PARTS) & set(SearchFlags.model_fields)
    assert list(SearchFlags.sections()) == ["search", *TrainingConfig.sections()]


@pytest.mark.parametrize("name", names(SEARCHES))
def test_every_search_that_ships_is_read(name):
    file = read_search_file(name)
    assert file.path == SEARCHES / f"{name}.yaml" and file.space


def test_search_file_overrides_its_recipe(search):
    file = read_search_file(search(FILE))
    assert file.settings == read_recipe("smoke") | {"trials": "7", "batch_size": "16"}
    assert (file.recipe, file.own, file.space, file.enqueue) == (
        "smoke",
        {"trials", "batch_size"},
        {"depth": ["1", "2"]},
        [],
    )


def test_parse_search_command_returns_the_file_and_the_flags_alone(search):
    command = parse_search_command([search(FILE), "--trials", "9", "--flip"])
    assert command.overrides == {"trials": "9", "flip": "true"}
    assert command.file.settings["trials"] == "7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: smoke\n", "space must have a line for each setting that is searched, got None"),
        ("space: {depth: [1]}\n", "recipe must name the recipe that the search starts from, got None"),
        (FILE + "trails: 9\n", "unknown setting 'trails'; did you mean trials?"),
        (FILE + "pruner: best\n", "pruner must be median, percentile, asha, hyperband, patience or none, got 'best'"),
        (FILE.replace("smoke", "smok"), "recipe must be one of "),
    ],
)
def test_search_file_with_a_fault_is_refused_with_its_path(search, text, message):
    path = search(text)
    with pytest.raises(UsageError) as refused:
        read_search_file(path)
    assert str(refused.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trials", "0"], "trials must be a whole number from 1 to 100000, got '0'"),
        (["--trails", "9"], "unknown setting 'trails'; did you mean trials?"),
        (["--depth"], "--depth needs a value"),
    ],
)
def test_flag_that_breaks_its_rule_is_refused(search, flags, message):
    with pytest.raises(UsageError) as refused:
        parse_search_command([search(FILE), *flags])
    assert str(refused.value).startswith(message)


def test_help_shows_the_values_of_the_file(search, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        parse_search_command([search(FILE), "--help"])
    text = capsys.readouterr().out
    assert "(mine: 7)" in text and "(mine: 16)" in text
