"""Compare the time until a validation accuracy with that of the Keras example's ten epochs.

Usage: python experiments/benchmarks/time_to_accuracy.py CIFAR10 [--recipe speedrun] [--seeds 0,1,2]

Each seed is a training as a user starts it, timed from the command on: until the end of the first epoch from which on
all epochs reach the accuracy. The example's ten epochs are not trained: their time is that of its step, measured in
turns with the trainings, times their steps. Its start and its validation are left out, which favours the example.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable

from step import HERE, ROOT, SHAPE, Worker

# https://keras.io/examples/vision/convmixer/: 45,000 training images
EXAMPLE_ACCURACY, EXAMPLE_EPOCHS, EXAMPLE_STEPS = 0.8325, 10, 352
STEPS_PER_ROUND = 9
EPOCH_LINE = re.compile(r"epoch +(\d+)/\d+ .* val_accuracy ([\d.]+)")


def train(command: list[str]) -> list[tuple[float, float]]:
    """Run a training and return of each epoch the seconds from the command to its end, and its validation accuracy."""
    started, epochs = time.monotonic(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        for line in process.stdout:
            sys.stderr.write(line)
            if found := EPOCH_LINE.match(line):
                epochs.append((time.monotonic() - started, float(found[2])))
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    return epochs


def seconds_until(epochs: Iterable[tuple[float, float]], accuracy: float) -> float:
    """Return the seconds to the end of the first epoch from which on all reach the accuracy; infinity if none does."""
    reached = float("inf")
    for seconds, found in epochs:
        reached = min(reached, seconds) if found >= accuracy else float("inf")
    return reached


def measure_example(worker: Worker) -> None:
    """Train a few steps of the Keras example."""
    for _ in range(STEPS_PER_ROUND):
        worker.train_step()


def main() -> None:
    """Train every seed, with steps of the example before, between and after them, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--recipe", default="speedrun")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--accuracy", type=float, default=EXAMPLE_ACCURACY)
    options = parser.parse_args()
    example = Worker("Keras example", [sys.executable, str(HERE / "step_keras.py"), "example"], SHAPE)
    seeds, trainings = options.seeds.split(","), []
    try:
        measure_example(example)
        for seed in seeds:
            train_recipe = [sys.executable, "-m", "pipeline", "train", options.recipe]
            trainings.append(train([*train_recipe, "--dataset", options.dataset, "--seed", seed]))
            measure_example(example)
    finally:
        example.close()
    print_table(options.accuracy, dict(zip(seeds, trainings, strict=True)), example)


def print_table(accuracy: float, trainings: dict[str, list[tuple[float, float]]], example: Worker) -> None:
    """Print the seconds of each seed, and how many times as long the example takes."""
    step = statistics.median(cost["seconds"] for cost in example.steps)
    example_seconds = EXAMPLE_EPOCHS * EXAMPLE_STEPS * step
    print(
        f"{example.properties['device']}; the example's step takes {step:.2f} s (median of {len(example.steps)}), its "
        f"{EXAMPLE_EPOCHS} epochs {example_seconds / 60:.0f} min\n"
    )
    print(f"| seed | validation accuracy by epoch | minutes until {accuracy:.2%} | the example takes |")
    print("|---|---|---|---|")
    for seed, epochs in trainings.items():
        seconds = seconds_until(epochs, accuracy)
        accuracies = ", ".join(f"{found:.2%}" for _, found in epochs)
        print(f"| {seed} | {accuracies} | {seconds / 60:.1f} | {example_seconds / seconds:.1f} times as long |")
    print(f"\n{json.dumps({'example_step_seconds': [round(cost['seconds'], 3) for cost in example.steps]})}")


if __name__ == "__main__":
    main()
