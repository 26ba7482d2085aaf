"""Training runs end to end: `mlflow run`, the command line, signals, and what MLflow holds afterwards."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline.commands import main
from pipeline.config.training import DataConfig, TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.runtime.cpu import has_bfloat16
from pipeline.runtime.text import format_metric
from pipeline.tracking.tags import Tag
from pipeline.training.progress import TrainingProgress
from tests.support.mlflow_project import (
    environment_of,
    have_ended,
    mlflow_run,
    process_tree,
    run_project,
    run_to_end,
    started,
)
from tests.support.paths import ROOT
from tests.support.stores import tracking_store

EXPERIMENT = "training"


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    with tracking_store(tmp_path_factory.mktemp("tracking"), EXPERIMENT) as uri:
        yield uri


def latest_run():
    """Return the run that was started last."""
    return mlflow.search_runs(experiment_names=[EXPERIMENT], output_format="list", max_results=1)[0]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Return a Git repository that holds the project as it is."""
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


@pytest.fixture(scope="module")
def finished(repository, uri, tmp_path_factory):
    """Return the process and the MLflow run of a named `mlflow run` of a Git URI from another folder."""
    settings = {"recipe": "smoke", "learning_rate": "1e-3", "flip": "false", "clip_norm": "none", "image_size": "12,8"}
    options = ["--run-name", "my own", "--experiment-name", EXPERIMENT]
    command = mlflow_run(*options, project=f"file://{repository}", **settings, register_as="smoke")
    completed = run_to_end(command, uri, EXPERIMENT, cwd=tmp_path_factory.mktemp("elsewhere"))
    assert completed.returncode == 0, completed.stderr
    return completed, latest_run()


def test_mlflow_run_with_a_run_name_finishes_under_that_name(finished):
    _, logged = finished
    assert logged.info.status == "FINISHED"
    assert logged.info.run_name == "my own"
    assert logged.data.tags[Tag.OUTCOME] == "finished"


def test_parameters_are_all_settings_in_the_spelling_of_the_first_logger(finished):
    _, logged = finished
    assert set(logged.data.params) == {"recipe", *TrainingConfig.model_fields}
    spelled = {"learning_rate": "1e-3", "flip": "false", "clip_norm": "none", "image_size": "12,8"}
    assert {name: logged.data.params[name] for name in spelled} == spelled
    resolved = ("mixed_bfloat16" if has_bfloat16() else "float32", "false")
    assert (logged.data.params["precision"], logged.data.params["jit_compile"]) == resolved


def test_metrics_have_one_point_per_epoch_from_step_one(finished):
    _, logged = finished
    client = mlflow.MlflowClient()
    names = ["loss", "accuracy", "val_loss", "val_accuracy", "val_balanced_accuracy", "val_macro_f1", "val_recall/7"]
    for name in (*names, "learning_rate", "epoch_seconds", "images_per_second"):
        assert [point.step for point in client.get_metric_history(logged.info.run_id, name)] == [1, 2]
    once = {
        "test_loss",
        "test_accuracy",
        "test_balanced_accuracy",
        "test_macro_f1",
        "best_epoch",
        "best_val_accuracy",
        "best_val_loss",
        "best_val_balanced_accuracy",
        "best_val_macro_f1",
        "parameters",
        "seconds",
    }
    assert once <= set(logged.data.metrics)
    assert logged.data.metrics["best_val_accuracy"] == max(
        point.value for point in client.get_metric_history(logged.info.run_id, "val_accuracy")
    )


def artifact(logged, name):
    return mlflow.artifacts.download_artifacts(f"runs:/{logged.info.run_id}/{name}")


def test_artifacts_are_complete_and_agree_with_the_metrics(finished):
    _, logged = finished
    paths = {str(path.relative_to(folder)) for folder in [Path(artifact(logged, ""))] for path in folder.rglob("*.*")}
    plots = {
        f"plots/{name}.{kind}"
        for name in ("curves", "patch_embeddings", "depthwise_kernels", "confusion_matrix", "mistakes")
        for kind in ("png", "svg")
    }
    plots.add("plots/depthwise_kernels/block_1.png")
    images = {path for path in paths if path.startswith("images/")}
    compared = ("per_class", "test_predictions", "validation_predictions")
    tables = {f"{name}.{kind}" for name in compared for kind in ("csv", "json")}
    files = {"config.yaml", "history.csv", "model_card.md", "validation_per_class.csv"}
    assert paths - images == files | tables | plots
    listed = json.loads(logged.data.tags[Tag.LOGGED_ARTIFACTS])
    assert {table["path"] for table in listed} == {f"{name}.json" for name in compared} and len(listed) == 3
    keys = {path.removeprefix("images/").split("+step+")[0] for path in images}
    shown = {"confusion_matrix", "curves", "depthwise_kernels", "depthwise_kernels_by_block", "mistakes"}
    assert keys == shown | {"patch_embeddings"}
    assert len(images) == 2 * len(keys), "each has a preview"
    history = pd.read_csv(artifact(logged, "history.csv"))
    assert history["epoch"].tolist() == [1, 2]
    per_class = pd.read_csv(artifact(logged, "per_class.csv"))
    right = (per_class["images"] * per_class["recall"]).sum()
    assert right / per_class["images"].sum() == pytest.approx(logged.data.metrics["test_accuracy"])
    predictions = pd.read_csv(artifact(logged, "test_predictions.csv"), dtype={"image": str})
    right = predictions["label"] == predictions["predicted"]
    assert right.mean() == pytest.approx(logged.data.metrics["test_accuracy"])
    assert predictions["image"].nunique() == len(predictions), "digits has no picture twice"
    validation = pd.read_csv(artifact(logged, "validation_predictions.csv"))
    right = validation["class"] == validation["predicted_class"]
    assert right.mean() == pytest.approx(logged.data.metrics["best_val_accuracy"])
    assert predictions.groupby("label").size().tolist() == per_class["images"].tolist()


def test_tags_and_datasets_state_the_origin_of_the_result(finished):
    _, logged = finished
    assert {Tag.GIT_COMMIT, Tag.GIT_DIRTY, Tag.DEVICE, Tag.TENSORFLOW, Tag.DATA, Tag.PRECISION} <= set(logged.data.tags)
    contexts = {dataset.tags[0].value: dataset.dataset for dataset in logged.inputs.dataset_inputs}
    assert set(contexts) == {"train", "validation", "test"}
    assert len({dataset.digest for dataset in contexts.values()}) == 3
    assert format_metric("accuracy", logged.data.metrics["test_accuracy"]) in logged.data.tags[Tag.DESCRIPTION]


def test_git_uri_runs_the_commit_it_names(finished, repository):
    _, logged = finished
    head = ["git", "-C", str(repository), "rev-parse", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    assert (logged.data.tags[Tag.GIT_COMMIT], logged.data.tags[Tag.GIT_DIRTY]) == (commit, "false")


def test_output_states_results_and_next_steps(finished, uri):
    completed, logged = finished
    lines = completed.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["data", "model", "device"]
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/2", "2/2"]
    assert f"test accuracy {format_metric('accuracy', logged.data.metrics['test_accuracy'])}" in completed.stdout
    assert logged.info.run_id in completed.stdout
    (ui,) = (shlex.split(line) for line in lines if line.startswith("ui "))
    assert ui[1:] == [str(Path(sys.executable).parent / "mlflow"), "ui", "--backend-store-uri", uri]
    warnings = [line for line in completed.stderr.splitlines() if " INFO mlflow." not in line]
    assert all(line.startswith("warning: validation will lag behind") for line in warnings), completed.stderr


@pytest.fixture(scope="module")
def repeated(finished, uri):
    """Train in a terminal with the finished run's config.yaml as recipe; return the output and the MLflow run."""
    _, logged = finished
    controller, terminal = os.openpty()
    output = []

    def read():
        # A closed terminal is an error to read from
        with suppress(OSError):
            while received := os.read(controller, 4096):
                output.append(received)

    reader = threading.Thread(target=read)
    reader.start()
    with environment_of(uri, EXPERIMENT), pytest.MonkeyPatch.context() as patch, open(terminal, "w") as stream:
        patch.setattr("sys.stdout", stream)
        assert main.run(["train", artifact(logged, "config.yaml"), "--register_as", "none"]) == 0
    reader.join()
    os.close(controller)
    return b"".join(output).decode(), latest_run()


def test_config_artifact_as_recipe_repeats_the_run(finished, repeated):
    columns = ["loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"]
    first, second = (pd.read_csv(artifact(run, "history.csv"))[columns] for _, run in (finished, repeated))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    _, logged = repeated
    assert logged.info.run_name == "digits", "of the data, as config says nothing"


def test_terminal_shows_a_progress_bar_in_place_of_a_line_per_epoch(repeated):
    output, _ = repeated
    assert "Epoch 2/2" in output and "4/4" in output and "━" in output
    assert "epoch 2/2" not in output
    assert "test accuracy" in output


def test_logged_model_has_the_test_accuracy_of_the_run(finished):
    _, logged = finished
    model = mlflow.pyfunc.load_model(f"runs:/{logged.info.run_id}/model")
    digits = load_dataset(DataConfig(dataset="digits", image_size=(12, 8), train_examples=200), seed=0)
    images, labels = digits.test.take(slice(None))
    accuracy = np.mean(model.predict(images.astype(np.float32)).argmax(axis=1) == labels)
    assert accuracy == pytest.approx(logged.data.metrics["test_accuracy"])


def test_register_as_registers_a_version_with_the_results_of_the_run(finished):
    completed, logged = finished
    version = mlflow.MlflowClient().get_model_version_by_alias("smoke", "champion")
    assert version.run_id == logged.info.run_id
    assert float(version.tags["test_accuracy"]) == pytest.approx(logged.data.metrics["test_accuracy"], rel=1e-5)
    assert float(version.tags["latency_ms"]) == pytest.approx(logged.data.metrics["latency_ms"], rel=1e-5)
    assert version.tags[Tag.DATA_FINGERPRINT] == logged.data.tags[Tag.DATA_FINGERPRINT]
    assert logged.data.tags[Tag.REGISTERED_REASON] == version.tags[Tag.REASON] == "there was no champion"
    lines = completed.stdout.splitlines()
    assert "registry  models:/smoke/1 is the champion: there was no champion" in lines
    assert any("models serve -m models:/smoke/1 --env-manager local" in line for line in lines)


def test_finished_run_leaves_no_checkpoint(finished):
    _, logged = finished
    folder = Path(os.environ["XDG_CACHE_HOME"]) / "convmixer" / "checkpoints"
    assert folder.is_dir() and not (folder / logged.info.run_id).exists()


def test_diverged_training_is_a_failed_run_with_one_error_line(uri, capsys):
    with environment_of(uri, EXPERIMENT):
        settings = ["--epochs", "50", "--learning_rate", "10", "--weight_decay", "10"]
        assert main.run(["train", "smoke", *settings]) == 1
    errors = capsys.readouterr().err
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "at epoch" in line and "step" in line
    assert "Traceback" not in errors
    assert latest_run().info.status == "FAILED"
    assert latest_run().data.tags[Tag.OUTCOME] == "failed"
    assert latest_run().data.tags[Tag.OUTCOME_REASON].startswith("Diverged: loss became")


@pytest.fixture
def training(uri):
    """Start a long `mlflow run` and return its process after an epoch; nothing outlives the test."""
    command = mlflow_run("--experiment-name", EXPERIMENT, recipe="smoke", epochs=1000)
    with started(command, uri, EXPERIMENT) as process:
        assert any(line.startswith("epoch") for line in process.stdout), process.stderr.read()
        yield process


def test_ctrl_c_stops_mlflow_run_and_training_and_is_logged(training):
    processes = process_tree(training)
    os.killpg(training.pid, signal.SIGINT)
    training.communicate(timeout=60)
    assert have_ended(processes, seconds=30)
    logged = latest_run()
    assert (logged.info.run_name, logged.data.params["epochs"]) == ("smoke epochs=1000", "1000")
    # MLflow may write FAILED over KILLED
    assert logged.info.status in {"KILLED", "FAILED"}
    assert logged.data.tags[Tag.OUTCOME] == "stopped"
    assert logged.data.tags[Tag.OUTCOME_REASON] == "by SIGINT"


def test_sigterm_to_the_training_process_ends_the_run_as_killed(uri, monkeypatch):
    add_epoch = TrainingProgress.add_epoch

    def add_epoch_and_terminate(self, metrics):
        add_epoch(self, metrics)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainingProgress, "add_epoch", add_epoch_and_terminate)
    with environment_of(uri, EXPERIMENT):
        assert main.run(["train", "smoke", "--epochs", "1000"]) == 128 + signal.SIGTERM
    assert latest_run().info.status == "KILLED"
    assert latest_run().data.tags[Tag.OUTCOME_REASON] == "by SIGTERM"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smoke", "--lerning_rate", "1"], "unknown setting 'lerning_rate'; did you mean learning_rate?"),
        (["smoke", "--patch_size", "5"], "patch_size must divide the image side: 8x8 pixels, got patch_size=5"),
        (["smoke", "--kernel_size", "8"], "kernel_size must be at most 2 x grid - 1"),
        (["smoke", "--batch_size", "201"], "batch_size must not exceed the training images: 200 here"),
        (["smoke", "--dataset", "digit"], "dataset must be digits"),
        (["no-such"], "recipe must be one of accurate, baseline"),
    ],
)
def test_invalid_input_prints_one_line_and_exits_with_2(capsys, arguments, message):
    assert main.run(["train", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_refusal_imports_neither_tensorflow_nor_mlflow():
    code = (
        "import sys; from pipeline.commands.main import run; print(run(['train', 'smoke', '--patch_size', '5']));"
        "print({'tensorflow', 'keras', 'mlflow', 'pandas', 'matplotlib'} & sys.modules.keys() or 'none')"
    )
    completed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert completed.stdout.split() == ["2", "none"]


def test_help_does_not_import_tensorflow(capsys):
    completed = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipeline", "train", "digits", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--kernel_size" in completed.stdout
    assert not [
        line
        for line in completed.stderr.splitlines()
        if line.split()[-1] in {"tensorflow", "keras", "mlflow", "numpy.random"}
    ]


def test_refused_setting_under_mlflow_run_leaves_no_open_run(uri):
    before = time.time()
    result = run_project(uri, EXPERIMENT, recipe="smoke", depht=3)
    assert not result.succeeded
    assert "error: unknown setting 'depht'; did you mean depth?" in result.stderr
    assert latest_run().info.start_time / 1000 > before
    assert latest_run().info.status == "FAILED"
    assert latest_run().data.tags[Tag.OUTCOME] == "failed"
    assert "did you mean depth?" in latest_run().data.tags[Tag.OUTCOME_REASON]


def test_failed_download_of_a_dataset_prints_one_error_line(tmp_path):
    alone = ["env", "https_proxy=http://127.0.0.1:1", f"KERAS_HOME={tmp_path}", f"XDG_CACHE_HOME={tmp_path}"]
    command = [*alone, sys.executable, "-m", "pipeline", "train", "baseline"]
    completed = run_to_end(command, "unused:", EXPERIMENT, cwd=ROOT)
    assert (completed.returncode, completed.stdout) == (2, "")
    reads, fetches, error = completed.stderr.splitlines()
    assert reads == "cifar10 is read by Keras, which downloads it the first time"
    assert fetches.startswith("Downloading data from https://")
    assert error.startswith("error: cifar10 must be downloaded once by Keras, and that failed: ")


def test_missing_recipe_file_is_named_with_its_path(capsys):
    assert main.run(["train", "mine.yaml"]) == 2
    assert capsys.readouterr().err.endswith(f"or the path of a .yaml file: there is no {Path.cwd()}/mine.yaml\n")


def test_settings_of_a_recipe_file_are_validated_against_the_data(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"dataset": "digits", "patch_size": 3}))
    assert main.run(["train", str(tmp_path / "mine.yaml")]) == 2
    assert (
        "patch_size must divide the image side: 8x8 pixels, got patch_size=3; try one of 1, 2, 4, 8"
        in capsys.readouterr().err
    )
