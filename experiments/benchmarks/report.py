"""Measure how long a report takes on a tracking store with many runs.

Usage: python experiments/benchmarks/report.py --runs 10000 --folder /tmp/many

A new folder is first filled with runs; a folder that has a store is used as it is. The store is a sqlite file. With
--served the report reads it, and its artifacts, through an MLflow server.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from own_store import with_store

from pipeline.config.recipe import to_yaml
from pipeline.config.training import TrainingConfig
from pipeline.tracking.tags import Role, Tag

EPOCHS, TEST_IMAGES, CLASSES = 10, 2_000, 10
EXPERIMENT = "many"
ROOT = Path(__file__).parent.parent.parent


def fill(store: SqlAlchemyStore, artifacts: Path, runs: int, *, location: str) -> None:
    """Write runs as this project logs them: one in ten is a run with artifacts, the others are trials of searches.

    Args:
        store: An empty store.
        artifacts: The folder of the artifacts.
        runs: Number of runs.
        location: The URI of `artifacts` in MLflow.
    """
    rng = np.random.default_rng(0)
    experiment = store.create_experiment(EXPERIMENT, artifact_location=location, tags=[])
    for number in range(runs):
        config = _random_config(rng)
        role = Role.RUN if number % 10 == 0 else Role.TRIAL
        accuracies = np.sort(rng.uniform(0.2, 0.9, EPOCHS))
        run_id = store.create_run(experiment, "bench", number, [], f"run {number}").info.run_id
        store.log_batch(run_id, _metrics(accuracies, role), _params(config), _tags(role, number))
        store.update_run_info(run_id, RunStatus.FINISHED, number + 60_000, None)
        if role is Role.RUN:
            _write_artifacts(artifacts / run_id / "artifacts", config, accuracies[-1], rng)


def _random_config(rng: np.random.Generator) -> TrainingConfig:
    return TrainingConfig.build(
        {
            "dataset": "digits",
            "learning_rate": float(10 ** rng.uniform(-4, -1)),
            "depth": int(rng.integers(2, 12)),
            "kernel_size": int(rng.choice([3, 5, 7])),
            "seed": int(rng.integers(3)),
        }
    )


def _metrics(accuracies: np.ndarray, role: Role) -> list[Metric]:
    points = [Metric("val_accuracy", float(value), 0, step) for step, value in enumerate(accuracies, start=1)]
    summary = {"best_val_accuracy": float(accuracies[-1]), "parameters": 100_000.0, "best_epoch": float(EPOCHS)}
    summary |= {"loss": 1.0, "accuracy": 0.9, "val_loss": 1.1, "epoch_seconds": 3.0, "images_per_second": 1e3}
    if role is Role.TRIAL:
        summary |= {"latency_ms": 2.0, "seconds": 60.0}
    else:
        summary |= {"test_accuracy": float(accuracies[-1])}
    return points + [Metric(name, value, 0, 0) for name, value in summary.items()]


def _params(config: TrainingConfig) -> list[Param]:
    return [Param(name, config.text(name)) for name in TrainingConfig.model_fields]


def _tags(role: Role, number: int) -> list[RunTag]:
    tags = {
        Tag.ROLE: role,
        Tag.DATA_FINGERPRINT: "0" * 16,
        Tag.DATA: "digits",
        Tag.OUTCOME: "finished",
        Tag.DEVICE: "CPU",
    }
    tags |= {f"version.{name}": "1.2.3" for name in ("git", "keras", "mlflow", "numpy", "tensorflow")}
    if role is Role.TRIAL:
        tags |= {Tag.STUDY: f"study {number // 1000}", Tag.TRIAL_NUMBER: str(number)}
    else:
        # The report reads config.yaml of runs that `mlflow run` has opened.
        tags |= {Tag.PROJECT_ENTRY_POINT: "main"}
    return [RunTag(str(name), str(value)) for name, value in tags.items()]


def _write_artifacts(folder: Path, config: TrainingConfig, accuracy: float, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    labels = np.arange(TEST_IMAGES) % CLASSES
    is_correct = rng.random(TEST_IMAGES) < accuracy
    lines = [
        f"{index:016x},{label},{label if correct else (label + 1) % CLASSES},0.5"
        for index, (label, correct) in enumerate(zip(labels, is_correct, strict=True))
    ]
    (folder / "test_predictions.csv").write_text("\n".join(["image,label,predicted,probability", *lines]) + "\n")


def main() -> None:
    """Fill a new folder, write the report, and print how long each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--served", action="store_true", help="read the store through an MLflow server")
    options = parser.parse_args()
    folder = options.folder.absolute()
    store_uri, artifacts = f"sqlite:///{folder}/mlflow.db", folder / "served"
    if not (folder / "mlflow.db").exists():
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        location = "mlflow-artifacts:/" if options.served else str(artifacts)
        fill(SqlAlchemyStore(store_uri, str(artifacts)), artifacts, options.runs, location=location)
        print(f"filled with {options.runs:,} runs in {time.perf_counter() - started:.0f} s", flush=True)
    with running_server(folder, store_uri) if options.served else nullcontext(store_uri) as tracking_uri:
        started = time.perf_counter()
        command = [sys.executable, "-m", "pipeline", "report", EXPERIMENT, "--folder", str(folder / "reports")]
        subprocess.run(command, cwd=ROOT, env=with_store(tracking_uri), check=True)
        print(f"report on {options.runs:,} runs in {time.perf_counter() - started:.1f} s")


@contextmanager
def running_server(folder: Path, store_uri: str) -> Iterator[str]:
    """Run an MLflow server on a store, with its artifacts in the folder `served`, and yield its URL."""
    sys.path.append(str(ROOT))
    from tests.support.servers import server

    with server(folder, store=store_uri) as tracking_server:
        yield tracking_server.uri


if __name__ == "__main__":
    main()
