"""Measure what a run costs besides its training steps: `make bench-around`.

The costs are start-up, the input pipeline, validation and tracking. What is compared with a training step alternates
with it in one process. Where other programs share the cores, trust the ratio of processor time.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from arguments import take_no_arguments
from own_store import use_store, with_store

from pipeline.config.recipe import read_recipe
from pipeline.config.training import DataConfig, TrainingConfig
from pipeline.runtime.environment import set_environment

ROOT = Path(__file__).parents[2]
ROUNDS = 5
RECIPE = "baseline"
EPOCH_IMAGES = 45_000  # of CIFAR-10, without validation images
TRAINING_IMAGES, TEST_IMAGES, BATCH_SIZE = 10_000, 500, 128
# training batches that a round of the input pipeline makes
INPUT_BATCHES = 20
# methods of pipeline.tracking.run.TrackedRun that a training calls
TIMED_METHODS = (
    *("set_name", "set_description", "set_tags", "log_params", "log_dataset", "log_epoch", "log_results"),
    *("log_figure", "log_image", "log_text", "log_table", "log_model", "wait_until_logged"),
)


def main() -> None:
    """Print the tables."""
    take_no_arguments(__doc__)
    set_environment(os.environ)
    print("| start | seconds |\n|---|---|")
    for name, seconds in time_starts():
        print(f"| {name} | {seconds:.2f} |", flush=True)
    print(
        f"\n| processor time, ConvMixer-256/8 | seconds per {BATCH_SIZE} images | of a training step |\n|---|---|---|"
    )
    costs = time_parts()
    for name, seconds in costs.items():
        print(f"| {name} | {seconds:.3f} | {seconds / costs['training step']:.1%} |", flush=True)
    ten_epochs = 10 * EPOCH_IMAGES / BATCH_SIZE * costs["training step"]
    print("\n| figures as MLflow images, processor time | seconds | of ten epochs' steps | MB |\n|---|---|---|---|")
    for name, seconds, size in time_images():
        print(f"| {name} | {seconds:.2f} | {seconds / ten_epochs:.2%} | {size / 1e6:.2f} |", flush=True)
    print("\n| tracking a run on sqlite | seconds |\n|---|---|")
    for name, seconds in time_tracking():
        print(f"| {name} | {seconds:.3f} |", flush=True)


def time_starts() -> Iterator[tuple[str, float]]:
    """Yield what a user waits for at the start and the seconds it takes, each in a new process."""
    train = [sys.executable, "-m", "pipeline", "train"]
    digits = [*train, "digits", "--epochs", "1"]
    python = [sys.executable, "-c"]
    yield "`python -m pipeline train --help`", median(lambda: seconds_to_exit([*train, "--help"]))
    yield "a refused setting", median(lambda: seconds_to_exit([*train, "digits", "--depth", "0"]))
    yield "`import tensorflow` alone", median(lambda: seconds_to_exit([*python, "import tensorflow"]))
    yield "`import mlflow` alone", median(lambda: seconds_to_exit([*python, "import mlflow"]))
    yield "digits: settings and data accepted, all imported", median(lambda: seconds_to_line("data", digits))
    yield "digits: end of the first epoch", median(lambda: seconds_to_line("epoch", digits))


def time_parts() -> dict[str, float]:
    """Return the processor seconds per BATCH_SIZE images of a training step, the input pipeline and inference."""
    import keras
    import tensorflow as tf

    from pipeline.model.conv_mixer import build_model
    from pipeline.runtime.device import fast_layers_for, select_device
    from pipeline.training.fit import compile_model, evaluation_batches, make_training_batches
    from pipeline.training.schedules import LearningRateSchedule

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (TRAINING_IMAGES, 32, 32, 3)).astype(np.uint8)
    dataset = random_dataset(pixels, rng.integers(0, 10, TRAINING_IMAGES))
    changes = {"translation": 4, "batch_size": BATCH_SIZE, "jit_compile": False}
    changes["fast_layers"] = fast_layers_for(select_device("one"))
    config = TrainingConfig.build(read_recipe(RECIPE)).model_copy(update=changes)
    keras.utils.set_random_seed(0)
    model = build_model(config, dataset.image_shape, len(dataset.classes))
    compile_model(model, config, LearningRateSchedule("constant", peak=1e-3, steps=1, warmup_fraction=0))
    batches = iter(make_training_batches(config.model_copy(update={"epochs": 1000}), dataset).on_host())
    images, labels = next(batches)
    validation_images = next(iter(evaluation_batches(config, dataset, dataset.validation)))[0]
    infer = tf.function(lambda batch: model(batch, training=False))
    # the work of a part, and how many batches of BATCH_SIZE images it handles
    parts: dict[str, tuple[Callable[[], object], float]] = {
        "training step": (lambda: model.train_on_batch(images, labels), 1.0),
        "input pipeline (flip, translation)": (
            lambda: [next(batches) for _ in range(INPUT_BATCHES)],
            INPUT_BATCHES,
        ),
        "inference, as in validation": (
            lambda: infer(validation_images).numpy(),
            len(validation_images) / BATCH_SIZE,
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(ROUNDS + 1):
        for name, (work, batch_count) in parts.items():
            started = time.process_time()
            work()
            # The first round compiles.
            if number > 0:
                seconds[name].append((time.process_time() - started) / batch_count)
    return {name: statistics.median(values) for name, values in seconds.items()}


def time_images() -> Iterator[tuple[str, float, int]]:
    """Yield how many processor seconds and bytes a run of RECIPE costs more by figures as images, besides its plots."""
    import keras
    from files_on_disk import FilesOnDisk, PlotsOnly

    from pipeline.evaluation.figures.training import confusion_matrix, mistakes
    from pipeline.model.conv_mixer import build_model, depthwise_kernels
    from pipeline.tracking.run import TrackedRun
    from pipeline.training.callbacks import snapshot_epochs
    from pipeline.training.fit import TrainingResult
    from pipeline.training.results import log_training, middle_block

    rng = np.random.default_rng(0)
    classes = [f"class {number}" for number in range(10)]
    config = TrainingConfig.build(read_recipe(RECIPE))
    keras.utils.set_random_seed(0)
    model = build_model(config, (32, 32, 3), len(classes))
    curve = list(np.linspace(2, 0.1, 10))
    names = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")
    result = TrainingResult(model, dict.fromkeys(names, curve), best_epoch=10)
    pictures = rng.integers(0, 256, (25, 32, 32, 3)).astype(np.uint8)

    def log_figures(run: TrackedRun, filter_steps: int) -> float:
        started = time.process_time()
        snapshots = {
            epoch: depthwise_kernels(model, middle_block(config)) for epoch in snapshot_epochs(10, filter_steps)
        }
        log_training(run, config, result, snapshots=snapshots)
        counts = rng.integers(0, 100, (10, 10))
        run.log_figure("matrix.png", confusion_matrix(counts, classes=classes), key="confusion_matrix")
        labels = classes[:5] * 5
        figure = mistakes(pictures, true=labels, predicted=labels, confidence=[0.9] * 25, wrong=99, of=500)
        run.log_figure("mistakes.png", figure, key="mistakes")
        return time.process_time() - started

    log_figures(TrackedRun("0" * 32, FilesOnDisk()), 0)  # imports
    plain = statistics.median(log_figures(PlotsOnly("0" * 32, FilesOnDisk()), 0) for _ in range(ROUNDS))
    for filter_steps in (0, 8):
        outboxes = [FilesOnDisk() for _ in range(ROUNDS)]
        seconds = statistics.median(log_figures(TrackedRun("0" * 32, outbox), filter_steps) for outbox in outboxes)
        yield f"filter_steps={filter_steps}: {outboxes[0].images} images", seconds - plain, outboxes[0].image_bytes


def time_tracking() -> Iterator[tuple[str, float]]:
    """Yield what a run on digits logs, and the seconds of wall-clock time that its training spends in those calls."""
    from pipeline.commands.main import run
    from pipeline.tracking.run import TrackedRun

    seconds: dict[str, list[float]] = {name: [] for name in TIMED_METHODS}
    running: list[str] = []

    def time_method(name: str) -> None:
        method = getattr(TrackedRun, name)

        def timed(*args: Any, **kwargs: Any) -> object:
            started = time.perf_counter()
            running.append(name)
            try:
                return method(*args, **kwargs)
            finally:
                running.pop()
                # A method that another one calls counts as part of that one.
                if not running:
                    seconds[name].append(time.perf_counter() - started)

        setattr(TrackedRun, name, timed)

    for name in TIMED_METHODS:
        time_method(name)
    with tempfile.TemporaryDirectory() as folder:
        use_store(f"sqlite:///{folder}/mlflow.db")
        # Artifacts are stored below the working directory.
        os.chdir(folder)
        with open(os.devnull, "w", encoding="utf-8") as devnull, redirect_stdout(devnull):
            assert run(["train", "digits"]) == 0
    yield f"metrics of an epoch (median of {len(seconds['log_epoch'])})", statistics.median(seconds["log_epoch"])
    yield "figures and tables, at the end", sum(seconds["log_figure"] + seconds["log_image"] + seconds["log_table"])
    yield "model, at the end", sum(seconds["log_model"])
    yield "waiting for MLflow, at the end", sum(seconds["wait_until_logged"])
    listed = {"log_epoch", "log_figure", "log_image", "log_table", "log_model", "wait_until_logged"}
    yield "all other calls", sum(sum(values) for name, values in seconds.items() if name not in listed)


def random_dataset(pixels: np.ndarray, labels: np.ndarray) -> Any:
    """Return images and labels as a data set, the first of them as test images too."""
    from pipeline.data.dataset import load_dataset

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.npz"
        np.savez(file, x_train=pixels, y_train=labels, x_test=pixels[:TEST_IMAGES], y_test=labels[:TEST_IMAGES])
        return load_dataset(DataConfig.build({"dataset": str(file)}), seed=0)


def seconds_to_exit(command: list[str]) -> float:
    """Run a command and return the seconds until it exits."""
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - started


def seconds_to_line(prefix: str, command: list[str]) -> float:
    """Run a training in a temporary store and return the seconds until it prints a line with a prefix; then kill it."""
    with tempfile.TemporaryDirectory() as folder:
        environment = with_store(f"sqlite:///{folder}/mlflow.db", PYTHONPATH=str(ROOT))
        started = time.perf_counter()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=folder
        ) as process:
            assert process.stdout
            for line in process.stdout:
                if line.startswith(prefix):
                    seconds = time.perf_counter() - started
                    process.kill()
                    return seconds
        raise RuntimeError(f"{command} exited without a line that starts with {prefix}")


def median(measure: Callable[[], float]) -> float:
    """Return the median of ROUNDS measurements."""
    return statistics.median(measure() for _ in range(ROUNDS))


if __name__ == "__main__":
    main()
