"""Measure the service on a GPU, without a network: `make bench-gpu`, each time for less than eight minutes.

Usage: gpu.py [PART ...] [--small] [--again] [--dataset PATH] [--folder FOLDER] [--minutes 8]

Each part has a time limit. What has been measured is kept in FOLDER/gpu.json after each figure; a part that has ended
well is left out when the command is given again, and one that was stopped goes on where it was. No part is begun that
the time left does not suffice for. A part that fails does not lose the others.

Without --dataset the images are pseudo-random, as many and as large as CIFAR-10's. Without a GPU, or with --small, the
networks and data are tiny, what needs a GPU is left out, and the figures mean nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu_process import CommandFailed, OutOfTime, Session
from gpu_service import kill_trial, resume_run, run_doctor, run_out_of_memory, search

from pipeline.search.executors.slots import find_gpus

WORKER = str(Path(__file__).with_name("gpu_worker.py"))
RESULTS = "gpu.json"
# A part is begun if this share of its limit is left; less of one that goes on where it was stopped.
LEAST_SHARE = 0.8
LEAST_SHARE_BY_ROW = 0.3
# XLA's compiler takes longer than some epochs of so many.
EPOCH_IMAGES = 12_800
IMAGES = {False: (50_000, 10_000), True: (400, 100)}  # training and test images, by whether it is small
SMALL = {"filters": 8, "depth": 1, "kernel_size": 3, "batch_size": 32}

# What each variant changes; the first is what a run has by default.
STEP_VARIANTS: Mapping[str, dict[str, Any]] = {
    "default": {},
    "without XLA": {"jit_compile": False},
    "with XLA": {"jit_compile": True},
    "data_on=host": {"data_on": "host"},
    "data_on=device": {"data_on": "device"},
    "steps_per_execution=1": {"steps_per_execution": 1},
    "steps_per_execution=16": {"steps_per_execution": 16},
    "batch 512": {"batch_size": 512},
    "bfloat16": {"precision": "mixed_bfloat16"},
    "float16": {"precision": "mixed_float16"},
    "batch 512, without XLA": {"batch_size": 512, "jit_compile": False},
    "float16, without XLA": {"precision": "mixed_float16", "jit_compile": False},
}
# The default on one GPU, as the settings of a variant that would measure it again.
GPU_DEFAULTS = {"steps_per_execution=16", "data_on=device", "with XLA", "bfloat16"}


@dataclass(frozen=True)
class Part:
    """A part of the benchmark: its limit in seconds, and what yields its rows.

    Attributes:
        by_row: Whether it leaves out rows that have been measured.
    """

    limit: float
    rows: Callable[[Session], Iterator[dict[str, Any]]]
    by_row: bool = False


def step_rows(recipe: str) -> Callable[[Session], Iterator[dict[str, Any]]]:
    """Return a part that measures step and epoch of a recipe's variants."""

    def rows(session: Session) -> Iterator[dict[str, Any]]:
        left_out = {"with XLA"} if session.is_small else GPU_DEFAULTS
        images = {} if session.is_small else {"train_examples": EPOCH_IMAGES}
        variants = [
            # all epochs with the recipe's augmentation
            (name, training(session, images | changes, epochs=3, clean_epochs=0))
            for name, changes in STEP_VARIANTS.items()
            if name not in left_out | session.measured
        ]
        yield from session.worker(WORKER, "fit", recipe, json.dumps(variants))

    return rows


def profile_rows(session: Session) -> Iterator[dict[str, Any]]:
    """Profile twenty steps of `baseline`."""
    batch_size = SMALL["batch_size"] if session.is_small else 128
    changes = training(session, {"train_examples": 20 * batch_size} if not session.is_small else {}, epochs=2)
    yield from session.worker(WORKER, "profile", "baseline", json.dumps([["default", changes]]))


def training(session: Session, changes: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return changes to a recipe, with the data and, if it is small, those that make it so."""
    small: dict[str, Any] = {}
    if session.is_small:
        # XLA's compiler of a whole step takes minutes on a CPU
        small = SMALL | {"jit_compile": False}
        changes = dict(changes) | ({"batch_size": 64} if "batch_size" in changes else {})
    return {"dataset": session.dataset, **small, **more, **changes}


PARTS: Mapping[str, Part] = {
    "doctor": Part(40, run_doctor),
    "resume": Part(90, resume_run),
    "baseline": Part(300, step_rows("baseline"), by_row=True),
    "profile": Part(100, profile_rows),
    "search-4": Part(60, lambda session: search(session, slots=4)),
    "search-1": Part(110, lambda session: search(session, slots=1)),
    "memory": Part(50, run_out_of_memory),
    "killed": Part(60, kill_trial),
    "fast": Part(300, step_rows("fast"), by_row=True),
}


def main(arguments: list[str] | None = None, parts: Mapping[str, Part] = PARTS) -> None:
    """Measure the parts, keep and print the figures."""
    options = parse(arguments, parts)
    options.folder.mkdir(parents=True, exist_ok=True)
    is_small = options.small or not find_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not is_small:
        check_tensorflow_sees_gpu()
    results = read_results(options.folder / RESULTS)
    deadline = time.monotonic() + 60 * options.minutes
    dataset = options.dataset or make_images(options.folder, *IMAGES[is_small])
    for name in options.parts or parts:
        part, known = parts[name], results.get(name, {})
        if is_small and known.get("small") is False:
            # a GPU's, which those of tiny networks are not to replace
            continue
        if known.get("small") != is_small:
            known = {}
        if known.get("state") == "done" and not options.again:
            continue
        is_kept = part.by_row and not options.again
        rows = [row for row in known.get("rows", []) if is_kept and "error" not in row]
        results[name] = {"state": "not begun: no time left", "small": is_small, "rows": rows}
        limit = min(part.limit if not is_small else 10 * part.limit, deadline - time.monotonic())
        if limit >= (LEAST_SHARE_BY_ROW if part.by_row else LEAST_SHARE) * part.limit:
            measured = frozenset(row["what"] for row in rows)
            session = Session(options.folder, str(dataset), is_small, measured, time.monotonic() + limit)
            print(f"{name} ...", file=sys.stderr, flush=True)
            run_part(part, session, results, name, options.folder / RESULTS)
        write_results(options.folder / RESULTS, results)
    print_table(results, parts)


def check_tensorflow_sees_gpu() -> None:
    """End with one line if TensorFlow would measure the CPU beside a GPU that it cannot use."""
    code = "import sys, tensorflow; sys.exit(not tensorflow.config.list_physical_devices('GPU'))"
    if subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode:
        sys.exit(
            "TensorFlow sees no GPU on this machine, which has one: "
            f"{sys.executable} -m pip install -c requirements.lock -e '.[gpu]' brings the CUDA libraries; or --small"
        )


def run_part(part: Part, session: Session, results: dict[str, Any], name: str, file: Path) -> None:
    """Add the rows of a part to the results as they come, and how it ended."""
    began = time.monotonic()
    entry = results[name]
    try:
        for row in part.rows(session):
            entry["rows"].append(row)
            write_results(file, results)
        errors = sum("error" in row for row in entry["rows"])
        entry["state"] = f"done, with {errors} errors" if errors else "done"
    except OutOfTime:
        entry["state"] = f"stopped after {time.monotonic() - began:.0f} s"
    except CommandFailed as error:
        entry["state"] = f"failed: {error}"
    except Exception as error:  # noqa: BLE001 - the other parts are still to be measured
        traceback.print_exc()
        entry["state"] = f"failed: {type(error).__name__}: {error}"
    entry["seconds"] = round(time.monotonic() - began, 1)


def parse(arguments: list[str] | None, parts: Mapping[str, Part]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *parts], metavar="PART", help=f"of {', '.join(parts)}")
    parser.add_argument("--small", action="store_true", help="tiny networks and data, as without a GPU")
    parser.add_argument("--again", action="store_true", help="measure parts again that have been measured")
    parser.add_argument("--dataset", help="the images to train on; by default pseudo-random ones")
    parser.add_argument("--folder", type=Path, default=Path("build/bench-gpu"), help="for the results")
    parser.add_argument("--minutes", type=float, default=8.0, help="in all")
    options = parser.parse_args(arguments)
    options.folder = options.folder.absolute()
    return options


def make_images(folder: Path, training: int, test: int) -> Path:
    """Write an .npz file of pseudo-random images of ten classes, the same each time, unless it is there."""
    file = folder / f"images-{training}.npz"
    if not file.exists():
        rng = np.random.default_rng(0)
        arrays: dict[str, Any] = {}
        for name, count in (("train", training), ("test", test)):
            labels = np.arange(count) % 10
            arrays[f"y_{name}"] = labels
            arrays[f"x_{name}"] = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        part = file.with_suffix(".part.npz")
        np.savez(part, **arrays)
        part.rename(file)
    return file


def read_results(file: Path) -> dict[str, Any]:
    """Return the results by part that an earlier command has kept."""
    return json.loads(file.read_text("utf-8"))["parts"] if file.exists() else {}


def write_results(file: Path, results: Mapping[str, Any]) -> None:
    """Keep the results, and the command."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps({"command": sys.argv, "parts": results}, indent=1), "utf-8")
    part.rename(file)


def print_table(results: Mapping[str, Any], parts: Mapping[str, Part]) -> None:
    """Print all results as a Markdown table, and what is missing."""
    print("| part | what | figures |\n|---|---|---|")
    for name in parts:
        for row in results.get(name, {}).get("rows", []):
            figures = ", ".join(f"{key} {value}" for key, value in row.items() if key != "what")
            print(f"| {name} | {row['what']} | {figures} |")
    for name in parts:
        entry = results.get(name, {"state": "not asked for"})
        if entry["state"] != "done":
            print(f"\n{name}: {entry['state']}")
        if entry.get("small"):
            print(f"\n{name}: small, so that its figures mean nothing")


if __name__ == "__main__":
    main()
