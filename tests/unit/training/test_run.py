"""Steps of a training run around the training itself."""

import errno
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import mlflow.keras
import numpy as np
import pytest
import tensorflow as tf
from mlflow import MlflowClient

from pipeline.config.data_checks import slow_batch_norm
from pipeline.config.recipe import to_yaml
from pipeline.config.training import DataConfig, ModelConfig, TrainingConfig
from pipeline.data.dataset import Split, load_dataset
from pipeline.model.conv_mixer import build_model
from pipeline.model.size import count_parameters
from pipeline.runtime.console import Console
from pipeline.runtime.device import Device
from pipeline.runtime.errors import Diverged, OutOfMemory, Stopped, UsageError
from pipeline.runtime.shell import mlflow_command, project_command
from pipeline.tracking.lifecycle import start_run
from pipeline.tracking.run import TrackedRun
from pipeline.tracking.run_events import RunEvents
from pipeline.tracking.tags import Role, Tag
from pipeline.tracking.test_set_access import access_count
from pipeline.training.auto_settings import resolve_auto
from pipeline.training.callbacks import CheckpointSaver, KernelSnapshots, ProgressReporter
from pipeline.training.checkpoint import Checkpoint, TrainingState
from pipeline.training.checkpoint_manager import CheckpointManager, checkpoint_folder
from pipeline.training.cross_validation import CrossValidation
from pipeline.training.description import Change
from pipeline.training.fit import TrainingResult, compile_model, many_left_out
from pipeline.training.folds import FoldCheckpoints
from pipeline.training.initial_weights import InitialWeights
from pipeline.training.progress import TrainingProgress
from pipeline.training.resume import ResumePoint
from pipeline.training.run import (
    announce,
    checkpoint_on_exit,
    checkpoints_of,
    explain_out_of_memory,
    less_memory,
    report_epoch,
    run_training,
    summarize,
    train_network,
)
from pipeline.training.schedules import LearningRateSchedule
from pipeline.training.teacher import Teacher
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


def test_summarize_of_folds_has_the_mean_with_its_deviation_and_of_a_refit_no_validation():
    results = {"test_accuracy": 0.9, "test_loss": 0.25, "best_val_loss": 0.5, "best_val_loss_sd": 0.125}
    results |= {"parameters": 1234, "seconds": 5.6, "best_epoch": 2.5}
    of_folds = TrainingConfig(epochs=4, folds=3, monitor="val_loss")
    assert summarize(results, of_folds, SimpleNamespace(test=range(180))) == (
        "test accuracy 90.00 % (loss 0.2500, 180 images), validation loss 0.5000 ± 0.1250 over 3 folds; "
        "1,234 parameters, 6 s"
    )
    assert summarize(results, TrainingConfig(epochs=4, refit=True), SimpleNamespace(test=range(180))) == (
        "test accuracy 90.00 % (loss 0.2500, 180 images), after the last of 4 epochs, trained on training and "
        "validation images; 1,234 parameters, 6 s"
    )


def test_report_epoch_at_a_terminal_leaves_the_line_to_the_progress_bar(capsys, monkeypatch):
    monkeypatch.setattr(Console, "is_terminal", True)
    renewed = []
    monkeypatch.setattr("pipeline.training.run.renew_temporary_files", lambda: renewed.append(True))
    run = FakeRun()
    report_epoch(run, TrainingConfig(epochs=10), Console(), 3, METRICS)
    assert capsys.readouterr() == ("", "") and run.calls == [(3, METRICS)] and renewed == [True]


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


@pytest.mark.parametrize(
    ("settings", "image_shape", "cures"),
    [
        ({"data_on": "device", "batch_size": 1}, (5, 8, 1), "data_on=host"),
        ({"data_on": "host", "batch_size": 2}, (8, 5, 1), "batch_size=1, which takes about half of it"),
        ({"batch_size": 1}, (32, 33, 3), "fewer filters"),
        ({"batch_size": 1}, (33, 33, 3), "a smaller image_size, by its square"),
        ({"batch_size": 1, "image_size": "9"}, (9, 9, 3), "a smaller image_size, by its square"),
        ({"batch_size": 1, "patch_size": 4}, (8, 16, 3), "patch_size=8, about a quarter"),
        (
            {"data_on": "device", "batch_size": 7},
            (8, 8, 1),
            "data_on=host or batch_size=3, which takes about half of it or patch_size=4, about a quarter",
        ),
    ],
)
def test_less_memory_names_each_setting_that_can_be_lowered(settings, image_shape, cures):
    config = TrainingConfig.build({"patch_size": 2} | settings)
    assert less_memory(config, image_shape) == f"try {cures}"


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
    run_id = client.create_run(store.experiment_id, run_name="mine", tags=tags).info.run_id
    client.set_terminated(run_id, "FAILED")
    # It was interrupted after its last epoch, so that nothing is left to train.
    checkpoint = Checkpoint(run_id, config.model_dump(mode="json"), dataset.fingerprint, progress.state(model))
    resume_point = ResumePoint(client.get_run(run_id), "smoke", config, checkpoint, changes={})
    finished = run_training("smoke", config, dataset, console=Console(), resume_point=resume_point)
    files = {file.path for file in MlflowClient().list_artifacts(run_id)}
    assert {"validation_predictions.csv", "test_predictions.csv", "history.csv"} <= files
    assert finished.name == "mine" and 5000 < finished.results["seconds"] < 6000
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
    started = time.perf_counter()
    finished = run_training("smoke", config, dataset, console=Console(), recipe_config=TrainingConfig.build(settings))
    assert finished.name == finished.run.name == "smoke, refit"
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
    assert len(dataset.train) == 100 + 162 and images in run.data.tags[Tag.DESCRIPTION]
    out, err = capsys.readouterr()
    assert f"data     digits: {images} of 8x8x1, 10 classes\n" in out and "\nepoch 1/1  loss " in out
    assert "resume   " not in err
    description = run.data.tags[Tag.DESCRIPTION]
    served = mlflow_command("models", "serve", "-m", f"runs:/{run.info.run_id}/model", "--env-manager", "local")
    assert f"| **serve** | `{served}` |" in description and "**resume**" not in description
    assert finished.summary in description and "| **time** | " in description
    assert 0 < finished.results["seconds"] < time.perf_counter() - started
    assert run.data.metrics["latency_ms"] == finished.results["latency_ms"] > 0
    (version,) = client.search_model_versions("name='settled'")
    assert version.run_id == run.info.run_id
    assert version.tags["test_accuracy"] == f"{finished.results['test_accuracy']:.6g}"
    assert not checkpoint_folder(run.info.run_id).exists()
    assert "parameters" in version.tags
    assert mlflow.keras.load_model(f"runs:/{run.info.run_id}/model").output_shape == (None, 10)
    files = {file.path for file in MlflowClient().list_artifacts(run.info.run_id)}
    assert "test_predictions.csv" in files and "validation_predictions.csv" not in files


def announced(capsys, *, duplicates=0, rare=485, device=CPU, parts=(), **settings):
    """Return what is printed of a data set, a model and a device, and the warnings; `rare` images are of class a."""
    dataset = small_dataset()
    dataset.folds = parts
    dataset.duplicates, dataset.classes = duplicates, tuple("abc")
    labels = np.where(np.arange(1455) < rare, 0, 1 + np.arange(1455) % 2)
    dataset.train = Split(np.empty(1455), labels, np.empty(1455), files=(), rows=np.arange(1455))
    dataset.validation, dataset.test = range(162), range(180)
    config = TrainingConfig.build({"filters": 4, "depth": 2, "kernel_size": 3, "patch_size": 2} | settings)
    announce(config, dataset, device, Console())
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


def test_announce_of_folds_and_of_images_on_the_device_says_so(capsys):
    settings = {"precision": "float32", "batch_size": 10, "batch_norm_momentum": 0.9, "jit_compile": True}
    gpu = Device("GPU", "any", (9, 0))
    out, err = announced(capsys, duplicates=1, device=gpu, parts=(1, 2), **settings | {"folds": 2, "data_on": "device"})
    lines = out.splitlines()
    assert lines[0].startswith("data     digits: 1,617 images in 2 folds and 180 test images of 8x8x1, ")
    assert lines[1].endswith(" parameters, one for each fold")
    assert lines[2] == f"device   {gpu}, float32, fast layers, compiled with XLA, training images on the device"
    assert err == "warning: 1 images of one split or fold are, pixel for pixel, also in another split or fold\n"


def test_announce_warns_of_a_gpu_that_is_not_used(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("pipeline.training.run.unused_gpu", lambda device: asked.append(device) or "there is one")
    _, err = announced(capsys, batch_size=10, batch_norm_momentum=0.9)
    assert asked == [CPU] and err == "warning: there is one\n"


def test_announce_counts_the_steps_of_the_batches_that_devices_share(capsys):
    two = Device("GPU", "any", (9, 0), count=2)
    _, err = announced(capsys, device=two, batch_size=1454, jit_compile=False)
    assert "and 1 steps an epoch, " in err
    _, err = announced(capsys, batch_size=1454, jit_compile=False)
    assert "and 2 steps an epoch, " in err


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


def test_announce_warns_of_images_that_xla_leaves_out(capsys):
    settings = {"precision": "float32", "batch_norm_momentum": 0.01, "batch_size": 1024}
    config = TrainingConfig.build(settings | {"jit_compile": True})
    expected = many_left_out(config, 1455, devices=1)
    _, err = announced(capsys, jit_compile=True, **settings)
    assert expected and err == f"warning: {expected}\n"
    _, err = announced(capsys, jit_compile=False, **settings)
    assert err == ""


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(dataset="digits", train_examples=100), seed=0)


SMALL = TrainingConfig.build(
    {"dataset": "digits", "filters": 4, "depth": 3, "kernel_size": 3, "epochs": 5, "precision": "float32"}
    | {"train_examples": 100, "jit_compile": False, "fast_layers": False, "filter_steps": 2}
)


def test_checkpoints_of_a_run_are_its_own_or_those_of_its_folds(digits):
    own = checkpoints_of("abc", SMALL, digits)
    assert isinstance(own, CheckpointManager)
    assert (own._run_id, own._fingerprint) == ("abc", digits.fingerprint)
    assert own._settings == SMALL.model_dump(mode="json")
    config = SMALL.model_copy(update={"folds": 2})
    of_folds = checkpoints_of("abc", config, digits)
    assert isinstance(of_folds, FoldCheckpoints)
    assert (of_folds._config, of_folds._fingerprint) == (config, digits.fingerprint)


def test_train_network_saves_reports_and_logs_with_what_it_was_given(monkeypatch, digits, capsys):
    """`fit` and what is logged of its result have tests of their own."""
    fitted, logged = [], []
    result = TrainingResult(None, {"loss": [0.5]}, best_epoch=1)
    kernels = np.ones((3, 3, 4, 1))

    def fit(config, dataset, callbacks, **options):
        callbacks[0].save(1, kernels)
        fitted.append((config, dataset, callbacks, options))
        return result

    monkeypatch.setattr("pipeline.training.run.fit", fit)
    monkeypatch.setattr("pipeline.training.run.log_training", lambda *given, **named: logged.append((given, named)))
    monkeypatch.setattr(Console, "is_terminal", True)
    run, manager, reports = FakeRun(), SimpleNamespace(save=lambda state: None), []
    start, weights, teacher = object(), object(), object()
    returned = train_network(
        run, SMALL, digits, manager, CPU, Console(), start, weights, teacher, lambda *epoch: reports.append(epoch)
    )
    assert returned is result
    ((config, dataset, (snapshots, saver, reporter), options),) = fitted
    assert config is SMALL and dataset is digits
    assert [type(one) for one in (snapshots, saver, reporter)] == [KernelSnapshots, CheckpointSaver, ProgressReporter]
    # of five epochs two, and the middle one of three blocks
    assert (snapshots._folder, snapshots._epochs, snapshots.block) == (checkpoint_folder("abc"), {1, 5}, 2)
    assert saver.save is manager.save
    reporter.report_epoch(1, METRICS)
    assert reports == [(1, METRICS)]
    assert options.pop("strategy") is tf.distribute.get_strategy()
    assert options == {"start": start, "initial_weights": weights, "teacher": teacher, "progress_bar": True}
    (((*given,), named),) = logged
    assert given == [run, SMALL, result] and list(named) == ["snapshots"]
    np.testing.assert_array_equal(named["snapshots"][1], kernels)


class Receivers:
    """A notifier that keeps the events."""

    has_receivers = True

    def __init__(self):
        self.events = []

    def send(self, event):
        self.events.append((event["event"], event["text"], event["metrics"]))


@pytest.fixture
def begin(client, experiment, monkeypatch, digits, tmp_path):
    """Return a function that begins a run, stops it where it would train, and returns what is known of it then.

    The descriptions that it had, the arguments of the training and of `start_run`, and its events are kept.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(config=SMALL, dataset=digits, train="train_network", error=None, **options):
        found = SimpleNamespace(descriptions=[], receivers=Receivers(), opened=[], trained=[])
        set_description = TrackedRun.set_description

        def describe(run, text):
            found.descriptions.append(text)
            set_description(run, text)

        @contextmanager
        def start(**arguments):
            found.opened.append(arguments)
            with start_run(**arguments) as run:
                run.notices.append("a notice on another run")
                found.id = run.id
                yield run

        def stop(*arguments, **named):
            found.trained.append((arguments, named))
            if train == "train_network":
                arguments[3].save(TrainingState(1, {"loss": [0.5], "epoch_seconds": [1.0]}, [], []))
            raise error or Stopped(15)

        monkeypatch.setattr(TrackedRun, "set_description", describe)
        monkeypatch.setattr("pipeline.training.run.start_run", start)
        monkeypatch.setattr(f"pipeline.training.run.{train}", stop)
        with pytest.raises(OutOfMemory if error else Stopped):
            run_training("mine", config, dataset, console=Console(), notifier=found.receivers, **options)
        found.run = client.get_run(found.id)
        found.download = lambda path: mlflow.artifacts.load_text(f"{found.run.info.artifact_uri}/{path}")
        return found

    return run


def test_run_training_opens_a_run_that_says_what_it_trains_and_how_to_resume_it(begin, digits, capsys):
    recipe_config = SMALL.model_copy(update={"depth": 4})
    given = SMALL.model_copy(update={"precision": "auto"})
    begun = begin(config=given, recipe_config=recipe_config)
    (opened,) = begun.opened
    assert (opened["role"], opened["resume"], opened["resume_name"]) == (Role.RUN, None, "")
    assert opened["system_metrics"] is True
    assert list(opened["tags"]) == [Tag.DATA, Tag.DEVICE, Tag.PRECISION]
    tags, params = begun.run.data.tags, begun.run.data.params
    assert (tags[Tag.DATA], params["recipe"], params["depth"]) == ("digits", "mine", "3")
    assert tags[Tag.PRECISION] == params["precision"] != "auto"
    run, config, dataset, manager, device, console, start, weights, teacher, _ = begun.trained[0][0]
    assert run.id == begun.id and config == resolve_auto(given, digits, device)
    assert dataset is digits and isinstance(manager, CheckpointManager) and manager._run_id == run.id
    assert (start, weights, teacher) == (None, None, None)
    assert str(device) == tags[Tag.DEVICE] and isinstance(console, Console)
    (description,) = begun.descriptions
    for words in ("not finished yet", "mine, `depth` 3 instead of 4", str(device)):
        assert words in description
    assert f"| **resume** | `{project_command('train', '--resume', run.id)}` |" in description
    out, err = capsys.readouterr()
    assert [line[:9] for line in out.splitlines()] == ["data     ", "model    ", "device   ", "a notice "]
    assert f"device   {device}, {config.precision}\n" in out
    assert err.endswith(f"resume   {project_command('train', '--resume', run.id)}\n")
    assert begun.run.info.run_name.startswith("mine depth=3") and begun.run.info.status == "KILLED"
    assert begun.receivers.events == [("stopped", f"{begun.run.info.run_name}: stopped by SIGTERM", {})]


def test_run_training_reports_each_epoch_to_its_run_to_the_terminal_and_to_the_watch(
    begin, digits, monkeypatch, capsys
):
    beats, logged = [], []
    monkeypatch.setattr(RunEvents, "beat", lambda events: beats.append(events))
    monkeypatch.setattr("pipeline.training.run.report_epoch", lambda *given: logged.append(given))
    begun = begin()
    *_, report = begun.trained[0][0]
    report(1, METRICS)
    ((run, config, console, *epoch),) = logged
    assert run.id == begun.id and config.epochs == 5 and isinstance(console, Console)
    assert epoch == [1, METRICS] and len(beats) == 1


def test_run_training_out_of_memory_says_which_settings_take_less(begin):
    begun = begin(error=MemoryError())
    assert begun.run.data.tags[Tag.REASON] == "oom" and begun.run.info.status == "FAILED"
    assert "memory does not suffice (MemoryError); try batch_size=" in begun.run.data.tags[Tag.OUTCOME_REASON]
    ((kind, _, _),) = begun.receivers.events
    assert kind == "failed"


def model_for(digits, config=SMALL, **changes):
    """Return a model in MLflow that was trained on other parts of the same digits."""
    architecture = {"filters": 4, "depth": config.depth, "kernel_size": 3, "patch_size": 2, "activation": "gelu"}
    model = build_model(config, digits.image_shape, len(digits.classes))
    layers = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    return InitialWeights(
        "models:/m-1",
        layers,
        architecture | {"batch_norm_epsilon": 1e-3},
        classes=digits.classes,
        image_shape=(8, 8, 1),
        data_fingerprint=digits.fingerprint,
        splits={"validation": digits.validation.digest, "test": "other"},
        **changes,
    )


def test_run_training_with_weights_and_a_teacher_logs_shows_and_passes_on_both(begin, digits, monkeypatch, capsys):
    weights = model_for(digits, run_id="a" * 32)
    teacher = Teacher(replace(model_for(digits), origin="models:/m-2", setting="teacher"))
    taught = []
    # MLflow has no such model
    monkeypatch.setattr("pipeline.training.run.log_teacher", lambda run, teacher: taught.append((run.id, teacher)))
    begun = begin(teacher.complete(SMALL), initial_weights=weights, teacher=teacher)
    assert begun.run.data.tags[Tag.WEIGHTS_FROM] == "models:/m-1"
    assert begun.run.data.tags[Tag.WEIGHTS_RUN] == "a" * 32
    assert taught == [(begun.id, teacher)]
    *_, given_weights, given_teacher, _ = begun.trained[0][0]
    assert given_weights is weights and given_teacher is teacher
    out, err = capsys.readouterr()
    assert f"weights  {weights.describe(SMALL, digits)}\nteacher  {teacher.describe(SMALL, digits)}\n" in out
    first, second = [line for line in err.splitlines() if "accuracy may flatter" in line]
    assert first == f"warning: {weights.leak(digits)}"
    assert second == f"warning: {teacher.network.leak(digits)}" and "teacher models:/m-2" in second


def resume_point_of(client, experiment, dataset, config=SMALL, folds=()):
    """Return a run of the recipe `theirs` that was interrupted after its second epoch, as a resume point."""
    store, _ = experiment
    run_id = client.create_run(store.experiment_id, run_name="theirs", tags={Tag.ROLE: Role.RUN}).info.run_id
    client.set_terminated(run_id, "FAILED")
    state = TrainingState(2, {"loss": [0.5, 0.25], "epoch_seconds": [3.0, 4.0]}, [], [])
    checkpoint = Checkpoint(run_id, config.model_dump(mode="json"), dataset.fingerprint, state)
    changes = {"depth": Change("3", "8")}
    return ResumePoint(
        client.get_run(run_id), "theirs", config, checkpoint, changes, folds=dict.fromkeys(folds, checkpoint)
    )


def test_run_training_resumed_goes_on_in_its_run_from_the_checkpoint(begin, client, experiment, digits, capsys):
    resume_point = resume_point_of(client, experiment, digits)
    weights = model_for(digits)
    begun = begin(config=SMALL.model_copy(update={"register_as": "new"}), resume_point=resume_point)
    assert begun.id == resume_point.run_id
    (opened,) = begun.opened
    assert opened["resume"] is resume_point.run and opened["resume_name"] == "resumed at epoch 3"
    assert opened["tags"] == {}, "it keeps those of its beginning"
    *_, start, weights, teacher, _ = begun.trained[0][0]
    assert start is resume_point.checkpoint.state and weights is teacher is None
    assert [point.value for point in client.get_metric_history(begun.id, "loss")] == [0.5, 0.25]
    assert begun.run.info.run_name == "theirs" and begun.run.data.params == {}
    assert begun.download("config.yaml") == to_yaml(SMALL), "as it was"
    assert "theirs, `depth` 3 instead of 8" in begun.descriptions[0]
    assert f"\nresume   {resume_point}\n" in capsys.readouterr().out


@pytest.fixture(scope="module")
def folded():
    return load_dataset(DataConfig(dataset="digits", train_examples=100, folds=2), seed=0)


OF_FOLDS = SMALL.model_copy(update={"folds": 2, "depth": 1})


def test_run_training_resumed_with_folds_goes_on_from_the_checkpoint_of_each(begin, client, experiment, folded):
    resume_point = resume_point_of(client, experiment, folded, OF_FOLDS, folds=(1, 2))
    begun = begin(OF_FOLDS, folded, train="train_folds", resume_point=resume_point)
    assert begun.trained[0][1]["resumed"] is resume_point.folds
    assert client.get_metric_history(begun.id, "loss") == [], "the epochs are those of its folds"


def test_run_training_with_folds_passes_on_what_each_fold_needs_and_logs_what_they_are_together(
    client, experiment, folded, monkeypatch, capsys
):
    given, logged = [], []

    def train(*arguments, **named):
        given.append((arguments, named))
        folds = CrossValidation(OF_FOLDS, folded)
        for number in (1, 2):
            metrics = {"best_val_accuracy": 0.25 * number, "best_val_loss": 1.0 * number, "best_epoch": number}
            folds.add(build_model(OF_FOLDS, folded.image_shape, 10), metrics)
        return folds

    monkeypatch.setattr("pipeline.training.run.train_folds", train)
    monkeypatch.setattr("pipeline.training.run.log_fold_start", lambda *arguments: logged.append(arguments))
    weights, receivers = model_for(folded, OF_FOLDS), Receivers()
    finished = run_training("mine", OF_FOLDS, folded, console=Console(), initial_weights=weights, notifier=receivers)
    (((run, config, dataset, checkpoints), named),) = given
    assert run.id == finished.run.id and config.folds == 2 and dataset is folded
    assert isinstance(checkpoints, FoldCheckpoints) and isinstance(named["console"], Console)
    assert named["initial_weights"] is weights and named["teacher"] is None and named["resumed"] == {}
    assert named["strategy"] is tf.distribute.get_strategy()
    named["log_start"]("run", "data", "state")
    assert logged == [("mine", config, "run", "data", "state")]
    fold_run = FakeRun()
    named["report_epoch"](fold_run, 3, METRICS)
    assert fold_run.calls == [(3, METRICS)]
    results = finished.results
    assert (results["best_val_accuracy"], results["best_val_loss"], results["best_epoch"]) == (0.375, 1.5, 1.5)
    assert "over 2 folds" in finished.summary
    out = capsys.readouterr().out
    assert "\nlabels   " in out and f" of {len(folded.out_of_fold)} images are probably mislabeled" in out
    files = {file.path for file in MlflowClient().list_artifacts(run.id)}
    assert {"probably_mislabeled.csv", "test_predictions.csv"} <= files
    predictions = mlflow.artifacts.load_text(f"{run.artifact_uri}/validation_predictions.csv")
    assert len(predictions.splitlines()) == 1 + len(folded.out_of_fold)
    ((kind, text, metrics),) = receivers.events
    assert (kind, text) == ("finished", f"{run.name}: finished: {finished.summary}")
    assert metrics == {name: float(value) for name, value in sorted(results.items())}
