"""Subsets of data sets for a given model."""

import numpy as np
import pytest

from pipeline.config.training import DataConfig
from pipeline.data.subset import build_subset, check_not_trained_on, reload_dataset, select_split
from pipeline.runtime.errors import UsageError

MODEL = {"classes": ("cat", "dog", "owl"), "image_shape": (4, 4, 1)}


@pytest.fixture
def npz(tmp_path):
    """Writes images whose pixels are their label, under class names in some order."""

    def write(names, *, shape=(4, 4, 1), name="pets"):
        labels = np.tile(np.arange(len(names)), 10)
        images = np.broadcast_to(labels.reshape(-1, 1, 1, 1), (len(labels), *shape)).astype(np.uint8)
        arrays = {f"{axis}_{part}": of for part in ("train", "test") for axis, of in (("x", images), ("y", labels))}
        path = tmp_path / f"{name}.npz"
        np.savez(path, class_names=np.array(names), **arrays)
        return str(path)

    return write


def subset(dataset=None, *, split="test", config=None):
    reloaded = reload_dataset(DataConfig.build(config or {}), seed=0, dataset=dataset, image_size=None)
    return build_subset(reloaded, split, **MODEL)


def test_build_subset_labels_are_positions_among_the_models_classes(npz):
    images = subset(npz(["owl", "cat", "dog"]))
    pixels, _ = images.split.take(np.arange(len(images.split)))
    names = np.array(["owl", "cat", "dog"])[pixels[:, 0, 0, 0]]
    assert names.tolist() == [MODEL["classes"][label] for label in images.labels]


def test_reload_dataset_without_overrides_uses_the_settings_of_the_run(npz):
    config = {"dataset": npz(["cat", "dog", "owl"], shape=(8, 6, 1)), "image_size": "4", "train_examples": 3}
    images = subset(config=config, split="validation")
    assert images.dataset.image_shape == (4, 4, 1) and len(images.split) == len(images.dataset.validation)
    assert str(images) == "pets, validation split"


def test_reload_dataset_of_other_images_than_a_refits_has_validation_images(npz):
    images = subset(npz(["cat", "dog", "owl"]), split="validation", config={"refit": True})
    assert len(images.split) > 0


def test_build_subset_of_all_holds_every_image_once(npz):
    images = subset(npz(["cat", "dog", "owl"]), split="all")
    assert images.split.rows.tolist() == list(range(60)) and len(images.labels) == 60
    assert str(images) == "pets, all images"


def test_select_split_of_all_holds_every_image_in_the_order_of_the_data(npz):
    dataset = subset(npz(["cat", "dog", "owl"])).dataset
    assert select_split(dataset, "all").rows.tolist() == list(range(60))
    assert select_split(dataset, "validation").digest == dataset.validation.digest


@pytest.mark.parametrize(
    ("split", "has_validation", "images"),
    [("validation", False, "the validation images"), ("all", True, "all images"), ("all", False, "all images")],
)
def test_check_not_trained_on_refuses_images_of_the_training(npz, split, has_validation, images):
    dataset = subset(npz(["cat", "dog", "owl"])).dataset
    what = {"fingerprint": dataset.fingerprint, "has_validation": has_validation, "remedy": "split=test"}
    with pytest.raises(UsageError) as refusal:
        check_not_trained_on(dataset, split, **what)
    assert str(refusal.value) == (
        f"images must be others than those that the model was trained on, got {images} of pets, its training data; "
        "try split=test"
    )
    check_not_trained_on(dataset, "test", **what)
    check_not_trained_on(dataset, split, **what | {"fingerprint": "of other images"})


def test_check_not_trained_on_allows_validation_images_that_were_held_out(npz):
    dataset = subset(npz(["cat", "dog", "owl"])).dataset
    check_not_trained_on(dataset, "validation", fingerprint=dataset.fingerprint, has_validation=True, remedy="")


def test_reload_dataset_of_other_images_makes_no_folds(npz):
    config = {"dataset": npz(["cat", "dog", "owl"]), "folds": 10}
    assert len(subset(config=config).dataset.folds) == 10
    few = npz(["cat", "dog", "owl"], name="others")
    assert subset(few, config=config | {"folds": 20}, split="all").dataset.folds == ()


@pytest.mark.parametrize(
    ("names", "shape", "message"),
    [
        (["cat", "dog", "emu"], (4, 4, 1), "must be the model's 3, in any order: pets lacks owl and has emu besides"),
        (["cat", "dog"], (4, 4, 1), "pets lacks owl; rename"),
        (["cat", "dog", "owl"], (8, 6, 1), "the model takes: 4x4x1, got 8x6x1 of pets; try image_size=4,4"),
        (["cat", "dog", "owl"], (4, 4, 3), "got 4x4x3 of pets; convert the images to 1 channel"),
    ],
)
def test_build_subset_with_other_classes_or_shape_raises(npz, names, shape, message):
    with pytest.raises(UsageError, match=message):
        subset(npz(names, shape=shape))
