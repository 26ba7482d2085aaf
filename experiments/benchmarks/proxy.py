"""Train CIFAR-10 proxies that fit two cores: a narrower, shallower network and fewer images."""

import gc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd

from pipeline.config.recipe import read_recipe
from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.runtime.device import Device

# settings in which the proxy differs from the recipe
PROXY = {"filters": 64, "depth": 6, "train_examples": 20_000}


def train_missing(
    csv: Path, variants: Iterable[str], seeds: int, train: Callable[[str, int], pd.DataFrame]
) -> pd.DataFrame:
    """Train each variant with each seed that has no rows in a CSV file yet, and return all rows of the file.

    The file is written after each training, so that an interrupted study can be resumed.

    Args:
        csv: The file, with a row per epoch. It is created if it does not exist.
        variants: Names of the variants.
        seeds: Number of seeds; they are 0 to `seeds` - 1.
        train: Trains a variant with a seed and returns a row per epoch.
    """
    history = pd.read_csv(csv) if csv.exists() else pd.DataFrame({"variant": [], "seed": []})
    for seed in range(seeds):
        for variant in variants:
            if not ((history["variant"] == variant) & (history["seed"] == seed)).any():
                new = train(variant, seed)
                new.insert(0, "variant", variant)
                new.insert(1, "seed", seed)
                history = pd.concat([history, new]) if len(history) else new
                history.to_csv(csv, index=False, float_format="%.4f")
                print(f"{variant}, seed {seed}: {100 * new['val_accuracy'].max():.2f} %", flush=True)
    return history


def train_on_proxy(recipe: str, changes: Mapping[str, object], device: Device) -> pd.DataFrame:
    """Train a recipe on the proxy with some settings changed, and return a row per epoch."""
    # imported here, after the caller has set the environment
    import keras

    from pipeline.training.auto_settings import resolve_auto
    from pipeline.training.fit import fit

    config = TrainingConfig.build(read_recipe(recipe) | PROXY | dict(changes))
    dataset = load_dataset(config.data, seed=config.seed)
    history = fit(resolve_auto(config, dataset, device), dataset).history
    keras.backend.clear_session()
    gc.collect()
    columns = {name: history[name] for name in ("accuracy", "val_accuracy", "loss", "val_loss")}
    return pd.DataFrame({"epoch": range(1, config.epochs + 1)} | columns)
