"""A worker of gpu.py: train variants of a recipe one after the other, and write a line of JSON for each.

Usage: python gpu_worker.py fit|profile RECIPE VARIANTS

VARIANTS is JSON: a list of names and changes to the recipe. A variant that fails has its error in place of the figures.
"""

import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from gpu_trace import read_trace, top_operations

from pipeline.config.recipe import read_recipe
from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import Dataset, load_dataset
from pipeline.runtime.device import Device, select_device
from pipeline.runtime.environment import set_environment

TOP_OPERATIONS = 15


def main(task: str, recipe: str, variants: list[tuple[str, dict[str, Any]]]) -> None:
    """Train each variant, and write its figures or its error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # libraries print too
    os.dup2(2, 1)
    set_environment(os.environ)
    device = select_device("one")
    measure = {"fit": measure_fit, "profile": profile_fit}[task]
    for name, changes in variants:
        try:
            config = TrainingConfig.build(read_recipe(recipe) | changes)
            for figures in measure(config, load_dataset(config.data, seed=config.seed), device):
                answers.write(json.dumps({"what": name} | figures) + "\n")
        except Exception as error:  # noqa: BLE001 - one variant's error must not lose the others
            lines = f"{type(error).__name__}: {error}".splitlines()
            answers.write(json.dumps({"what": name, "error": lines[0][:300]}) + "\n")
        free_memory()


def measure_fit(config: TrainingConfig, dataset: Dataset, device: Device) -> list[dict[str, float]]:
    """Train with `fit`; the first epoch has tracing and compilation in it, the median of the others is an epoch."""
    from pipeline.training.auto_settings import resolve_auto
    from pipeline.training.fit import fit

    resolved = resolve_auto(config, dataset, device)
    history = fit(resolved, dataset).history
    epochs, speeds = history["epoch_seconds"], history["images_per_second"]
    speed = median(speeds[1:])
    return [
        {
            "step_ms": round(1000 * config.batch_size / speed, 3),
            "images_per_second": round(speed, 1),
            "epoch_seconds": round(median(epochs[1:]), 3),
            "start_seconds": round(epochs[0] - median(epochs[1:]), 1),
            "last_loss": round(history["loss"][-1], 5),
        }
        | peak_memory(device)
    ]


def profile_fit(config: TrainingConfig, dataset: Dataset, device: Device) -> list[dict[str, Any]]:
    """Train two epochs, profile the training of the second, and return its longest operations."""
    import keras
    import tensorflow as tf

    from pipeline.training.auto_settings import resolve_auto
    from pipeline.training.fit import fit

    with tempfile.TemporaryDirectory() as folder:

        class Profile(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
                if epoch == 1:
                    tf.profiler.experimental.start(folder)

            def on_test_begin(self, logs: object = None) -> None:
                if epoch_of(self) == 1:
                    tf.profiler.experimental.stop()

        def epoch_of(callback: keras.callbacks.Callback) -> int:
            return len(callback.model.history.epoch)

        fit(resolve_auto(config, dataset, device), dataset, [Profile()])
        trace = read_trace(Path(folder))
    return [
        {"operation": name, "ms": round(milliseconds, 2), "share": round(share, 4)}
        for name, milliseconds, share in top_operations(trace, TOP_OPERATIONS)
    ]


def peak_memory(device: Device) -> dict[str, int]:
    """Return the device's memory that the variant has taken at most, in MiB; nothing on a CPU, which is not asked."""
    import tensorflow as tf

    if device.kind == "CPU":
        return {}
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    tf.config.experimental.reset_memory_stats("GPU:0")
    return {"peak_mib": peak >> 20}


def free_memory() -> None:
    """Forget the model of the last variant."""
    import keras

    keras.backend.clear_session()
    gc.collect()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
