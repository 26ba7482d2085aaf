"""What a run logs when it begins."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.recipe import to_yaml
from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.tracking.tags import Tag, code_version_tags
from pipeline.training.checkpoint import TrainingState
from pipeline.training.description import Change
from pipeline.training.initial_weights import InitialWeights
from pipeline.training.run_metadata import (
    log_fold_start,
    log_origin,
    log_run_metadata,
    log_teacher,
    replay_logged_epochs,
)
from pipeline.training.teacher import Teacher
from tests.support.training_runs import FakeRun, small_dataset


@pytest.mark.parametrize(
    ("recipe", "name"), [("experiments/recipes/smoke.yaml", "smoke"), ("/runs/abc/config.yaml", "digits")]
)
def test_log_run_metadata_names_the_run_after_its_recipe_or_else_its_data(recipe, name):
    run, config = FakeRun(), TrainingConfig.build({"filters": 8, "depth": 2, "kernel_size": 3, "patch_size": 1})
    assert log_run_metadata(run, recipe, config, small_dataset(), {}) == name
    assert run.params.keys() == {"recipe", *TrainingConfig.model_fields}
    assert run.params["recipe"] == recipe and run.params["filters"] == "8"
    datasets = [named for method, _, named in run.calls if method == "log_dataset"]
    same = {"source": "digits", "digest": "f00d", "shape": (8, 8, 1), "class_sizes": {"0": 1}}
    parts = ("train", "validation", "test")
    assert datasets == [same | {"name": f"digits {part}", "context": part} for part in parts]
    ((tags,),) = (arguments for method, arguments, _ in run.calls if method == "set_tags")
    facts = {
        Tag.DATA_FINGERPRINT: "f00d",
        Tag.RECIPE_CHANGES: "{}",
        Tag.TENSORFLOW: tf.__version__,
        Tag.KERAS: keras.__version__,
        Tag.DATA_DUPLICATES: "0",
    }
    assert tags == code_version_tags() | facts
    (config_file,) = (arguments for method, arguments, _ in run.calls if method == "log_text")
    assert config_file == ("config.yaml", to_yaml(config))


def test_models_that_a_run_starts_from_or_learns_from_are_its_inputs():
    network = InitialWeights("models:/m-1", {}, {}, model_id="m-1", run_id="a" * 32)
    for log, tags in (
        (lambda run: log_origin(run, network), {Tag.WEIGHTS_FROM: "models:/m-1", Tag.WEIGHTS_RUN: "a" * 32}),
        (lambda run: log_teacher(run, Teacher(network)), {Tag.TEACHER: "models:/m-1", Tag.TEACHER_RUN: "a" * 32}),
    ):
        run = FakeRun()
        log(run)
        assert run.calls == [("set_tags", (tags,), {}), ("log_input_model", ("m-1",), {})]


def test_replay_logged_epochs_logs_every_finished_epoch_of_the_checkpoint():
    run = FakeRun()
    state = TrainingState(2, {"loss": [0.5, 0.25], "val_loss": [0.75, 0.5]}, [], [])
    assert replay_logged_epochs(run, state) == "smoke"
    assert run.calls == [(1, {"loss": 0.5, "val_loss": 0.75}), (2, {"loss": 0.25, "val_loss": 0.5})]


def test_log_run_metadata_of_folds_names_their_images_together_and_each_fold_its_own():
    config = TrainingConfig.build({"dataset": "digits", "train_examples": 100, "folds": 3})
    digits = load_dataset(config.data, seed=0)
    run = FakeRun()
    log_run_metadata(run, "digits", config, digits, {})
    splits = [(named["context"], named["digest"]) for method, _, named in run.calls if method == "log_dataset"]
    assert splits == [("train", digits.out_of_fold.digest), ("test", digits.test.digest)]
    for number in (1, 2, 3):
        fold, own = digits.fold(number), FakeRun()
        log_fold_start("digits", config, own, fold, None)
        assert own.params == run.params
        splits = [(named["context"], named["digest"]) for method, _, named in own.calls if method == "log_dataset"]
        assert splits == [("train", fold.train.digest), ("validation", fold.validation.digest)]


def test_log_fold_start_replays_the_epochs_of_a_fold_that_is_resumed():
    run = FakeRun()
    config = TrainingConfig.build({"dataset": "digits", "train_examples": 100, "folds": 3})
    state = TrainingState(1, {"loss": [0.5]}, [np.zeros(1)], [])
    log_fold_start("digits", config, run, load_dataset(config.data, seed=0).fold(1), state)
    assert (1, {"loss": 0.5}) in run.calls


def test_log_run_metadata_with_refit_says_so_and_logs_no_validation_images():
    config = TrainingConfig.build({"dataset": "digits", "train_examples": 100, "refit": True})
    digits, run = load_dataset(config.data, seed=0), FakeRun()
    changes = {"depth": Change("6", "4")}
    assert log_run_metadata(run, "mine", config, digits, changes) == "mine depth=6, refit"
    ((tags,),) = (arguments for method, arguments, _ in run.calls if method == "set_tags")
    assert tags[Tag.REFIT] == "trained on training and validation images"
    assert tags[Tag.RECIPE_CHANGES] == '{"depth": ["6", "4"]}'
    logged = {named["context"]: named for method, _, named in run.calls if method == "log_dataset"}
    assert list(logged) == ["train", "test"]
    sizes = dict(zip(digits.classes, np.bincount(digits.test.labels[digits.test.rows]).tolist(), strict=True))
    assert logged["test"]["class_sizes"] == sizes and logged["test"]["source"] == digits.source


def test_log_origin_names_the_model_and_what_is_known_of_it():
    file = InitialWeights("/models/mine.keras", {}, {}, digest="f00d")
    logged = replace(file, origin="models:/m-1", model_id="m-1", run_id="abc", digest="")
    of_file, of_model = FakeRun(), FakeRun()
    log_origin(of_file, file)
    log_origin(of_model, logged)
    tags = {Tag.WEIGHTS_FROM: "/models/mine.keras", Tag.WEIGHTS_DIGEST: "f00d"}
    assert of_file.calls == [("set_tags", (tags,), {})]
    tags = {Tag.WEIGHTS_FROM: "models:/m-1", Tag.WEIGHTS_RUN: "abc"}
    assert of_model.calls == [("set_tags", (tags,), {}), ("log_input_model", ("m-1",), {})]


def test_log_teacher_names_its_model_and_run():
    run = FakeRun()
    log_teacher(run, Teacher(InitialWeights("models:/m-1", {}, {}, model_id="m-1", run_id="abc")))
    tags = {Tag.TEACHER: "models:/m-1", Tag.TEACHER_RUN: "abc"}
    assert run.calls == [("set_tags", (tags,), {}), ("log_input_model", ("m-1",), {})]


def test_replay_logged_epochs_of_a_run_without_a_checkpoint_logs_nothing():
    run = FakeRun()
    assert replay_logged_epochs(run, None) == "smoke" and run.calls == []
