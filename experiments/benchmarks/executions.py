"""Compare how training steps are started and fed: `steps_per_execution` and `data_on`.

Usage: python experiments/benchmarks/executions.py [--filters 16] [--depth 2] [--batch 128] [--steps 16] [--rounds 7]

Each variant trains a network of its own in this process, with the augmentation of the recipe `fast` and random images
of 32x32 pixels. In every round each variant trains the same number of steps; a ratio is the median over the rounds.
Where other programs share the cores, trust the ratio of processor time.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.config.recipe import read_recipe
from pipeline.config.training import TrainingConfig
from pipeline.runtime.environment import set_environment

OPTIONS = {"filters": 16, "depth": 2, "batch": 128, "steps": 16, "rounds": 7}
VARIANTS = [("host", 1), ("host", 4), ("host", 16), ("device", 1), ("device", 4), ("device", 16)]
IMAGES, CLASSES = 4096, 10

Cost = tuple[float, float]  # wall-clock and processor seconds of a round


def main() -> None:
    """Run all variants and print the table and, as its last line, the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in OPTIONS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    set_environment(os.environ)
    costs = measure(options)
    table = rows(costs, images=options.steps * options.batch)
    print(f"\nConvMixer-{options.filters}/{options.depth}, batch {options.batch}, {options.rounds} rounds of ", end="")
    print(f"{options.steps} steps; load {os.getloadavg()[0]:.1f}\n")
    print("| data_on | steps_per_execution | images/s | ratio | ratio of CPU time |\n|---|---|---|---|---|")
    for row in table:
        place, size, images, ratio, processor_ratio = row.values()
        print(f"| {place} | {size} | {images:,.0f} | {ratio:.2f} | {processor_ratio:.2f} |")
    print(json.dumps(table))


def measure(options: argparse.Namespace) -> dict[tuple[str, int], list[Cost]]:
    """Return the costs of each round by variant."""
    from pipeline.runtime.device import select_device

    device = select_device("one")
    print(device)
    trainings = {variant: start_training(*variant, device, options) for variant in VARIANTS}
    costs: dict[tuple[str, int], list[Cost]] = {variant: [] for variant in VARIANTS}
    # the first round compiles
    for number in range(options.rounds + 1):
        for variant, train in trainings.items():
            began, processor_began = time.perf_counter(), time.process_time()
            train()
            cost = (time.perf_counter() - began, time.process_time() - processor_began)
            if number:
                costs[variant].append(cost)
    return costs


def start_training(place: str, size: int, device: Any, options: argparse.Namespace) -> Callable[[], None]:
    """Return a function that trains `options.steps` more steps of a new network."""
    import keras

    from pipeline.data.batches import DeviceImages
    from pipeline.model.conv_mixer import build_model
    from pipeline.training.auto_settings import resolve_auto
    from pipeline.training.fit import compile_model, make_training_batches
    from pipeline.training.schedules import LearningRateSchedule
    from pipeline.training.train_function import StepGroups, make_train_function

    shape = {"filters": options.filters, "depth": options.depth, "batch_size": options.batch}
    dataset = random_dataset()
    settings = read_recipe("fast") | shape | {"epochs": 10_000, "steps_per_execution": size, "data_on": place}
    config = resolve_auto(TrainingConfig.build(settings), dataset, device)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(config.precision)
    model = build_model(config, dataset.image_shape, CLASSES)
    compile_model(model, config, LearningRateSchedule("constant", peak=1e-3, steps=1, warmup_fraction=0))
    on_device = place == "device"
    batches = make_training_batches(config, dataset, for_xla=on_device and config.jit_compile is True)
    makers = [partial(batches.on_device, DeviceImages.copy_of(dataset.train))] if on_device else []
    elements: Iterator = iter(batches.plans() if on_device else batches.on_host())
    groups = StepGroups(options.steps, size)
    train_group = make_train_function(model, groups, makers)

    def train() -> None:
        for _ in range(groups.count):
            # as the callback does that looks for a loss that is no number
            float(train_group(elements)["loss"])

    return train


def random_dataset() -> Any:
    """Return what `fit` needs of a data set, with random training images."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(0, CLASSES, IMAGES)

    class Images:
        """All images, in the order of their rows."""

        def __init__(self) -> None:
            self.labels, self.rows = labels, np.arange(IMAGES)

        def __len__(self) -> int:
            return IMAGES

        def take(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return pixels[positions], labels[positions]

    classes = tuple(map(str, range(CLASSES)))
    return SimpleNamespace(source="random", image_shape=(32, 32, 3), classes=classes, train=Images())


def rows(costs: dict[tuple[str, int], list[Cost]], *, images: int) -> list[dict[str, Any]]:
    """Return a row per variant: its images/s, and how many times as fast it is as the first."""
    baseline = next(iter(costs.values()))
    return [
        {
            "data_on": place,
            "steps_per_execution": size,
            "images_per_second": images / statistics.median(seconds for seconds, _ in own),
            "ratio": statistics.median(base[0] / one[0] for base, one in zip(baseline, own, strict=True)),
            "processor_ratio": statistics.median(base[1] / one[1] for base, one in zip(baseline, own, strict=True)),
        }
        for (place, size), own in costs.items()
    ]


if __name__ == "__main__":
    main()
