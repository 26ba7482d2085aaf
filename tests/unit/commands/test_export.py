"""The command `export`: what it keeps and logs to the model's run, and what it refuses."""

import json
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
import pytest

from pipeline.commands import export
from pipeline.commands.main import run
from pipeline.config.training import DataConfig
from pipeline.data.dataset import load_dataset
from pipeline.runtime.errors import UsageError
from pipeline.runtime.shell import install_extra_command
from pipeline.serving.export import formats
from pipeline.tracking.tags import Tag
from pipeline.training import benchmark
from tests.support.mlflow_project import run_project
from tests.support.paths import ROOT

ALL = "onnx,litert,litert_int8,saved_model"
FILES = {"exports.csv", "exports.json", "model.json", "model.onnx", "model.tflite", "model_int8.tflite", "saved_model"}


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)


def newest_run(role):
    (found, *_) = mlflow.search_runs(
        experiment_names=["smoke"], filter_string=f"tags.role = '{role}'", output_format="list"
    )
    return found


def logged_files(run_id):
    files = mlflow.MlflowClient().list_artifacts(run_id, "exports")
    return {file.path.removeprefix("exports/") for file in files}


def exported_model(run_id, folder):
    return json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/{folder}/model.json"))["model"]


def test_export_logs_each_format_with_its_comparison_to_the_models_run(uri, run_id):
    result = run_project(uri, "smoke", entry_point="export", model="latest", formats=ALL, images=20)
    assert result.succeeded, result.stderr
    assert logged_files(run_id) == FILES
    exports = f"runs:/{run_id}/exports"
    table = pd.read_csv(mlflow.artifacts.download_artifacts(f"{exports}/exports.csv")).set_index("format")
    assert table.index.tolist() == ["keras", *ALL.split(",")]
    assert table["kept"].all() and (table["max_difference"] <= table["tolerance"].fillna(0)).all()
    assert (table["images"] == 20).all() and (table[["latency_1_ms", "latency_16_ms"]] > 0).all().all()
    assert (table["bytes"].drop("keras") > 1000).all()
    assert table.loc["onnx", "accuracy"] == table.loc["keras", "accuracy"]
    assert all(name in result.stdout for name in table.index)
    assert f"run      {run_id}: exports among its artifacts" in result.stdout

    session = onnxruntime.InferenceSession(mlflow.artifacts.download_artifacts(f"{exports}/model.onnx"))
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == [str(digit) for digit in range(10)] and about["resize"] == "stretch"
    own = newest_run("export")
    assert (own.info.status, own.data.tags["mlflow.parentRunId"]) == ("FINISHED", run_id)
    assert own.data.tags[Tag.EXPORT_FORMATS] == ALL
    assert mlflow.MlflowClient().get_run(run_id).info.status == "FINISHED"


def test_export_refuses_what_differs_and_keeps_the_rest(run_id, capsys, monkeypatch):
    saved_model = formats.FORMATS["saved_model"]

    def load(file):
        predict = saved_model.load(file)
        return lambda images: predict(images) + np.float32(0.01)

    wrong = formats.Format("wrong_model", saved_model.writers, load)
    monkeypatch.setitem(formats.FORMATS, "saved_model", wrong)
    assert run(["export", run_id, "--formats", "saved_model,onnx", "--images", "5"]) == 1
    message = "error: saved_model refused: a probability differs by 0.01, more than the tolerance of 0.0001"
    assert message in capsys.readouterr().err
    assert "wrong_model" not in logged_files(run_id) and "model.onnx" in logged_files(run_id)
    assert newest_run("export").info.status == "FAILED"


def test_export_of_a_format_that_cannot_be_written_says_why(run_id, capsys, monkeypatch):
    def write(source, file):
        raise RuntimeError("no such operator")

    monkeypatch.setitem(
        formats.FORMATS, "onnx", formats.Format("model.onnx", {"float32": write}, formats.FORMATS["onnx"].load)
    )
    mlflow.MlflowClient().log_text(run_id, '{"model": "m-1"}', "exports/model.json")
    assert run(["export", run_id, "--images", "5"]) == 1
    assert "error: onnx refused: no such operator" in capsys.readouterr().err
    assert exported_model(run_id, "exports") == "m-1", "of the model of which files were kept"


def test_export_whose_files_the_artifact_store_refuses_fails_in_one_line(run_id, capsys, monkeypatch):
    artifacts = Path(mlflow.get_run(run_id).info.artifact_uri)
    # no folder can be made in its place
    (artifacts / "refused").touch()
    monkeypatch.setattr(export, "exports_folder", lambda *, is_calibrated: "refused")
    assert run(["export", run_id, "--formats", "onnx", "--images", "5"]) == 2
    assert f"error: the artifacts of a run must be writable: {artifacts}: " in capsys.readouterr().err
    assert newest_run("export").info.status == "FAILED"


def test_export_with_a_tolerance_of_zero_refuses_quantization(run_id, capsys):
    assert run(["export", run_id, "--formats", "litert_int8", "--images", "5", "--tolerance", "0"]) == 1
    assert "litert_int8 refused: a probability differs by" in capsys.readouterr().err


def test_export_quantizes_weights_alone_where_integers_differ_too_much(run_id, capsys, monkeypatch):
    int8 = formats.FORMATS["litert_int8"]
    # what a bad scale of the activations makes of any image
    black = {"full integer": lambda source, file: int8.writers["full integer"](without_contrast(source), file)}
    monkeypatch.setitem(formats.FORMATS, "litert_int8", formats.Format(int8.path, int8.writers | black, int8.load))
    assert run(["export", run_id, "--formats", "litert_int8", "--images", "5", "--tolerance", "1e-4"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("litert_int8")]
    assert [line.split("  ")[-1] for line in lines] == ["no, full integer", "yes, dynamic range"]


def without_contrast(source):
    return formats.Source(source.model, source.metadata, np.zeros_like(source.representative))


def test_export_of_other_images_compares_on_all_of_them(run_id, capsys, tmp_path):
    images, labels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8), np.arange(20) % 10
    np.savez(tmp_path / "others.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert run(["export", run_id, "--dataset", str(tmp_path / "others.npz")]) == 0
    assert "images   others, all images: 40 images" in capsys.readouterr().out


def test_export_that_compares_on_the_test_images_counts_an_access_to_them(run_id, tmp_path):
    images, labels = load_dataset(DataConfig(dataset="digits"), seed=0).test.take(slice(None))
    first, rest = slice(100), slice(100, None)
    parts = {"x_train": images[first], "y_train": labels[first], "x_test": images[rest], "y_test": labels[rest]}
    np.savez(tmp_path / "held-out.npz", **parts)
    before = int(mlflow.get_run(run_id).data.tags[Tag.TEST_SET_ACCESSES])
    assert run(["export", run_id, "--formats", "onnx", "--dataset", str(tmp_path / "held-out.npz")]) == 0
    assert int(mlflow.get_run(run_id).data.tags[Tag.TEST_SET_ACCESSES]) == before + 1


def test_export_refuses_to_compare_on_images_of_the_training(run_id, capsys):
    before = mlflow.search_runs(experiment_names=["smoke"], output_format="list")
    assert run(["export", run_id, "--dataset", "digits"]) == 2
    assert capsys.readouterr().err == (
        "error: images must be others than those that the model was trained on, got all images of digits, its training "
        "data; try a dataset of other images\n"
    )
    assert len(mlflow.search_runs(experiment_names=["smoke"], output_format="list")) == len(before)


def test_export_without_the_extra_says_what_to_install_at_once():
    code = (
        "import sys\n"
        "from importlib.util import find_spec\n"
        "import importlib.util\n"
        "importlib.util.find_spec = lambda name: None if 'onnx' in name else find_spec(name)\n"
        "from pipeline.commands.main import run\n"
        "code = run(['export', 'latest'])\n"
        "assert not {'mlflow', 'tensorflow', 'pandas'} & {*sys.modules}\n"
        "sys.exit(code)"
    )
    began = time.process_time()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and time.process_time() - began < 2
    assert done.stderr == (
        "error: formats=onnx needs onnx and onnxruntime, which are not installed; "
        f"try: {install_extra_command('export')}\n"
    )


def test_export_loads_the_model_that_an_alias_named_when_it_began(run_id, monkeypatch):
    loaded = []

    def load_model(client, uri):
        loaded.append(uri)
        raise UsageError("it must not go on")

    monkeypatch.setattr(export, "load_model", load_model)
    assert run(["export", "models:/smoke@champion"]) == 2
    assert loaded == [mlflow.MlflowClient().get_model_version_by_alias("smoke", "champion").source]


def test_export_of_the_calibrated_copy_leaves_what_was_exported_of_the_model(run_id):
    assert run(["export", run_id, "--images", "5"]) == 0
    exported = exported_model(run_id, "exports")
    few_images = ["--split", "validation", "--corrupted_images", "1"]
    assert run(["evaluate", run_id, *few_images, "--calibrate", "true"]) == 0
    client = mlflow.MlflowClient()
    assert "Exported" not in client.get_model_version("smoke", "2").description
    assert run(["export", f"runs:/{run_id}/calibrated", "--images", "5"]) == 0
    assert exported_model(run_id, "exports") == exported
    calibrated = client.get_model_version("smoke", "2")
    assert f"models:/{exported_model(run_id, 'exports-calibrated')}" == calibrated.source
    assert "artifacts of the run: `exports-calibrated/model.onnx`." in calibrated.description
    assert "`exports-calibrated/" not in client.get_model_version("smoke", "1").description
