"""What a run costs besides its training steps: `make bench-around`.

Starting, the input pipeline, validation and tracking, each beside what it is to be small against. The sides of a ratio
take turns in one process, and where other programs share the cores the ratio of processor time is the one to trust.
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

from pipeline.config import training
from pipeline.runtime.cpu import prefer_onednn

ROUNDS = 5
RECIPE = "baseline"
IMAGES, BATCH, INFERENCE = 10_000, 128, 500


def main() -> None:
    """Print the tables."""
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "MLFLOW_DISABLE_TELEMETRY": "true"}
    prefer_onednn()
    print("| start | seconds |\n|---|---|")
    for name, seconds in starts():
        print(f"| {name} | {seconds:.2f} |", flush=True)
    print(f"\n| processor seconds, ConvMixer-256/8 | each {BATCH} images | of a training step |\n|---|---|---|")
    costs = dict(parts())
    for name, seconds in costs.items():
        print(f"| {name} | {seconds:.3f} | {seconds / costs['training step']:.1%} |", flush=True)
    print("\n| tracking a run on sqlite | seconds |\n|---|---|")
    for name, seconds in tracking():
        print(f"| {name} | {seconds:.3f} |", flush=True)


def starts() -> Iterator[tuple[str, float]]:
    """Seconds to what a person waits for, each in a new process."""
    train = [sys.executable, "-m", "pipeline", "train"]
    yield "`python -m pipeline train --help`", median(lambda: ended([*train, "--help"]))
    yield "a refused setting", median(lambda: ended([*train, "digits", "--depth", "0"]))
    yield "`import tensorflow` alone", median(lambda: ended([sys.executable, "-c", "import tensorflow"]))
    yield "`import mlflow` alone", median(lambda: ended([sys.executable, "-c", "import mlflow"]))
    digits = [*train, "digits", "--epochs", "1"]
    yield "digits: settings and data accepted, all imported", median(lambda: until("data", digits))
    yield "digits: the first epoch has ended", median(lambda: until("epoch", digits))


def parts() -> Iterator[tuple[str, float]]:
    """Processor seconds each BATCH images of the recipe's network with flip and translation, taking turns."""
    import keras
    import tensorflow as tf

    from pipeline.model.conv_mixer import build_model
    from pipeline.runtime import device
    from pipeline.training.fit import compile_model, evaluation_batches, training_batches
    from pipeline.training.schedules import LearningRateSchedule

    random = np.random.default_rng(0)
    data = made(random.integers(0, 256, (IMAGES, 32, 32, 3)).astype(np.uint8), random.integers(0, 10, IMAGES))
    config = training.TrainingConfig.build(training.read_recipe(RECIPE)).model_copy(
        update={"translation": 4, "batch_size": BATCH}
    )
    found = device.select_device("one")
    config = config.model_copy(update={"fast_layers": device.fast_layers_for(found), "jit_compile": False})
    keras.utils.set_random_seed(0)
    model = build_model(config, data.image_shape, len(data.classes))
    compile_model(model, config, LearningRateSchedule("constant", peak=1e-3, steps=1, warmup_fraction=0))
    batches = iter(training_batches(config.model_copy(update={"epochs": 1000}), data))
    images, labels = next(batches)
    step = lambda: model.train_on_batch(images, labels)  # noqa: E731
    many = next(iter(evaluation_batches(config, data, data.validation)))[0]
    infer = tf.function(lambda some: model(some, training=False))
    share = BATCH / len(many)
    works: dict[str, tuple[Callable[[], object], float]] = {
        "training step": (step, 1.0),
        "input pipeline (flip, translation)": (lambda: [next(batches) for _ in range(20)], 1 / 20),
        "inference, as in validation": (lambda: infer(many).numpy(), share),
    }
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(ROUNDS + 1):
        for name, (work, each) in works.items():
            began = time.process_time()
            work()
            if turn:  # the first compiles
                taken[name].append((time.process_time() - began) * each)
    for name, seconds in taken.items():
        yield name, statistics.median(seconds)


def tracking() -> Iterator[tuple[str, float]]:
    """Seconds of the clock that a run on digits spends in pipeline.tracking.run, by what for."""
    from pipeline.commands import main
    from pipeline.tracking.run import TrackedRun

    spent: dict[str, list[float]] = {}

    def timed(name: str) -> None:
        method = getattr(TrackedRun, name)

        def call(*given: Any, **named: Any) -> object:
            began = time.perf_counter()
            try:
                return method(*given, **named)
            finally:
                spent.setdefault(name, []).append(time.perf_counter() - began)

        setattr(TrackedRun, name, call)

    at_start = ["set_name", "set_tags", "log_params", "log_text", "log_dataset"]
    for name in [*at_start, "log_epoch", "log_figure", "log_table", "log_model"]:
        timed(name)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        os.chdir(folder)
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            main.run(["train", "digits"])
    yield f"an epoch's metrics (median of {len(spent['log_epoch'])})", statistics.median(spent["log_epoch"])
    yield "figures and tables, at the end", sum(spent["log_figure"] + spent["log_table"])
    yield "the model, at the end", sum(spent["log_model"])
    yield "all other calls of the run", sum(sum(spent[name]) for name in at_start)


def made(pixels: np.ndarray, labels: np.ndarray) -> Any:
    """These images as a data set."""
    from pipeline.data.dataset import load_dataset

    with tempfile.TemporaryDirectory() as folder:
        np.savez(
            file := Path(folder) / "made.npz",
            x_train=pixels,
            y_train=labels,
            x_test=pixels[:INFERENCE],
            y_test=labels[:INFERENCE],
        )
        return load_dataset(training.DataConfig(dataset=str(file)), seed=0)


def ended(command: list[str]) -> float:
    """Seconds until a process has ended."""
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - began


def until(said: str, command: list[str]) -> float:
    """Seconds until a process prints a line that begins so; its run goes to a store that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        environ = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        began = time.perf_counter()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ
        ) as run:
            assert run.stdout
            for line in run.stdout:
                if line.startswith(said):
                    seconds = time.perf_counter() - began
                    run.kill()
                    return seconds
        raise RuntimeError(f"{command} ended without a line {said}")


def median(measured: Callable[[], float]) -> float:
    """Of ROUNDS times."""
    return statistics.median(measured() for _ in range(ROUNDS))


if __name__ == "__main__":
    main()
