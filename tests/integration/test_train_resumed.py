"""A run that is killed goes on as if it had not been: through `mlflow run`, with kill -9, as people meet it."""

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
def begun(command, uri):
    """The command's process, in a group of its own of which nothing outlives the test."""
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
    """Waits for the line of an epoch; returns all processes by then, the command's own first."""
    assert any(re.match(rf"epoch +{epoch}/", line) for line in process.stdout), process.stderr.read()
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def gone(processes, *, seconds=10):
    _, alive = psutil.wait_procs([one for one in processes if one.is_running()], timeout=seconds)
    return [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []


def runs(role):
    found = mlflow.search_runs(experiment_names=["resuming"], output_format="list")
    return [run for run in found if run.data.tags.get(Tag.ROLE) == role]


@pytest.fixture(scope="module")
def whole(uri):
    """The run that nothing interrupts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(uri, "resuming").items():
            patch.setenv(name, value)
        words = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
        assert run_convmixer(["train", "smoke", *words]) == 0
    return runs("run")[0]


@pytest.fixture(scope="module")
def killed(whole, uri):
    """A run killed in its second epoch together with its `mlflow run`; its id, and its points at that moment."""
    with begun(mlflow_run(**SETTINGS), uri) as process:
        family = after_epoch(1, process)
        for one in family:
            one.kill()
        assert gone(family)
    found = runs("run")[0]
    assert found.info.status == "RUNNING", "nobody was left to say otherwise"
    assert found.info.run_id != whole.info.run_id
    return found.info.run_id


@pytest.fixture(scope="module")
def resumed(killed, uri):
    """The killed run after `-P resume=latest`, and what was printed; MLproject names the recipe baseline then."""
    done = subprocess.run(
        mlflow_run("--experiment-name", "resuming", recipe=None, resume="latest", epochs=4, checkpoint_minutes=5),
        env=environment(uri, "resuming"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return mlflow.get_run(killed), done


def points(run):
    names = [name for name in run.data.metrics if not name.startswith("system/")]
    histories = {name: mlflow.MlflowClient().get_metric_history(run.info.run_id, name) for name in names}
    return {name: [(point.step, point.value) for point in history] for name, history in histories.items()}


def test_the_metrics_equal_those_of_an_uninterrupted_run_bit_for_bit_and_none_is_doubled(whole, resumed):
    once, again = points(whole), points(resumed[0])
    assert once.keys() == again.keys()
    for name in once:
        assert [step for step, _ in once[name]] == [step for step, _ in again[name]], name
    assert {name: once[name] for name in once if name not in TIMINGS} == {
        name: again[name] for name in again if name not in TIMINGS
    }
    assert [step for step, _ in again["loss"]] == [1, 2, 3, 4]


def test_the_weights_equal_those_of_an_uninterrupted_run_bit_for_bit(whole, resumed):
    one, other = (
        mlflow.tensorflow.load_model(f"models:/{run.outputs.model_outputs[0].model_id}").get_weights()
        for run in (whole, resumed[0])
    )
    for weight, same in zip(one, other, strict=True):
        assert weight.tobytes() == same.tobytes()
    assert len(resumed[0].outputs.model_outputs) == 1


def test_the_filters_of_epochs_before_the_kill_are_in_the_picture(whole, resumed):
    one, other = (
        Path(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/plots/filters_over_epochs.png"))
        for run in (whole, resumed[0])
    )
    assert one.read_bytes() == other.read_bytes()


def test_the_same_run_is_finished_and_the_second_command_s_run_lies_below_it(resumed):
    run, done = resumed
    assert (run.info.status, run.data.tags[Tag.OUTCOME]) == ("FINISHED", "finished")
    assert run.data.params["recipe"] == "smoke"
    assert run.info.run_name == "smoke 8/1 k3 p2"
    (child,) = runs("resume")
    assert child.info.run_name == "resumed at epoch 2"
    assert child.data.tags[Tag.PARENT_RUN_ID] == run.info.run_id
    assert child.info.status == "FINISHED"
    assert f"resume   run {run.info.run_id} resumes after epoch 1 of 4" in done.stdout
    assert "epoch 1/4" not in done.stdout and "epoch 2/4" in done.stdout


def test_a_run_that_ends_well_leaves_no_checkpoint(resumed):
    run, _ = resumed
    assert not checkpoint_folder(run.info.run_id).exists()
    assert "checkpoint" not in [item.path for item in mlflow.MlflowClient().list_artifacts(run.info.run_id)]


def test_a_run_says_whose_it_was(resumed):
    tags = resumed[0].data.tags
    assert {"host", "host.boot", "process", "process.started", Tag.HEARTBEAT} <= set(tags)
    assert tags["process"].isdigit()


def test_resuming_a_finished_run_says_so_and_is_no_fault(resumed, uri, capsys, monkeypatch):
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
    ("whom", "number"),
    [
        ("mlflow run", signal.SIGTERM),
        ("mlflow run", signal.SIGKILL),
        ("trainer", signal.SIGTERM),
        ("group", signal.SIGTERM),
        ("group", signal.SIGHUP),
    ],
)
def test_whoever_is_asked_to_stop_the_trainer_is_gone_within_ten_seconds_and_the_run_can_go_on(uri, whom, number):
    with begun(mlflow_run(**LONG), uri) as process:
        family = after_epoch(1, process)
        trainer = family[-1]
        group = lambda number: os.killpg(process.pid, number)  # noqa: E731
        {"mlflow run": process.send_signal, "trainer": trainer.send_signal, "group": group}[whom](number)
        assert gone([trainer])
        assert gone(family, seconds=60), "mlflow run has to write how it ended"
    found = runs("run")[0]
    assert found.data.tags[Tag.OUTCOME] == "stopped"
    assert found.info.status == ("FAILED" if whom == "trainer" else "KILLED")
    assert found.data.tags["process"] == str(trainer.pid)
    assert list(checkpoint_folder(found.info.run_id).glob("epoch-*.checkpoint"))


@pytest.mark.slow
def test_another_machine_goes_on_from_the_run_s_artifacts_by_mlflow_s_own_run_id(uri, tmp_path):
    with begun(mlflow_run(**(SETTINGS | {"epochs": 5, "checkpoint_minutes": 0})), uri) as process:
        family = after_epoch(3, process)
        for one in family:
            one.kill()
        assert gone(family)
    run_id = runs("run")[0].info.run_id
    before = len(mlflow.search_runs(experiment_names=["resuming"], output_format="list"))
    done = subprocess.run(
        mlflow_run("--run-id", run_id, recipe=None),
        env=environment(uri, "resuming") | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"resume   run {run_id} resumes after epoch" in done.stdout
    assert len(mlflow.search_runs(experiment_names=["resuming"], output_format="list")) == before
    found = mlflow.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert [step for step, _ in points(found)["val_loss"]] == list(range(1, len(points(found)["val_loss"]) + 1))
    assert "checkpoint" not in [item.path for item in mlflow.MlflowClient().list_artifacts(run_id)]
