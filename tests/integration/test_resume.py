"""A killed run is resumed as if it had not been interrupted: through `mlflow run`, after SIGKILL."""

import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from pipeline.commands import main
from pipeline.tracking.tags import Tag
from pipeline.training.checkpoint import checkpoint_files, read_checkpoint, write_checkpoint
from pipeline.training.checkpoint_manager import checkpoint_folder
from pipeline.training.fit import TIMINGS
from tests.support.mlflow_project import (
    environment_of,
    have_ended,
    mlflow_run,
    process_tree,
    run_project,
    run_to_end,
    started,
)
from tests.support.stores import tracking_store

EXPERIMENT = "resuming"
TITLE_PIXELS = 50  # height of the title of a figure of kernels
# An epoch takes so long that a kill after the first one's line falls into the second
SETTINGS = {"train_examples": "none", "batch_size": 8, "epochs": 3, "schedule": "one_cycle", "translation": 1}
SETTINGS |= {"learning_rate": "1e-3", "early_stopping_epochs": 2, "clip_norm": 1, "filter_steps": 4}
SECONDS_BEFORE = 10_000.0
LONG = SETTINGS | {"epochs": 1000, "early_stopping_epochs": "none"}


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    with tracking_store(tmp_path_factory.mktemp("tracking"), EXPERIMENT) as uri:
        yield uri


def after_epoch(epoch, process):
    """Wait for the line of an epoch, and return all processes by then, the command's own first."""
    assert any(re.match(rf"epoch +{epoch}/", line) for line in process.stdout), process.stderr.read()
    return process_tree(process)


def runs(role):
    """Return the runs of a role, the latest first."""
    logged = mlflow.search_runs(experiment_names=[EXPERIMENT], output_format="list")
    return [run for run in logged if run.data.tags.get(Tag.ROLE) == role]


@pytest.fixture(scope="module")
def uninterrupted(uri):
    """Return the run that nothing interrupts."""
    with environment_of(uri, EXPERIMENT):
        words = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
        assert main.run(["train", "smoke", *words]) == 0
    return runs("run")[0]


@pytest.fixture(scope="module")
def killed(uninterrupted, uri):
    """Return the id of a run that was killed in its second epoch together with its `mlflow run`."""
    with started(mlflow_run(recipe="smoke", **SETTINGS), uri, EXPERIMENT) as process:
        processes = after_epoch(1, process)
        for one in processes:
            one.kill()
        assert have_ended(processes)
    logged = runs("run")[0]
    assert logged.info.status == "RUNNING", "nobody was left to say otherwise"
    assert logged.info.run_id != uninterrupted.info.run_id
    pretend_seconds(logged.info.run_id)
    return logged.info.run_id


def pretend_seconds(run_id):
    """Make the newest checkpoint of a run say that its epochs took SECONDS_BEFORE each."""
    path = checkpoint_files(checkpoint_folder(run_id))[0]
    checkpoint = read_checkpoint(path)
    history = {**checkpoint.state.history, "epoch_seconds": [SECONDS_BEFORE] * checkpoint.state.epoch}
    write_checkpoint(path.parent, replace(checkpoint, state=replace(checkpoint.state, history=history)))


@pytest.fixture(scope="module")
def resumed(killed, uri):
    """Resume with `resume=latest` and MLproject's recipe, baseline; return the run that was killed, and the result."""
    result = run_project(uri, EXPERIMENT, resume="latest", epochs=3, checkpoint_minutes=5)
    assert result.succeeded, result.stderr
    return mlflow.get_run(killed), result


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
    assert [step for step, _ in again["loss"]] == [1, 2, 3]


def test_seconds_of_a_resumed_run_include_those_before_it(resumed):
    ((_, seconds),) = points(resumed[0])["seconds"]
    assert seconds > SECONDS_BEFORE


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
        mlflow.artifacts.load_image(f"runs:/{run.info.run_id}/plots/filters_over_epochs.png")
        for run in (uninterrupted, resumed[0])
    )
    # Above the panels stands the title, with the name of the run
    box = (0, TITLE_PIXELS, *one.size)
    assert one.size == other.size
    assert one.crop(box).tobytes() == other.crop(box).tobytes()


def test_resumed_run_is_the_same_and_parent_of_the_project_run(resumed):
    run, result = resumed
    assert (run.info.status, run.data.tags[Tag.OUTCOME]) == ("FINISHED", "finished")
    assert run.data.params["recipe"] == "smoke"
    assert run.info.run_name == "smoke train_examples=none translation=1 schedule=one_cycle clip_norm=1 +3 more #2"
    (child,) = runs("resume")
    assert child.info.run_name == "resumed at epoch 2"
    assert child.data.tags[Tag.PARENT_RUN_ID] == run.info.run_id
    assert child.info.status == "FINISHED"
    assert (child.info.run_id, child.info.status) == (result.run.run_id, result.run.get_status())
    assert f"resume   run {run.info.run_id} resumes after epoch 1 of 3" in result.stdout
    assert "epoch 1/3" not in result.stdout and "epoch 2/3" in result.stdout


def test_resumed_run_that_finishes_leaves_no_checkpoint(resumed):
    run, _ = resumed
    assert not checkpoint_folder(run.info.run_id).exists()
    assert "checkpoint" not in [item.path for item in mlflow.MlflowClient().list_artifacts(run.info.run_id)]


def test_run_has_tags_of_its_process(resumed):
    tags = resumed[0].data.tags
    assert {Tag.HOST, Tag.HOST_BOOT, Tag.PROCESS, Tag.PROCESS_STARTED, Tag.HEARTBEAT} <= set(tags)
    assert tags[Tag.PROCESS].isdigit()


def test_resuming_a_finished_run_prints_so_and_exits_with_0(resumed, uri, capsys):
    run, _ = resumed
    with environment_of(uri, EXPERIMENT):
        assert main.run(["train", "baseline", "--resume", run.info.run_id]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line == f"run {run.info.run_id} ({run.info.run_name}) is finished: there is nothing to resume"
        assert main.run(["train", "baseline", "--resume", "latest"]) == 2
        assert f"experiment {EXPERIMENT} has none" in capsys.readouterr().err


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
    with started(mlflow_run(recipe="smoke", **LONG), uri, EXPERIMENT) as process:
        processes = after_epoch(1, process)
        trainer = processes[-1]
        group = lambda number: os.killpg(process.pid, number)  # noqa: E731
        {"mlflow run": process.send_signal, "trainer": trainer.send_signal, "group": group}[target](number)
        assert have_ended([trainer])
        assert have_ended(processes, seconds=60), "mlflow run has to write how it ended"
    logged = runs("run")[0]
    assert logged.data.tags[Tag.OUTCOME] == "stopped"
    assert logged.info.status == ("FAILED" if target == "trainer" else "KILLED")
    assert logged.data.tags[Tag.PROCESS] == str(trainer.pid)
    assert list(checkpoint_folder(logged.info.run_id).glob("epoch-*.checkpoint"))


@pytest.mark.slow
def test_another_machine_resumes_from_artifacts_by_mlflow_run_id(uri, tmp_path):
    command = mlflow_run(recipe="smoke", **SETTINGS | {"epochs": 5, "checkpoint_minutes": 0})
    with started(command, uri, EXPERIMENT) as process:
        processes = after_epoch(3, process)
        for one in processes:
            one.kill()
        assert have_ended(processes)
    run_id = runs("run")[0].info.run_id
    before = len(mlflow.search_runs(experiment_names=[EXPERIMENT], output_format="list"))
    command = mlflow_run("--run-id", run_id)
    completed = run_to_end(command, uri, EXPERIMENT, variables={"XDG_CACHE_HOME": str(tmp_path)})
    assert completed.returncode == 0, completed.stderr
    assert f"resume   run {run_id} resumes after epoch" in completed.stdout
    assert len(mlflow.search_runs(experiment_names=[EXPERIMENT], output_format="list")) == before
    logged = mlflow.get_run(run_id)
    assert logged.info.status == "FINISHED"
    assert [step for step, _ in points(logged)["val_loss"]] == list(range(1, len(points(logged)["val_loss"]) + 1))
    assert "checkpoint" not in [item.path for item in mlflow.MlflowClient().list_artifacts(run_id)]


def killed_after_first_epoch(uri, **settings):
    """Return the id of a run whose trainer was killed."""
    with started(mlflow_run(recipe="smoke", **SETTINGS | settings), uri, EXPERIMENT) as process:
        processes = after_epoch(1, process)
        for one in processes:
            one.kill()
        assert have_ended(processes)
    return runs("run")[0].info.run_id


@pytest.mark.slow
def test_of_two_resumes_at_once_one_trains_and_the_other_is_refused(uri):
    run_id = killed_after_first_epoch(uri)
    command = [sys.executable, "-m", "pipeline", "train", "baseline", "--resume", run_id]
    with started(command, uri, EXPERIMENT) as one, started(command, uri, EXPERIMENT) as other:
        errors = [process.communicate(timeout=240)[1] for process in (one, other)]
    assert sorted([one.returncode, other.returncode]) == [0, 2]
    refused = errors[0 if one.returncode else 1]
    assert f"run {run_id} (smoke train_examples=none " in refused and "wait for it, or stop it first" in refused
    logged = mlflow.get_run(run_id)
    assert logged.info.status == "FINISHED"
    for name, history in points(logged).items():
        assert len({step for step, _ in history}) == len(history), name


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="a private mount of /proc/stat needs root")
def test_step_of_the_clock_in_mid_run_changes_nothing(uri, tmp_path):
    """A step of the clock moves the time of the boot in /proc/stat by as much."""
    stat = tmp_path / "stat"
    stat.write_text(Path("/proc/stat").read_text())
    mounted = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /proc/stat && exec "$@"', str(stat)]
    command = [sys.executable, "-m", "pipeline", "train", "smoke", "--train_examples", "none", "--epochs", "20"]
    with started([*mounted, *command], uri, EXPERIMENT) as process:
        after_epoch(1, process)
        stat.write_text(re.sub(r"(?m)^btime (\d+)", lambda match: f"btime {int(match[1]) + 3600}", stat.read_text()))
        logged = runs("run")[0]
        resume = [*mounted, sys.executable, "-m", "pipeline", "train", "smoke", "--resume", logged.info.run_id]
        with started(resume, uri, EXPERIMENT) as intruder:
            _, errors = intruder.communicate(timeout=120)
            assert process.poll() is None, "it still trains"
            assert intruder.returncode == 2 and "is running as process" in errors
        process.communicate(timeout=120)
    ended = mlflow.get_run(logged.info.run_id)
    assert (ended.info.status, ended.data.tags[Tag.OUTCOME]) == ("FINISHED", "finished")


@pytest.mark.slow
def test_killed_run_of_folds_is_resumed_as_the_latest_in_the_fold_in_which_it_was(uri):
    command = [sys.executable, "-m", "pipeline", "train"]
    settings = ["--train_examples", "none", "--batch_size", "8", "--epochs", "3", "--folds", "3"]
    with started([*command, "smoke", *settings], uri, EXPERIMENT) as process:
        assert any(line.startswith("fold 2/3") for line in process.stdout), process.stderr.read()
        for one in after_epoch(1, process):
            one.kill()
        process.wait(timeout=60)
    killed = runs("run")[0]
    assert {run.info.status for run in (killed, runs("fold")[0])} == {"RUNNING"}, "nobody was left to say otherwise"
    with started([*command, "--resume", runs("fold")[0].info.run_id], uri, EXPERIMENT) as process:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2 and f"resume {killed.info.run_id}" in errors
    with started([*command, "--resume", "latest"], uri, EXPERIMENT) as process:
        output, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors
    assert f"run {killed.info.run_id} resumes after epoch 1 of 3 of fold 2 of 3" in output
    assert "images, trained before" in output and output.count("epoch 1/3") == 1, "of the third fold alone"
    logged = [*runs("run")[:1], *runs("fold")[:3]]
    assert {run.info.status for run in logged} == {"FINISHED"}
    assert logged[0].info.run_id == killed.info.run_id
    folds = {run.data.tags[Tag.FOLD]: run for run in logged[1:]}
    assert sorted(folds) == ["1", "2", "3"]
    for fold in folds.values():
        assert fold.data.tags[Tag.PARENT_RUN_ID] == killed.info.run_id
        assert [step for step, _ in points(fold)["val_loss"]] == [1, 2, 3]
        assert not checkpoint_files(checkpoint_folder(fold.info.run_id))
