"""Which images a temperature may be fitted on."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.commands.evaluate_calibration import fit_on_validation, validation_data
from pipeline.config.commands import EvaluateConfig
from pipeline.config.training import DataConfig, TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.tracking.query import TrainingRun


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(dataset="digits"), seed=0)


def trained(fingerprint, **settings):
    config = TrainingConfig.build({"dataset": "digits", **settings})
    return TrainingRun(SimpleNamespace(), config, fingerprint)


def test_validation_data_are_the_runs_own_also_where_other_images_are_evaluated(digits, tmp_path):
    run = trained(digits.fingerprint)
    assert validation_data(run, digits, EvaluateConfig.build({})) is digits
    images, labels = np.zeros((40, 8, 8, 1), np.uint8), np.arange(40) % 10
    np.savez(tmp_path / "other.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    other = load_dataset(DataConfig(dataset=str(tmp_path / "other.npz")), seed=0)
    found = validation_data(run, other, EvaluateConfig.build({"dataset": str(tmp_path / "other.npz")}))
    assert found.fingerprint == digits.fingerprint and len(found.validation) == len(digits.validation)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"refit": True}, "the model was trained on the validation images too"),
        ({"folds": 3}, "the model was trained on the validation images too"),
        ({}, "digits is not as it was when the run was trained on it"),
    ],
)
def test_validation_data_that_the_model_may_have_been_trained_on_are_none(digits, settings, reason):
    assert validation_data(trained("f00d", **settings), digits, EvaluateConfig.build({})) == reason


def test_fit_on_validation_of_images_that_are_all_right_has_no_temperature(digits):
    labels = digits.validation.labels[digits.validation.rows]
    answers = {
        "right": (0.9 * np.eye(10)[labels] + 0.01, "the best one lies beyond 0.1 and 100, as the model is right about"),
        "half right": (0.9 * np.eye(10)[np.where(np.arange(len(labels)) % 2, labels, 0)] + 0.01, None),
    }
    for probabilities, expected in answers.values():
        model = SimpleNamespace(
            predict_proba=lambda images, found=probabilities: found, classes=digits.classes, image_shape=(8, 8, 1)
        )
        found = fit_on_validation(model, digits)
        if expected:
            assert found.startswith(expected) and "100.0 % of 162 validation images" in found
        else:
            assert 0.1 < found.value < 100 and found.images is digits


def test_validation_data_that_are_gone_are_none(digits):
    run = trained(digits.fingerprint, dataset="/no/such/folder")
    reason = validation_data(run, digits, EvaluateConfig.build({"dataset": "digits"}))
    assert reason.startswith("the run's own data cannot be read: dataset must be digits, ")
