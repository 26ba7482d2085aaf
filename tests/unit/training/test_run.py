"""Steps of a training run around the training itself."""

import errno
from types import SimpleNamespace

import mlflow.keras
import numpy as np
import pytest
import tensorflow as tf
from mlflow import MlflowClient

from pipeline.config.data_checks import slow_batch_norm
from pipeline.config.training import DataConfig, ModelConfig, TrainingConfig
from pipeline.data.dataset import Split, load_dataset
from pipeline.model.conv_mixer import build_model
from pipeline.model.size import count_parameters
from pipeline.runtime.console import Console
from pipeline.runtime.device import Device
from pipeline.runtime.errors import Diverged, OutOfMemory, Stopped, UsageError
from pipeline.runtime.shell import project_command
from pipeline.tracking.tags import Role, Tag
from pipeline.tracking.test_set_access import access_count
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.fit import compile_model
from pipeline.training.progress import TrainingProgress
from pipeline.training.resume import ResumePoint
from pipeline.training.run import (
    announce,
    checkpoint_on_exit,
    explain_out_of_memory,
    report_epoch,
    run_training,
    summarize,
)
from pipeline.training.schedules import LearningRateSchedule
from tests.support.training_runs import FakeRun, small_dataset

CPU = Device("CPU", "any", capability=None)
METRICS = {"loss": 0.5, "accuracy": 0.25, "val_loss": 0.75, "val_accuracy": 0.5, "learning_rate": 0.01}
RESUME = project_command("train", "--resume", "abc")
METRICS |= {"epoch_seconds": 2.0, "images_per_second": 1234.0, "val_balanced_accuracy": 0.25, "val_macro_f1": 0.2}


class FakeManager:
    """A checkpoint manager that remembers its calls."""

    def __init__(self, newest=None):
        self.calls = []
        self._newest = newest

    def newest(self):
        return self._newest

    def clear(self):
        self.calls.append("clear")

    def upload_final(self):
        self.calls.append("upload_final")


@pytest.mark.parametrize(
    ("error", "newest", "calls", "printed"),
    [
        (Diverged("loss became nan"), "a file", ["clear"], ""),
        (Stopped(15), "a file", ["upload_final"], f"resume   {RESUME}\n"),
        (Stopped(15), None, ["upload_final"], ""),
        (OSError("any"), "a file", ["upload_final"], f"resume   {RESUME}\n"),
    ],
)
def test_checkpoint_on_exit_leaves_what_resuming_needs_unless_the_loss_diverged(capsys, error, newest, calls, printed):
    manager = FakeManager(newest)
    with pytest.raises(type(error)), checkpoint_on_exit(FakeRun(), manager, Console()):
        raise error
    assert manager.calls == calls
    assert capsys.readouterr() == ("", printed)


def test_checkpoint_on_exit_of_a_superseded_run_leaves_it_to_the_other_process(capsys):
    manager = FakeManager("a file")
    with pytest.raises(Stopped), checkpoint_on_exit(FakeRun(is_superseded=True), manager, Console()):
        raise Stopped(15)
    assert manager.calls == [] and capsys.readouterr() == ("", "")


def test_report_epoch_without_a_terminal_prints_one_line(capsys):
    run = FakeRun()
    report_epoch(run, TrainingConfig(epochs=10), Console(), 3, METRICS)
    assert run.calls == [(3, METRICS)]
    line = "epoch  3/10  loss 0.5000  accuracy 0.2500  val_loss 0.7500  val_accuracy 0.5000  1,234 images/s  2.0 s\n"
    assert capsys.readouterr() == (line, "")


def test_report_epoch_without_validation_prints_what_there_is(capsys):
    metrics = {name: value for name, value in METRICS.items() if not name.startswith("val_")}
    report_epoch(FakeRun(), TrainingConfig(epochs=10), Console(), 3, metrics)
    assert capsys.readouterr().out == "epoch  3/10  loss 0.5000  accuracy 0.2500  1,234 images/s  2.0 s\n"


def test_report_epoch_with_other_values_logged_before_warns_of_all_but_timings(capsys):
    run = FakeRun(conflicts={"val_loss", "loss", "epoch_seconds"})
    report_epoch(run, TrainingConfig(epochs=10), Console(), 3, METRICS)
    warning = capsys.readouterr().err
    assert warning.startswith("warning: epoch 3 had been logged with another loss, val_loss, which stays")
    report_epoch(FakeRun(conflicts={"epoch_seconds"}), TrainingConfig(epochs=10), Console(), 3, METRICS)
    assert capsys.readouterr().err == ""


def test_summarize_states_test_and_validation_accuracy_in_one_line():
    results = {"test_accuracy": 0.9, "test_loss": 0.25, "best_val_accuracy": 0.95, "best_epoch": 3}
    results |= {"parameters": 1234, "seconds": 5.4}
    assert summarize(results, TrainingConfig(epochs=4), SimpleNamespace(test=range(1797))) == (
        "test accuracy 90.00 % (loss 0.2500, 1,797 images), validation accuracy 95.00 % at epoch 3 of 4; "
        "1,234 parameters, 5 s"
    )
    results |= {"best_val_macro_f1": 0.75, "test_macro_f1": 0.625}
    macro_f1 = TrainingConfig(epochs=4, monitor="val_macro_f1")
    assert summarize(results, macro_f1, SimpleNamespace(test=range(1797))).startswith(
        "test macro F1 62.50 %, test accuracy 90.00 % (loss 0.2500, 1,797 images), validation macro F1 75.00 % at epoch"
    )


def test_report_epoch_prints_the_monitored_metric(capsys):
    report_epoch(FakeRun(), TrainingConfig(epochs=10, monitor="val_macro_f1"), Console(), 3, METRICS)
    assert "  val_accuracy 0.5000  val_macro_f1 0.2000  1,234 images/s" in capsys.readouterr().out


def oom_message(error, *, image_shape=(8, 8, 1), **settings):
    run, dataset = FakeRun(), small_dataset()
    dataset.image_shape = image_shape
    with pytest.raises(OutOfMemory) as raised, explain_out_of_memory(run, TrainingConfig.build(settings), dataset):
        raise error
    assert run.calls == [("set_tags", ({"reason": "oom"},), {})]
    return str(raised.value)


TENSORFLOW_OOM = """Graph execution error:

Detected at node sequential_1/conv2d_1/convolution defined at (most recent call last):
<stack traces unavailable>
OOM when allocating tensor with shape[128,256,64,64] and type float on CPU:0 by allocator cpu
\t [[{{node sequential_1/conv2d_1/convolution}}]]"""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 3.00 GiB for an array with shape (1000, 1000)"),
        tf.errors.ResourceExhaustedError(None, None, TENSORFLOW_OOM),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("std::bad_alloc"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_is_one_line_with_what_takes_less_and_a_tag_as_trials_have(error):
    message = oom_message(error, batch_size=128, patch_size=2)
    assert message.startswith("memory does not suffice (") and "\n" not in message
    assert message.endswith("; try batch_size=64, which takes about half of it or patch_size=4, about a quarter")


def test_out_of_memory_of_tensorflow_names_the_tensor():
    message = oom_message(tf.errors.ResourceExhaustedError(None, None, TENSORFLOW_OOM))
    assert "(OOM when allocating tensor with shape[128,256,64,64]" in message


def test_out_of_memory_suggests_only_what_is_possible():
    small = oom_message(MemoryError(), batch_size=1, patch_size=2, image_shape=(6, 6, 3))
    assert small == "memory does not suffice (MemoryError); try fewer filters"
    large = oom_message(MemoryError(), batch_size=1, patch_size=7, image_shape=(224, 224, 3))
    assert large.endswith("try patch_size=14, about a quarter or a smaller image_size, by its square")


def test_other_errors_than_out_of_memory_pass():
    with pytest.raises(ZeroDivisionError), explain_out_of_memory(FakeRun(), TrainingConfig(), small_dataset()):
        1 / 0  # noqa: B018


def test_run_training_resumed_adds_the_seconds_before_and_counts_one_access_to_the_test_set(client, experiment):
    store, _ = experiment
    dataset = load_dataset(DataConfig(dataset="digits", train_examples=100), seed=0)
    config = TrainingConfig.build(
        {"dataset": "digits", "filters": 4, "depth": 1, "kernel_size": 3, "epochs": 1, "precision": "float32"}
        | {"train_examples": 100, "jit_compile": False, "fast_layers": False}
    )
    model = build_model(config, dataset.image_shape, len(dataset.classes))
    compile_model(model, config, LearningRateSchedule("constant", peak=0.1, steps=1, warmup_fraction=0))
    progress = TrainingProgress(monitor="val_accuracy")
    progress.add_epoch(METRICS | {"epoch_seconds": 5000.0})
    progress.best_weights = model.get_weights()
    tags = {Tag.ROLE: Role.RUN, Tag.DEVICE: "another machine"}
    run_id = client.create_run(store.experiment_id, tags=tags).info.run_id
    client.set_terminated(run_id, "FAILED")
    # It was interrupted after its last epoch, so that nothing is left to train.
    checkpoint = Checkpoint(run_id, config.model_dump(mode="json"), dataset.fingerprint, progress.state(model))
    resume_point = ResumePoint(client.get_run(run_id), "smoke", config, checkpoint, changes={})
    finished = run_training("smoke", config, dataset, console=Console(), resume_point=resume_point)
    assert 5000 < finished.results["seconds"] < 6000
    assert finished.results["best_epoch"] == 1 and finished.results["best_val_accuracy"] == METRICS["val_accuracy"]
    assert finished.results["parameters"] == model.count_params()
    assert finished.summary == summarize(finished.results, config, dataset)
    logged = client.get_run(run_id).data
    assert logged.metrics["val_loss"] == METRICS["val_loss"] and logged.metrics["test_loss"] > 0
    assert logged.metrics["seconds"] == finished.results["seconds"]
    assert logged.tags[Tag.TEST_SET_ACCESSES] == "1" and access_count(logged.tags, run_id=run_id, tested=False) == 1
    assert logged.tags[Tag.DEVICE] == "another machine", "that of its beginning"


@pytest.mark.parametrize("register_as", [None, "settled"])
def test_run_training_imports_onnx_before_anything_else_where_it_registers(monkeypatch, register_as):
    steps = []

    def refuse(devices):
        steps.append("device")
        raise UsageError("no device")

    monkeypatch.setattr("pipeline.training.run.import_onnx", lambda: steps.append("onnx"))
    monkeypatch.setattr("pipeline.training.run.select_device", refuse)
    config = TrainingConfig.build({"dataset": "digits", "register_as": register_as})
    dataset = load_dataset(config.data, seed=0)
    with pytest.raises(UsageError, match="no device"):
        run_training("digits", config, dataset, console=Console())
    assert steps == (["onnx", "device"] if register_as else ["device"])


def test_run_training_with_refit_says_so_and_makes_up_no_validation(client, experiment, capsys):
    settings = {"dataset": "digits", "filters": 4, "depth": 1, "kernel_size": 3, "epochs": 1, "precision": "float32"}
    settings |= {"train_examples": 100, "jit_compile": False, "fast_layers": False, "batch_norm_momentum": 0.1}
    config = TrainingConfig.build(settings | {"refit": True, "register_as": "settled"})
    dataset = load_dataset(config.data, seed=0)
    finished = run_training("smoke", config, dataset, console=Console(), recipe_config=TrainingConfig.build(settings))
    assert finished.name == "smoke, refit"
    words = "trained on training and validation images"
    assert f"after the last of 1 epoch, {words}; " in finished.summary and "validation accuracy" not in finished.summary
    run = client.get_run(finished.run.id)
    assert run.data.tags[Tag.REFIT] == words and run.data.params["refit"] == "true"
    assert run.data.tags[Tag.TEST_SET_ACCESSES] == "1"
    assert not [name for name in run.data.metrics if "val_" in name]
    assert run.data.metrics["test_accuracy"] == finished.results["test_accuracy"]
    assert [(entry.dataset.name, tag.value) for entry in run.inputs.dataset_inputs for tag in entry.tags] == [
        ("digits train", "train"),
        ("digits test", "test"),
    ]
    images = f"{len(dataset.train):,} training images, those for validation among them, and 180 test images"
    assert len(dataset.train) == 262 and images in run.data.tags[Tag.DESCRIPTION]
    assert f"data     digits: {images} of 8x8x1, 10 classes\n" in capsys.readouterr().out
    assert mlflow.keras.load_model(f"runs:/{run.info.run_id}/model").output_shape == (None, 10)
    files = {file.path for file in MlflowClient().list_artifacts(run.info.run_id)}
    assert "test_predictions.csv" in files and "validation_predictions.csv" not in files


def announced(capsys, *, duplicates=0, rare=485, **settings):
    """Return what is printed of a data set, a model and a device, and the warnings; `rare` images are of class a."""
    dataset = small_dataset()
    dataset.duplicates, dataset.classes = duplicates, tuple("abc")
    labels = np.where(np.arange(1455) < rare, 0, 1 + np.arange(1455) % 2)
    dataset.train = Split(np.empty(1455), labels, np.empty(1455), files=(), rows=np.arange(1455))
    dataset.validation, dataset.test = range(162), range(180)
    config = TrainingConfig.build({"filters": 4, "depth": 2, "kernel_size": 3, "patch_size": 2} | settings)
    announce(config, dataset, CPU, Console())
    return capsys.readouterr()


def test_announce_states_data_model_and_device(capsys):
    settings = {"precision": "float32", "batch_size": 10, "batch_norm_momentum": 0.9, "jit_compile": False}
    out, err = announced(capsys, fast_layers=False, **settings)
    parameters = count_parameters(ModelConfig(filters=4, depth=2, kernel_size=3, patch_size=2), (8, 8, 1), 3)
    assert out.splitlines() == [
        "data     digits: 1,455 training, 162 validation and 180 test images of 8x8x1, 3 classes",
        f"model    ConvMixer-4/2, kernel 3, patch 2: {parameters:,} parameters",
        f"device   {CPU}, float32",
    ]
    assert err == ""
    out, err = announced(capsys, duplicates=1234, **settings | {"fast_layers": True, "jit_compile": True})
    assert out.splitlines()[-1] == f"device   {CPU}, float32, fast layers, compiled with XLA"
    assert err == "warning: 1,234 images of one split are, pixel for pixel, also in another split\n"
    out, _ = announced(capsys, fast_layers=False, data_on="device", **settings)
    assert out.splitlines()[-1] == f"device   {CPU}, float32, training images on the device"


def test_announce_warns_of_a_rare_class(capsys):
    settings = {"precision": "float32", "batch_size": 10, "batch_norm_momentum": 0.9, "jit_compile": False}
    _, err = announced(capsys, rare=20, fast_layers=False, **settings)
    assert err.startswith("warning: rare classes may be passed over: a has 20 training images and ")
    _, err = announced(capsys, rare=20, fast_layers=False, sampling="balanced", **settings)
    assert err == ""


def test_announce_warns_of_batch_norm_that_lags(capsys):
    config = TrainingConfig.build({"batch_size": 512, "epochs": 1})
    expected = slow_batch_norm(config, steps_per_epoch=3)
    _, err = announced(capsys, batch_size=512, epochs=1)
    assert expected and err == f"warning: {expected}\n"
