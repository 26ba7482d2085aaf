"""What an evaluation measures, of a model that is a rule of a line."""

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
    """Knows the clean images by heart, and takes every other image for a 0, both with three quarters of certainty."""
    images, labels = split.take(np.arange(len(split)))
    known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}

    def predict(batch):
        found = np.array([known.get(image.tobytes(), 0) for image in batch])
        return np.where(np.eye(10)[found] == 1, 0.75, 0.25 / 9).astype(np.float32)

    return predict


def labels_of(split):
    return split.labels[split.rows]


def test_figures_are_of_clean_images_and_every_corruption_has_every_strength(split, predict):
    lines = []
    found = evaluate_robustness(predict, split, labels_of(split), corrupted_images=None, report=lines.append)
    assert found.metrics["accuracy"] == 1
    assert found.metrics["ece"] == pytest.approx(0.25) and found.metrics["mean_confidence"] == pytest.approx(0.75)
    assert found.metrics["nll"] == pytest.approx(-np.log(0.75))
    assert found.metrics["brier_score"] == pytest.approx(0.25**2 + 9 * (0.25 / 9) ** 2)
    clean, *spoilt = found.corruptions.itertuples(index=False, name=None)
    assert clean == ("none", 0, 1.0)
    assert [row[:2] for row in spoilt] == [(name, strength) for name in CORRUPTIONS for strength in (1, 2, 3)]
    zeros = np.mean(labels_of(split) == 0)
    assert found.metrics["mean_corruption_accuracy"] == pytest.approx(np.mean([row[2] for row in spoilt]))
    assert spoilt[2][2] == pytest.approx(zeros), "noise leaves no image as it was"
    assert len(lines) == len(spoilt) and "gaussian_noise    strength 3: accuracy " in lines[2]
    assert found.examples.shape == (len(CORRUPTIONS), 4, 8, 8, 1)
    assert found.reliability["images"].sum() == len(found.predictions) == found.confusion.trace() == len(split)


def test_some_of_the_images_are_corrupted_and_the_clean_accuracy_beside_is_theirs(split, predict, monkeypatch):
    monkeypatch.setattr(robustness, "VALUES", 64 * 5)  # five images at a time
    seen = []

    def noted(batch):
        seen.append(len(batch))
        return predict(batch)

    labels = labels_of(split).copy()
    labels[:90] = (labels[:90] + 1) % 10  # the first half is taken wrongly
    found = evaluate_robustness(noted, split, labels, corrupted_images=12, report=lambda line: None)
    assert max(seen) == 5
    assert sum(seen) == len(split) + 12 * 3 * len(CORRUPTIONS)
    assert found.corruptions["accuracy"].iloc[0] == 0.5, "evenly chosen"
    assert found.metrics["accuracy"] == pytest.approx(1 - 90 / len(split))
