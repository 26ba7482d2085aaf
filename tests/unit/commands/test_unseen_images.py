"""Images for a trained model: in its size, of its classes, and none that it was trained on."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.commands.unseen_images import load_unseen_images
from pipeline.config.training import DataConfig, TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.runtime.errors import UsageError
from pipeline.tracking.query import TrainingRun

DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def fingerprint():
    return load_dataset(DataConfig(dataset="digits"), seed=0).fingerprint


def load(fingerprint, *, dataset=None, split="validation", metadata=None, splits=None, **settings):
    config = TrainingConfig.build({"dataset": "digits", **settings})
    run = TrainingRun(SimpleNamespace(), config, fingerprint, splits or {})
    metadata = metadata or {"classes": DIGITS, "image_size": [8, 8]}
    return load_unseen_images(run, metadata, dataset=dataset, split_name=split, remedy="others")


@pytest.fixture
def others(tmp_path):
    """The path of images in another size."""
    images, labels = np.zeros((20, 12, 10, 1), np.uint8), np.arange(20) % 10
    np.savez(tmp_path / "others.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    return str(tmp_path / "others.npz")


def test_other_images_get_the_size_of_the_model_and_the_runs_own_keep_theirs(fingerprint, others):
    metadata = {"classes": DIGITS, "image_size": [6, 6]}
    assert load(fingerprint, dataset=others, split="all", metadata=metadata).image_shape == (6, 6, 1)
    assert load(fingerprint, metadata=metadata).image_shape == (8, 8, 1)


@pytest.mark.parametrize("settings", [{"refit": True}, {"folds": 3}])
def test_validation_images_that_the_model_was_trained_on_are_refused(fingerprint, others, settings):
    with pytest.raises(UsageError, match="got the validation images of digits, its training data; try others"):
        load(fingerprint, **settings)
    assert load(fingerprint, split="test", **settings).name == "digits"
    assert load(fingerprint, dataset=others, split="all", **settings).name == "others"


def test_all_of_other_images_may_be_one_of_each_class(fingerprint, tmp_path):
    few = str(tmp_path / "few")
    for label, name in enumerate(DIGITS):
        (tmp_path / "few" / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), label, np.uint8)).save(tmp_path / "few" / name / "one.png")
    assert len(load(fingerprint, dataset=few, split="all").test) == 10
    with pytest.raises(UsageError, match="every class needs 3 training images or more"):
        load(fingerprint, dataset=few, split="test")


def test_the_training_data_named_as_other_images_are_refused(fingerprint):
    with pytest.raises(UsageError, match="got all images of digits, its training data"):
        load(fingerprint, dataset="digits", split="all")


@pytest.fixture
def pets(tmp_path):
    """A folder of images that a model was trained on, its metadata, and a function that adds a training image."""

    def add(part, name, value):
        folder = tmp_path / "pets" / part / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(folder / f"{value}.png")

    for value in range(20):
        add("train", "cat", value)
        add("train", "dog", 100 + value)
    return str(tmp_path / "pets"), {"classes": ["cat", "dog"], "image_size": [8, 8]}, add


def digests(dataset):
    return {"test": dataset.test.digest, "validation": dataset.validation.digest}


@pytest.mark.parametrize("split", ["test", "validation", "all"])
@pytest.mark.parametrize("is_named", [False, True])
def test_images_of_data_that_have_changed_since_are_refused(pets, split, is_named):
    folder, metadata, add = pets
    before = load_dataset(DataConfig(dataset=folder), seed=0)
    add("train", "cat", 50)
    run = TrainingRun(SimpleNamespace(), TrainingConfig.build({"dataset": folder}), before.fingerprint, digests(before))
    named = f"{folder}/../pets" if is_named else None
    with pytest.raises(UsageError, match="of pets, its training data, which have changed since, .*; try a dataset of"):
        load_unseen_images(run, metadata, dataset=named, split_name=split, remedy="others")


def test_test_images_that_are_the_same_in_data_that_have_changed_are_taken(pets):
    folder, metadata, add = pets
    for value in range(3):
        add("test", "cat", 60 + value)
        add("test", "dog", 160 + value)
    before = load_dataset(DataConfig(dataset=folder), seed=0)
    add("train", "cat", 50)
    run = TrainingRun(SimpleNamespace(), TrainingConfig.build({"dataset": folder}), before.fingerprint, digests(before))
    loaded = load_unseen_images(run, metadata, dataset=None, split_name="test", remedy="others")
    assert loaded.test.digest == before.test.digest and loaded.fingerprint != before.fingerprint
    with pytest.raises(UsageError, match="got the validation images of pets, its training data, which have changed"):
        load_unseen_images(run, metadata, dataset=None, split_name="validation", remedy="others")


def test_images_of_other_classes_than_the_models_are_refused(fingerprint):
    with pytest.raises(UsageError, match="must be the model's 2, in any order: digits has 2, 3"):
        load(fingerprint, metadata={"classes": ["0", "1"]})
