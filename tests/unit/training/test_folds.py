"""Cross-validation: a run with a child for each fold, its model, and going on after an interruption."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.runtime.console import Console
from pipeline.runtime.errors import Diverged, NothingToDo, Stopped, UsageError
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.fold_runs import find_fold_runs
from pipeline.tracking.models import load_model
from pipeline.tracking.tags import Role, Tag
from pipeline.tracking.test_set_access import access_count
from pipeline.training import folds
from pipeline.training.callbacks import CheckpointSaver, ProgressReporter
from pipeline.training.checkpoint_manager import checkpoint_folder
from pipeline.training.fit import TrainingResult, fit
from pipeline.training.folds import FoldCheckpoints, best_metrics, describe_fold
from pipeline.training.resume import find_resume_point
from pipeline.training.run import run_training

FOLDS, EPOCHS = 2, 2
CONFIG = TrainingConfig.build(
    {"dataset": "digits", "train_examples": 100, "folds": FOLDS, "epochs": EPOCHS, "batch_size": 32, "filters": 4}
    | {"depth": 1, "kernel_size": 3, "patch_size": 4, "batch_norm_momentum": 0.5, "learning_rate": 0.05}
)


@pytest.fixture(scope="module")
def digits():
    return load_dataset(CONFIG.data, seed=CONFIG.seed)


class RecordingConsole(Console):
    """A terminal that keeps its lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def print(self, *lines: str) -> None:
        super().print(*lines)
        self.lines += lines


class InterruptedConsole(Console):
    """A terminal at which Ctrl-C is pressed when a line appears."""

    def __init__(self, *, fold: int, epoch: int) -> None:
        super().__init__()
        self._last = [f"fold {fold}/", f"epoch {epoch}/"]

    def print(self, *lines: str) -> None:
        super().print(*lines)
        if self._last and any(line.startswith(self._last[0]) for line in lines):
            del self._last[0]
            if not self._last:
                raise Stopped(2)


class Trained(SimpleNamespace):
    """A finished cross-validation: its run, its children by fold, and its model."""


def train(dataset, console=None, config=CONFIG, resume_point=None):
    return run_training("smoke", config, dataset, console=console or Console(), resume_point=resume_point)


def inspect(run_id) -> Trained:
    run = mlflow.get_run(run_id)
    children = find_fold_runs(TrackingClient(), run_id, run.info.experiment_id)
    return Trained(id=run_id, run=run, children=children, folder=run.info.artifact_uri)


def table(trained, name):
    return pd.read_csv(mlflow.artifacts.download_artifacts(f"{trained.folder}/{name}"), dtype={"image": str})


def weights(trained):
    return load_model(TrackingClient(), f"runs:/{trained.id}/model").model.get_weights()


@pytest.fixture(scope="module")
def trained(store, digits):
    """Return a cross-validation that was not interrupted, the lines that it printed, and what `fit` was called with."""
    console, fitted = RecordingConsole(), []

    def record(*arguments, **options):
        fitted.append((arguments, options))
        return fit(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folds, "fit", record)
        finished = inspect(train(digits, console).run.id)
    return Trained(**vars(finished), lines=console.lines, fitted=fitted)


@pytest.fixture(scope="module")
def resumed(store, digits):
    """Return one that was interrupted after the first epoch of the second fold, as it was then and after its end."""
    with pytest.raises(Stopped):
        train(digits, InterruptedConsole(fold=2, epoch=1))
    run_id = mlflow.search_runs(search_all_experiments=True, output_format="list")[0].data.tags[Tag.PARENT_RUN_ID]
    before = inspect(run_id)
    first_epochs = []
    fit_model = keras.Model.fit

    def count(self, *arguments, initial_epoch, **options):
        first_epochs.append(initial_epoch)
        return fit_model(self, *arguments, initial_epoch=initial_epoch, **options)

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.Model, "fit", count)
        resume_point = find_resume_point(TrackingClient(), run_id, {}, locks=stack)
        console = RecordingConsole()
        train(digits, console, config=resume_point.config, resume_point=resume_point)
    return SimpleNamespace(
        before=before,
        after=inspect(run_id),
        resume_point=resume_point,
        first_epochs=first_epochs,
        lines=console.lines,
    )


def test_cross_validation_has_a_finished_child_for_each_fold_with_its_curve_and_its_data(trained, digits):
    assert list(trained.children) == [1, 2]
    for number, child in trained.children.items():
        assert child.info.status == "FINISHED" and child.data.tags[Tag.ROLE] == Role.FOLD
        assert child.info.run_name == f"{trained.run.info.run_name}, fold {number} of {FOLDS}"
        assert child.data.params["folds"] == str(FOLDS)
        curve = TrackingClient().get_metric_history(child.info.run_id, "val_accuracy")
        assert [point.step for point in curve] == [1, 2]
        assert child.data.metrics["best_val_accuracy"] == max(point.value for point in curve)
        inputs = {dataset.dataset.digest for dataset in child.inputs.dataset_inputs}
        fold = digits.fold(number)
        assert inputs == {fold.train.digest, fold.validation.digest}
        assert not checkpoint_folder(child.info.run_id).exists()


def test_cross_validation_logs_history_seconds_and_best_metrics_of_each_fold_to_its_run(trained):
    for child in trained.children.values():
        history = table(Trained(folder=child.info.artifact_uri), "history.csv")
        assert history["epoch"].tolist() == [1, 2]
        metrics, best = child.data.metrics, history["val_accuracy"].idxmax()
        assert metrics["best_epoch"] == best + 1
        for name in ("val_accuracy", "val_loss", "val_balanced_accuracy", "val_macro_f1"):
            assert metrics[f"best_{name}"] == pytest.approx(history[name][best], abs=1e-6)
        assert metrics["seconds"] == pytest.approx(history["epoch_seconds"].sum(), abs=1e-3)
        plots = {Path(file.path).name for file in mlflow.artifacts.list_artifacts(f"{child.info.artifact_uri}/plots")}
        assert "curves.png" in plots


def test_cross_validation_prints_the_images_of_each_fold_and_then_its_best_epoch_and_the_mean_so_far(trained, digits):
    lines = [line for line in trained.lines if line.startswith("fold ")]
    first, second = (child.data.metrics for child in trained.children.values())
    values = [100 * metrics["best_val_accuracy"] for metrics in (first, second)]
    for number, line in ((1, lines[0]), (2, lines[2])):
        fold = digits.fold(number)
        images = f"{len(fold.train)} training and {len(fold.validation)} validation images"
        assert line == f"fold {number}/2  {images}"
    assert lines[1] == f"fold 1/2  best validation accuracy {values[0]:.2f} % at epoch {first['best_epoch']:.0f}"
    assert lines[3] == (
        f"fold 2/2  best validation accuracy {values[1]:.2f} % at epoch {second['best_epoch']:.0f}; "
        f"mean of 2 folds {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} %"
    )
    assert len(lines) == 4 and len([line for line in trained.lines if line.startswith("epoch ")]) == 4


def test_cross_validation_fits_each_fold_to_its_own_images_with_its_own_checkpoints(trained, digits):
    for number, ((config, data, callbacks), options) in enumerate(trained.fitted, start=1):
        assert config.folds == FOLDS and data.validation is digits.folds[number - 1]
        assert [type(callback) for callback in callbacks] == [CheckpointSaver, ProgressReporter]
        manager = callbacks[0].save.__self__
        assert manager._run_id == trained.children[number].info.run_id
        assert manager._fingerprint == digits.fingerprint and manager._settings == config.model_dump(mode="json")
        assert options.pop("strategy") is tf.distribute.get_strategy()
        assert options == {"start": None, "initial_weights": None, "teacher": None, "progress_bar": False}


def test_cross_validation_logs_mean_and_deviation_over_its_folds(trained):
    for metric in ("best_val_accuracy", "best_val_loss", "best_epoch"):
        values = [child.data.metrics[metric] for child in trained.children.values()]
        assert trained.run.data.metrics[metric] == pytest.approx(np.mean(values))
        assert trained.run.data.metrics[f"{metric}_sd"] == pytest.approx(np.std(values, ddof=1))
    assert "val_accuracy" not in trained.run.data.metrics, "a curve of the folds one after another would be none"


def test_cross_validation_predicts_each_image_once_by_the_network_that_did_not_see_it(trained, digits):
    predictions = table(trained, "validation_predictions.csv")
    together = digits.out_of_fold
    assert predictions["image"].tolist() == [
        digest.hex()[:16] for digest in together.image_digests[together.rows].tolist()
    ]
    for number, child in trained.children.items():
        own = np.isin(together.rows, digits.folds[number - 1].rows)
        is_correct = (predictions["label"] == predictions["predicted"])[own]
        assert is_correct.mean() == pytest.approx(child.data.metrics["best_val_accuracy"])
    assert {"rank", "file", "class", "suggested_class"} <= set(table(trained, "probably_mislabeled.csv"))
    plots = {Path(file.path).name for file in mlflow.artifacts.list_artifacts(f"{trained.folder}/plots")}
    assert {"probably_mislabeled.png", "confusion_matrix_out_of_fold.png", "confusion_matrix.png"} <= plots


def test_cross_validation_serves_the_mean_of_its_networks_and_opens_the_test_set_once(trained, digits):
    model = load_model(TrackingClient(), f"runs:/{trained.id}/model")
    images, labels = digits.test.take(slice(None))
    accuracy = (model.predict_proba(images).argmax(axis=1) == labels).mean()
    metrics = trained.run.data.metrics
    assert metrics["test_accuracy"] == pytest.approx(accuracy)
    assert metrics["parameters"] == model.model.count_params()
    assert model.model.name == f"ensemble_of_{FOLDS}"
    assert access_count(trained.run.data.tags, run_id=trained.id, tested=True) == 1
    for child in trained.children.values():
        assert access_count(child.data.tags, run_id=child.info.run_id, tested=False) == 0
        assert not [name for name in child.data.metrics if name.startswith("test_")]
        assert not (child.outputs and child.outputs.model_outputs), "evaluate and predict would take it as the latest"


def test_interrupted_cross_validation_leaves_no_run_open_and_says_where_it_goes_on(resumed):
    before = resumed.before
    assert before.run.info.status == "KILLED"
    assert {number: child.info.status for number, child in before.children.items()} == {1: "FINISHED", 2: "KILLED"}
    assert before.children[2].data.tags[Tag.OUTCOME_REASON] == before.run.data.tags[Tag.OUTCOME_REASON]
    assert resumed.resume_point.name == f"resumed at epoch 2 of fold 2 of {FOLDS}"
    assert not resumed.resume_point.has_folds_to_begin
    assert replace(resumed.resume_point, folds={}).has_folds_to_begin, "which need the initial weights again"
    assert str(resumed.resume_point).endswith(f"resumes after epoch 1 of {EPOCHS} of fold 2 of {FOLDS}")


def test_resumed_cross_validation_is_equal_to_one_that_was_not_interrupted(trained, resumed):
    after = resumed.after
    assert after.run.info.status == "FINISHED"
    for one, other in zip(weights(trained), weights(after), strict=True):
        np.testing.assert_array_equal(one, other)
    for name in ("validation_predictions.csv", "probably_mislabeled.csv", "test_predictions.csv"):
        pd.testing.assert_frame_equal(table(trained, name), table(after, name))
    timed = {"seconds"}
    metrics = {name for name in trained.run.data.metrics if not name.startswith("system/")} - timed
    assert metrics == {name for name in after.run.data.metrics if not name.startswith("system/")} - timed
    for name in metrics:
        assert trained.run.data.metrics[name] == after.run.data.metrics[name]


def test_resumed_cross_validation_prints_which_folds_were_trained_before(resumed):
    lines = [line for line in resumed.lines if line.endswith(("images", "before"))]
    assert [line.partition(" validation images")[2] for line in lines] == [", trained before", ""]
    assert [line[:7] for line in resumed.lines if line.startswith("epoch ")] == ["epoch 2"]


def test_resumed_cross_validation_trains_no_finished_fold_again(resumed):
    assert resumed.first_epochs == [1], "only the second fold, from its second epoch on"
    assert resumed.after.children[1].info.end_time == resumed.before.children[1].info.end_time
    for number, child in resumed.after.children.items():
        assert child.info.status == "FINISHED"
        curve = TrackingClient().get_metric_history(child.info.run_id, "val_accuracy")
        assert [point.step for point in curve] == [1, 2], f"fold {number}"
    assert resumed.after.children[2].info.run_id == resumed.before.children[2].info.run_id


def test_resume_of_a_fold_is_refused_with_the_run_to_resume(trained):
    with pytest.raises(UsageError) as error, ExitStack() as locks:
        find_resume_point(TrackingClient(), trained.children[2].info.run_id, {}, locks=locks)
    assert str(error.value).endswith(
        f"is one fold of a cross-validation: resume {trained.id}, which goes on with its folds"
    )


def test_resume_of_a_finished_cross_validation_has_nothing_to_do(trained):
    with pytest.raises(NothingToDo), ExitStack() as locks:
        find_resume_point(TrackingClient(), trained.id, {}, locks=locks)


def test_diverged_fold_is_named_and_ends_with_its_run(client, trained, digits, monkeypatch):
    def diverge(*arguments, **options):
        raise Diverged("loss became nan at epoch 1, step 1")

    monkeypatch.setattr("pipeline.training.folds.fit", diverge)
    with pytest.raises(Diverged, match=r"^fold 1 of 2: loss became nan at epoch 1, step 1$"):
        train(digits)
    (run,) = client.search_runs([trained.run.info.experiment_id], "tags.role = 'run'", max_results=1)
    (child,) = inspect(run.info.run_id).children.values()
    assert (run.info.status, child.info.status) == ("FAILED", "FAILED")
    assert child.data.tags[Tag.OUTCOME_REASON] == run.data.tags[Tag.OUTCOME_REASON]


def test_train_folds_gives_a_fold_its_state_and_what_all_have_and_its_run_the_epochs(digits, monkeypatch):
    given = []

    def stop(*arguments, **options):
        given.append((arguments, options))
        raise Diverged("loss became nan")

    monkeypatch.setattr(folds, "fit", stop)
    monkeypatch.setattr(Console, "is_terminal", True)
    run = SimpleNamespace(id="abc", name="mine", fold_run_id="of fold 1")
    names = []
    opened = SimpleNamespace(id="of fold 1")
    monkeypatch.setattr(folds, "open_fold_run", lambda *arguments, **named: names.append((arguments, named)) or opened)
    reports, starts = [], []
    state, weights, teacher, strategy = (object() for _ in range(4))
    with pytest.raises(Diverged):
        folds.train_folds(
            run,
            CONFIG,
            digits,
            FoldCheckpoints(CONFIG, fingerprint="f00d"),
            log_start=lambda *arguments: starts.append(arguments),
            report_epoch=lambda *epoch: reports.append(epoch),
            console=Console(),
            resumed={1: SimpleNamespace(state=state)},
            initial_weights=weights,
            teacher=teacher,
            strategy=strategy,
        )
    assert names == [((run, 1), {"name": "mine, fold 1 of 2"})]
    (((_, data, (_, reporter)), options),) = given
    assert starts == [(opened, data, state)]
    reporter.report_epoch(1, {"loss": 0.5})
    assert reports == [(opened, 1, {"loss": 0.5})]
    assert options == {
        "start": state,
        "initial_weights": weights,
        "teacher": teacher,
        "strategy": strategy,
        "progress_bar": True,
    }


class Manager:
    """The checkpoints of a fold, of which the newest is known."""

    def __init__(self, newest):
        self._newest, self.calls = newest, []

    def newest(self):
        return self._newest

    def upload_final(self):
        self.calls.append("upload_final")

    def clear(self):
        self.calls.append("clear")


def test_fold_checkpoints_upload_those_of_the_last_fold_and_clear_all(monkeypatch):
    managers, made = [Manager("one"), Manager("two"), Manager(None)], []
    following = iter(managers)
    monkeypatch.setattr(
        folds, "CheckpointManager", lambda *given, **named: made.append((given, named)) or next(following)
    )
    checkpoints = FoldCheckpoints(CONFIG, fingerprint="f00d")
    assert checkpoints.newest() is None
    checkpoints.upload_final()
    assert [checkpoints.open(name) for name in "abc"] == managers
    assert made == [((name, CONFIG), {"fingerprint": "f00d"}) for name in "abc"]
    assert checkpoints.newest() == "two", "the last fold has none yet"
    checkpoints.upload_final()
    checkpoints.clear()
    assert [manager.calls for manager in managers] == [["clear"], ["clear"], ["upload_final", "clear"]]


def test_best_metrics_are_those_of_validation_at_the_best_epoch():
    history = {"loss": [3.0, 2.0, 1.0], "val_accuracy": [0.25, 0.75, 0.5], "val_loss": [3.0, 1.0, 2.0]}
    best = best_metrics(TrainingResult(None, history, best_epoch=2))
    assert best == {"best_val_accuracy": 0.75, "best_val_loss": 1.0, "best_epoch": 2}
    assert best_metrics(TrainingResult(None, {"loss": [3.0]}, best_epoch=1)) == {"best_epoch": 1}


def test_describe_fold_is_about_the_metric_that_the_run_monitors():
    config = CONFIG.model_copy(update={"monitor": "val_loss", "folds": 5})
    best = [{"best_val_loss": loss, "best_epoch": 7} for loss in (0.25, 0.5)]
    trained = SimpleNamespace(best=best[:1], metrics=lambda: {"best_val_loss": 0.25})
    assert describe_fold(config, trained) == "fold 1/5  best validation loss 0.2500 at epoch 7"
    trained = SimpleNamespace(best=best, metrics=lambda: {"best_val_loss": 0.375, "best_val_loss_sd": 0.125})
    assert describe_fold(config, trained) == (
        "fold 2/5  best validation loss 0.5000 at epoch 7; mean of 2 folds 0.3750 ± 0.1250"
    )
