"""A search on a Ray cluster is the search that one machine would make: real trainings, real runs."""

import os
import shutil
import subprocess
import sys

import mlflow
import optuna
import pytest

from tests.support.paths import ROOT
from tests.support.stores import environment, tracking_store

EPOCHS, CORES = 3, 2
SPACE = """
recipe: smoke
space: {kernel_size: [1, 3], learning_rate: [0.01, 0.03]}
pruner: none
"""  # small, so that Optuna draws some of it again


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The same search on this machine and on Ray: the trials of each, and the curves in their runs."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -c requirements.lock -e '.[ray]'")
    if not shutil.which("taskset"):
        pytest.skip("taskset gives both as many cores, without which their sums have other last digits")
    return [search(tmp_path_factory.mktemp("search"), *flags) for flags in ([], ["--cluster", "local"])]


def search(folder, *flags):
    (folder / "same.yaml").write_text(SPACE)
    storage = f"sqlite:///{folder}/optuna.db"
    with tracking_store(folder, "searches") as uri:
        command = [
            sys.executable,
            "-m",
            "pipeline",
            "search",
            str(folder / "same.yaml"),
            "--storage",
            storage,
            *flags,
        ]
        command += ["--trials", "9", "--epochs", str(EPOCHS), "--final_top", "0", "--workers", "1"]
        few = {"RAY_OVERRIDE_RESOURCES": f'{{"CPU": {CORES}}}'}
        done = subprocess.run(
            ["taskset", "-c", ",".join(map(str, sorted(os.sched_getaffinity(0))[:CORES])), *command],
            env=environment(uri, "searches") | few,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (name,) = optuna.get_all_study_names(storage)
        trials = optuna.load_study(study_name=name, storage=storage).trials
        return trials, {trial.number: curve(trial) for trial in trials if "run_id" in trial.user_attrs}


def curve(trial):
    history = mlflow.MlflowClient().get_metric_history(trial.user_attrs["run_id"], "val_accuracy")
    return {point.step: point.value for point in history}


@pytest.mark.slow
def test_trials_their_order_and_their_values_are_those_of_one_machine(searched):
    told = [
        [(one.number, one.params, one.state.name, one.values, one.intermediate_values, again(one)) for one in trials]
        for trials, _ in searched
    ]
    assert told[0] == told[1]
    assert any(number is not None for *_, number in told[0]), "one was drawn again, and answered from the record"


def again(trial):
    return trial.user_attrs.get("duplicate_of")


@pytest.mark.slow
def test_every_curve_reaches_mlflow_whole(searched):
    for trials, curves in searched:
        assert len(curves) == 4
        for number, points in curves.items():
            assert points == trials[number].intermediate_values and len(points) == EPOCHS
