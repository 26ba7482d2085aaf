"""Trials of an Optuna study as a search queues, ends and counts them.

A configuration that is infeasible or runs out of memory is a PRUNED trial with a violated constraint: if it were told
as FAIL, Optuna would propose similar ones again and again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline.search.attributes import (
    ATTEMPT,
    CONTINUES,
    DUPLICATE_OF,
    IMPORTED_FROM,
    INFEASIBLE,
    NODE_LOSSES,
    ROOT,
    TRAINABLE,
)
from pipeline.search.promotion import root


def enqueue(study: optuna.Study, params: Mapping[str, Any], **history: int) -> None:
    """Queue a configuration, with attributes of the trial that tries it again or continues it."""
    study.enqueue_trial(dict(params), user_attrs={ATTEMPT: 1, NODE_LOSSES: 0} | history)


def history(trial: optuna.Trial | FrozenTrial) -> dict[str, int]:
    """Return what another try of a trial's configuration has to know, as the arguments of `enqueue`."""
    attrs = trial.user_attrs
    known = {ATTEMPT: attrs.get(ATTEMPT, 1), NODE_LOSSES: attrs.get(NODE_LOSSES, 0), ROOT: root(trial)}
    return known | ({CONTINUES: attrs[CONTINUES]} if CONTINUES in attrs else {})


def tell_complete(study: optuna.Study, trial: optuna.Trial, values: Sequence[float]) -> None:
    """End a trial as complete, with a value for each metric."""
    trial.set_constraint(TRAINABLE, 0.0)
    study.tell(trial, list(values))


def tell_pruned(study: optuna.Study, trial: optuna.Trial, *, violation: bool) -> None:
    """End a trial as pruned.

    Args:
        study: the study.
        trial: a running trial of it.
        violation: whether its configuration cannot be trained here at all.
    """
    trial.set_constraint(TRAINABLE, float(violation))
    study.tell(trial, state=TrialState.PRUNED)


def tell_duplicate(study: optuna.Study, trial: optuna.Trial, same: FrozenTrial) -> None:
    """End a trial as the one ended that has the same configuration."""
    if same.state == TrialState.COMPLETE:
        tell_complete(study, trial, same.values)
    elif same.state == TrialState.PRUNED:
        for epoch, value in same.intermediate_values.items():
            trial.report(value, epoch)
        tell_pruned(study, trial, violation=same.constraints.get(TRAINABLE, 0.0) > 0)
    else:
        # It has no value, or has none yet
        study.tell(trial, state=TrialState.FAIL)


def is_free(trial: FrozenTrial) -> bool:
    """Return whether a trial costs no budget, as this search has trained nothing for it."""
    return has_no_training(trial) or IMPORTED_FROM in trial.user_attrs


def has_no_training(trial: FrozenTrial) -> bool:
    """Return whether a trial has no result of its own."""
    return DUPLICATE_OF in trial.user_attrs or INFEASIBLE in trial.user_attrs
