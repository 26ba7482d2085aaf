"""A killed run is resumed as if it had not been interrupted: through `mlflow run`, after SIGKILL."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import psutil
import pytest

from pipeline.commands.main import run as run_convmixer
from pipeline.tracking.tags import Tag
from pipeline.training.checkpoint_manager import checkpoint_folder
from pipeline.training.fit import TIMINGS
from tests.support.paths import ROOT
from tests.support.stores import environment, tracking_store

# some seconds an epoch, so that a kill after the first one's line falls into the second
SETTINGS = {"train_examples": "none", "batch_size": 8, "epochs": 4, "schedule": "one_cycle", "translation": 1}
SETTINGS |= {"learning_rate": "1e-3", "early_stopping_epochs": 3, "clip_norm": 1, "filter_steps": 4}
LONG = SETTINGS | {"epochs": 1000, "early_stopping_epochs": "none"}


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    with tracking_store(tmp_path_factory.mktemp("tracking"), "resuming") as uri:
        yield uri


def mlflow_run(*arguments, recipe="smoke", **settings):
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local", *arguments]
    given = ({"recipe": recipe} if recipe else {}) | settings
    return [*command, *(word for pair in given.items() for word in ("-P", "=".join(map(str, pair))))]


@contextmanager
def started(command, uri):
    """Start a command in a process group of its own, of which nothing outlives the test."""
    process = subprocess.Popen(
        command,
        env=environment(uri, "resuming"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)


def after_epoch(epoch, process):
    """Wait for the line of an epoch, and return all processes by then, the command's own first."""
    assert any(re.match(rf"epoch +{epoch}/", line) for line in process.stdout), process.stderr.read()
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def have_ended(processes, *, seconds=10):
    _, alive = psutil.wait_procs([one for one in processes if one.is_running()], timeout=seconds)
    return [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []


def runs(role):
    run_found = mlflow.search_runs(experiment_names=["resuming"], output_format="list")
    return [run for run in run_found if run.data.tags.get(Tag.ROLE) == role]


@pytest.fixture(scope="module")
def uninterrupted(uri):
    """Return the run that nothing interrupts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(uri, "resuming").items():
            patch.setenv(name, value)
        words = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
        assert run_convmixer(["train", "smoke", *words]) == 0
    return runs("run")[0]


@pytest.fixture(scope="module")
def killed(uninterrupted, uri):
    """Return the id of a run that was killed in its second epoch together with its `mlflow run`."""
    with started(mlflow_run(**SETTINGS), uri) as process:
        processes = after_epoch(1, process)
        for one in processes:
            one.kill()
        assert have_ended(processes)
    run_found = runs("run")[0]
    assert run_found.info.status == "RUNNING", "nobody was left to say otherwise"
    assert run_found.info.run_id != uninterrupted.info.run_id
    return run_found.info.run_id


@pytest.fixture(scope="module")
def resumed(killed, uri):
    """Return the killed run after `-P resume=latest`, and the process; MLproject names the recipe baseline then."""
    completed = subprocess.run(
        mlflow_run("--experiment-name", "resuming", recipe=None, resume="latest", epochs=4, checkpoint_minutes=5),
        env=environment(uri, "resuming"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return mlflow.get_run(killed), completed


def points(run):
    names = [name for name in run.data.metrics if not name.startswith("system/")]
    histories = {name: mlflow.MlflowClient().get_metric_history(run.info.run_id, name) for name in names}
    return {name: [(point.step, point.value) for point in history] for name, history in histories.items()}


def test_resumed_metrics_equal_an_uninterrupted_run_bit_for_bit_without_duplicates(uninterrupted, resumed):
    once, again = points(uninterrupted), points(resumed[0])
    assert once.keys() == again.keys()
    for name in once:
        assert [step for step, _ in once[name]] == [step for step, _ in again[name]], name
    assert {name: once[name] for name in once if name not in TIMINGS} == {
        name: again[name] for name in again if name not in TIMINGS
    }
    assert [step for step, _ in again["loss"]] == [1, 2, 3, 4]


def test_resumed_weights_equal_an_uninterrupted_run_bit_for_bit(uninterrupted, resumed):
    one, other = (
        mlflow.tensorflow.load_model(f"models:/{run.outputs.model_outputs[0].model_id}").get_weights()
        for run in (uninterrupted, resumed[0])
    )
    for weight, same in zip(one, other, strict=True):
        assert weight.tobytes() == same.tobytes()
    assert len(resumed[0].outputs.model_outputs) == 1


def test_resumed_figure_of_filters_includes_epochs_before_the_kill(uninterrupted, resumed):
    one, other = (
        Path(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/plots/filters_over_epochs.png"))
        for run in (uninterrupted, resumed[0])
    )
    assert one.read_bytes() == other.read_bytes()


def test_resumed_run_is_the_same_and_parent_of_the_project_run(resumed):
    run, completed = resumed
    assert (run.info.status, run.data.tags[Tag.OUTCOME]) == ("FINISHED", "finished")
    assert run.data.params["recipe"] == "smoke"
    assert run.info.run_name == "smoke 8/1 k3 p2"
    (child,) = runs("resume")
    assert child.info.run_name == "resumed at epoch 2"
    assert child.data.tags[Tag.PARENT_RUN_ID] == run.info.run_id
    assert child.info.status == "FINISHED"
    assert f"resume   run {run.info.run_id} resumes after epoch 1 of 4" in completed.stdout
    assert "epoch 1/4" not in completed.stdout and "epoch 2/4" in completed.stdout


def test_resumed_run_that_finishes_leaves_no_checkpoint(resumed):
    run, _ = resumed
    assert not checkpoint_folder(run.info.run_id).exists()
    assert "checkpoint" not in [item.path for item in mlflow.MlflowClient().list_artifacts(run.info.run_id)]


def test_run_has_tags_of_its_process(resumed):
    tags = resumed[0].data.tags
    assert {Tag.HOST, Tag.HOST_BOOT, Tag.PROCESS, Tag.PROCESS_STARTED, Tag.HEARTBEAT} <= set(tags)
    assert tags[Tag.PROCESS].isdigit()


def test_resuming_a_finished_run_prints_so_and_exits_with_0(resumed, uri, capsys, monkeypatch):
    run, _ = resumed
    for name, value in environment(uri, "resuming").items():
        monkeypatch.setenv(name, value)
    assert run_convmixer(["train", "baseline", "--resume", run.info.run_id]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"run {run.info.run_id} ({run.info.run_name}) is finished: there is nothing to resume"
    assert run_convmixer(["train", "baseline", "--resume", "latest"]) == 2
    assert "experiment resuming has none" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "number"),
    [
        ("mlflow run", signal.SIGTERM),
        ("mlflow run", signal.SIGKILL),
        ("trainer", signal.SIGTERM),
        ("group", signal.SIGTERM),
        ("group", signal.SIGHUP),
    ],
)
def test_signal_to_any_process_ends_training_within_ten_seconds_and_leaves_a_checkpoint(uri, target, number):
    with started(mlflow_run(**LONG), uri) as process:
        processes = after_epoch(1, process)
        trainer = processes[-1]
        group = lambda number: os.killpg(process.pid, number)  # noqa: E731
        {"mlflow run": process.send_signal, "trainer": trainer.send_signal, "group": group}[target](number)
        assert have_ended([trainer])
        assert have_ended(processes, seconds=60), "mlflow run has to write how it ended"
    run_found = runs("run")[0]
    assert run_found.data.tags[Tag.OUTCOME] == "stopped"
    assert run_found.info.status == ("FAILED" if target == "trainer" else "KILLED")
    assert run_found.data.tags[Tag.PROCESS] == str(trainer.pid)
    assert list(checkpoint_folder(run_found.info.run_id).glob("epoch-*.checkpoint"))


@pytest.mark.slow
def test_another_machine_resumes_from_artifacts_by_mlflow_run_id(uri, tmp_path):
    with started(mlflow_run(**(SETTINGS | {"epochs": 5, "checkpoint_minutes": 0})), uri) as process:
        processes = after_epoch(3, process)
        for one in processes:
            one.kill()
        assert have_ended(processes)
    run_id = runs("run")[0].info.run_id
    before = len(mlflow.search_runs(experiment_names=["resuming"], output_format="list"))
    completed = subprocess.run(
        mlflow_run("--run-id", run_id, recipe=None),
        env=environment(uri, "resuming") | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert f"resume   run {run_id} resumes after epoch" in completed.stdout
    assert len(mlflow.search_runs(experiment_names=["resuming"], output_format="list")) == before
    run_found = mlflow.get_run(run_id)
    assert run_found.info.status == "FINISHED"
    assert [step for step, _ in points(run_found)["val_loss"]] == list(range(1, len(points(run_found)["val_loss"]) + 1))
    assert "checkpoint" not in [item.path for item in mlflow.MlflowClient().list_artifacts(run_id)]
