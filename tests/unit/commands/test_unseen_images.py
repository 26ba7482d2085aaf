"""Images for a trained model: in its size, of its classes, and none that it was trained on."""

from shutil import copytree
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.commands.unseen_images import held_out_split, load_unseen_images
from pipeline.config.training import DataConfig, TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.runtime.errors import UsageError
from pipeline.tracking.query import TrainingRun

DIGITS = [str(digit) for digit in range(10)]
LOGGED = SimpleNamespace(inputs=None)  # as MLflow returns a run below the one that has logged the data


@pytest.fixture(scope="module")
def fingerprint():
    return load_dataset(DataConfig(dataset="digits"), seed=0).fingerprint


def load(fingerprint, *, dataset=None, split="validation", metadata=None, splits=None, **settings):
    config = TrainingConfig.build({"dataset": "digits", **settings})
    run = TrainingRun(LOGGED, config, fingerprint, splits or {})
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
    run = TrainingRun(LOGGED, TrainingConfig.build({"dataset": folder}), before.fingerprint, digests(before))
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
    run = TrainingRun(LOGGED, TrainingConfig.build({"dataset": folder}), before.fingerprint, digests(before))
    loaded = load_unseen_images(run, metadata, dataset=None, split_name="test", remedy="others")
    assert loaded.test.digest == before.test.digest and loaded.fingerprint != before.fingerprint
    with pytest.raises(UsageError, match="got the validation images of pets, its training data, which have changed"):
        load_unseen_images(run, metadata, dataset=None, split_name="validation", remedy="others")


def trained_on(folder, **settings):
    """Return the run of a model that was trained on a folder as it is now."""
    config = TrainingConfig.build({"dataset": folder, **settings})
    data = load_dataset(config.data, seed=0)
    return TrainingRun(LOGGED, config, data.fingerprint, digests(data))


def evaluate(run, dataset, metadata, split="all"):
    return load_unseen_images(run, metadata, dataset=dataset, split_name=split, remedy="others")


def test_data_that_have_changed_are_refused_through_a_link_too(pets, tmp_path):
    folder, metadata, add = pets
    run = trained_on(folder)
    add("train", "cat", 50)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UsageError, match="got all images of link, its training data, which have changed since"):
        evaluate(run, str(tmp_path / "link"), metadata)


@pytest.fixture
def split_pets(pets):
    """The same with test and validation images besides, three of each class."""
    folder, metadata, add = pets
    for value in range(3):
        for part, start in (("test", 60), ("val", 70)):
            add(part, "cat", start + value)
            add(part, "dog", start + value + 100)
    return folder, metadata, add


@pytest.mark.parametrize(
    ("part", "settings", "refused"),
    [
        ("train", {}, "got 40 of 40 different images of pets that it was trained on, such as cat/0.png; remove these,"),
        ("val", {}, None),
        ("val", {"refit": True}, "got 6 of 6 different images of val that it was trained on, such as cat/70.png; "),
        ("val", {"folds": 3}, "got 6 of 6 different images of val that it was trained on, such as cat/70.png; "),
        ("test", {"refit": True}, None),
        ("test", {"folds": 3}, None),
    ],
)
def test_a_folder_of_one_split_is_refused_if_the_model_was_trained_on_it(split_pets, part, settings, refused):
    folder, metadata, _ = split_pets
    run = trained_on(folder, **settings)
    if refused is None:
        assert len(evaluate(run, f"{folder}/{part}", metadata).test) == 6
    else:
        with pytest.raises(UsageError, match=refused) as refusal:
            evaluate(run, f"{folder}/{part}", metadata)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("part", "refit"), [("test", False), ("test", True), ("val", False)])
def test_a_folder_of_the_images_that_were_held_out_is_taken_though_some_are_among_those_of_the_training(
    split_pets, caplog, part, refit
):
    folder, metadata, add = split_pets
    add("train", "cat", {"test": 60, "val": 70}[part])
    run = trained_on(folder, refit=refit)
    images = evaluate(run, f"{folder}/{part}", metadata)
    assert held_out_split(images, "all", run) == {"test": "test", "val": "validation"}[part]
    assert not caplog.records


@pytest.mark.parametrize("settings", [{"refit": True}, {"folds": 3}])
def test_validation_images_that_a_search_logged_are_not_held_out_of_a_model_that_was_trained_on_them(
    split_pets, settings
):
    folder, metadata, _ = split_pets
    searched = trained_on(folder)
    run = searched._replace(config=TrainingConfig.build({"dataset": folder, **settings}))
    with pytest.raises(UsageError, match="got 6 of 6 different images of val that it was trained on"):
        evaluate(run, f"{folder}/val", metadata)


def test_the_splits_of_a_run_that_logged_only_the_fingerprint_of_its_data_are_held_out(fingerprint):
    digits = load_dataset(DataConfig(dataset="digits"), seed=0)
    run = TrainingRun(LOGGED, TrainingConfig.build({"dataset": "digits"}), fingerprint)
    found = {split: held_out_split(digits, split, run) for split in ("test", "validation", "all")}
    assert found == {"test": "test", "validation": "validation", "all": None}


def test_images_of_the_training_among_others_are_refused_and_those_that_train_examples_left_out_taken(pets, tmp_path):
    folder, metadata, _ = pets
    run = trained_on(folder, train_examples=2)
    used = load_dataset(run.config.data, seed=0).train.file_names()
    others = tmp_path / "others"
    copytree(folder, others)
    Image.fromarray(np.full((8, 8), 50, np.uint8)).save(others / "train" / "cat" / "new.png")
    first = used[0].removeprefix("train/")
    with pytest.raises(UsageError, match=f"got 2 of 41 different images of others .* such as {first}; remove these"):
        evaluate(run, str(others / "train"), metadata)
    for name in used:
        (others / name).unlink()
    assert len(evaluate(run, str(others / "train"), metadata).test) == 39


def test_a_copy_of_the_data_has_the_test_images_that_were_held_out(pets, tmp_path, caplog):
    folder, metadata, add = pets
    for value in range(20):
        add("train", "cat/copies", value)
    run = trained_on(folder, validation_fraction=0.4)
    assert load_dataset(run.config.data, seed=0).duplicates > 10, "images of two files are in two splits"
    copytree(folder, tmp_path / "copy")
    assert len(evaluate(run, str(tmp_path / "copy"), metadata, split="test").test) == 24
    assert not caplog.records


@pytest.fixture
def noise(tmp_path):
    """A function that writes an .npz file of 200 different images, the first ones of which are of given pixels."""

    def write(name, first):
        images = np.random.default_rng(len(name)).integers(0, 256, (200, 8, 8, 1), np.uint8)
        images[: len(first)] = first
        labels = np.arange(200) % 10
        np.savez(
            tmp_path / f"{name}.npz",
            x_train=images[:100],
            y_train=labels[:100],
            x_test=images[100:],
            y_test=labels[100:],
        )
        return str(tmp_path / f"{name}.npz")

    return write


@pytest.mark.parametrize(("known", "is_refused"), [(2, False), (3, True)])
def test_a_hundredth_of_other_images_may_be_like_some_of_the_training(fingerprint, noise, caplog, known, is_refused):
    digits = load_dataset(DataConfig(dataset="digits"), seed=0)
    path = noise("other", digits.train.take(slice(known))[0])
    what = f"{known} of 200 different images of other"
    if is_refused:
        with pytest.raises(UsageError, match=f"got {what} that it was trained on; remove these, or try a dataset of"):
            load(fingerprint, dataset=path, split="all")
    else:
        assert len(load(fingerprint, dataset=path, split="all").test) == 200
        assert caplog.messages == [f"the model was trained on {what}"]


def test_empty_images_count_once_however_many_there_are(noise, caplog):
    """Of 101 different images one is known, and of all 200 a half."""
    empty = np.zeros((100, 8, 8, 1), np.uint8)
    trained, others = noise("trained", empty), noise("others", empty)
    metadata = {"classes": DIGITS, "image_size": [8, 8]}
    assert evaluate(trained_on(trained), others, metadata).name == "others"
    assert caplog.messages == ["the model was trained on 1 of 101 different images of others"]


def test_images_in_another_shape_than_the_models_are_left_to_the_check_of_the_shape(fingerprint, tmp_path, caplog):
    images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 10
    np.savez(tmp_path / "rgb.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert load(fingerprint, dataset=str(tmp_path / "rgb.npz"), split="all").image_shape == (8, 8, 3)
    assert not caplog.records


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ("/no/such/folder", "they cannot be read: dataset must be digits, "),
        ("digits", "digits is not as it was when the run was trained on it"),
    ],
)
def test_other_images_that_cannot_be_compared_are_taken_with_a_warning(others, caplog, own, reason):
    run = TrainingRun(LOGGED, TrainingConfig.build({"dataset": own}), "f00d")
    assert evaluate(run, others, {"classes": DIGITS, "image_size": [8, 8]}).name == "others"
    (message,) = caplog.messages
    assert message.startswith("whether the model was trained on images of others is not known, as its own data ")
    assert reason in message


def test_images_of_other_classes_than_the_models_are_refused(fingerprint):
    with pytest.raises(UsageError, match="must be the model's 2, in any order: digits has 2, 3"):
        load(fingerprint, metadata={"classes": ["0", "1"]})


def test_images_of_the_training_with_a_misspelt_class_are_refused_for_the_class(pets, tmp_path):
    folder, metadata, _ = pets
    run = trained_on(folder)
    copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "train" / "cat").rename(tmp_path / "copy" / "train" / "cta")
    with pytest.raises(UsageError, match="must be the model's 2, in any order: copy lacks cat and has cta besides"):
        evaluate(run, str(tmp_path / "copy"), metadata)
