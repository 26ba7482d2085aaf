"""Searches end to end: `mlflow run -e search`, kills, Ctrl-C, the same command again, bad input."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import mlflow
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState

from pipeline.commands import main
from pipeline.search.attributes import RUN_ID
from pipeline.tracking.tags import Tag, TrialOutcome
from tests.support.mlflow_project import environment_of, have_ended, process_tree, run_project, start
from tests.support.paths import ROOT
from tests.support.scripted import ScriptedExecutor, successful_trial
from tests.support.stores import tracking_store

EXPERIMENT = "searches"
WORKERS = min(2, os.cpu_count() or 1)


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    with tracking_store(tmp_path_factory.mktemp("tracking"), EXPERIMENT) as uri:
        yield uri


@pytest.fixture
def storage(tmp_path):
    return f"sqlite:///{tmp_path}/optuna.db"


def start_driver(uri, *arguments):
    return start([sys.executable, "-m", "pipeline", "search", *arguments], uri, EXPERIMENT)


def finish(process, *, seconds=240):
    """Return the exit code, the output and the errors of a driver."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def wait_for_line(process, beginning):
    """Wait for a line of a process that begins so, and return all lines up to it."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(beginning):
            return lines
    raise AssertionError(process.stderr.read())


def wait_for_running_trial(storage):
    """Wait until a trial has a run; in Optuna's storage it is running before its settings are drawn."""
    deadline = time.monotonic() + 60
    study = load_study(storage)
    while not any(RUN_ID in trial.user_attrs for trial in trials(study, TrialState.RUNNING)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def load_study(storage):
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def trials(study, state):
    return [trial for trial in study.trials if trial.state == state]


def runs(study, extra=""):
    where = f"tags.{Tag.STUDY} = '{study.study_name}'{extra}"
    return mlflow.search_runs(experiment_names=[EXPERIMENT], filter_string=where, output_format="list")


def by_role(study, role):
    return [run for run in runs(study) if run.data.tags[Tag.ROLE] == role]


class Searched(NamedTuple):
    """A search whose first driver was killed in its second trial."""

    killed_trials: list  # as the kill left them
    first: list[str]  # what the first driver has printed
    second: list[str]  # what the second one has printed
    study: optuna.Study  # as the second one has left it
    parent: mlflow.entities.Run


@pytest.fixture(scope="module")
def searched(uri, tmp_path_factory):
    """Kill a driver with one worker, and search on to the end with the project's entry point and two workers."""
    storage = f"sqlite:///{tmp_path_factory.mktemp('study')}/optuna.db"
    settings = {"trials": 3, "final_top": 2, "final_seeds": 2, "epochs": 1, "pruner": "none", "storage": storage}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    process = start_driver(uri, "smoke", *words, "--workers", "1")
    first = wait_for_line(process, "t000")
    wait_for_running_trial(storage)
    processes = process_tree(process)
    process.kill()
    process.communicate()
    assert have_ended(processes, seconds=30), "a trial outlived its driver"
    killed_trials = load_study(storage).trials

    result = run_project(uri, EXPERIMENT, entry_point="search", search="smoke", workers=WORKERS, **settings)
    assert result.succeeded, result.stderr
    study = load_study(storage)
    (parent,) = by_role(study, "search")
    return Searched(killed_trials, first, result.stdout.splitlines(), study, parent)


def test_each_trial_run_is_a_child_of_the_search_with_its_own_curve(searched):
    *_, study, parent = searched
    trial_runs = by_role(study, "trial")
    assert len(trial_runs) == len(study.trials) == 3 + 1
    for run in trial_runs:
        assert run.data.tags[Tag.PARENT_RUN_ID] == parent.info.run_id
        assert run.info.run_name.startswith(f"t{int(run.data.tags['trial.number']):03d} lr")
        assert "test_accuracy" not in run.data.metrics
        if run.data.tags[Tag.TRIAL_STATE] != TrialOutcome.LOST:
            assert run.info.status == "FINISHED"
            history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val_accuracy")
            assert [point.step for point in history] == [1]


def test_parent_run_has_best_value_leaderboard_and_figures(searched):
    *_, study, parent = searched
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best_val_accuracy"] == study.best_value
    folder = Path(mlflow.artifacts.download_artifacts(f"runs:/{parent.info.run_id}/"))
    figures = "optimization_history parameter_importances parallel_coordinates slices accuracy_vs_parameters curves"
    written = {path.stem for path in (folder / "plots").glob("*.png")}
    assert set(figures.split()) <= written
    board = pd.read_csv(folder / "leaderboard.csv")
    assert board["value"].iloc[0] == study.best_value
    assert set(board["run_id"]) == {run.info.run_id for run in by_role(study, "trial")}
    members = board[board["pareto"]]
    assert len(members) and (members["latency_ms"] > 0).all() and board[~board["pareto"]]["latency_ms"].isna().all()
    latencies = [mlflow.get_run(run_id).data.metrics["latency_ms"] for run_id in members["run_id"]]
    assert latencies == members["latency_ms"].tolist()


def test_final_trainings_are_grandchildren_and_only_the_winner_is_tested(searched):
    *_, study, parent = searched
    finals = by_role(study, "final")
    configurations = [run for run in finals if run.data.tags[Tag.PARENT_RUN_ID] == parent.info.run_id]
    trainings = [run for run in finals if run not in configurations]
    assert len(configurations) == 2
    assert len(trainings) == 4
    assert {run.data.tags[Tag.PARENT_RUN_ID] for run in trainings} == {run.info.run_id for run in configurations}
    (winner,) = [
        run for run in runs(study) if "test_accuracy" in run.data.metrics and run.info.run_id != parent.info.run_id
    ]
    assert winner.info.run_id in {run.info.run_id for run in trainings}
    assert parent.data.metrics["test_accuracy"] == winner.data.metrics["test_accuracy"]
    means = {run.info.run_id: run.data.metrics["val_accuracy_mean"] for run in configurations}
    assert means[winner.data.tags[Tag.PARENT_RUN_ID]] == max(means.values())
    (model,) = winner.outputs.model_outputs
    assert mlflow.models.get_model_info(f"models:/{model.model_id}").metadata["classes"] == list("0123456789")


def test_output_has_a_line_per_trial_and_the_command_of_the_winner(searched):
    _, first, second, study, _ = searched
    numbers = [[line.split()[0] for line in lines if line.startswith("t0")] for lines in (first, second)]
    assert [sorted(each) for each in numbers] == [["t000"], ["t002", "t003"]]
    times = [line for lines in (first, second) for line in lines if line.startswith("time")]
    assert times[0].startswith("time     very roughly ") and ": 3 trials and 4 finals of " in times[0]
    assert times[1].startswith("time     about ") and times[1].endswith(": 2 trials and 4 finals") and len(times) == 2
    (again,) = [line for line in second if line.startswith("again")]
    # The winner of several seeds each may differ from the best trial
    winner = study.user_attrs["winner"]["params"]
    assert f"--learning_rate {winner['learning_rate']}" in again
    assert "--epochs 1" in again


def test_same_command_after_the_end_starts_no_run(searched, uri, capsys):
    *_, study, parent = searched
    before = len(runs(study))
    arguments = ["smoke", "--trials", "3", "--final_top", "2", "--final_seeds", "2", "--epochs", "1"]
    arguments += ["--pruner", "none", "--storage", study._storage._backend.url]
    with environment_of(uri, EXPERIMENT):
        assert main.run(["search", *arguments]) == 0
    assert len(runs(study)) == before
    assert "[" not in "".join(line for line in capsys.readouterr().out.splitlines() if line.startswith("t0"))
    assert mlflow.get_run(parent.info.run_id).info.status == "FINISHED"


def test_driver_killed_by_sigkill_loses_no_finished_trial_and_continues(searched):
    killed_trials, _, output, study, _ = searched
    kept = [trial for trial in killed_trials if trial.state == TrialState.COMPLETE]
    (lost,) = [trial for trial in killed_trials if trial.state == TrialState.RUNNING]
    assert any("1 were lost" in line for line in output)
    complete = trials(study, TrialState.COMPLETE)
    assert len(complete) == 3
    assert [trial.values for trial in complete[: len(kept)]] == [trial.values for trial in kept]
    assert [trial.params for trial in complete].count(lost.params) == 1
    assert len({str(trial.params) for trial in complete}) == 3
    assert len(by_role(study, "search")) == 1
    assert not runs(study, " and attributes.status = 'RUNNING'")
    (closed,) = [run for run in by_role(study, "trial") if run.data.tags[Tag.TRIAL_STATE] == TrialOutcome.LOST]
    assert closed.info.status == "FAILED"
    assert closed.data.tags[Tag.TRIAL_NUMBER] == str(lost.number)


@pytest.mark.skipif(WORKERS < 2, reason="two workers need two cores")
def test_two_workers_train_two_trials_at_once(searched):
    _, _, output, study, _ = searched
    assert any("2 at a time: CPU 1 of 2, CPU 2 of 2" in line for line in output)
    complete = trials(study, TrialState.COMPLETE)
    spans = [(trial.datetime_start, trial.datetime_complete) for trial in complete]
    assert any(one[0] < other[0] < one[1] for one in spans for other in spans)


def test_second_driver_is_refused_and_one_ctrl_c_stops_running_trials(uri, storage, capsys):
    arguments = ["smoke", "--trials", "50", "--epochs", "50", "--storage", storage]
    process = start_driver(uri, *arguments)
    wait_for_line(process, "budget")
    with environment_of(uri, EXPERIMENT):
        assert main.run(["search", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"a study has one driver at a time: process {process.pid}" in line

    wait_for_running_trial(storage)
    processes = process_tree(process)
    os.killpg(process.pid, signal.SIGINT)
    # As MLflow does for the same Ctrl-C
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 130, err
    assert "the same command goes on" in out
    assert have_ended(processes, seconds=30)
    study = load_study(storage)
    assert not trials(study, TrialState.RUNNING)
    assert trials(study, TrialState.WAITING), "the stopped trial is queued again"
    assert not runs(study, " and attributes.status = 'RUNNING'")
    assert by_role(study, "search")[0].info.status == "KILLED"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the search first: conditional, conditional-grid"),
        (["smok"], "search must be one of"),
        (["smoke", "--trails", "3"], "unknown setting 'trails'; did you mean trials?"),
        (["smoke", "--learning_rate", "0.1"], "learning_rate must not be given, as it is searched"),
        (["smoke", "--patch_size", "3"], "search smoke: patch_size must divide the image side: 8x8 pixels"),
        (["smoke", "--storage", "postgresql://me:secret@host/db"], "storage must hold no password"),
        (["smoke", "--workers", "4096"], "workers must lie between 1 and the number of cores"),
    ],
)
def test_invalid_search_prints_one_error_line_without_password(capsys, arguments, message):
    assert main.run(["search", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert "secret" not in line


def test_refused_search_imports_neither_tensorflow_nor_mlflow():
    code = (
        "import sys; from pipeline.commands.main import run; run(['search', 'smoke', '--patch_size', '3']);"
        "print({'tensorflow', 'keras', 'mlflow', 'matplotlib'} & sys.modules.keys() or 'none')"
    )
    completed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert completed.stdout.split() == ["none"]


def test_search_whose_leaderboard_fails_is_a_failed_run(uri, storage, monkeypatch):
    def answer(job):
        if job.role == "step":
            return successful_trial(job, 0.5, step_seconds=0.01, tracing_seconds=0.1)[-1:]
        if job.role == "latency":
            return successful_trial(job, 0.5, latency_ms=1.0)[-1:]
        return successful_trial(job, 0.5)

    monkeypatch.setattr("pipeline.commands.search.build_executor", lambda search, data: ScriptedExecutor(answer))
    monkeypatch.setattr("pipeline.commands.search.leaderboard", None)
    arguments = ["smoke", "--trials", "1", "--epochs", "1", "--final_top", "0", "--storage", storage]
    with environment_of(uri, EXPERIMENT), pytest.raises(TypeError):
        main.run(["search", *arguments, "--study", "without leaderboard"])
    (parent,) = by_role(load_study(storage), "search")
    assert parent.info.status == "FAILED"
    assert parent.data.tags[Tag.OUTCOME_REASON].startswith("TypeError")
