"""The metrics that trainings are judged by."""

from typing import get_args

from pipeline.config.monitor import DIRECTIONS, Monitor, metric_words, sign
from pipeline.config.training import TrainingConfig


def test_every_metric_that_can_be_monitored_has_a_direction():
    assert list(DIRECTIONS) == list(get_args(Monitor))
    assert [sign(metric) for metric in DIRECTIONS] == [1, -1, 1, 1]
    assert TrainingConfig().monitor == "val_accuracy"


def test_metric_words_name_the_images_and_the_metric():
    assert metric_words("val_balanced_accuracy") == "validation balanced accuracy"
    assert metric_words("best_val_macro_f1") == "best validation macro F1"
    assert metric_words("test_loss") == "test loss" and metric_words("parameters") == "parameters"
