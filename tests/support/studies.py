"""Tables of trials as a search leaves them, made up without one."""

from typing import Any

import numpy as np
import pandas as pd

from pipeline.evaluation.figures.axis_scale import SettingRange

# of the settings that `make_study` draws on a logarithmic scale
LOG = {name: SettingRange(None, log=True) for name in ("learning_rate", "weight_decay")}
STATES = ["complete", "pruned", "failed", "infeasible", "duplicate"]


def make_study(trials: int, *, every_kind: bool = False) -> tuple[pd.DataFrame, dict[int, list[float]]]:
    """Make a table of trials, the first complete, and their curves.

    Args:
        trials: Their number, and the seed.
        every_kind: Add six settings of other kinds.
    """
    random = np.random.default_rng(trials)
    rows, curves = [], {}
    for number in range(trials):
        state = random.choice(STATES, p=[0.6, 0.25, 0.07, 0.04, 0.04]) if number else "complete"
        kernel_size, patch_size, depth = random.choice([3, 5, 7, 9]), random.choice([1, 2, 4]), random.integers(4, 13)
        rate = 10 ** random.uniform(-4, -1.5)
        end = 0.85 - 0.2 / (kernel_size - 1) - 0.2 / depth - 0.06 * (np.log10(rate) + 2.8) ** 2
        curve = end - (end - 0.1) * np.exp(-np.arange(1, 21) / 5) + random.normal(0, 0.01, 20)
        epochs = {"complete": 20, "pruned": random.integers(3, 12), "failed": 5}.get(state, 0)
        if epochs:
            curves[number] = [*curve[:epochs]]
        if state == "failed":
            curves[number][-1] = np.nan
        row = {
            "number": number,
            "state": state,
            "value": {"complete": curve.max(), "pruned": curve[:epochs].max(initial=0), "duplicate": end}.get(state),
            "params.kernel_size": kernel_size,
            "params.patch_size": patch_size,
            "params.depth": depth,
            "params.learning_rate": rate,
            "parameters": 256 * depth * (kernel_size**2 + 260) + 768 * patch_size**2 + 2570,
            "seconds": 3.0 * epochs,
            "epochs": epochs,
        }
        if every_kind:
            row |= {
                "params.optimizer": random.choice(["adamw", "sgd", "lion"]),
                "params.flip": bool(random.random() < 0.5),
                "params.clip_norm": random.choice([None, 0.5, 1.0]),
                "params.weight_decay": 10 ** random.uniform(-6, -2),
                "params.augmentation_strength_of_random_erasing": random.uniform(0, 0.5),
                "params.schedule": random.choice(["constant", "cosine with a warm-up and 3 restarts, 50 $ \\ & % _^{"]),
            }
        rows.append(row)
    return pd.DataFrame(rows), curves


def table(*rows: tuple[str, float], **columns: list) -> pd.DataFrame:
    """Make a table of trials from states and values; further columns by name, settings as `params_<name>`."""
    named = {name.replace("params_", "params."): values for name, values in columns.items()}
    states, values = zip(*rows, strict=True)
    return pd.DataFrame({"number": range(len(rows)), "state": states, "value": values, **named})


MAXIMIZED: dict[str, Any] = {"metric": "val_accuracy", "direction": "maximize", "space": {}}
MINIMIZED = MAXIMIZED | {"metric": "val_loss", "direction": "minimize"}
ACCURACY: dict[str, Any] = {"metric": "val_accuracy", "direction": "maximize"}
SIX = table(
    ("complete", 0.5),
    ("complete", 0.7),
    ("pruned", 0.9),
    ("duplicate", 0.7),
    ("failed", np.nan),
    ("complete", 0.6),
    params_kernel_size=[3, 3, 3, 3, 5, 5],
    params_patch_size=[1, 1, 1, 1, 1, 2],
)
