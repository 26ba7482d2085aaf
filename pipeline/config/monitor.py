"""The metrics of validation that trainings are judged by: which way each is better, and how it is written."""

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

Direction: TypeAlias = Literal["maximize", "minimize"]
Monitor: TypeAlias = Literal["val_accuracy", "val_loss", "val_balanced_accuracy", "val_macro_f1"]
DIRECTIONS: Final[Mapping[Monitor, Direction]] = {
    "val_accuracy": "maximize",
    "val_loss": "minimize",
    "val_balanced_accuracy": "maximize",
    "val_macro_f1": "maximize",
}
PREFIXES = {"best_val_": "best validation ", "val_": "validation ", "test_": "test "}


def sign(metric: Monitor) -> int:
    """Return the factor, 1 or -1, that makes the best value of a metric the largest."""
    return 1 if DIRECTIONS[metric] == "maximize" else -1


def metric_words(metric: str) -> str:
    """Return what a text calls a metric: `validation balanced accuracy`, `test macro F1`."""
    prefix = next((prefix for prefix in PREFIXES if metric.startswith(prefix)), "")
    return PREFIXES.get(prefix, "") + metric.removeprefix(prefix).replace("_", " ").replace("f1", "F1")
