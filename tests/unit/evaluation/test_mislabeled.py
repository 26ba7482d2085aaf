"""Confident learning: images whose label is probably wrong."""

import numpy as np
import pytest

from pipeline.config.training import DataConfig
from pipeline.data.dataset import load_dataset
from pipeline.evaluation.mislabeled import class_thresholds, find_label_errors, label_errors_table

# Computed by hand. Thresholds: a (0.9 + 0.7 + 0.2) / 3 = 0.6, b (0.8 + 0.4 + 0.45) / 3 = 0.55, c 0.3.
PROBABILITIES = np.array(
    [
        [0.9, 0.05, 0.05],  # a: on the diagonal
        [0.7, 0.2, 0.1],
        [0.2, 0.6, 0.2],  # a: b reaches its threshold
        [0.1, 0.8, 0.1],  # b: on the diagonal
        [0.5, 0.4, 0.1],  # b: a is more probable, but does not reach its threshold, and neither does b
        [0.05, 0.45, 0.5],  # b: c reaches its threshold
        [0.65, 0.05, 0.3],  # c: a and c reach theirs, a is more probable
    ]
)
LABELS = np.array([0, 0, 0, 1, 1, 1, 2])


def test_class_thresholds_are_the_mean_probability_of_the_images_with_the_label() -> None:
    assert class_thresholds(PROBABILITIES, LABELS) == pytest.approx([0.6, 0.55, 0.3])
    assert class_thresholds(PROBABILITIES, np.array([0, 0, 0, 1, 1, 1, 1]))[2] == np.inf


def test_find_label_errors_are_those_off_the_diagonal_of_the_confident_joint_by_margin() -> None:
    errors = find_label_errors(PROBABILITIES, LABELS)
    # margins: 0.2 - 0.6 = -0.4, 0.45 - 0.5 = -0.05, 0.3 - 0.65 = -0.35
    assert errors.positions.tolist() == [2, 6, 5]
    assert errors.given.tolist() == [0, 2, 1] and errors.suggested.tolist() == [1, 0, 2]


def test_find_label_errors_leaves_out_an_image_whose_label_is_the_most_probable_class() -> None:
    # the last image's label does not reach its threshold of 0.75, and the other class does reach its own of 0.3
    probabilities = np.array([[0.3, 0.7], [0.05, 0.95], [0.45, 0.55]])
    assert class_thresholds(probabilities, np.array([0, 1, 1])) == pytest.approx([0.3, 0.75])
    assert find_label_errors(probabilities, np.array([0, 1, 1])).positions.tolist() == []


def test_find_label_errors_suggests_no_class_that_is_less_probable_than_the_label() -> None:
    # of the first image b alone reaches its threshold, of 0.2; its label is more probable, and c the most probable
    probabilities = np.array([[0.35, 0.25, 0.40], [0.99, 0, 0.01], [0.5, 0.2, 0.3], [0, 0.05, 0.95]])
    assert class_thresholds(probabilities, np.array([0, 0, 1, 2])) == pytest.approx([0.67, 0.2, 0.95])
    assert find_label_errors(probabilities, np.array([0, 0, 1, 2])).positions.tolist() == []


def test_label_errors_table_names_files_and_classes_in_the_order_of_their_rank() -> None:
    table = label_errors_table(
        find_label_errors(PROBABILITIES, LABELS),
        PROBABILITIES,
        images=np.array([bytes([number]) * 16 for number in range(1, 8)], "S16"),
        files=[f"{number}.png" for number in range(7)],
        classes=("ant", "bee", "cow"),
    )
    assert table["rank"].tolist() == [1, 2, 3] and table["file"].tolist() == ["2.png", "6.png", "5.png"]
    assert table["image"].tolist() == ["03" * 8, "07" * 8, "06" * 8]
    assert table[["class", "suggested_class"]].to_numpy().tolist() == [["ant", "bee"], ["cow", "ant"], ["bee", "cow"]]
    assert table["probability_of_class"].tolist() == [0.2, 0.3, 0.45]
    assert table["probability_of_suggested_class"].tolist() == [0.6, 0.65, 0.5]


def test_find_label_errors_finds_flipped_labels_of_digits_far_above_chance() -> None:
    dataset = load_dataset(DataConfig(dataset="digits", folds=5), seed=0)
    images, true = dataset.out_of_fold.take(slice(None))
    random = np.random.default_rng(0)
    flipped = random.permutation(len(true))[: len(true) // 20]  # 5 %
    labels = true.copy()
    labels[flipped] = (labels[flipped] + random.integers(1, 10, len(flipped))) % 10
    errors = find_label_errors(out_of_fold_by_neighbors(images, labels, dataset), labels)
    found = np.isin(errors.positions, flipped)
    assert found.mean() > 0.9, "precision; by chance it is 0.05"
    assert found.sum() > 0.7 * len(flipped), "recall"
    assert (errors.suggested == true[errors.positions])[found].mean() > 0.95
    # the first ones are the surest
    assert found[: len(flipped) // 2].all()


def out_of_fold_by_neighbors(images, labels, dataset):
    """Return the share of each class among the 10 nearest images of the other folds, (n, classes)."""
    rows = dataset.out_of_fold.rows
    pixels = images.reshape(len(images), -1).astype(float)
    distances = (pixels**2).sum(1)[:, None] + (pixels**2).sum(1) - 2 * pixels @ pixels.T
    for fold in dataset.folds:
        inside = np.isin(rows, fold.rows)
        distances[np.ix_(inside, inside)] = np.inf
    nearest = labels[np.argsort(distances, axis=1)[:, :10]]
    return np.stack([(nearest == label).mean(axis=1) for label in range(10)], axis=1)
