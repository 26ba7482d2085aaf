"""Steps of a training run around the training itself."""

import errno
import os
from types import SimpleNamespace

import pytest
import tensorflow as tf

from pipeline.config.training import TrainingConfig
from pipeline.runtime.console import Console
from pipeline.runtime.device import Device
from pipeline.runtime.errors import Diverged, OutOfMemory, Stopped, UsageError
from pipeline.runtime.shell import project_command
from pipeline.training.checkpoint import TrainingState
from pipeline.training.run import (
    checkpoint_on_exit,
    explain_out_of_memory,
    log_run_metadata,
    replay_logged_epochs,
    report_epoch,
    resolve_auto,
    summarize,
)

CPU = Device("CPU", "any", capability=None)
METRICS = {"loss": 0.5, "accuracy": 0.25, "val_loss": 0.75, "val_accuracy": 0.5, "learning_rate": 0.01}
RESUME = project_command("train", "--resume", "abc")
METRICS |= {"epoch_seconds": 2.0, "images_per_second": 1234.0}


class FakeRun:
    """A run that remembers its calls.

    Args:
        conflicts: names of metrics that were logged with other values before.
    """

    id = "abc"

    def __init__(self, *, conflicts=(), is_superseded=False):
        self.calls = []
        self.conflicts = set(conflicts)
        self.is_superseded = is_superseded

    def log_epoch(self, epoch, metrics):
        self.calls.append((epoch, metrics))
        return self.conflicts

    def load_logged_state(self):
        return "smoke"

    def set_name(self, name):
        self.name = name
        return name

    def log_params(self, params):
        self.params = params

    def __getattr__(self, name):
        return lambda *arguments, **named: self.calls.append((name, arguments, named))


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


def small_dataset(source="digits"):
    split = SimpleNamespace(digest="f00d")
    return SimpleNamespace(
        name="digits",
        source=source,
        fingerprint="f00d",
        duplicates=0,
        image_shape=(8, 8, 1),
        train=split,
        validation=split,
        test=split,
    )


def test_resolve_auto_leaves_no_auto_and_an_absolute_path(tmp_path):
    config = TrainingConfig.build({"dataset": os.path.relpath(tmp_path)})
    resolved = resolve_auto(config, small_dataset(str(tmp_path)), CPU)
    assert "auto" not in {resolved.precision, resolved.jit_compile, resolved.fast_layers}
    assert resolved.dataset == str(tmp_path)


def test_resolve_auto_with_explicit_settings_keeps_them():
    config = TrainingConfig.build({"precision": "float32", "jit_compile": True, "fast_layers": False})
    assert resolve_auto(config, small_dataset(), CPU) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fast_layers": True}, "fast_layers must be false or auto with devices=all"),
        ({"batch_size": 127}, "batch_size must be a multiple of the 2 devices that share it: got 127"),
    ],
)
def test_resolve_auto_with_settings_that_devices_cannot_share_raises_usage_error(settings, message):
    two = Device("GPU", "any", capability=(9, 0), count=2)
    with pytest.raises(UsageError, match=message):
        resolve_auto(TrainingConfig.build(settings), small_dataset(), two)


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


@pytest.mark.parametrize(
    ("recipe", "name"), [("experiments/recipes/smoke.yaml", "smoke"), ("/runs/abc/config.yaml", "digits")]
)
def test_log_run_metadata_names_the_run_after_its_recipe_or_else_its_data(recipe, name):
    run, config = FakeRun(), TrainingConfig.build({"filters": 8, "depth": 2, "kernel_size": 3, "patch_size": 1})
    assert log_run_metadata(run, recipe, config, small_dataset(), "a CPU", {}) == name
    assert run.params.keys() == {"recipe", *TrainingConfig.model_fields}
    datasets = [named["context"] for method, _, named in run.calls if method == "log_dataset"]
    assert datasets == ["train", "validation", "test"]


def test_replay_logged_epochs_logs_every_finished_epoch_of_the_checkpoint():
    run = FakeRun()
    state = TrainingState(2, {"loss": [0.5, 0.25], "val_loss": [0.75, 0.5]}, [], [])
    assert replay_logged_epochs(run, state) == "smoke"
    assert run.calls == [(1, {"loss": 0.5, "val_loss": 0.75}), (2, {"loss": 0.25, "val_loss": 0.5})]


def test_report_epoch_without_a_terminal_prints_one_line(capsys):
    run = FakeRun()
    report_epoch(run, 10, Console(), 3, METRICS)
    assert run.calls == [(3, METRICS)]
    line = "epoch  3/10  loss 0.5000  accuracy 0.2500  val_loss 0.7500  val_accuracy 0.5000  1,234 images/s  2.0 s\n"
    assert capsys.readouterr() == (line, "")


def test_report_epoch_with_other_values_logged_before_warns_of_all_but_timings(capsys):
    report_epoch(FakeRun(conflicts={"val_loss", "loss", "epoch_seconds"}), 10, Console(), 3, METRICS)
    warning = capsys.readouterr().err
    assert warning.startswith("warning: epoch 3 had been logged with another loss, val_loss, which stays")
    report_epoch(FakeRun(conflicts={"epoch_seconds"}), 10, Console(), 3, METRICS)
    assert capsys.readouterr().err == ""


def test_summarize_states_test_and_validation_accuracy_in_one_line():
    results = {"test_accuracy": 0.9, "test_loss": 0.25, "best_val_accuracy": 0.95, "best_epoch": 3}
    results |= {"parameters": 1234, "seconds": 5.4}
    assert summarize(results, TrainingConfig(epochs=4), SimpleNamespace(test=range(1797))) == (
        "test accuracy 90.00% (loss 0.2500, 1,797 images), validation accuracy 95.00% at epoch 3 of 4; "
        "1,234 parameters, 5 s"
    )


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
