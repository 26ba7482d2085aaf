"""The seams where people meet a run: `mlflow run`, the command line, Ctrl-C, and what is found in MLflow afterwards."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest
import yaml

from pipeline.commands.main import run as run_convmixer
from pipeline.config.training import DataConfig, TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.runtime.cpu import has_bfloat16
from pipeline.tracking.tags import Tag
from tests.support.paths import ROOT
from tests.support.stores import environment, tracking_store

LONG = ["-P", "recipe=smoke", "-P", "epochs=1000"]


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    with tracking_store(tmp_path_factory.mktemp("tracking"), "seams") as uri:
        yield uri


def mlflow_run(*arguments, project=ROOT):
    """The command that a person types in an activated environment."""
    start = [
        sys.executable,
        "-m",
        "mlflow",
        "run",
        str(project),
        "--env-manager",
        "local",
        "--experiment-name",
        "seams",
    ]
    return [*start, *arguments]


def run(command, uri, **options):
    return subprocess.run(
        command, env=environment(uri, "seams"), capture_output=True, text=True, timeout=300, check=False, **options
    )


def newest():
    """The run that was started last."""
    return mlflow.search_runs(experiment_names=["seams"], output_format="list", max_results=1)[0]


@pytest.fixture(scope="module")
def finished(uri, tmp_path_factory):
    """A run by `mlflow run` from another folder, named by a person: what was printed, and what MLflow holds."""
    settings = ["-P", "learning_rate=1e-3", "-P", "flip=false", "-P", "clip_norm=none", "-P", "image_size=12,8"]
    settings += ["-P", "register_as=smoke"]
    command = mlflow_run("--run-name", "my own", "-P", "recipe=smoke", *settings)
    done = run(command, uri, cwd=tmp_path_factory.mktemp("elsewhere"))
    assert done.returncode == 0, done.stderr
    return done, newest()


def test_mlflow_run_finishes_under_the_name_that_was_given(finished):
    _, found = finished
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "my own"
    assert found.data.tags[Tag.OUTCOME] == "finished"


def test_every_setting_is_a_parameter_in_the_spelling_of_whoever_logged_it_first(finished):
    _, found = finished
    assert set(found.data.params) == {"recipe", *TrainingConfig.model_fields}
    given = {"learning_rate": "1e-3", "flip": "false", "clip_norm": "none", "image_size": "12,8"}
    assert {name: found.data.params[name] for name in given} == given
    resolved = ("mixed_bfloat16" if has_bfloat16() else "float32", "false")
    assert (found.data.params["precision"], found.data.params["jit_compile"]) == resolved


def test_metrics_have_a_point_an_epoch_from_step_one(finished):
    _, found = finished
    client = mlflow.MlflowClient()
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_seconds", "images_per_second"):
        assert [point.step for point in client.get_metric_history(found.info.run_id, name)] == [1, 2]
    once = {"test_loss", "test_accuracy", "best_epoch", "best_val_accuracy", "parameters", "seconds"}
    assert once <= set(found.data.metrics)
    assert found.data.metrics["best_val_accuracy"] == max(
        point.value for point in client.get_metric_history(found.info.run_id, "val_accuracy")
    )


def artifact(found, name):
    return mlflow.artifacts.download_artifacts(f"runs:/{found.info.run_id}/{name}")


def test_the_artifacts_are_all_there_and_hold_what_they_say(finished):
    _, found = finished
    there = {str(path.relative_to(folder)) for folder in [Path(artifact(found, ""))] for path in folder.rglob("*.*")}
    plots = {
        f"plots/{name}.png"
        for name in ("curves", "patch_embeddings", "depthwise_kernels", "confusion_matrix", "mistakes")
    }
    plots.add("plots/depthwise_kernels/block_1.png")
    assert there == {"config.yaml", "history.csv", "per_class.csv", "test_predictions.csv"} | plots
    history = pd.read_csv(artifact(found, "history.csv"))
    assert history["epoch"].tolist() == [1, 2]
    per_class = pd.read_csv(artifact(found, "per_class.csv"))
    right = (per_class["images"] * per_class["recall"]).sum()
    assert right / per_class["images"].sum() == pytest.approx(found.data.metrics["test_accuracy"])
    predictions = pd.read_csv(artifact(found, "test_predictions.csv"), dtype={"image": str})
    right = predictions["label"] == predictions["predicted"]
    assert right.mean() == pytest.approx(found.data.metrics["test_accuracy"])
    assert predictions["image"].nunique() == len(predictions), "digits has no picture twice"
    assert predictions.groupby("label").size().tolist() == per_class["images"].tolist()


def test_origin_is_told_in_tags_and_data_sets(finished):
    _, found = finished
    assert {Tag.GIT_COMMIT, Tag.GIT_DIRTY, Tag.DEVICE, Tag.TENSORFLOW, Tag.DATA, Tag.PRECISION} <= set(found.data.tags)
    contexts = {given.tags[0].value: given.dataset for given in found.inputs.dataset_inputs}
    assert set(contexts) == {"train", "validation", "test"}
    assert len({dataset.digest for dataset in contexts.values()}) == 3
    assert f"{found.data.metrics['test_accuracy']:.2%}" in found.data.tags[Tag.DESCRIPTION]


def test_the_terminal_tells_what_came_of_it_and_what_to_do_next(finished):
    done, found = finished
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["data", "model", "device"]
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/2", "2/2"]
    assert f"test accuracy {found.data.metrics['test_accuracy']:.2%}" in done.stdout
    assert found.info.run_id in done.stdout
    assert "mlflow ui --backend-store-uri sqlite:///" in done.stdout
    ours = [line for line in done.stderr.splitlines() if " INFO mlflow." not in line]
    assert all(line.startswith("warning: validation will lag behind") for line in ours), done.stderr


def test_the_config_file_runs_the_run_again(finished, uri, tmp_path):
    _, found = finished
    same = [sys.executable, "-m", "pipeline", "train", artifact(found, "config.yaml"), "--register_as", "none"]
    again = run(same, uri, cwd=ROOT)
    assert again.returncode == 0, again.stderr
    columns = ["loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"]
    first, second = (pd.read_csv(artifact(one, "history.csv"))[columns] for one in (found, newest()))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert newest().info.run_name == "digits 8/1 k3 p2", "of what it is, as config says nothing"


def test_the_logged_model_is_the_one_that_was_tested(finished):
    _, found = finished
    model = mlflow.pyfunc.load_model(f"runs:/{found.info.run_id}/model")
    digits = load_dataset(DataConfig(dataset="digits", image_size=(12, 8), train_examples=200), seed=0)
    images, labels = digits.test.take(slice(None))
    accuracy = np.mean(model.predict(images.astype(np.float32)).argmax(axis=1) == labels)
    assert accuracy == pytest.approx(found.data.metrics["test_accuracy"])


def test_the_model_is_registered_with_what_its_run_measured_and_the_terminal_says_how_to_serve_it(finished):
    done, found = finished
    version = mlflow.MlflowClient().get_model_version_by_alias("smoke", "champion")
    assert version.run_id == found.info.run_id
    assert float(version.tags["test_accuracy"]) == pytest.approx(found.data.metrics["test_accuracy"], rel=1e-5)
    assert float(version.tags["latency_ms"]) == pytest.approx(found.data.metrics["latency_ms"], rel=1e-5)
    assert version.tags[Tag.DATA_FINGERPRINT] == found.data.tags[Tag.DATA_FINGERPRINT]
    assert found.data.tags[Tag.REGISTERED_REASON] == version.tags[Tag.REASON] == "there was no champion"
    lines = done.stdout.splitlines()
    assert "registry models:/smoke/1 is the champion: there was no champion" in lines
    assert any("models serve -m models:/smoke/1 --env-manager local" in line for line in lines)


def test_no_checkpoint_is_left(finished):
    _, found = finished
    folder = Path(os.environ["XDG_CACHE_HOME"]) / "convmixer" / "checkpoints"
    assert folder.is_dir() and not (folder / found.info.run_id).exists()


def test_a_loss_that_overflows_is_a_failed_run_told_in_one_line(uri):
    done = run(
        mlflow_run("-P", "recipe=smoke", "-P", "epochs=50", "-P", "learning_rate=10", "-P", "weight_decay=10"), uri
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "at epoch" in line and "step" in line
    assert "Traceback" not in done.stderr.split("error: ")[0]
    assert newest().info.status == "FAILED"
    assert newest().data.tags[Tag.OUTCOME] == "failed"
    assert newest().data.tags[Tag.OUTCOME_REASON].startswith("Diverged: loss became")


@pytest.fixture
def training(uri):
    """Starts a long run and returns its process once an epoch is done; nothing outlives the test."""
    started = []

    def start(command):
        process = subprocess.Popen(
            command,
            env=environment(uri, "seams"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert any(line.startswith("epoch") for line in process.stdout), process.stderr.read()
        return process

    yield start
    for process in started:
        with process:
            for one in (
                [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
            ):
                one.kill()


def wait_until_gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


def test_ctrl_c_stops_mlflow_run_and_the_trainer_and_is_told(training):
    process = training(mlflow_run(*LONG))
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    wait_until_gone(family)
    assert newest().info.status in {"KILLED", "FAILED"}  # MLflow may write FAILED over KILLED
    assert newest().data.tags[Tag.OUTCOME] == "stopped"
    assert newest().data.tags[Tag.OUTCOME_REASON] == "by SIGINT"


def test_sigterm_to_the_trainer_kills_the_run(training):
    process = training([sys.executable, "-m", "pipeline", "train", "smoke", "--epochs", "1000"])
    process.terminate()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert newest().info.status == "KILLED"
    assert newest().data.tags[Tag.OUTCOME_REASON] == "by SIGTERM"


def test_projects_run_from_python_works_as_the_command_does(uri, monkeypatch):
    for name, value in environment(uri, "seams").items():
        monkeypatch.setenv(name, value)
    done = mlflow.projects.run(
        str(ROOT), parameters={"recipe": "smoke", "epochs": 1}, env_manager="local", experiment_name="seams"
    )
    found = mlflow.get_run(done.run_id)
    assert done.get_status() == found.info.status == "FINISHED"
    assert found.info.run_name == "smoke 8/1 k3 p2"
    assert found.data.params["epochs"] == "1"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A git repository that holds the project as it is."""
    folder = tmp_path_factory.mktemp("repository")
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    for file in filter(None, files):
        if (ROOT / file).is_file():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes((ROOT / file).read_bytes())
    for arguments in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"],
    ):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True)
    return folder


def test_a_git_uri_runs_the_commit_it_names(repository, uri, tmp_path):
    done = run(mlflow_run("-P", "recipe=smoke", "-P", "epochs=1", project=f"file://{repository}"), uri, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    head = ["git", "-C", str(repository), "rev-parse", "HEAD"]
    assert (
        newest().data.tags[Tag.GIT_COMMIT]
        == subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    )
    assert newest().data.tags[Tag.GIT_DIRTY] == "false"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smoke", "--lerning_rate", "1"], "unknown setting 'lerning_rate'; did you mean learning_rate?"),
        (["smoke", "--patch_size", "5"], "patch_size must divide the image side: 8x8 pixels, got patch_size=5"),
        (["smoke", "--kernel_size", "8"], "kernel_size must be at most 2 x grid - 1"),
        (["smoke", "--batch_size", "201"], "batch_size must not exceed the training images: 200 here"),
        (["smoke", "--dataset", "digit"], "dataset must be digits"),
        (["no-such"], "recipe must be one of baseline"),
    ],
)
def test_input_that_cannot_be_used_is_one_line_and_exit_code_2(capsys, arguments, message):
    assert run_convmixer(["train", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_a_refusal_needs_neither_tensorflow_nor_mlflow():
    code = (
        "import sys; from pipeline.commands.main import run; print(run(['train', 'smoke', '--patch_size', '5']));"
        "print({'tensorflow', 'keras', 'mlflow', 'pandas', 'matplotlib'} & sys.modules.keys() or 'none')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "none"]


def test_help_needs_no_tensorflow(capsys):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipeline", "train", "digits", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--kernel_size" in done.stdout
    assert not [
        line
        for line in done.stderr.splitlines()
        if line.split()[-1] in {"tensorflow", "keras", "mlflow", "numpy.random"}
    ]


def test_a_refused_setting_under_mlflow_run_leaves_nothing_running(uri):
    before = time.time()
    done = run(mlflow_run("-P", "recipe=smoke", "-P", "depht=3"), uri)
    assert done.returncode == 1
    assert "error: unknown setting 'depht'; did you mean depth?" in done.stderr
    assert newest().info.start_time / 1000 > before
    assert newest().info.status == "FAILED"
    assert newest().data.tags[Tag.OUTCOME] == "failed"
    assert "did you mean depth?" in newest().data.tags[Tag.OUTCOME_REASON]


def test_a_data_set_that_cannot_be_downloaded_is_told_without_tensorflows_chatter(tmp_path):
    alone = ["env", "https_proxy=http://127.0.0.1:1", f"KERAS_HOME={tmp_path}", f"XDG_CACHE_HOME={tmp_path}"]
    done = run([*alone, sys.executable, "-m", "pipeline", "train", "baseline"], "unused:", cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    reads, fetches, error = done.stderr.splitlines()
    assert reads == "cifar10 is read by Keras, and downloaded if it has not been: once"
    assert fetches.startswith("Downloading data from https://")
    assert error.startswith("error: cifar10 must be downloaded once by Keras, and that failed: ")


def test_a_recipe_file_that_is_not_there_is_named_whole(capsys):
    assert run_convmixer(["train", "mine.yaml"]) == 2
    assert capsys.readouterr().err.endswith(f"or the path of a .yaml file: there is no {Path.cwd()}/mine.yaml\n")


def test_settings_of_a_recipe_file_are_checked_against_the_data(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"dataset": "digits", "patch_size": 3}))
    assert run_convmixer(["train", str(tmp_path / "mine.yaml")]) == 2
    assert (
        "patch_size must divide the image side: 8x8 pixels, got patch_size=3; try one of 1, 2, 4, 8"
        in capsys.readouterr().err
    )


def test_a_terminal_shows_a_bar_and_a_log_a_line_an_epoch(uri):
    code = (
        "import pty, sys;"
        "sys.exit(pty.spawn([sys.executable, '-m', 'pipeline', 'train', 'smoke', '--epochs', '2']) >> 8)"
    )
    done = run([sys.executable, "-c", code], uri, cwd=ROOT, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert "Epoch 2/2" in done.stdout and "4/4" in done.stdout and "━" in done.stdout
    assert "epoch 2/2" not in done.stdout
    assert "test accuracy" in done.stdout
