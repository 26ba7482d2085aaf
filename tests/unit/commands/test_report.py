"""What is read of runs to compare them."""

import mlflow
import pandas as pd

from pipeline.commands.main import run as run_command
from pipeline.tracking.tags import Role, Tag
from tests.support.runs import make_run


def test_settings_are_those_of_config_yaml_where_a_person_may_have_typed_the_parameters(experiment, tmp_path, capsys):
    store, _ = experiment
    typed = {Tag.PROJECT_ENTRY_POINT: "main"}
    settings = {"precision": "float32", "jit_compile": "false"}
    one = make_run(store, "plain", settings=settings)
    other = make_run(store, "typed", settings=settings | {"seed": 1}, params={"precision": "auto"}, tags=typed)
    assert run_command(["report", f"{one},{other}", "--folder", str(tmp_path)]) == 0
    assert "compared 1 recipe of 2 runs" in capsys.readouterr().out


def test_a_newer_run_of_the_same_seed_stands_for_an_older_one_and_that_is_said(experiment, tmp_path, capsys):
    store, name = experiment
    for accuracy in (0.5, 0.75):
        make_run(store, "again", metrics={"test_accuracy": accuracy})
    assert run_command(["report", name, "--folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "highest test accuracy: 75.00 % of one run" in out
    assert "left out finished again with the settings and the seed of a newer run: 1 run" in out


def test_two_commits_runs_of_one_seed_are_compared_where_both_are_named(experiment, tmp_path, capsys):
    store, name = experiment
    ids = [
        make_run(store, "the same", metrics={"test_accuracy": accuracy}, tags={Tag.GIT_COMMIT: commit * 40})
        for accuracy, commit in ((0.5, "a"), (0.75, "b"))
    ]
    assert run_command(["report", ",".join(ids), "--folder", str(tmp_path)]) == 0
    assert "compared 2 recipes of 2 runs" in capsys.readouterr().out
    (board,) = tmp_path.glob("*/leaderboard.csv")
    assert pd.read_csv(board)["settings.commit"].tolist() == ["b" * 40, "a" * 40]
    assert run_command(["report", name, "--folder", str(tmp_path)]) == 0
    assert "compared 1 recipe of 1 run" in capsys.readouterr().out


def test_a_report_lies_beside_the_runs_that_it_compares(experiment, tmp_path):
    store, _ = experiment
    run = make_run(store, "a")
    assert run_command(["report", run, "--folder", str(tmp_path)]) == 0
    (found,) = mlflow.search_runs([store.experiment_id], f"tags.{Tag.ROLE} = '{Role.REPORT}'", output_format="list")
    assert found.data.tags["report.runs"] == run


def test_it_is_told_how_often_test_images_have_been_opened_by_runs_too_that_are_not_compared(
    experiment, tmp_path, capsys
):
    store, name = experiment
    make_run(store, "older, of the same seed", metrics={"test_accuracy": 0.5})
    looked = {
        Tag.TEST_SET_ACCESSES: "2",
        f"{Tag.TEST_SET_ACCESSES}.a": "at noon",
        f"{Tag.TEST_SET_ACCESSES}.b": "at one",
    }
    run = make_run(store, "tested and evaluated twice", metrics={"test_accuracy": 0.75}, tags=looked)
    make_run(store, "not tested", settings={"depth": 3}, metrics={"best_val_accuracy": 0.5})
    assert run_command(["report", name, "--folder", str(tmp_path), "--metric", "best_val_accuracy"]) == 0
    said = "These runs and their evaluations have opened the test images of digits 4 times."
    assert f"opened   {said}" in capsys.readouterr().out
    (page,) = tmp_path.glob("*/report.html")
    assert said in page.read_text()
    board = pd.read_csv(page.parent / "leaderboard.csv").set_index("run_ids")["test_opened"]
    assert board[run] == 3 and sorted(board) == [0, 3]
    untested = make_run(store, "alone", settings={"depth": 4}, metrics={})
    assert run_command(["report", untested, "--folder", str(tmp_path)]) == 0
    assert "opened   None of these runs has opened the test images of digits." in capsys.readouterr().out
