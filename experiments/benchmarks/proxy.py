"""Trainings on CIFAR-10 that fit two cores: a narrower, shallower network and fewer images, judged by validation."""

import gc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import keras
import pandas as pd

from pipeline.config.training import TrainingConfig, read_recipe
from pipeline.data.dataset import load_dataset
from pipeline.runtime.device import Device
from pipeline.training.fit import fit
from pipeline.training.run import resolve_auto

PROXY = {"filters": 64, "depth": 6, "train_examples": 20_000}  # what differs from the recipe


def kept(csv: Path, variants: Iterable[str], seeds: int, train: Callable[[str, int], pd.DataFrame]) -> pd.DataFrame:
    """Train each variant with the seeds 0 to `seeds` - 1, but for what stands in a file, and return all of its rows.

    The file gets a row an epoch as each training ends, so that a study which was cut off goes on.
    """
    runs = pd.read_csv(csv) if csv.exists() else pd.DataFrame({"variant": [], "seed": []})
    for seed in range(seeds):
        for variant in variants:
            if not ((runs["variant"] == variant) & (runs["seed"] == seed)).any():
                new = train(variant, seed)
                new.insert(0, "variant", variant)
                new.insert(1, "seed", seed)
                runs = pd.concat([runs, new]) if len(runs) else new
                runs.to_csv(csv, index=False, float_format="%.4f")
                print(f"{variant}, seed {seed}: {100 * new['val_accuracy'].max():.2f} %", flush=True)
    return runs


def history(recipe: str, changes: Mapping[str, object], device: Device) -> pd.DataFrame:
    """Train a recipe on the proxy with some settings changed; a row an epoch."""
    config = TrainingConfig.build(read_recipe(recipe) | PROXY | dict(changes))
    data = load_dataset(config.data, seed=config.seed)
    told = fit(resolve_auto(config, data, device), data).history
    keras.backend.clear_session()
    gc.collect()
    columns = {name: told[name] for name in ("accuracy", "val_accuracy", "loss", "val_loss")}
    return pd.DataFrame({"epoch": range(1, config.epochs + 1)} | columns)
