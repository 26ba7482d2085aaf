"""The seams where people meet a search: `mlflow run -e search`, kills, Ctrl-C, the same command again, bad input."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import optuna
import pandas as pd
import psutil
import pytest
from optuna.trial import TrialState

from pipeline.commands.main import run as run_convmixer
from pipeline.tracking.tags import Tag, TrialOutcome
from tests.support.paths import ROOT
from tests.support.stores import environment, tracking_store


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    with tracking_store(tmp_path_factory.mktemp("tracking"), "searches") as uri:
        yield uri


@pytest.fixture
def storage(tmp_path):
    return f"sqlite:///{tmp_path}/optuna.db"


def start(uri, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "search", *arguments],
        cwd=ROOT,
        env=environment(uri, "searches"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process, *, seconds=240):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def line_of(process, beginning):
    """Wait for a line of a process and return it."""
    for line in process.stdout:
        if line.startswith(beginning):
            return line
    raise AssertionError(process.stderr.read())


def family(process):
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def the_study(storage):
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def runs(study, extra=""):
    where = f"tags.{Tag.STUDY} = '{study.study_name}'{extra}"
    return mlflow.search_runs(experiment_names=["searches"], filter_string=where, output_format="list")


def by_role(study, role):
    return [run for run in runs(study) if run.data.tags[Tag.ROLE] == role]


@pytest.fixture(scope="module")
def searched(uri, tmp_path_factory):
    """A search by `mlflow run`, to its end: what was printed, its study and its parent run."""
    storage = f"sqlite:///{tmp_path_factory.mktemp('study')}/optuna.db"
    given = {"search": "smoke", "trials": 4, "storage": storage, "final_top": 2, "final_seeds": 2, "epochs": 1}
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", "search", "--env-manager", "local"]
    command += [
        "--experiment-name",
        "searches",
        *(word for pair in given.items() for word in ("-P", "=".join(map(str, pair)))),
    ]
    done = subprocess.run(
        command, env=environment(uri, "searches"), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    study = the_study(storage)
    (parent,) = by_role(study, "search")
    return done, study, parent


def test_every_trial_is_a_child_with_its_settings_and_curve(searched):
    _, study, parent = searched
    trials = by_role(study, "trial")
    assert len(trials) == len(study.trials) == 4
    for run in trials:
        assert run.data.tags[Tag.PARENT_RUN_ID] == parent.info.run_id
        assert run.info.run_name.startswith(f"t{int(run.data.tags['trial.number']):03d} lr")
        assert run.info.status == ("KILLED" if run.data.tags[Tag.TRIAL_STATE] == "pruned" else "FINISHED")
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val_accuracy")
        assert [point.step for point in history] == [1]
        assert "test_accuracy" not in run.data.metrics


def test_the_parent_holds_the_answer_and_the_evidence(searched):
    _, study, parent = searched
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best_val_accuracy"] == study.best_value
    folder = Path(mlflow.artifacts.download_artifacts(f"runs:/{parent.info.run_id}/"))
    figures = "optimization_history parameter_importances parallel_coordinates slices accuracy_vs_parameters curves"
    there = {path.stem for path in (folder / "plots").glob("*.png")}
    assert set(figures.split()) <= there
    board = pd.read_csv(folder / "leaderboard.csv")
    assert board["value"].iloc[0] == study.best_value
    assert set(board["run_id"]) == {run.info.run_id for run in by_role(study, "trial")}
    members = board[board["pareto"]]
    assert len(members) and (members["latency_ms"] > 0).all() and board[~board["pareto"]]["latency_ms"].isna().all()
    latencies = [mlflow.get_run(run_id).data.metrics["latency_ms"] for run_id in members["run_id"]]
    assert latencies == members["latency_ms"].tolist()


def test_finals_are_grandchildren_and_the_winner_alone_saw_the_test_images(searched):
    _, study, parent = searched
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


def test_the_terminal_tells_of_each_trial_and_how_to_train_the_best_again(searched):
    done, study, _ = searched
    told = [line for line in done.stdout.splitlines() if line.startswith("t0")]
    assert [line.split()[0] for line in told] == [f"t{number:03d}" for number in range(4)]
    (time_line,) = [line for line in done.stdout.splitlines() if line.startswith("time")]
    assert time_line.startswith("time     very roughly ") and ": 4 trials of " in time_line
    (again,) = [line for line in done.stdout.splitlines() if line.startswith("again")]
    winner = study.user_attrs["winner"]["params"]  # of several seeds each, which may differ from the best trial
    assert f"-P learning_rate={winner['learning_rate']}" in again
    assert "-P epochs=1" in again


def test_the_same_command_after_the_end_trains_nothing_more(searched, uri):
    _, study, parent = searched
    before = len(runs(study))
    arguments = ["smoke", "--trials", "4", "--final_top", "2", "--final_seeds", "2", "--epochs", "1"]
    code, out, err = finish(start(uri, *arguments, "--storage", study._storage._backend.url))
    assert code == 0, err
    assert len(runs(study)) == before
    assert "[" not in "".join(line for line in out.splitlines() if line.startswith("t0"))
    assert mlflow.get_run(parent.info.run_id).info.status == "FINISHED"


def test_kill_9_of_the_driver_loses_no_finished_trial_and_the_same_command_goes_on(uri, storage):
    arguments = [
        "smoke",
        "--trials",
        "3",
        "--epochs",
        "4",
        "--final_top",
        "0",
        "--pruner",
        "none",
        "--storage",
        storage,
    ]
    process = start(uri, *arguments)
    line_of(process, "t000")
    deadline = time.monotonic() + 60
    while not [trial for trial in the_study(storage).trials if trial.state == TrialState.RUNNING]:
        assert time.monotonic() < deadline
    mine = family(process)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(mine, timeout=30)
    assert not alive, "a trial outlived its driver"
    first = the_study(storage)
    kept = [trial for trial in first.trials if trial.state == TrialState.COMPLETE]
    (lost,) = [trial for trial in first.trials if trial.state == TrialState.RUNNING]

    code, out, err = finish(start(uri, *arguments))
    assert code == 0, err
    assert "1 were lost" in out
    study = the_study(storage)
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == 3
    assert [trial.values for trial in complete[: len(kept)]] == [trial.values for trial in kept]
    assert [trial.params for trial in complete].count(lost.params) == 1
    assert len({str(trial.params) for trial in complete}) == 3
    assert len(by_role(study, "search")) == 1
    assert not runs(study, " and attributes.status = 'RUNNING'")
    (closed,) = [run for run in by_role(study, "trial") if run.data.tags[Tag.TRIAL_STATE] == TrialOutcome.LOST]
    assert closed.info.status == "FAILED"
    assert closed.data.tags[Tag.TRIAL_NUMBER] == str(lost.number)


def test_one_ctrl_c_ends_running_trials_cleanly_and_a_second_driver_is_refused_before(uri, storage):
    arguments = ["smoke", "--trials", "50", "--epochs", "50", "--storage", storage]
    process = start(uri, *arguments)
    line_of(process, "budget")
    code, _, err = finish(start(uri, *arguments))
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert f"a study has one driver at a time: process {process.pid}" in line
    deadline = time.monotonic() + 60
    while not [trial for trial in the_study(storage).trials if trial.state == TrialState.RUNNING]:
        assert time.monotonic() < deadline
    mine = family(process)
    os.killpg(process.pid, signal.SIGINT)
    process.send_signal(signal.SIGTERM)  # as MLflow does for the same Ctrl-C
    code, out, err = finish(process)
    assert code == 130, err
    assert "the same command goes on" in out
    psutil.wait_procs(mine, timeout=30)
    assert not [one for one in mine if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    study = the_study(storage)
    assert not [trial for trial in study.trials if trial.state == TrialState.RUNNING]
    assert [trial for trial in study.trials if trial.state == TrialState.WAITING], "the stopped trial is queued again"
    assert not runs(study, " and attributes.status = 'RUNNING'")
    assert by_role(study, "search")[0].info.status == "KILLED"


def test_two_workers_train_at_once_and_give_the_study_the_same_shape(uri, storage):
    if (os.cpu_count() or 1) < 2:
        pytest.skip("two workers need two cores")
    arguments = ["smoke", "--trials", "4", "--epochs", "1", "--final_top", "0", "--workers", "2", "--storage", storage]
    code, out, err = finish(start(uri, *arguments))
    assert code == 0, err
    assert "2 at a time: CPU 1 of 2, CPU 2 of 2" in out
    spans = [(trial.datetime_start, trial.datetime_complete) for trial in the_study(storage).trials]
    assert any(one[0] < other[0] < one[1] for one in spans for other in spans)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the search first: kernel-patch-depth"),
        (["smok"], "search must be one of"),
        (["smoke", "--trails", "3"], "unknown setting 'trails'; did you mean trials?"),
        (["smoke", "--learning_rate", "0.1"], "learning_rate must not be given, as it is searched"),
        (["smoke", "--patch_size", "3"], "search smoke: patch_size must divide the image side: 8x8 pixels"),
        (["smoke", "--storage", "postgresql://me:secret@host/db"], "storage must hold no password"),
        (["smoke", "--workers", "4096"], "workers must lie between 1 and the number of cores"),
    ],
)
def test_a_bad_search_is_refused_in_one_line(capsys, arguments, message):
    assert run_convmixer(["search", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert "secret" not in line


def test_a_refused_search_needs_neither_tensorflow_nor_mlflow():
    code = (
        "import sys; from pipeline.commands.main import run; run(['search', 'smoke', '--patch_size', '3']);"
        "print({'tensorflow', 'keras', 'mlflow', 'matplotlib'} & sys.modules.keys() or 'none')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["none"]


def test_a_search_that_cannot_write_its_evidence_is_a_failed_run(uri, storage):
    code = (
        "import sys; from pipeline.search import results; results.leaderboard = None;"
        "from pipeline.commands.main import run; run(['search', *sys.argv[1:]])"
    )
    arguments = ["smoke", "--trials", "1", "--epochs", "1", "--final_top", "0", "--storage", storage]
    arguments += ["--study", "without evidence"]
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, env=environment(uri, "searches"), cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert "TypeError" in done.stderr
    (parent,) = by_role(the_study(storage), "search")
    assert parent.info.status == "FAILED"
    assert parent.data.tags[Tag.OUTCOME_REASON].startswith("TypeError")
