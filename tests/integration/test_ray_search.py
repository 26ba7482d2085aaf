"""A search on a Ray cluster, compared with the same search on one machine: real trainings, real runs."""

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
# Small, so that Optuna samples some configurations twice
SPACE = """
recipe: smoke
space: {kernel_size: [1, 3], learning_rate: [0.01, 0.03]}
pruner: none
"""


@pytest.fixture(scope="module")
def searches(tmp_path_factory):
    """Return the trials of the same search on this machine and on Ray, and the curves of their runs."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -c requirements.lock -e '.[ray]'")
    if not shutil.which("taskset"):
        pytest.skip("taskset gives both the same number of cores; else the last digits of their sums differ")
    return [run_search(tmp_path_factory.mktemp("search"), *flags) for flags in ([], ["--cluster", "local"])]


def run_search(folder, *flags):
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
        cores = {"RAY_OVERRIDE_RESOURCES": f'{{"CPU": {CORES}}}'}
        completed = subprocess.run(
            ["taskset", "-c", ",".join(map(str, sorted(os.sched_getaffinity(0))[:CORES])), *command],
            env=environment(uri, "searches") | cores,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert completed.returncode == 0, completed.stdout + completed.stderr
        (name,) = optuna.get_all_study_names(storage)
        trials = optuna.load_study(study_name=name, storage=storage).trials
        return trials, {trial.number: logged_curve(trial) for trial in trials if "run_id" in trial.user_attrs}


def logged_curve(trial):
    history = mlflow.MlflowClient().get_metric_history(trial.user_attrs["run_id"], "val_accuracy")
    return {point.step: point.value for point in history}


@pytest.mark.slow
def test_search_on_ray_has_the_same_trials_and_values_as_on_one_machine(searches):
    histories = [
        [(t.number, t.params, t.state.name, t.values, t.intermediate_values, duplicate_of(t)) for t in trials]
        for trials, _ in searches
    ]
    assert histories[0] == histories[1]
    assert any(number is not None for *_, number in histories[0]), "one is a duplicate and has the values of the first"


def duplicate_of(trial):
    return trial.user_attrs.get("duplicate_of")


@pytest.mark.slow
def test_every_curve_is_logged_to_mlflow_completely(searches):
    for trials, curves in searches:
        assert len(curves) == 4
        for number, points in curves.items():
            assert points == trials[number].intermediate_values and len(points) == EPOCHS
