"""Ways of searching, compared on recorded curves: how many epochs each needs to find what is nearly the best.

python experiments/benchmarks/search.py    (`make bench-search`) prints a table; nothing is trained.

The curves are those of every configuration of experiments/searches/small-grid.yaml. What a way of searching has found
is the best validation accuracy of a training that it carried to its end; what it spends is epochs, those of trials that
it prunes too.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from replay import Forgetful, Log, Played, Recorded

from pipeline.runtime.console import Console
from pipeline.search.distributions import values
from pipeline.search.loop import SearchLoop
from pipeline.search.session import SearchContext
from pipeline.search.space import parse_search
from pipeline.search.study import Study

CURVES = Path(__file__).parent / "kernel-patch-depth.csv"
SETTINGS = ["kernel_size", "patch_size", "depth"]
SPACE = {
    "kernel_size": optuna.distributions.IntDistribution(3, 7, step=2),
    "patch_size": optuna.distributions.CategoricalDistribution([1, 2, 4]),
    "depth": optuna.distributions.IntDistribution(4, 12, step=2),
}
SEEDS = 20
NEAR = 0.005  # half a point below the best known
BUDGETS = (5, 10, 20)  # full trainings' worth of epochs
GRIDS = 2  # a way of searching that has found nothing near after so many times the whole grid's epochs is stopped


def random_search(recorded: Recorded, log: Log, seed: int, most: int) -> None:
    """Any configuration at any time, each trained to its end."""
    random, keys = np.random.default_rng(seed), list(recorded.curves)
    while log.epochs < most:
        curve = recorded.curves[keys[random.integers(len(keys))]]
        log.epochs += len(curve)
        log.finish(max(curve))


def one_epoch_for_all(recorded: Recorded, log: Log, seed: int, most: int) -> None:
    """Each configuration for an epoch, then the best of these go on to their end, one after the other."""
    keys = [list(recorded.curves)[place] for place in np.random.default_rng(seed).permutation(len(recorded.curves))]
    log.epochs += len(keys)
    for key in sorted(keys, key=lambda key: -recorded.curves[key][0]):
        log.epochs += len(recorded.curves[key]) - 1
        log.finish(max(recorded.curves[key]))


def optuna_defaults(recorded: Recorded, log: Log, seed: int, most: int) -> None:
    """Optuna's own Keras example: TPE and the median pruner as they come (github.com/optuna/optuna-examples)."""
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed), pruner=optuna.pruners.MedianPruner()
    )
    while log.epochs < most:
        trial = study.ask(SPACE)
        curve = recorded.curves[recorded.key(trial.params)]
        for epoch, accuracy in enumerate(curve):
            log.epochs += 1
            trial.report(accuracy, epoch)
            if trial.should_prune() and epoch < len(curve) - 1:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            log.finish(max(curve))
            study.tell(trial, max(curve))


class Silent(Console):
    """A console that prints nothing."""

    def print(self, *lines: str) -> None: ...

    def progress(self, done: float, total: float, text: str) -> None: ...


def this_driver(recorded: Recorded, log: Log, seed: int, most: int) -> None:
    """This project's own loop and study, with the settings that a search has by default."""
    flags = {"sampler": "tpe", "pruner": "median", "trials": 100_000, "final_top": 0, "seed": seed}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    search = parse_search(["small-grid", *words])
    study = Study(search, url=None, name="replay", image_shape=(32, 32, 3), training_images=2500)
    played = Played(recorded, log, most=most)
    context = SearchContext(study, Forgetful(), played, lambda: int(played.spent()), lambda: None, Silent())
    SearchLoop(context).run()


WAYS: dict[str, Callable[[Recorded, Log, int, int], None]] = {
    "random, no pruning": random_search,
    "one epoch for all, then the best": one_epoch_for_all,
    "Optuna as in its Keras example": optuna_defaults,
    "this driver": this_driver,
}


def compare(recorded: Recorded) -> pd.DataFrame:
    """A row a way: epochs until near the best known (median of the seeds), and the best found within each budget."""
    most = GRIDS * recorded.epochs * len(recorded.curves)
    rows = []
    assert len(recorded.curves) == math.prod(len(values(of) or ()) for of in SPACE.values()), "a curve is missing"
    for name, way in WAYS.items():
        logs = [Log() for _ in range(SEEDS)]
        for seed, log in enumerate(logs):
            way(recorded, log, seed, most)
        until = np.array([log.epochs_until(recorded.best - NEAR) for log in logs])
        row = {"way": name, "epochs": f"{np.median(until):.0f}", "quartiles": _quartiles(until)}
        row["found by"] = f"{np.isfinite(until).sum()} of {SEEDS}"
        for budget in BUDGETS:
            best = np.array([100 * log.best_after(budget * recorded.epochs) for log in logs])
            row[f"best after {budget}"] = f"{best.mean():.2f} ± {best.std(ddof=1):.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def _quartiles(until: np.ndarray) -> str:
    low, high = np.quantile(until, [0.25, 0.75], method="nearest")
    return f"{low:.0f} to {high:.0f}"


def main() -> None:
    """Print the comparison."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    recorded = Recorded(pd.read_csv(CURVES), SETTINGS)
    near = sum(max(curve) >= recorded.best - NEAR for curve in recorded.curves.values())
    sys.stdout.write(
        f"{len(recorded.curves)} configurations of {recorded.epochs} epochs; the best reaches {recorded.best:.2%}, "
        f"{near} come within {100 * NEAR:g} points of it; {SEEDS} seeds\n\n{compare(recorded).to_string(index=False)}\n"
    )


if __name__ == "__main__":
    main()
