"""Compare search strategies on recorded learning curves: how many epochs each needs to come near the best.

Usage: python experiments/benchmarks/search.py    (`make bench-search`)

The curves are those of every configuration of a search in experiments/searches/; nothing is trained. A strategy has
found an accuracy once a training that reached it has run to its end. It pays in epochs, including those of pruned
trials.
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from arguments import take_no_arguments
from replay import NullStudyRun, RecordedCurves, ReplayExecutor, SearchLog

from pipeline.runtime.console import Console
from pipeline.runtime.signals import Interrupts
from pipeline.search.distributions import suggest
from pipeline.search.loop import SearchLoop
from pipeline.search.samplers import NO_CONDITIONS, PACKAGES
from pipeline.search.session import SearchContext
from pipeline.search.space import SearchSpec, parse_search
from pipeline.search.study import Study

FOLDER = Path(__file__).parent
# Searches by the file of their curves
RECORDED = {"kernel-patch-depth.csv": "small-grid", "conditional-grid.csv": "conditional-grid"}
SEEDS = 20
# half a point below the best accuracy
TOLERANCE = 0.005
# epochs in units of one full training
BUDGETS = (5, 10, 20)
# A strategy is stopped after so many times the epochs of the whole grid.
MAX_GRIDS = 2


def random_search(recorded: RecordedCurves, log: SearchLog, seed: int, max_epochs: int) -> None:
    """Draw configurations at random, with replacement, and train each to its end."""
    rng, keys = np.random.default_rng(seed), list(recorded.curves)
    while not log.is_done(max_epochs):
        curve = recorded.curves[keys[rng.integers(len(keys))]]
        log.epochs += len(curve)
        log.add_finished(max(curve))


def one_epoch_each(recorded: RecordedCurves, log: SearchLog, seed: int, max_epochs: int) -> None:
    """Train each configuration for one epoch, then continue them one by one, the most accurate first."""
    keys = list(recorded.curves)
    shuffled = [keys[index] for index in np.random.default_rng(seed).permutation(len(keys))]
    log.epochs += len(shuffled)
    for key in sorted(shuffled, key=lambda key: -recorded.curves[key][0]):
        log.epochs += len(recorded.curves[key]) - 1
        log.add_finished(max(recorded.curves[key]))


def optuna_defaults(recorded: RecordedCurves, log: SearchLog, seed: int, max_epochs: int) -> None:
    """Search as Optuna's Keras example does: TPE and the median pruner with their default settings.

    Source: https://github.com/optuna/optuna-examples
    """
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed), pruner=optuna.pruners.MedianPruner()
    )
    while not log.is_done(max_epochs):
        trial = study.ask()
        for setting, distribution in recorded.search.space.items():
            if recorded.search.is_drawn(setting, trial.params):
                suggest(trial, setting, distribution)
        curve = recorded.curves[recorded.key(trial.params)]
        for epoch, accuracy in enumerate(curve):
            log.epochs += 1
            trial.report(accuracy, epoch)
            if trial.should_prune() and epoch < len(curve) - 1:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            log.add_finished(max(curve))
            study.tell(trial, max(curve))


class UntilExhausted(Interrupts):
    """Asks a search to stop once its executor's epochs are spent."""

    def __init__(self, executor: ReplayExecutor) -> None:
        super().__init__()
        self._executor = executor

    def __call__(self) -> int:
        return int(self._executor.is_exhausted())


class SilentConsole(Console):
    """A console that prints nothing."""

    def print(self, *lines: str) -> None: ...

    def progress(self, done: float, total: float, text: str) -> None: ...


def search_loop(
    recorded: RecordedCurves, log: SearchLog, seed: int, max_epochs: int, *, sampler: str, pruner: str
) -> None:
    """Search with this project's loop and study."""
    flags = {"sampler": sampler, "pruner": pruner, "trials": 100_000, "final_top": 0, "seed": seed}
    arguments = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    search = parse_search([recorded.search.name, *arguments])
    images = search.base.train_examples
    assert images  # each search whose curves are recorded trains on a part
    study = Study(search, url=None, name="replay", image_shape=(32, 32, 3), training_images=images, classes=10)
    executor = ReplayExecutor(recorded, log, max_epochs=max_epochs)
    context = SearchContext(
        study,
        NullStudyRun(),
        executor,
        interrupts=UntilExhausted(executor),
        heartbeat=lambda: None,
        console=SilentConsole(),
    )
    SearchLoop(context).run()


Strategy = Callable[[RecordedCurves, SearchLog, int, int], None]
# the first is the default
METHODS = [
    *(("tpe", pruner) for pruner in ("asha", "hyperband", "median", "percentile", "patience", "none")),
    *((sampler, "asha") for sampler in ("random", "qmc", "gp", "cmaes")),
    ("random", "median"),
]
DEFAULT = "this project: tpe, asha"


def strategies(search: SearchSpec) -> dict[str, Strategy]:
    """Return the ways to search a space, by name: those that allow its conditions and whose package is installed."""
    methods = [
        (sampler, pruner)
        for sampler, pruner in METHODS
        if not (search.conditions and sampler in NO_CONDITIONS)
        and (sampler not in PACKAGES or find_spec(PACKAGES[sampler]))
    ]
    return {
        "random, no pruning": random_search,
        "one epoch each, then the best": one_epoch_each,
        "Optuna's Keras example": optuna_defaults,
        **{
            f"this project: {sampler}, {pruner}": partial(search_loop, sampler=sampler, pruner=pruner)
            for sampler, pruner in methods
        },
    }


def compare(recorded: RecordedCurves) -> pd.DataFrame:
    """Return a row per strategy: epochs until it comes near the best, and the best accuracy within each budget."""
    max_epochs = MAX_GRIDS * recorded.epochs * len(recorded.curves)
    rows = []
    for name, run in strategies(recorded.search).items():
        goal = recorded.best_accuracy - TOLERANCE
        logs = [SearchLog(goal, least=max(BUDGETS) * recorded.epochs) for _ in range(SEEDS)]
        for seed, log in enumerate(logs):
            run(recorded, log, seed, max_epochs)
        epochs = np.array([log.epochs_until(goal) for log in logs])
        row = {"strategy": name, "epochs": f"{np.median(epochs):.0f}", "quartiles": _quartiles(epochs)}
        row["found by"] = f"{np.isfinite(epochs).sum()} of {SEEDS}"
        for budget in BUDGETS:
            best = np.array([100 * log.best_after(budget * recorded.epochs) for log in logs])
            row[f"best after {budget}"] = f"{best.mean():.2f} ± {best.std(ddof=1):.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def _quartiles(epochs: np.ndarray) -> str:
    low, high = np.quantile(epochs, [0.25, 0.75], method="nearest")
    return f"{low:.0f} to {high:.0f}"


def main() -> None:
    """Print a comparison for each set of curves."""
    take_no_arguments(__doc__)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for file, search in RECORDED.items():
        recorded = RecordedCurves(parse_search([search]), FOLDER / file)
        near = sum(max(curve) >= recorded.best_accuracy - TOLERANCE for curve in recorded.curves.values())
        sys.stdout.write(
            f"{search}: {len(recorded.curves)} configurations of {recorded.epochs} epochs; the best reaches "
            f"{recorded.best_accuracy:.2%}, {near} come within {100 * TOLERANCE:g} points of it; {SEEDS} seeds\n\n"
            f"{compare(recorded).to_string(index=False)}\n\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
