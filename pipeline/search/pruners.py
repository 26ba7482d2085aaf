"""Pruners: which trials are stopped before their last epoch. A new one is an entry here, and a value of `pruner`."""

import warnings
from collections.abc import Callable, Mapping

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, PatientPruner, PercentilePruner

from pipeline.config.search import SearchConfig
from pipeline.search.promotion import RungPruner


def build_pruner(settings: SearchConfig, *, epochs: int) -> BasePruner:
    """Return the pruner of a search.

    Args:
        settings: of the search.
        epochs: of its longest trial.
    """
    # Its interface may change; Optuna's version is fixed
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning, message="PatientPruner")
    return PRUNERS[settings.pruner](settings, epochs)


def _warmup(settings: SearchConfig, epochs: int) -> int:
    """Return the epochs that a trial is given before it is compared with others."""
    # While the learning rate is high, accuracies say little about how trials end (experiments/README.md)
    return epochs // 2 if settings.pruner_epochs is None else settings.pruner_epochs


def _rungs(settings: SearchConfig, epochs: int, *, brackets: bool) -> RungPruner:
    first = max(1, _warmup(settings, epochs))
    if brackets and settings.pruner_epochs is None:
        # trials are shared out among three first rungs: this one, the next, and the last epoch
        first = max(1, epochs // settings.pruner_factor**2)
    return RungPruner(first=first, factor=settings.pruner_factor, epochs=epochs, brackets=brackets)


PRUNERS: Mapping[str, Callable[[SearchConfig, int], BasePruner]] = {
    "none": lambda settings, epochs: NopPruner(),
    "median": lambda settings, epochs: MedianPruner(
        n_startup_trials=settings.pruner_trials, n_warmup_steps=_warmup(settings, epochs)
    ),
    "percentile": lambda settings, epochs: PercentilePruner(
        settings.pruner_percentile, n_startup_trials=settings.pruner_trials, n_warmup_steps=_warmup(settings, epochs)
    ),
    "asha": lambda settings, epochs: _rungs(settings, epochs, brackets=False),
    "hyperband": lambda settings, epochs: _rungs(settings, epochs, brackets=True),
    "patience": lambda settings, epochs: PatientPruner(None, patience=settings.pruner_patience or max(1, epochs // 4)),
}
