"""Loading and splitting data sets."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.config.training import DataConfig
from pipeline.data import dataset
from pipeline.data.dataset import Split, load_dataset
from pipeline.data.decode import resize_to
from pipeline.runtime.errors import UsageError
from tests.support.paths import ROOT

CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10-images.tar.gz"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "convmixer" / "data"


def load(dataset, *, seed=0, **settings):
    config = DataConfig().model_copy(update={"dataset": str(dataset), "validation_fraction": 0.2} | settings)
    return load_dataset(config, seed=seed)


def noise(seed, shape=(6, 5, 3)):  # (h, w, c)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write_image(file, pixels):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def write_folder(root, counts):
    """Folder with `counts[class]` PNG images of noise, all different."""
    for name, count in counts.items():
        for number in range(count):
            write_image(root / name / f"{number:03}.png", noise([number, *f"{root.name}/{name}".encode()]))
    return root


def all_rows(parts):
    return np.concatenate([part.rows for part in parts])


def error_message(*arguments, **settings):
    with pytest.raises(UsageError) as error:
        load(*arguments, **settings)
    message = str(error.value)
    assert message.isprintable()  # one line, whatever the names hold
    return message


def test_load_dataset_puts_every_row_into_one_split_and_every_class_into_each(tmp_path):
    loaded = load(write_folder(tmp_path / "pets", {"cat": 10, "dog": 20}))
    parts = (loaded.train, loaded.validation, loaded.test)
    assert sorted(all_rows(parts)) == list(range(30))
    # test: a fifth of 10 and 20; validation: a fifth of the 24 left, 5, of which 1.67 and 3.33 are due
    assert [np.bincount(part.take(slice(None))[1]).tolist() for part in parts] == [[6, 13], [2, 3], [2, 4]]


def test_splits_share_one_memory_map_and_take_copies(tmp_path):
    loaded = load(write_folder(tmp_path / "pets", {"cat": 5, "dog": 5}))
    assert isinstance(loaded.train.images, np.memmap)
    assert loaded.train.images is loaded.validation.images is loaded.test.images
    images, labels = loaded.train.take(np.array([2, 0, 2]))
    assert (images[0] == images[2]).all() and images.dtype == np.uint8 and labels.dtype == np.int64
    assert not isinstance(images, np.memmap)


def test_load_dataset_of_a_folder_has_the_pixels_and_labels_of_its_files(tmp_path):
    root = write_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    loaded = load(root)
    for number in range(10):
        file = root / ("cat", "dog")[number // 5] / f"{number % 5:03}.png"
        np.testing.assert_array_equal(loaded.train.images[number], np.asarray(Image.open(file)))
    assert loaded.train.labels.tolist() == [0] * 5 + [1] * 5
    assert (loaded.classes, loaded.image_shape) == (("cat", "dog"), (6, 5, 3))
    assert (loaded.name, loaded.source) == ("pets", str(root))


@pytest.mark.parametrize("times", [1, 2])  # decoded, and from the cache
def test_file_names_are_those_of_the_images_in_every_split(tmp_path, times):
    root = tmp_path / "pets"
    write_folder(root / "train", {"cat": 5, "dog/old": 3, "dog": 6})
    write_folder(root / "test", {"cat": 2, "dog": 2})
    for _ in range(times):
        loaded = load(root, train_examples=6)
    for part in (loaded.train, loaded.validation, loaded.test):
        names = part.file_names()
        assert len(names) == len(part) and names[1:2] == part.file_names(np.array([1]))
        for name, image in zip(names, part.take(slice(None))[0], strict=True):
            np.testing.assert_array_equal(image, np.asarray(Image.open(root / name)))
    assert loaded.test.file_names()[0] == "test/cat/000.png"
    assert "train/dog/old/000.png" in Split.file_names(replace(loaded.train, rows=np.arange(14)))


def test_file_names_that_are_not_utf8_are_escaped(tmp_path):
    root = write_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    os.rename(root / "cat" / "000.png", os.fsencode(root) + b"/cat/\xe9.png")
    names = sum((part.file_names() for part in (load(root).train, load(root).validation, load(root).test)), [])
    assert "cat/\\xe9.png" in names and all(name.isprintable() for name in names)


def test_file_names_of_arrays_are_empty():
    assert set(load("digits").test.file_names()) == {""}


def test_split_is_equal_in_another_process_and_differs_for_another_seed(tmp_path):
    root = write_folder(tmp_path / "pets", {"cat": 30, "dog": 20})
    code = (
        "from pipeline.config.training import DataConfig; from pipeline.data.dataset import load_dataset\n"
        "import sys, json; d = load_dataset(DataConfig(dataset=sys.argv[1], validation_fraction=0.2), seed=7)\n"
        "print(json.dumps([d.validation.rows.tolist(), d.validation.digest, d.fingerprint]))"
    )
    other = subprocess.run([sys.executable, "-c", code, root], cwd=ROOT, capture_output=True, check=True)
    here = load(root, seed=7)
    assert json.loads(other.stdout) == [here.validation.rows.tolist(), here.validation.digest, here.fingerprint]
    assert load(root, seed=8).validation.rows.tolist() != here.validation.rows.tolist()
    assert load(root, seed=8).fingerprint == here.fingerprint


def test_split_and_fingerprint_of_the_digits_are_pinned():
    digits = load("digits", validation_fraction=0.1)
    assert digits.validation.rows[:8].tolist() == [15, 21, 32, 55, 62, 66, 69, 88]
    assert (digits.fingerprint, digits.train.digest) == ("c0ff1713149b756f", "1ba2908c3eacc788")
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1455, 162, 180)
    assert digits.image_shape == (8, 8, 1) and digits.train.images.max() == 255


def test_split_digest_depends_on_pixels_labels_and_order(tmp_path):
    images, labels = noise(0, (4, 2, 2, 1)), np.array([0, 1, 0, 1])
    digests = np.array([bytes([i]) * 16 for i in range(1, 5)], "S16")
    files, order = np.zeros(4, "S1"), [2, 0, 1]
    split = Split(images, labels, digests, files, np.array([0, 1]))
    relabelled = Split(images, 1 - labels, digests, files, np.array([0, 1]))
    renumbered = Split(images[1:], labels[1:], digests[1:], files[1:], np.array([0, 1]))
    assert len({split.digest, relabelled.digest, renumbered.digest}) == 3
    assert Split(images[order], labels[order], digests[order], files[order], np.array([1, 2])).digest == split.digest


def test_train_examples_limits_training_images_only_and_keeps_every_class(tmp_path):
    root = write_folder(tmp_path / "pets", {"cat": 40, "dog": 10, "eel": 5})
    whole, cut = load(root), load(root, train_examples=11)
    assert len(cut.train) == 11 and set(cut.train.rows) < set(whole.train.rows)
    assert np.bincount(cut.train.take(slice(None))[1]).min() >= 1
    assert cut.validation.digest == whole.validation.digest and cut.test.digest == whole.test.digest
    assert load(root, train_examples=10**6).train.digest == whole.train.digest
    assert "at least the number of classes: 3" in error_message(root, train_examples=2)


def test_refit_with_train_examples_trains_on_the_images_of_a_training_and_of_its_validation():
    training, refit = (load("digits", refit=refit, train_examples=100) for refit in (False, True))
    assert len(training.train) == 100 and len(refit.validation) == 0
    assert set(refit.train.rows) == set(training.train.rows) | set(training.validation.rows)
    whole = load("digits", refit=True)
    assert refit.test.digest == whole.test.digest and refit.fingerprint == whole.fingerprint
    assert load("digits", refit=True, train_examples=10**6).train.digest == whole.train.digest


@pytest.mark.parametrize(("folds", "images"), [(2, 200), (3, 150), (5, 125), (7, 116)])
def test_train_examples_limits_the_images_of_the_network_of_each_fold(folds, images):
    whole, cut = load("digits", folds=folds), load("digits", folds=folds, train_examples=100)
    # a fold has an image more or less
    sizes = [len(cut.fold(number).train) for number in range(1, folds + 1)]
    assert max(sizes) <= 100 and min(sizes) >= 99 and len(cut.out_of_fold) == images
    assert set(cut.out_of_fold.rows) < set(whole.out_of_fold.rows) and cut.test.digest == whole.test.digest
    everything = load("digits", folds=folds, train_examples=10**6)
    assert [fold.digest for fold in everything.folds] == [fold.digest for fold in whole.folds]


def test_train_examples_leaves_each_fold_an_image_of_each_class(tmp_path):
    root = write_folder(tmp_path / "pets", {"cat": 100, "dog": 10})  # of which 80 and 8 are left for training
    cut = load(root, folds=5, train_examples=16)
    assert [len(fold) for fold in cut.folds] == [4] * 5
    assert [fold.class_sizes(2) for fold in cut.folds] == [[3, 1]] * 5, "in proportion there would be two dogs in all"
    message = error_message(root, folds=5, train_examples=7)
    assert message == (
        f"train_examples must be at least the number of classes times folds - 1, with folds=5: 8 in {root}, got 7; "
        "try 80"
    )
    assert len(load(root, folds=5, train_examples=8).out_of_fold) == 10


def test_folds_take_training_and_validation_images_together_and_leave_the_test_images(tmp_path):
    root = write_folder(tmp_path / "pets", {"cat": 20, "dog": 10})
    whole, split = load(root), load(root, folds=3)
    assert whole.folds == () and split.test.digest == whole.test.digest and split.fingerprint == whole.fingerprint
    together = sorted(all_rows([whole.train, whole.validation]))
    assert sorted(all_rows(split.folds)) == split.out_of_fold.rows.tolist() == together
    for number in (1, 2, 3):
        fold = split.fold(number)
        assert fold.validation is split.folds[number - 1]
        assert sorted(all_rows([fold.train, fold.validation])) == together
    # settings are checked against the smallest training split
    assert split.train.rows.tolist() == split.fold(1).train.rows.tolist()
    assert len(split.train) == min(len(split.fold(number).train) for number in (1, 2, 3))
    assert "got folds=9, and dog has 8" in error_message(root, folds=9)


def test_duplicates_in_another_fold_count(tmp_path):
    root = write_folder(tmp_path / "pets", {"cat": 8, "dog": 8})
    for number in range(8):
        write_image(root / "cat" / f"copy-{number}.png", noise([number, *b"pets/cat"]))
    split = load(root, folds=6)
    in_folds = [fold.image_digests[fold.rows].tolist() for fold in split.folds]
    tested = set(split.test.image_digests[split.test.rows].tolist())
    expected = sum(digest in sum(in_folds[:index], []) for index, own in enumerate(in_folds) for digest in own)
    in_test = sum(digest in sum(in_folds, []) for digest in tested)
    assert split.duplicates == expected + in_test > 3


def test_given_splits_are_kept_and_missing_ones_are_split_off(tmp_path):
    write_folder(tmp_path / "pets" / "train", {"cat": 10, "dog": 10})
    write_folder(tmp_path / "pets" / "test", {"cat": 2, "dog": 3})
    two = load(tmp_path / "pets")
    assert (len(two.train), len(two.validation), two.test.rows.tolist()) == (16, 4, [20, 21, 22, 23, 24])
    write_folder(tmp_path / "pets" / "VAL", {"cat": 1, "dog": 1})
    three = load(tmp_path / "pets")
    assert (len(three.train), three.validation.rows.tolist(), len(three.test)) == (20, [20, 21], 5)


def test_refit_joins_validation_to_training_also_where_the_data_has_both(tmp_path):
    write_folder(tmp_path / "pets" / "train", {"cat": 10, "dog": 10})
    write_folder(tmp_path / "pets" / "val", {"cat": 2, "dog": 3})
    for root in (tmp_path / "pets", "digits"):
        apart, joined = load(root), load(root, refit=True)
        assert joined.train.rows.tolist() == sorted([*apart.train.rows, *apart.validation.rows])
        assert len(joined.validation) == 0 and joined.test.digest == apart.test.digest
        assert joined.fingerprint == apart.fingerprint


def test_refit_counts_no_duplicates_between_training_and_validation(tmp_path):
    for part, numbers in (("train", [0, 1, 2]), ("val", [0, 5]), ("test", [5, 9])):
        for number in numbers:
            write_image(tmp_path / "pets" / part / "cat" / f"{number}.png", noise(number))
            write_image(tmp_path / "pets" / part / "dog" / f"{number}.png", noise([number, len(part)]))
    assert (load(tmp_path / "pets").duplicates, load(tmp_path / "pets", refit=True).duplicates) == (2, 1)


def test_load_dataset_with_too_small_class_raises_with_its_name(tmp_path):
    message = error_message(write_folder(tmp_path / "pets", {"cat": 9, "dog": 2}))
    assert "every class needs 3 training images or more" in message and "dog has 2" in message
    smallest = load(write_folder(tmp_path / "more", {"cat": 3, "dog": 3}), validation_fraction=0.01)
    assert [len(part) for part in (smallest.train, smallest.validation, smallest.test)] == [2, 2, 2]


def test_images_that_are_not_split_are_all_test_images_with_one_of_a_class_and_splits_of_the_source(tmp_path):
    write_folder(tmp_path / "pets" / "train", {"cat": 1, "dog": 2})
    write_folder(tmp_path / "pets" / "val", {"cat": 2, "dog": 1})
    loaded = load_dataset(DataConfig(dataset=str(tmp_path / "pets")), seed=0, split=False)
    assert (len(loaded.train), len(loaded.validation), loaded.test.rows.tolist()) == (0, 0, [0, 1, 2, 3, 4, 5])
    assert loaded.duplicates == 0 and loaded.test.class_sizes(2) == [3, 3]


def test_large_validation_fraction_leaves_training_one_image_of_each_class(tmp_path):
    loaded = load(write_folder(tmp_path / "pets", {"cat": 5, "dog": 3}), validation_fraction=0.99)
    assert np.bincount(loaded.train.take(slice(None))[1]).tolist() == [1, 1]
    with pytest.raises(UsageError, match="validation_fraction must be a number above 0 to below 1, got 1"):
        DataConfig.build({"validation_fraction": 1.0})


def test_duplicates_count_images_that_are_also_in_an_earlier_split(tmp_path):
    for part in ("train", "val", "test"):
        write_folder(tmp_path / "pets" / part, {"cat": 3, "dog": 3})
    assert load(tmp_path / "pets").duplicates == 0
    twice = noise(1234)
    for file in ("train/cat/a.png", "train/cat/b.png", "val/cat/a.png", "test/cat/a.png", "test/dog/b.png"):
        write_image(tmp_path / "pets" / file, twice)
    assert load(tmp_path / "pets").duplicates == 3  # one in val, two in test; two within train are no leak


@pytest.mark.parametrize(
    ("files", "count"),
    [
        (["train/cat/a.png", "val/cat/a.png"], 1),
        (["train/cat/a.png", "test/cat/a.png"], 1),
        (["val/cat/a.png", "test/dog/a.png"], 1),
        (["val/cat/a.png", "val/cat/b.png"], 0),
    ],
)
def test_duplicates_count_each_pair_of_splits(tmp_path, files, count):
    for part in ("train", "val", "test"):
        write_folder(tmp_path / "pets" / part, {"cat": 3, "dog": 3})
    for file in files:
        write_image(tmp_path / "pets" / file, noise(1234))
    assert load(tmp_path / "pets").duplicates == count


def test_load_dataset_with_another_version_of_pillow_decodes_again(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    load(root)
    monkeypatch.setattr(dataset.PIL, "__version__", "1.2.3")
    monkeypatch.setattr(dataset, "read_images", lambda *_, **__: pytest.fail("as it must"))
    with pytest.raises(pytest.fail.Exception, match="as it must"):
        load(root)


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_load_dataset_resizes_as_told_whatever_is_cached_already(tmp_path, kind):
    root = write_folder(tmp_path / "pets", {"cat": 5, "dog": 5})  # 6 x 5 pixels
    if kind == "npz":
        images = load(root).train.images
        root = tmp_path / "pets.npz"
        np.savez(root, x_train=images, y_train=np.arange(10) % 2, x_test=images[:2], y_test=[0, 1])
    originals = load(root).train.images
    fingerprints = set()
    for resize in ("stretch", "crop", "pad", "crop"):
        loaded = load(root, image_size=(4, 4), resize=resize)
        expected = [resize_to(Image.fromarray(image), (4, 4, 3), resize) for image in originals]
        np.testing.assert_array_equal(loaded.train.images, expected)
        fingerprints.add(loaded.fingerprint)
    assert len(fingerprints) == 3


def test_load_dataset_of_an_npz_file_that_was_overwritten_reads_it_again(tmp_path):
    file = tmp_path / "pets.npz"
    for number in range(2):  # files of the same size
        np.savez(
            file,
            x_train=noise(number, (20, 4, 4)),
            y_train=np.arange(20) % 2,
            x_test=noise(2, (2, 4, 4)),
            y_test=[0, 1],
        )
        os.utime(file, ns=(number, number))
        np.testing.assert_array_equal(load(file).train.images[:20, :, :, 0], noise(number, (20, 4, 4)))


def test_load_dataset_after_a_file_changed_reads_it_again(tmp_path):
    root = write_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    before = load(root)
    write_image(root / "cat" / "000.png", noise(99))
    after = load(root)
    assert before.fingerprint != after.fingerprint
    np.testing.assert_array_equal(after.train.images[0], noise(99))


def test_load_dataset_the_second_time_opens_no_image(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    fingerprint = load(root).fingerprint
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image was opened"))
    assert load(root).fingerprint == fingerprint


def test_dataset_path_may_be_relative_or_start_with_a_tilde(tmp_path, monkeypatch):
    write_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("pets").source == load("~/pets").source == load("./x/../pets").source == str(tmp_path / "pets")


@pytest.mark.parametrize("folder", ["images/train", "Data", "dataset/imgs"])
def test_dataset_name_is_the_last_part_of_the_path_that_is_not_generic(tmp_path, folder):
    assert load(write_folder(tmp_path / "pets" / folder, {"cat": 5, "dog": 5})).name == "pets"


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("cifr10", "did you mean cifar10?"),
        ("MNIST", "did you mean mnist?"),
        ("", "got nothing"),
        ("no/such\nfolder", r"got no/such\nfolder"),
        (__file__, "extract an archive first"),
    ],
)
def test_load_dataset_of_an_unknown_name_raises_one_line_with_a_suggestion(dataset, words):
    message = error_message(dataset)
    assert words in message and message.startswith("dataset must be digits, cifar10, cifar100, mnist, fashion_mnist,")


def test_load_dataset_of_bad_data_raises_before_any_heavy_import(tmp_path):
    code = (
        "import sys; from pipeline.config.training import DataConfig; from pipeline.data.dataset import load_dataset\n"
        "from pipeline.runtime.errors import UsageError\n"
        "try: load_dataset(DataConfig(dataset=sys.argv[1]), seed=0)\n"
        "except UsageError as error: print(error)\n"
        "print(sorted({'tensorflow', 'keras', 'mlflow', 'pandas', 'matplotlib', 'sklearn'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    message, imported = done.stdout.splitlines()
    assert message.startswith("at least two class folders") and imported == "[]" and done.stderr == ""


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.exists(), reason=f"{CIFAR10} is not there")
def test_load_dataset_of_sixty_thousand_files_decodes_once(tmp_path, monkeypatch):
    subprocess.run(["tar", "xzf", CIFAR10, "-C", tmp_path], check=True)
    first = load(tmp_path, validation_fraction=0.1)
    monkeypatch.setattr(dataset, "read_images", None)  # decoding again would fail
    again = load(tmp_path, validation_fraction=0.1)
    assert (len(first.train), len(first.validation), len(first.test)) == (45_000, 5_000, 10_000)
    assert first.fingerprint == again.fingerprint == "b43e992cf1d9cc56"
