"""How long a report takes on a tracking store of many runs: fills one that is new, then writes the report.

`python experiments/benchmarks/report.py --runs 10000 --folder /tmp/many`; a folder with a store is not filled again.
The store is a file; with --served the report asks an MLflow server that is started on it, for artifacts too.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from pipeline.config.training import TrainingConfig, to_yaml
from pipeline.tracking.tags import Tag

EPOCHS, IMAGES, CLASSES = 10, 2_000, 10
EXPERIMENT = "many"
ROOT = Path(__file__).parent.parent.parent


def fill(store: SqlAlchemyStore, artifacts: Path, runs: int, *, location: str) -> None:
    """Runs as this project leaves them: one in ten from `mlflow run` with its artifacts, the others a search's trials.

    Args:
        location: what MLflow calls the folder `artifacts`.
    """
    random = np.random.default_rng(0)
    experiment = store.create_experiment(EXPERIMENT, artifact_location=location, tags=[])
    for number in range(runs):
        config = _config(random)
        trial = number % 10 != 0
        accuracies = np.sort(random.uniform(0.2, 0.9, EPOCHS))
        created = store.create_run(experiment, "bench", number, [], f"run {number}")
        run_id = created.info.run_id
        store.log_batch(
            run_id, _metrics(accuracies, trial), _params(config), _tags("trial" if trial else "run", number)
        )
        store.update_run_info(run_id, RunStatus.FINISHED, number + 60_000, None)
        if not trial:
            _leave(artifacts / run_id / "artifacts", config, accuracies, random)


def _config(random: np.random.Generator) -> TrainingConfig:
    return TrainingConfig(
        dataset="digits",
        learning_rate=float(10 ** random.uniform(-4, -1)),
        depth=int(random.integers(2, 12)),
        kernel_size=int(random.choice([3, 5, 7])),
        seed=int(random.integers(3)),
    )


def _metrics(accuracies: np.ndarray, trial: bool) -> list[Metric]:
    points = [Metric("val_accuracy", float(value), 0, step) for step, value in enumerate(accuracies, start=1)]
    once = {"best_val_accuracy": float(accuracies[-1]), "parameters": 100_000.0, "best_epoch": float(EPOCHS)}
    once |= {"loss": 1.0, "accuracy": 0.9, "val_loss": 1.1, "epoch_seconds": 3.0, "images_per_second": 1e3}
    once |= {"latency_ms": 2.0, "seconds": 60.0} if trial else {"test_accuracy": float(accuracies[-1])}
    return points + [Metric(name, value, 0, 0) for name, value in once.items()]


def _params(config: TrainingConfig) -> list[Param]:
    return [Param(name, config.text(name)) for name in TrainingConfig.model_fields]


def _tags(role: str, number: int) -> list[RunTag]:
    told = {
        Tag.ROLE: role,
        Tag.DATA_FINGERPRINT: "0" * 16,
        Tag.DATA: "digits",
        Tag.OUTCOME: "finished",
        Tag.DEVICE: "CPU",
    }
    told |= {f"version.{name}": "1.2.3" for name in ("git", "keras", "mlflow", "numpy", "tensorflow")}
    trial = {Tag.STUDY: f"study {number // 1000}", Tag.TRIAL_NUMBER: str(number)}
    told |= trial if role == "trial" else {Tag.PROJECT_ENTRY_POINT: "main"}  # whose config.yaml is read
    return [RunTag(name, value) for name, value in told.items()]


def _leave(folder: Path, config: TrainingConfig, accuracies: np.ndarray, random: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    labels = np.arange(IMAGES) % CLASSES
    right = random.random(IMAGES) < accuracies[-1]
    lines = [
        f"{position:016x},{label},{label if hit else (label + 1) % CLASSES},0.5"
        for position, (label, hit) in enumerate(zip(labels, right, strict=True))
    ]
    (folder / "test_predictions.csv").write_text("\n".join(["image,label,predicted,probability", *lines]) + "\n")


def main() -> None:
    """Fill where nothing is, then report, and say both times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--served", action="store_true")
    options = parser.parse_args()
    folder = options.folder.absolute()
    uri, artifacts = f"sqlite:///{folder}/mlflow.db", folder / "served"
    if not (folder / "mlflow.db").exists():
        folder.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        location = "mlflow-artifacts:/" if options.served else str(artifacts)
        fill(SqlAlchemyStore(uri, str(artifacts)), artifacts, options.runs, location=location)
        print(f"filled with {options.runs:,} runs in {time.perf_counter() - began:.0f} s", flush=True)
    with served(folder, uri) if options.served else nullcontext(uri) as tracking:
        began = time.perf_counter()
        command = [sys.executable, "-m", "pipeline", "report", EXPERIMENT, "--folder", str(folder / "reports")]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"MLFLOW_TRACKING_URI": tracking}, check=True)
        print(f"report on {options.runs:,} runs in {time.perf_counter() - began:.1f} s")


@contextmanager
def served(folder: Path, store: str) -> Iterator[str]:
    """The URL of an MLflow server on a store, with its artifacts in the folder `served`."""
    sys.path.append(str(ROOT / "tests"))
    from tests.support.servers import server

    with server(folder, store=store) as one:
        yield one.uri


if __name__ == "__main__":
    main()
