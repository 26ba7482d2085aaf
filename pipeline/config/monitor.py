"""The metrics of validation that trainings are judged by: which way each is better, and how it is written."""

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias, cast

from pipeline.runtime.text import format_metric

Direction: TypeAlias = Literal["maximize", "minimize"]
Monitor: TypeAlias = Literal["val_accuracy", "val_loss", "val_balanced_accuracy", "val_macro_f1"]
DIRECTIONS: Final[Mapping[str, Direction]] = {
    "val_accuracy": "maximize",
    "val_loss": "minimize",
    "val_balanced_accuracy": "maximize",
    "val_macro_f1": "maximize",
}
# they count each class alike, however many images it has
OF_CLASSES: Final[tuple[Monitor, ...]] = ("val_balanced_accuracy", "val_macro_f1")
# of a whole run: on the test images, and on the validation images at its best epoch
ResultMetric: TypeAlias = Literal[
    "test_accuracy",
    "best_val_accuracy",
    "test_loss",
    "best_val_loss",
    "test_balanced_accuracy",
    "best_val_balanced_accuracy",
    "test_macro_f1",
    "best_val_macro_f1",
]
PREFIXES = {"best_val_": "best validation ", "val_": "validation ", "test_": "test "}


def monitor_of(metric: str) -> Monitor:
    """Return the metric of validation that a result corresponds to: val_loss to test_loss and best_val_loss."""
    prefix = next(prefix for prefix in PREFIXES if metric.startswith(prefix))
    return cast(Monitor, f"val_{metric.removeprefix(prefix)}")


def sign(metric: str) -> int:
    """Return the factor, 1 or -1, that makes the best value of a metric, of validation or a result, the largest."""
    return 1 if DIRECTIONS[monitor_of(metric)] == "maximize" else -1


def metric_words(metric: str) -> str:
    """Return what a text calls a metric: `validation balanced accuracy`, `test macro F1`."""
    prefix = next((prefix for prefix in PREFIXES if metric.startswith(prefix)), "")
    return PREFIXES.get(prefix, "") + metric.removeprefix(prefix).replace("_", " ").replace("f1", "F1")


def describe_test(monitor: Monitor, results: Mapping[str, float]) -> str:
    """Return what a model reached on the test images by a metric, and its accuracy: `test accuracy 81.30 %`.

    Standard deviations are shown where the results have them, under a name that ends in `_sd`.
    """
    names = dict.fromkeys((monitor.replace("val_", "test_"), "test_accuracy"))
    known = [(name, results[name], results.get(f"{name}_sd")) for name in names if name in results]
    return ", ".join(f"{metric_words(name)} {format_metric(name, value, sd)}" for name, value, sd in known)
