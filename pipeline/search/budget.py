"""The budget of a search: what ends it, and how much of it is spent."""

from pipeline.runtime.text import count, format_metric
from pipeline.search.study import Study


def why_spent(study: Study, *, seconds: float) -> str | None:
    """Return why the search should start no further trial, or None.

    Args:
        study: Its study, with trials that other drivers run.
        seconds: For how long it has been searched.
    """
    settings, finished, best = study.search.settings, study.n_finished(), study.best()
    if finished + study.n_running() >= settings.trials:
        return f"its {settings.trials} trials are done"
    if settings.hours is not None and seconds >= 3600 * settings.hours:
        return f"its {settings.hours:g} hours are over"
    if settings.max_epochs_total is not None and study.epochs_trained() >= settings.max_epochs_total:
        return f"its {settings.max_epochs_total:,} epochs are trained"
    if best is None:
        return None
    if settings.target is not None and study.search.is_as_good(best.values[0], settings.target):
        metric = settings.metric[0]
        return f"t{best.number:03d} has reached the target of {metric} {format_metric(metric, settings.target)}"
    if settings.patience_trials is not None and study.n_finished(after=best.number) >= settings.patience_trials:
        return f"{count(settings.patience_trials, 'trial')} in a row were no better than t{best.number:03d}"
    return None


def share_spent(study: Study, *, seconds: float, finished: float) -> float:
    """Return the share of the budget that is spent, from 0 to 1: of trials, hours or epochs, whichever ends first.

    Args:
        study: Its study.
        seconds: For how long it has been searched.
        finished: Number of finished trials, parts of running ones included.
    """
    settings = study.search.settings
    shares = [finished / settings.trials]
    if settings.hours is not None:
        shares.append(seconds / (3600 * settings.hours))
    if settings.max_epochs_total is not None:
        shares.append(study.epochs_trained() / settings.max_epochs_total)
    return min(1.0, max(shares))
