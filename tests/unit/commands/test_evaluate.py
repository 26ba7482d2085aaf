"""The command `evaluate`: what it logs to the model's run, what it counts, and what it refuses."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from pipeline.commands import evaluate, unseen_images
from pipeline.commands.evaluate import unique_artifact_dir
from pipeline.commands.main import run
from pipeline.commands.unseen_images import load_unseen_images
from pipeline.config.training import DataConfig
from pipeline.data.dataset import load_dataset
from pipeline.data.subset import build_subset
from pipeline.evaluation.calibration import scale_probabilities
from pipeline.evaluation.corruptions import CORRUPTIONS
from pipeline.runtime.text import format_share
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.models import load_model
from pipeline.tracking.tags import Tag
from tests.support.mlflow_project import run_project, start
from tests.support.paths import ROOT
from tests.support.stores import environment

FEW_IMAGES = ["--corrupted_images", "20"]
VALIDATION = ["--split", "validation", *FEW_IMAGES]
FIGURES = (
    *("calibration", "calibration_scaled", "corruptions", "corrupted_examples", "confusion_matrix"),
    *("class_activation_mistakes", "class_activation_successes"),
)
FILES = {
    *("calibration.csv", "calibration_scaled.csv", "corruptions.csv", "per_class.csv", "per_class.json"),
    *("predictions.csv", "predictions.json"),
    *(f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")),
}
METRICS = "evaluation/digits-test"


@pytest.fixture(scope="module")
def evaluated(uri, run_id):
    """Evaluate the smoke run with the project's entry point; return the output, and the run before and after."""
    before = get_run(run_id)
    result = run_project(uri, "smoke", entry_point="evaluate", model="latest", corrupted_images=50)
    assert result.succeeded, result.stderr
    return result.stdout, before, get_run(run_id)


def get_run(run_id):
    return mlflow.MlflowClient().get_run(run_id)


def newest_run(role):
    where = f"tags.{Tag.ROLE} = '{role}'"
    (found,) = mlflow.search_runs(experiment_names=["smoke"], filter_string=where, output_format="list", max_results=1)
    return found


def count_accesses(run_id):
    return int(get_run(run_id).data.tags[Tag.TEST_SET_ACCESSES])


def logged_steps(run_id, metric):
    return [point.step for point in mlflow.MlflowClient().get_metric_history(run_id, metric)]


def logged_files(run_id, folder):
    return {Path(file.path).name for file in mlflow.MlflowClient().list_artifacts(run_id, f"evaluation/{folder}")}


def read_table(run_id, path):
    return pd.read_csv(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/evaluation/{path}"))


def test_evaluate_logs_to_the_training_run_and_keeps_its_status(evaluated, run_id):
    output, before, after = evaluated
    metrics = {name: value for name, value in after.data.metrics.items() if name.startswith(f"{METRICS}/")}
    assert metrics[f"{METRICS}/accuracy"] == before.data.metrics["test_accuracy"]
    assert metrics[f"{METRICS}/nll"] == pytest.approx(before.data.metrics["test_loss"], rel=1e-4)
    assert {"ece", "brier_score", "mean_confidence", "mean_corruption_accuracy"} <= {
        name.rpartition("/")[2] for name in metrics
    }
    assert logged_files(run_id, "digits-test") == FILES
    assert (after.info.status, after.info.end_time) == ("FINISHED", before.info.end_time)
    assert f"run      {run_id}: {METRICS} among its metrics and artifacts" in output


def test_evaluate_says_how_many_of_the_right_predictions_have_maps(evaluated, run_id):
    table = read_table(run_id, "digits-test/predictions.csv")
    right = (table["label"] == table["predicted"]).sum()
    folder = f"runs:/{run_id}/evaluation/digits-test"
    svg = Path(mlflow.artifacts.download_artifacts(f"{folder}/class_activation_successes.svg")).read_text()
    assert f"8 of {right} right predictions, " in svg, "there are more classes than that"


def test_evaluate_prints_a_line_for_each_class_and_the_calibration_before_and_after(evaluated, run_id):
    output, _, after = evaluated
    lines = output.splitlines()
    table = read_table(run_id, "digits-test/per_class.csv")
    start = lines.index("class  precision   recall       F1   images")
    assert [line.split()[0] for line in lines[start + 1 : start + 11]] == list("0123456789")
    assert [int(line.split()[-1]) for line in lines[start + 1 : start + 11]] == table["images"].tolist()
    temperature = after.data.metrics[f"{METRICS}/temperature"]
    error = format_share(after.data.metrics[f"{METRICS}/scaled_ece"])
    scaled = f"expected calibration error {error}"
    assert f"with temperature {temperature:.3f}: {scaled}, negative log likelihood " in output


def test_evaluate_renews_the_card_of_the_run_and_of_its_version(evaluated, run_id):
    card = mlflow.artifacts.load_text(f"runs:/{run_id}/model_card.md")
    assert "| digits-test | " in card and "Not measured yet" not in card
    assert "number of images not known" not in card and "| 0 | " in card.partition("## Images of each class")[2]
    version = mlflow.MlflowClient().get_model_version("smoke", "1")
    assert "| digits-test | " in version.description


def test_evaluate_logs_its_metrics_to_the_model_too(evaluated, run_id):
    (model,) = [
        model
        for model in mlflow.MlflowClient().search_logged_models([get_run(run_id).info.experiment_id])
        if model.source_run_id == run_id and model.name == "model"
    ]
    assert f"{METRICS}/ece" in {metric.key for metric in model.metrics}


def test_evaluate_logs_tables_that_agree_with_its_metrics(evaluated, run_id):
    _, _, after = evaluated
    bins, corruptions = (
        read_table(run_id, "digits-test/calibration.csv"),
        read_table(run_id, "digits-test/corruptions.csv"),
    )
    gaps = (bins["accuracy"] - bins["confidence"]).abs() * bins["images"]
    assert gaps.sum() / bins["images"].sum() == pytest.approx(after.data.metrics[f"{METRICS}/ece"])
    assert len(bins) == 15 and len(corruptions) == 1 + 3 * len(CORRUPTIONS)
    mean = corruptions.loc[corruptions["strength"] > 0, "accuracy"].mean()
    assert mean == pytest.approx(after.data.metrics[f"{METRICS}/mean_corruption_accuracy"])


def test_evaluate_started_by_mlflow_run_puts_its_run_below_the_training_run(evaluated, run_id):
    own_run = newest_run("evaluate")
    assert own_run.info.status == "FINISHED" and own_run.data.tags[Tag.OUTCOME] == "finished"
    assert own_run.data.tags["mlflow.parentRunId"] == run_id
    assert own_run.info.run_name == "evaluation on digits, test split"


def test_evaluate_counts_training_and_each_evaluation_of_the_test_set(evaluated, run_id, capsys, monkeypatch):
    """Also where `mlflow run` names the training run, which the evaluation does not take for its own."""
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    _, before, after = evaluated
    assert (before.data.tags[Tag.TEST_SET_ACCESSES], after.data.tags[Tag.TEST_SET_ACCESSES]) == ("1", "2")
    evaluations = len(logged_steps(run_id, f"{METRICS}/ece"))
    assert run(["evaluate", run_id, *FEW_IMAGES]) == 0
    assert "test set evaluated 3 times so far" in capsys.readouterr().out
    assert count_accesses(run_id) == 3
    assert logged_steps(run_id, f"{METRICS}/ece") == list(range(1, evaluations + 2)), "a step each"
    assert logged_files(run_id, "digits-test") == FILES
    own_run, after = newest_run("evaluate"), get_run(run_id)
    assert own_run.info.run_id != run_id == own_run.data.tags["mlflow.parentRunId"]
    assert after.data.tags[Tag.ROLE] == "run" and "mlflow.parentRunId" not in after.data.tags


@pytest.fixture(scope="module")
def calibrated(evaluated, run_id):
    """Calibrate the model on the validation images; return the accesses to the test set before and after."""
    before = count_accesses(run_id)
    assert run(["evaluate", f"runs:/{run_id}/model", *VALIDATION, "--calibrate", "true"]) == 0
    return before, count_accesses(run_id)


def test_evaluate_on_validation_images_counts_no_access_to_the_test_set(calibrated, run_id):
    before, after = calibrated
    assert before == after
    assert logged_files(run_id, "digits-validation") == FILES


def test_evaluate_on_other_data_resizes_them_as_training_did_and_counts_no_access(evaluated, run_id, tmp_path):
    digits = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    twice = np.kron(digits, np.ones((1, 2, 2, 1), np.uint8))
    labels, names = np.arange(20) % 10, np.array([str(9 - position) for position in range(10)])
    other = tmp_path / "digits.npz"
    np.savez(other, x_train=twice, y_train=labels, x_test=twice, y_test=labels, class_names=names)
    before = count_accesses(run_id)
    assert run(["evaluate", run_id, "--dataset", str(other), *FEW_IMAGES]) == 0
    assert count_accesses(run_id) == before
    (tag,) = [name for name in get_run(run_id).data.tags if name.startswith(f"{Tag.EVALUATION}.digits-test-")]
    place = tag.removeprefix(f"{Tag.EVALUATION}.")
    predictions = read_table(run_id, f"{place}/predictions.csv")
    assert predictions["label"].tolist() == [9 - label for label in labels], "as positions among the model's classes"


def test_evaluate_on_all_of_another_data_set_counts_an_access_if_they_are_the_runs_test_images(
    evaluated, run_id, tmp_path, capsys
):
    images, labels = load_dataset(DataConfig(dataset="digits"), seed=0).test.take(slice(None))
    first, rest = slice(100), slice(100, None)
    np.savez(
        tmp_path / "held-out.npz",
        x_train=images[first],
        y_train=labels[first],
        x_test=images[rest],
        y_test=labels[rest],
    )
    before = count_accesses(run_id)
    assert run(["evaluate", run_id, "--dataset", str(tmp_path / "held-out.npz"), "--split", "all", *FEW_IMAGES]) == 0
    assert count_accesses(run_id) == before + 1
    assert f"test set evaluated {before + 1} times so far" in capsys.readouterr().out


def test_evaluate_that_fails_counts_its_access_and_leaves_the_training_run_finished(evaluated, run_id, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of paper")

    monkeypatch.setattr(evaluate, "evaluate_robustness", fail)
    before = count_accesses(run_id)
    with pytest.raises(RuntimeError):
        run(["evaluate", run_id])
    own_run = newest_run("evaluate")
    assert (own_run.info.status, own_run.data.tags[Tag.OUTCOME_REASON]) == ("FAILED", "RuntimeError: out of paper")
    assert (get_run(run_id).info.status, count_accesses(run_id)) == ("FINISHED", before + 1)


def test_evaluate_whose_files_the_artifact_store_refuses_prints_the_results_and_registers_nothing(
    run_id, tmp_path, capsys, monkeypatch
):
    images, labels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8), np.arange(20) % 10
    np.savez(tmp_path / "refused.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    artifacts = Path(get_run(run_id).info.artifact_uri)
    (artifacts / "evaluation").mkdir(exist_ok=True)
    # no folder can be made in its place
    (artifacts / "evaluation" / "refused-test").touch()
    calibrated = []
    monkeypatch.setattr(evaluate, "log_calibrated_model", lambda *given: calibrated.append(given))
    given = ["--dataset", str(tmp_path / "refused.npz"), "--corrupted_images", "1", "--calibrate", "true"]
    assert run(["evaluate", run_id, *given]) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith(f"error: the artifacts of a run must be writable: {artifacts}: ")
    assert "refused, test split: accuracy " in printed.out and calibrated == []
    assert (newest_run("evaluate").info.status, get_run(run_id).info.status) == ("FAILED", "FINISHED")


def test_evaluate_calibrate_registers_a_version_that_predicts_the_same_classes_with_scaled_probabilities(
    calibrated, run_id, capsys
):
    # the second time logs nothing new
    assert run(["evaluate", run_id, *VALIDATION, "--calibrate", "true"]) == 0
    metrics = get_run(run_id).data.metrics
    place = "evaluation/digits-validation"
    assert metrics[f"{place}/scaled_nll"] <= metrics[f"{place}/nll"], "it is fitted on these images"
    client = mlflow.MlflowClient()
    assert {alias: str(number) for alias, number in client.get_registered_model("smoke").aliases.items()} == {
        "champion": "2"
    }
    version = client.get_model_version("smoke", "2")
    temperature = metrics[f"{place}/temperature"]
    assert version.tags[Tag.TEMPERATURE] == f"{temperature:.6g}, fitted on 162 validation images"
    assert version.tags[Tag.CALIBRATED_FROM] == "version 1" and "calibrated from" in version.description

    tracking, digits = TrackingClient(), load_dataset(DataConfig(dataset="digits"), seed=0).validation
    images, _ = digits.take(np.arange(len(digits)))
    before, after = (load_model(tracking, f"models:/smoke/{number}").predict_proba(images) for number in (1, 2))
    np.testing.assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))
    np.testing.assert_allclose(after, scale_probabilities(before, temperature), atol=1e-4)
    served = mlflow.pyfunc.load_model("models:/smoke@champion").predict(pd.DataFrame({"image": [images[0].tolist()]}))
    assert served[0]["probability"] == pytest.approx(after[0].max(), abs=1e-4)

    capsys.readouterr()
    assert run(["evaluate", "models:/smoke@champion", *VALIDATION, "--calibrate", "true"]) == 2
    assert capsys.readouterr().err.startswith("error: calibrate must be false for a model that is calibrated already")
    assert run(["evaluate", "models:/smoke@champion", *VALIDATION]) == 0
    metrics = get_run(run_id).data.metrics
    assert metrics[f"{place}-calibrated/temperature"] == pytest.approx(1, abs=0.01)
    assert metrics[f"{place}-calibrated/nll"] == pytest.approx(metrics[f"{place}/scaled_nll"], rel=1e-3)


def test_evaluate_stays_with_the_model_that_an_alias_named_when_it_began(run_id, monkeypatch):
    client, experiment_id = mlflow.MlflowClient(), get_run(run_id).info.experiment_id
    client.set_registered_model_alias("smoke", "chosen", "1")
    other = client.create_run(experiment_id).info.run_id
    client.set_terminated(other)
    model = client.create_logged_model(experiment_id, name="served", source_run_id=other)
    client.finalize_logged_model(model.model_id, "READY")
    newer = client.create_model_version("smoke", f"models:/{model.model_id}", other)
    calibrated = []

    def load_images(*given, **settings):
        client.set_registered_model_alias("smoke", "chosen", newer.version)
        return load_unseen_images(*given, **settings)

    def log_calibrated_model(logged_to, version, *_):
        calibrated.append((logged_to.id, version.name, str(version.version)))

    monkeypatch.setattr(evaluate, "load_unseen_images", load_images)
    monkeypatch.setattr(evaluate, "log_calibrated_model", log_calibrated_model)
    assert run(["evaluate", "models:/smoke@chosen", *VALIDATION, "--calibrate", "true"]) == 0
    assert calibrated == [(run_id, "smoke", "1")]
    client.delete_registered_model_alias("smoke", "chosen")


@pytest.mark.slow
def test_evaluate_that_was_killed_is_closed_by_the_next_evaluation(evaluated, uri, run_id):
    command = [sys.executable, "-m", "pipeline", "evaluate", run_id]
    process = start(command, uri, "smoke")
    assert any("strength 1" in line for line in process.stdout)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    own_run = newest_run("evaluate")
    assert (own_run.info.status, get_run(run_id).info.status) == ("RUNNING", "FINISHED")
    assert run(["evaluate", run_id, *FEW_IMAGES]) == 0
    assert (get_run(own_run.info.run_id).info.status, get_run(run_id).info.status) == ("FAILED", "FINISHED")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the model first: models:/NAME@ALIAS"),
        (["--split", "test"], "name the model first"),
        (["RUN", "--splt", "test"], "unknown setting 'splt'; did you mean split?"),
        (["RUN", "--split", "train"], "split must be test, validation or all, got 'train'"),
        (["RUN", "--split", "all"], "images must be others than those that the model was trained on, got all "),
        (["RUN", "--corrupted_images", "0"], "corrupted_images must be a whole number from 1"),
        (["model.keras"], "model must be models:/NAME@ALIAS"),
        (["f" * 32], "model must be in this tracking store, got runs:/ffff"),
        (["models:/nobody@champion"], "model must be in this tracking store, got models:/nobody@champion"),
        (["RUN", "--dataset", "no/such"], "dataset must be digits, "),
        (["RUN", "--dataset", "OTHER"], "the classes of the images must be the model's 10"),
        (
            ["RUN", "--dataset", "RGB"],
            "images must have the shape that the model takes: 8x8x1, got 8x8x3 of rgb",
        ),
    ],
)
def test_evaluate_with_invalid_input_is_refused_in_one_line(run_id, tmp_path, capsys, monkeypatch, arguments, message):
    images, labels = np.zeros((20, 8, 8, 1), np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "other.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    pixels, ten = np.zeros((20, 12, 10, 3), np.uint8), np.arange(20) % 10
    np.savez(tmp_path / "rgb.npz", x_train=pixels, y_train=ten, x_test=pixels, y_test=ten)
    words = {"RUN": run_id, "OTHER": str(tmp_path / "other.npz"), "RGB": str(tmp_path / "rgb.npz")}
    # refused first: the training's images may have to be downloaded
    monkeypatch.setattr(unseen_images, "load_dataset", None)
    before = get_run(run_id).data
    assert run(["evaluate", *(words.get(word, word) for word in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert get_run(run_id).data.tags == before.tags
    assert mlflow.search_runs(experiment_names=["smoke"], filter_string="attributes.status = 'RUNNING'").empty


def test_evaluate_refuses_words_without_mlflow_and_models_without_tensorflow(uri, run_id):
    code = (
        "import sys; from pipeline.commands.main import run\n"
        "for words in ('model.keras', '{0} --dataset no/such', '{1}'):\n"
        "    code = run(['evaluate', *words.format(*sys.argv[1:]).split()])\n"
        "    print(code, *{'tensorflow', 'keras', 'mlflow'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code, run_id, "0" * 32]
    done = subprocess.run(command, cwd=ROOT, env=environment(uri, "smoke"), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["2", "2", "2 mlflow"], done.stderr


def test_unique_artifact_dir_has_the_name_of_the_data_unless_other_images_have_it(tmp_path):
    pixels, labels = np.zeros((20, 4, 4), np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "my pets (new).npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    pets = load_dataset(DataConfig(dataset=str(tmp_path / "my pets (new).npz"), validation_fraction=0.2), seed=0)
    subset = build_subset(pets, "test", classes=("0", "1"), image_shape=(4, 4, 1))
    assert unique_artifact_dir(subset, {}) == "my-pets-new-test"
    assert unique_artifact_dir(subset, {"my-pets-new-test": pets.fingerprint}) == "my-pets-new-test"
    assert unique_artifact_dir(subset, {"my-pets-new-test": "f0"}) == f"my-pets-new-test-{pets.fingerprint[:8]}"
    calibrated = partial(unique_artifact_dir, subset, ending="-calibrated")
    assert calibrated({"my-pets-new-test": "f0"}) == "my-pets-new-test-calibrated"
    taken = {"my-pets-new-test-calibrated": "f0"}
    assert calibrated(taken) == f"my-pets-new-test-{pets.fingerprint[:8]}-calibrated"
    assert unique_artifact_dir(subset, taken) == "my-pets-new-test"
