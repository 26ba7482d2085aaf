"""What each ingredient of `fast` brings, on a proxy: `python experiments/benchmarks/ablation.py <CIFAR-10 folder>`.

Every variant is trained with the same seeds and judged by validation images: the test images have no part in it. A row
an epoch goes to a CSV file as each training ends, and what stands there is not trained again, so that a run which was
cut off goes on.
"""

import argparse
import gc
from pathlib import Path

import keras
import pandas as pd

from pipeline.config import Config, read_recipe
from pipeline.fit import fit
from pipeline.loading import load_data
from pipeline.machine import device as devices
from pipeline.run import resolved

HERE = Path(__file__).parent
PROXY = {"filters": 64, "depth": 6, "train_examples": 20_000}  # what differs from the recipe, to fit two cores
VARIANTS: dict[str, dict[str, object]] = {
    "fast": {},
    # each ingredient removed alone
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
    """Train what is missing and print a line a variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="CIFAR-10 as a folder of images")
    parser.add_argument("--csv", type=Path, default=HERE / "ablation.csv")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    asked = parser.parse_args()
    runs = pd.read_csv(asked.csv) if asked.csv.exists() else pd.DataFrame({"variant": [], "seed": []})
    device = devices.find("one")
    for seed in range(asked.seeds):
        for variant in asked.only:
            if not ((runs["variant"] == variant) & (runs["seed"] == seed)).any():
                new = train(variant, seed, asked.dataset, device)
                runs = pd.concat([runs, new]) if len(runs) else new
                runs.to_csv(asked.csv, index=False, float_format="%.4f")
                print(f"{variant}, seed {seed}: {100 * new['val_accuracy'].max():.2f} %", flush=True)
    best = 100 * runs.groupby(["variant", "seed"])["val_accuracy"].max()
    print(best.groupby("variant").agg(["count", "mean", "std", "min", "max"]).round(2).to_string())


def train(variant: str, seed: int, dataset: str, device: devices.Device) -> pd.DataFrame:
    """The history of one training, a row an epoch."""
    config = Config.build(
        read_recipe("fast") | {"test_time_flip": False, "dataset": dataset} | PROXY | VARIANTS[variant] | {"seed": seed}
    )
    data = load_data(config)
    history = fit(resolved(config, data, device), data, report=lambda epoch, metrics: None, progress_bar=False).history
    keras.backend.clear_session()
    gc.collect()
    return pd.DataFrame(
        {"variant": variant, "seed": seed, "epoch": range(1, config.epochs + 1)}
        | {name: history[name] for name in ("accuracy", "val_accuracy", "loss", "val_loss")}
    )


if __name__ == "__main__":
    main()
