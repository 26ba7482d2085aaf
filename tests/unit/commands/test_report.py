"""The command `report`: which runs it compares, and what it reports about the others."""

import shutil

import mlflow
import numpy as np
import pandas as pd
import pytest

from pipeline.commands import main
from pipeline.runtime.parent_watch import PROJECT_RUN_ID_ENV
from pipeline.tracking.outbox.delivery import send_pending
from pipeline.tracking.outbox.records import LogFiles
from pipeline.tracking.run import TrackedRun
from pipeline.tracking.tags import Role, Tag
from tests.support.runs import make_run


@pytest.fixture
def report(tmp_path, capsys):
    """Run the command with its folder in `tmp_path`; return what it printed."""

    def run(runs, *arguments):
        assert main.run(["report", runs, "--folder", str(tmp_path), *arguments]) == 0
        return capsys.readouterr().out

    return run


def report_runs(store):
    return mlflow.search_runs([store.experiment_id], f"tags.{Tag.ROLE} = '{Role.REPORT}'", output_format="list")


def test_report_reads_config_yaml_of_runs_whose_parameters_are_as_typed(experiment, report):
    store, _ = experiment
    typed = {Tag.PROJECT_ENTRY_POINT: "main"}
    settings = {"precision": "float32", "jit_compile": "false"}
    plain_id = make_run(store, "plain", settings=settings)
    typed_id = make_run(store, "typed", settings=settings | {"seed": 1}, params={"precision": "auto"}, tags=typed)
    assert "compared 1 configuration of 2 runs" in report(f"{plain_id},{typed_id}")


def test_report_replaces_an_older_run_of_the_same_seed_and_counts_it_as_superseded(experiment, report):
    store, name = experiment
    for accuracy in (0.5, 0.75):
        make_run(store, "again", metrics={"test_accuracy": accuracy})
    output = report(name)
    assert "highest test accuracy: 75.00 % of one run" in output
    assert "left out superseded by a newer run with the same settings and seed: 1 run" in output


def test_report_compares_commits_only_if_their_runs_are_named_by_id(experiment, report, tmp_path):
    store, name = experiment
    ids = [
        make_run(store, "the same", metrics={"test_accuracy": accuracy}, tags={Tag.GIT_COMMIT: commit * 40})
        for accuracy, commit in ((0.5, "a"), (0.75, "b"))
    ]
    assert "compared 2 configurations of 2 runs" in report(",".join(ids))
    (board,) = tmp_path.glob("*/leaderboard.csv")
    assert pd.read_csv(board)["settings.commit"].tolist() == ["b" * 40, "a" * 40]
    assert "compared 1 configuration of 1 run" in report(name)


def test_report_opens_its_run_in_the_experiment_of_the_compared_runs(experiment, report):
    store, _ = experiment
    run_id = make_run(store, "a")
    report(run_id)
    (own_run,) = report_runs(store)
    assert own_run.data.tags[Tag.REPORT_RUNS] == run_id
    assert own_run.data.tags[Tag.PARENT_RUN_ID] == run_id, "it is about this run alone"


def test_report_on_runs_elsewhere_leaves_a_reference_in_the_run_that_mlflow_opened(experiment, report, monkeypatch):
    store, name = experiment
    make_run(store, "a")
    elsewhere = store._replace(experiment_id=store.client.create_experiment(f"{name} elsewhere"))
    opened = store.client.create_run(elsewhere.experiment_id, tags={Tag.PROJECT_ENTRY_POINT: "report"}).info.run_id
    monkeypatch.setenv(PROJECT_RUN_ID_ENV, opened)
    report(name)
    (own_run,) = report_runs(store)
    assert {file.path for file in store.client.list_artifacts(own_run.info.run_id)} >= {"report.html"}
    reference = store.client.get_run(opened)
    assert reference.info.status == "FINISHED" and reference.data.tags[Tag.OUTCOME] == "finished"
    assert reference.info.run_name == own_run.info.run_name == f"report on experiment {name}"
    address = f"#/experiments/{store.experiment_id}/runs/{own_run.info.run_id}"
    assert address in reference.data.tags[Tag.DESCRIPTION]


def test_report_that_fails_ends_the_run_that_mlflow_opened_elsewhere(experiment, monkeypatch, tmp_path, capsys):
    store, name = experiment
    make_run(store, "a")
    elsewhere = store.client.create_experiment(f"{name} elsewhere")
    opened = store.client.create_run(elsewhere, tags={Tag.PROJECT_ENTRY_POINT: "report"}).info.run_id
    monkeypatch.setenv(PROJECT_RUN_ID_ENV, opened)
    (tmp_path / "file").touch()
    assert main.run(["report", name, "--folder", str(tmp_path / "file")]) == 2
    tags = store.client.get_run(opened).data.tags
    assert tags[Tag.OUTCOME] == "failed" and "folder must be writable" in tags[Tag.OUTCOME_REASON]


def test_report_that_the_artifact_store_refuses_is_in_the_folder_all_the_same(experiment, tmp_path, capsys):
    store, name = experiment
    make_run(store, "a")
    shutil.rmtree(tmp_path / "artifacts")
    (tmp_path / "artifacts").touch()
    assert main.run(["report", name, "--folder", str(tmp_path / "reports")]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith(f"error: the artifacts of a run must be writable: {tmp_path}/artifacts/")
    (page,) = tmp_path.glob("reports/*/report.html")
    assert f"report   {page}" in printed.out.splitlines() and "a has the highest" in page.read_text()
    assert {file.name for file in page.parent.iterdir()} == {"report.html", "leaderboard.csv", "leaderboard.md"}
    (own_run,) = report_runs(store)
    assert own_run.info.status == "FAILED" and "must be writable" in own_run.data.tags[Tag.OUTCOME_REASON]


def test_report_that_the_artifact_store_does_not_take_now_is_sent_later(experiment, report, monkeypatch):
    store, name = experiment
    make_run(store, "a")

    def fail(self, client):
        raise ConnectionError("nobody there")

    wait = TrackedRun.wait_until_logged
    with monkeypatch.context() as failing:
        failing.setattr(LogFiles, "_send", fail)
        failing.setattr(TrackedRun, "wait_until_logged", lambda run, seconds: wait(run, 0.1))
        output = report(name)
    (own_run,) = report_runs(store)
    assert f"of run {own_run.info.run_id}: the tracking server did not accept them" in output
    (line,) = send_pending([own_run.info.run_id])
    assert line.startswith("sent     ")
    (own_run,) = report_runs(store)
    assert own_run.info.status == "FINISHED" and "report.html" in {
        file.path for file in store.client.list_artifacts(own_run.info.run_id)
    }


def test_report_on_a_search_puts_its_winner_first_and_itself_below_the_search(experiment, report, tmp_path):
    store, _ = experiment
    study = {Tag.STUDY: "mine-1a"}
    search = make_run(store, "search mine", tags=study | {Tag.ROLE: Role.SEARCH})
    below = study | {Tag.PARENT_RUN_ID: search}
    make_run(store, "t000 d2", settings={"depth": 2}, tags=below | {Tag.ROLE: Role.TRIAL}, curve=(0.99,))
    make_run(store, "t001 d3", settings={"depth": 3}, tags=below | {Tag.ROLE: Role.TRIAL}, curve=(0.95,))
    final = below | {Tag.ROLE: Role.FINAL}
    for seed, accuracy in enumerate((0.8, 0.9)):
        settings = {"depth": 3, "seed": seed}
        run_id = make_run(store, f"final 1 d3 seed {seed}", settings=settings, tags=final, curve=(accuracy,))
    store.client.log_metric(run_id, "test_accuracy", 0.75)
    store.client.set_tag(run_id, Tag.WINNER, run_id)
    output = report("mine-1a")
    sentence = "d3 is the winner of search mine-1a: best validation accuracy 85.00 % ± 7.07 of 2 runs"
    assert f"answer   {sentence}; test accuracy 75.00 %." in output
    assert "left out trained again as finals: 1 trial" in output
    (board,) = tmp_path.glob("*/leaderboard.csv")
    assert pd.read_csv(board)[["configuration", "kind", "verdict"]].to_numpy().tolist() == [
        ["d3", "winner", "best"],
        ["t000 d2", "trial", "trial"],
    ]
    (own_run,) = report_runs(store)
    assert own_run.data.tags[Tag.PARENT_RUN_ID] == search


def test_report_ranks_by_what_runs_monitor_and_says_so_where_that_differs(experiment, report, tmp_path):
    store, name = experiment
    settings = {"monitor": "val_macro_f1"}
    make_run(store, "one", settings=settings, metrics={"test_macro_f1": 0.5, "test_accuracy": 0.9})
    make_run(store, "two", settings=settings | {"depth": 3}, metrics={"test_macro_f1": 0.625, "test_accuracy": 0.8})
    output = report(name)
    assert "answer   two has the highest test macro F1: 62.50 % of one run." in output and "Runs monitor" not in output
    (page,) = tmp_path.glob("*/report.html")
    assert "ranked by test macro F1" in page.read_text() and "Validation macro F1" not in page.read_text()
    make_run(store, "three", settings={"depth": 4}, metrics={"test_accuracy": 0.95})
    output = report(name)
    note = (
        "Runs monitor different metrics (val_accuracy 1 run, val_macro_f1 2 runs): they are compared by test accuracy."
    )
    assert note in output.replace("val_macro_f1 2 runs, val_accuracy 1 run", "val_accuracy 1 run, val_macro_f1 2 runs")
    assert "answer   three has the highest test accuracy" in output


def test_report_counts_test_set_accesses_also_of_runs_that_are_not_compared(experiment, report, tmp_path):
    store, name = experiment
    make_run(store, "older, of the same seed", metrics={"test_accuracy": 0.5})
    evaluated = {
        Tag.TEST_SET_ACCESSES: "2",
        f"{Tag.TEST_SET_ACCESS}.a": "at noon",
        f"{Tag.TEST_SET_ACCESS}.b": "at one",
    }
    run_id = make_run(store, "tested and evaluated twice", metrics={"test_accuracy": 0.75}, tags=evaluated)
    make_run(store, "not tested", settings={"depth": 3}, metrics={"best_val_accuracy": 0.5})
    output = report(name, "--metric", "best_val_accuracy")
    sentence = "Models of these runs were evaluated on the test set of digits 4 times."
    assert f"test set {sentence}" in output
    (page,) = tmp_path.glob("*/report.html")
    assert sentence in page.read_text()
    accesses = pd.read_csv(page.parent / "leaderboard.csv").set_index("run_ids")["test_set_accesses"]
    assert accesses[run_id] == 3 and sorted(accesses) == [0, 3]
    untested = make_run(store, "alone", settings={"depth": 4}, metrics={})
    assert "test set No model of these runs was evaluated on the test set of digits." in report(untested)


def test_report_says_that_rows_beyond_the_page_are_not_compared_by_image(experiment, report, tmp_path):
    store, name = experiment
    for depth, accuracy in ((2, 90), (3, 60), (4, 30)):
        make_run(store, f"d{depth}", settings={"depth": depth}, correct=np.arange(100) < accuracy)
    sentence = "leaderboard.csv has 1 more configuration, compared with the best over seeds alone"
    for rows, verdicts in ((2, ["best", "worse", "not known"]), (3, ["best", "worse", "worse"])):
        output = report(name, "--rows", str(rows))
        page = max(tmp_path.glob("*/report.html"), key=lambda path: path.stat().st_mtime_ns)
        assert pd.read_csv(page.parent / "leaderboard.csv")["verdict"].tolist() == verdicts
        assert (sentence in output) == (sentence in page.read_text()) == (rows == 2)
    output = report(name, "--rows", "2", "--metric", "best_val_accuracy")
    assert "more configuration" not in output, "of which no images are read in any case"
