"""The seam where people meet an evaluation: the command, what it leaves in the model's run, and what it refuses."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from pipeline.commands import evaluate, train
from pipeline.commands.evaluate import artifact_dir, main
from pipeline.config.training import DataConfig
from pipeline.data.dataset import load_dataset
from pipeline.data.subset import build_subset
from pipeline.evaluation.corruptions import CORRUPTIONS
from pipeline.tracking.tags import Tag
from tests.support.paths import ROOT
from tests.support.stores import environment, tracking_store

FEW = ["--corrupted_images", "20"]
FILES = {
    *("calibration.csv", "calibration.png", "corruptions.csv", "corruptions.png", "corrupted_examples.png"),
    *("confusion_matrix.png", "per_class.csv", "predictions.csv"),
}


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    with tracking_store(tmp_path_factory.mktemp("tracking"), "evaluated") as uri:
        mlflow.set_experiment("evaluated")
        yield uri


@pytest.fixture(scope="module")
def run_id(uri):
    """A smoke run."""
    assert train.main(["smoke"]) == 0
    return newest("run").info.run_id


@pytest.fixture(scope="module")
def evaluated(uri, run_id, tmp_path_factory):
    """The smoke run by `mlflow run -e evaluate`: what was printed, and the run before and after that."""
    before = found(run_id)
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", "evaluate", "--env-manager", "local"]
    command += ["--experiment-name", "evaluated", "-P", "model=latest", "-P", "corrupted_images=50"]
    done = subprocess.run(
        command,
        env=environment(uri, "evaluated"),
        cwd=tmp_path_factory.mktemp("elsewhere"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done, before, found(run_id)


def found(run_id):
    return mlflow.MlflowClient().get_run(run_id)


def newest(role):
    where = f"tags.role = '{role}'"
    return mlflow.search_runs(experiment_names=["evaluated"], filter_string=where, output_format="list", max_results=1)[
        0
    ]


def steps(run_id, metric):
    return [point.step for point in mlflow.MlflowClient().get_metric_history(run_id, metric)]


def artifacts(run_id, where):
    return {Path(file.path).name for file in mlflow.MlflowClient().list_artifacts(run_id, f"evaluation/{where}")}


def table(run_id, name):
    return pd.read_csv(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/evaluation/{name}"))


def test_the_model_s_own_run_gets_the_results_and_stays_as_it_ended(evaluated, run_id):
    done, before, after = evaluated
    figures = {name: value for name, value in after.data.metrics.items() if name.startswith("evaluation/digits-test/")}
    assert figures["evaluation/digits-test/accuracy"] == before.data.metrics["test_accuracy"]
    assert figures["evaluation/digits-test/nll"] == pytest.approx(before.data.metrics["test_loss"], rel=1e-4)
    assert {"ece", "brier_score", "mean_confidence", "mean_corruption_accuracy"} <= {
        name.rpartition("/")[2] for name in figures
    }
    assert artifacts(run_id, "digits-test") == FILES
    assert (after.info.status, after.info.end_time) == ("FINISHED", before.info.end_time)
    assert f"run      {run_id}: evaluation/digits-test among its metrics and artifacts" in done.stdout


def test_tables_hold_what_the_figures_say(evaluated, run_id):
    _, _, after = evaluated
    bins, corruptions = table(run_id, "digits-test/calibration.csv"), table(run_id, "digits-test/corruptions.csv")
    gaps = (bins["accuracy"] - bins["confidence"]).abs() * bins["images"]
    assert gaps.sum() / bins["images"].sum() == pytest.approx(after.data.metrics["evaluation/digits-test/ece"])
    assert len(bins) == 15 and len(corruptions) == 1 + 3 * len(CORRUPTIONS)
    mean = corruptions.loc[corruptions["strength"] > 0, "accuracy"].mean()
    assert mean == pytest.approx(after.data.metrics["evaluation/digits-test/mean_corruption_accuracy"])


def test_the_run_that_mlflow_run_opened_lies_below_the_model_s(evaluated, run_id):
    own = newest("evaluate")
    assert own.info.status == "FINISHED" and own.data.tags[Tag.OUTCOME] == "finished"
    assert own.data.tags[Tag.PARENT_RUN_ID] == run_id
    assert own.info.run_name == "evaluation on digits, test split"


def test_training_and_each_evaluation_of_the_test_images_are_counted(evaluated, run_id, capsys):
    _, before, after = evaluated
    assert (before.data.tags[Tag.TEST_SET_ACCESSES], after.data.tags[Tag.TEST_SET_ACCESSES]) == ("1", "2")
    many = len(steps(run_id, "evaluation/digits-test/ece"))
    assert main([run_id, *FEW]) == 0
    assert "opened   the test images of its training data: 3 times so far" in capsys.readouterr().out
    assert found(run_id).data.tags[Tag.TEST_SET_ACCESSES] == "3"
    assert steps(run_id, "evaluation/digits-test/ece") == list(range(1, many + 2)), "a step each"
    assert artifacts(run_id, "digits-test") == FILES


def test_validation_images_and_other_data_are_not_the_test_set(evaluated, run_id, tmp_path):
    digits = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    labels, names = np.arange(20) % 10, np.array([str(9 - place) for place in range(10)])
    other = tmp_path / "digits.npz"
    np.savez(other, x_train=digits, y_train=labels, x_test=digits, y_test=labels, class_names=names)
    before = found(run_id).data.tags[Tag.TEST_SET_ACCESSES]
    assert main([f"runs:/{run_id}/model", "--split", "validation", *FEW]) == 0
    assert main([run_id, "--dataset", str(other), *FEW]) == 0
    after = found(run_id)
    assert after.data.tags[Tag.TEST_SET_ACCESSES] == before
    assert artifacts(run_id, "digits-validation") == FILES
    (place,) = [name for name in after.data.tags if name.startswith("evaluation.digits-test-")]
    told = table(run_id, f"{place.removeprefix('evaluation.')}/predictions.csv")
    assert told["label"].tolist() == [9 - label for label in labels], "as positions among the model's classes"


def test_a_model_s_own_run_is_not_taken_for_the_evaluation_s_where_mlflow_run_was_told_to(
    evaluated, run_id, monkeypatch
):
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert main([run_id, *FEW]) == 0
    own, after = newest("evaluate"), found(run_id)
    assert own.info.run_id != run_id == own.data.tags[Tag.PARENT_RUN_ID]
    assert after.data.tags[Tag.ROLE] == "run" and Tag.PARENT_RUN_ID not in after.data.tags


def test_an_evaluation_that_breaks_off_counts_and_leaves_the_model_s_run_finished(evaluated, run_id, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of paper")

    monkeypatch.setattr(evaluate, "evaluate_robustness", broken)
    before = int(found(run_id).data.tags[Tag.TEST_SET_ACCESSES])
    with pytest.raises(RuntimeError):
        main([run_id])
    own, after = newest("evaluate"), found(run_id)
    assert (own.info.status, own.data.tags[Tag.OUTCOME_REASON]) == ("FAILED", "RuntimeError: out of paper")
    assert (after.info.status, int(after.data.tags[Tag.TEST_SET_ACCESSES])) == ("FINISHED", before + 1)


@pytest.mark.slow
def test_after_a_kill_the_model_s_run_is_finished_and_the_evaluation_is_closed_by_the_next(evaluated, uri, run_id):
    command = [sys.executable, "-m", "pipeline", "evaluate", run_id]
    process = subprocess.Popen(
        command, env=environment(uri, "evaluated"), cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert any("strength 1" in line for line in process.stdout)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    own = newest("evaluate")
    assert (own.info.status, found(run_id).info.status) == ("RUNNING", "FINISHED")
    assert main([run_id, *FEW]) == 0
    assert (found(own.info.run_id).info.status, found(run_id).info.status) == ("FAILED", "FINISHED")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the model first: models:/NAME@ALIAS"),
        (["--split", "test"], "name the model first"),
        (["RUN", "--splt", "test"], "unknown setting 'splt'; did you mean split?"),
        (["RUN", "--split", "train"], "split must be test, validation or all, got 'train'"),
        (["RUN", "--split", "all"], "split must be test or validation of the data that the model was trained on"),
        (["RUN", "--corrupted_images", "0"], "corrupted_images must be a whole number from 1"),
        (["model.keras"], "model must be models:/NAME@champion"),
        (["f" * 32], "model must be in this tracking store, got runs:/ffff"),
        (["models:/nobody@champion"], "model must be in this tracking store, got models:/nobody@champion"),
        (["RUN", "--dataset", "no/such"], "dataset must be digits, "),
        (["RUN", "--dataset", "OTHER"], "the classes of the images must be the model's 10"),
        (["RUN", "--image_size", "16"], "images must have the shape that the model takes: 8x8x1, got 16x16x1"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line_and_exit_code_2(run_id, tmp_path, capsys, arguments, message):
    images, labels = np.zeros((20, 8, 8, 1), np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "other.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    meant = {"RUN": run_id, "OTHER": str(tmp_path / "other.npz")}
    before = found(run_id).data
    assert main([meant.get(word, word) for word in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert found(run_id).data.tags == before.tags
    assert mlflow.search_runs(experiment_names=["evaluated"], filter_string="attributes.status = 'RUNNING'").empty


def test_what_is_typed_is_refused_without_mlflow_and_models_without_tensorflow(uri, run_id):
    code = (
        "import sys; from pipeline.commands.main import run\n"
        "for words in ('model.keras', '{0} --dataset no/such', '{1}'):\n"
        "    code = run(['evaluate', *words.format(*sys.argv[1:]).split()])\n"
        "    print(code, *{'tensorflow', 'keras', 'mlflow'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code, run_id, "0" * 32]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(uri, "evaluated"), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["2", "2", "2 mlflow"], done.stderr


def test_artifact_dir_is_named_after_the_data_unless_other_images_have_that_name(tmp_path):
    pixels, labels = np.zeros((20, 4, 4), np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "my pets (new).npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    pets = load_dataset(DataConfig(dataset=str(tmp_path / "my pets (new).npz"), validation_fraction=0.2), seed=0)
    images = build_subset(pets, "test", classes=("0", "1"), image_shape=(4, 4, 1))
    assert artifact_dir(images, taken={}) == "my-pets-new-test"
    assert artifact_dir(images, taken={"my-pets-new-test": pets.fingerprint}) == "my-pets-new-test"
    assert artifact_dir(images, taken={"my-pets-new-test": "f0"}) == f"my-pets-new-test-{pets.fingerprint[:8]}"
