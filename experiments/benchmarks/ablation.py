"""Measure what each ingredient of the first form of the recipe `fast` contributes, on a small proxy.

Usage: python experiments/benchmarks/ablation.py <CIFAR-10 folder>

Every variant is trained with the same seeds and compared by its validation accuracy. The test images are not used.
"""

import argparse
import os
from pathlib import Path

import pandas as pd
import proxy

from pipeline.runtime.device import select_device
from pipeline.runtime.environment import set_environment

HERE = Path(__file__).parent
# whatever the recipe is now, ablation.csv is of this
FIRST_FORM = {
    "flip": True,
    "translation": 2,
    "randaugment_layers": 1,
    "randaugment_magnitude": 8,
    "cutout": 8,
    "clean_epochs": 0,
    "depthwise_init": "covariance",
    "optimizer": "muon",
    "muon_momentum": 0.95,
    "learning_rate": 0.02,
    "schedule": "one_cycle",
    "warmup_fraction": 0.3,
    "weight_decay": 0.02,
    "label_smoothing": 0.1,
}
VARIANTS: dict[str, dict[str, object]] = {
    "first form": {},
    # one ingredient removed
    "adamw": {"optimizer": "adamw"},
    "constant learning rate": {"schedule": "constant"},
    "no flip": {"flip": False},
    "no translation": {"translation": 0},
    "no randaugment": {"randaugment_layers": 0},
    "no cutout": {"cutout": 0},
    "glorot_uniform": {"depthwise_init": "glorot_uniform"},
    "no label smoothing": {"label_smoothing": 0.0},
    "weight_decay 1e-4": {"weight_decay": 1e-4},
    # other values
    "learning_rate 0.01": {"learning_rate": 0.01},
    "learning_rate 0.04": {"learning_rate": 0.04},
    "batch_size 64": {"batch_size": 64},
    "no randaugment, no cutout": {"randaugment_layers": 0, "cutout": 0},
    "weight_decay 0.1": {"weight_decay": 0.1},
    "ema_momentum 0.99": {"ema_momentum": 0.99},
}


def main() -> None:
    """Train the variants that are not in the CSV file yet, and print a row per variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="CIFAR-10 as a folder of images")
    parser.add_argument("--csv", type=Path, default=HERE / "ablation.csv")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    set_environment(os.environ)
    device = select_device("one")
    common = FIRST_FORM | {"test_time_views": "one", "dataset": options.dataset}

    def train(variant: str, seed: int) -> pd.DataFrame:
        return proxy.train_on_proxy("fast", common | VARIANTS[variant] | {"seed": seed}, device)

    history = proxy.train_missing(options.csv, options.only, options.seeds, train)
    best = 100 * history.groupby(["variant", "seed"])["val_accuracy"].max()
    print(best.groupby("variant").agg(["count", "mean", "std", "min", "max"]).round(2).to_string())


if __name__ == "__main__":
    main()
