"""A user's configuration of our libraries decides no result, and a terminal that is gone ends no training."""

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from pipeline.commands import main
from tests.support.mlflow_project import environment_of
from tests.support.paths import ROOT
from tests.support.stores import environment, tracking_store

EXPERIMENT = "configured"
WORDS = ["train", "smoke", "--epochs", "1", "--precision", "float32", "--register_as", "configured"]
# Variables of notebooks, of other programs and of a shell's profile; each ended a training, or spoilt its figures
VARIABLES = {
    "KERAS_BACKEND": "torch",
    "KERAS_MAX_STEPS_PER_EPOCH": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONIOENCODING": "ascii",
    "PYTHONWARNINGS": "error",
    "TF_USE_LEGACY_KERAS": "1",
    "TF_XLA_FLAGS": "--tf_xla_no_such_flag",
    "XLA_FLAGS": "--xla_no_such_flag",
}
KERAS_JSON = {"backend": "jax", "floatx": "float64", "epsilon": 0.5, "image_data_format": "channels_first"}
MATPLOTLIBRC = "text.usetex: True\nfont.size: 40\nsavefig.bbox: tight\nsavefig.dpi: 20\n"


def in_experiment(folder):
    """Make an experiment of a name of its own: in one the second run would have another name, which figures show."""
    folder.mkdir(exist_ok=True)
    mlflow.create_experiment(f"{EXPERIMENT} {folder.name}", artifact_location=str(folder / "artifacts"))
    return f"{EXPERIMENT} {folder.name}"


def train_here(folder, uri):
    """Train in this process; return the exit code and the MLflow run."""
    experiment = in_experiment(folder)
    with environment_of(uri, experiment):
        code = main.run(WORDS)
    return code, only_run(experiment, f"exit code {code}")


def train_in_a_shell(folder, uri, redirection, **variables):
    """Train in a process whose output is redirected by bash; return its exit code and the MLflow run."""
    experiment = in_experiment(folder)
    environ = environment(uri, experiment) | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"} | variables
    command = ["bash", "-c", f'"$0" "$@" {redirection}; exit "${{PIPESTATUS[0]}}"', sys.executable, "-m", "pipeline"]
    done = subprocess.run([*command, *WORDS], cwd=folder, env=environ, capture_output=True, check=False)
    return done.returncode, only_run(experiment, f"exit code {done.returncode}: {done.stdout}{done.stderr}")


def only_run(experiment, ending):
    runs = mlflow.search_runs(experiment_names=[experiment], output_format="list")
    assert len(runs) == 1, ending
    return runs[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the exit code and the run of a training as it is, and of one under all that may be configured."""
    folder = tmp_path_factory.mktemp("configured")
    home = folder / "home"
    home.mkdir()
    (home / "keras.json").write_text(json.dumps(KERAS_JSON))
    (home / "matplotlibrc").write_text(MATPLOTLIBRC)
    (folder / "configured").mkdir()
    (folder / "configured" / "matplotlibrc").write_text(MATPLOTLIBRC)
    configured = VARIABLES | {"KERAS_HOME": str(home), "MATPLOTLIBRC": str(home)}
    with tracking_store(folder, EXPERIMENT) as uri:
        nobody_reads = "2>&1 | head -n 1"
        yield (
            train_here(folder / "plain", uri),
            train_in_a_shell(folder / "configured", uri, nobody_reads, **configured),
        )


def pictures(run):
    folder = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id))
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}
    # the name of an image ends with a part of the run's own
    return {name.partition("+timestamp+")[0]: content for name, content in files.items()}


def test_training_ends_well_under_any_configuration_with_nobody_reading_its_output(runs):
    assert [(code, run.info.status) for code, run in runs] == [(0, "FINISHED")] * 2


def test_results_and_figures_are_the_same_under_any_configuration(runs):
    (_, plain), (_, configured) = runs
    timed = {"seconds", "epoch_seconds", "images_per_second", "latency_ms"}
    metrics = [
        {name: value for name, value in run.data.metrics.items() if name not in timed and "system/" not in name}
        for run in (plain, configured)
    ]
    assert metrics[0] == metrics[1] and "test_accuracy" in metrics[0]
    expected, drawn = pictures(plain), pictures(configured)
    assert expected.keys() == drawn.keys() and "plots/curves.png" in drawn
    assert [path for path in drawn if drawn[path] != expected[path]] == []
