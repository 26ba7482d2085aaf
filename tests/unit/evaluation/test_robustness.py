"""Evaluation of a model on clean and corrupted images."""

import numpy as np
import pytest

from pipeline.config.training import DataConfig
from pipeline.data.dataset import load_dataset
from pipeline.evaluation import robustness
from pipeline.evaluation.corruptions import CORRUPTIONS
from pipeline.evaluation.robustness import evaluate_robustness


@pytest.fixture(scope="module")
def split():
    return load_dataset(DataConfig(dataset="digits"), seed=0).test


@pytest.fixture(scope="module")
def predict(split):
    """A model that knows the clean images and predicts 0 for every other one, each with a probability of 3/4."""
    images, labels = split.take(np.arange(len(split)))
    known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}

    def predict(batch):
        classes = np.array([known.get(image.tobytes(), 0) for image in batch])
        return np.where(np.eye(10)[classes] == 1, 0.75, 0.25 / 9).astype(np.float32)

    return predict


CLASSES = tuple("0123456789")


def labels_of(split):
    return split.labels[split.rows]


def test_evaluate_robustness_measures_clean_images_and_every_corruption_at_every_strength(split, predict):
    lines = []
    result = evaluate_robustness(
        predict, split, labels_of(split), classes=CLASSES, corrupted_images=None, report=lines.append
    )
    assert result.metrics["accuracy"] == 1
    assert result.metrics["ece"] == pytest.approx(0.25) and result.metrics["mean_confidence"] == pytest.approx(0.75)
    assert result.metrics["nll"] == pytest.approx(-np.log(0.75))
    assert result.metrics["brier_score"] == pytest.approx(0.25**2 + 9 * (0.25 / 9) ** 2)
    clean, *corrupted = result.corruptions.itertuples(index=False, name=None)
    assert clean == ("none", 0, 1.0)
    assert [row[:2] for row in corrupted] == [(name, strength) for name in CORRUPTIONS for strength in (1, 2, 3)]
    zeros = np.mean(labels_of(split) == 0)
    assert result.metrics["mean_corruption_accuracy"] == pytest.approx(np.mean([row[2] for row in corrupted]))
    assert corrupted[2][2] == pytest.approx(zeros), "noise leaves no image as it was"
    assert len(lines) == len(corrupted) and "gaussian_noise    strength 3: accuracy " in lines[2]
    assert result.probabilities.shape == (len(split), 10)
    assert result.examples.shape == (len(CORRUPTIONS), 4, 8, 8, 1)
    assert result.reliability["images"].sum() == len(result.predictions) == result.confusion.trace() == len(split)


def test_evaluate_robustness_of_some_images_compares_them_with_themselves_clean(split, predict, monkeypatch):
    monkeypatch.setattr(robustness, "VALUES", 64 * 5)  # five images at a time
    batch_sizes = []

    def count_and_predict(batch):
        batch_sizes.append(len(batch))
        return predict(batch)

    labels = labels_of(split).copy()
    labels[:90] = (labels[:90] + 1) % 10  # the first half is wrong
    result = evaluate_robustness(
        count_and_predict, split, labels, classes=CLASSES, corrupted_images=12, report=lambda line: None
    )
    assert max(batch_sizes) == 5
    assert sum(batch_sizes) == len(split) + 12 * 3 * len(CORRUPTIONS)
    assert result.corruptions["accuracy"].iloc[0] == 0.5, "the images are evenly chosen"
    assert result.metrics["accuracy"] == pytest.approx(1 - 90 / len(split))
