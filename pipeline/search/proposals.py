"""What to try next: queued configurations, promoted trials, and draws from the sampler that no trial has had."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline.search.attributes import ATTEMPT, CONTINUES, DRIVER, DUPLICATE_OF, INFEASIBLE, NODE_LOSSES, ROOT
from pipeline.search.distributions import suggest
from pipeline.search.feasible_space import FeasibleSpace
from pipeline.search.limits import constraints
from pipeline.search.promotion import RungPruner, root, rung_values
from pipeline.search.samplers import build_sampler
from pipeline.search.space import SearchSpec
from pipeline.search.trial_states import enqueue, history, tell_duplicate, tell_pruned
from pipeline.search.tried import TriedConfigurations

# Draws in a row that repeat an earlier configuration, before an untried one is taken at random. On recorded curves 30
# find the best no sooner, and leave several times as many duplicates in the study, which slow each later draw.
MAX_REDRAWS = 3

# Told the number and the settings of a trial for which nothing is trained, and why
OnSkipped = Callable[[int, Mapping[str, Any], str], None]


@dataclass(frozen=True)
class TrialProposal:
    """A configuration to train, and the number of its trial in the study."""

    number: int
    params: Mapping[str, Any]
    attempt: int  # counted from 1; more after a crash
    node_losses: int  # how many nodes were lost under this configuration
    root: int  # number of the first trial that it continues or tries again, or its own
    values: tuple[float, ...] = ()  # of the epochs that the trial which it continues has trained


class Proposals:
    """Proposes the configurations of a study's trials.

    Args:
        search: what is searched.
        study: its Optuna study, with its pruner.
        space: its configurations.
        tried: recognizes those that trials have had.
    """

    def __init__(
        self, search: SearchSpec, study: optuna.Study, space: FeasibleSpace, tried: TriedConfigurations
    ) -> None:
        self._search, self._study, self._space, self._tried = search, study, space, tried
        self.seed(search.base.seed, len(self._trials()))

    def seed(self, *seeds: int) -> None:
        """Seed the sampler and the random choices beside it."""
        seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
        self.random = np.random.default_rng(seed)
        self._study.sampler = build_sampler(self._search.settings, seed=seed, conditional=bool(self._search.conditions))

    def ask(self, *, driver: str | None, on_skipped: OnSkipped) -> tuple[optuna.Trial, TrialProposal] | None:
        """Return a running trial and its proposal, or None if no untried configuration that fits is known.

        Args:
            driver: id of the driver that trains it, where several share the study.
            on_skipped: told of each trial for which nothing is trained.
        """
        if old := self._promotable():
            # Behind those that wait, which are drawn first
            enqueue(self._study, old.params, continues=old.number, root=root(old))
            if drawn := self._draw(driver, on_skipped):
                return drawn
        untried = self._untried()
        if untried == []:
            return None
        for _ in range(MAX_REDRAWS):
            if untried and self._search.settings.sampler == "grid" and not self._is_waiting():
                enqueue(self._study, untried[0])
            if drawn := self._draw(driver, on_skipped):
                return drawn
        if untried is None:
            tried = self._tried.keys(self._trials())
            new = (params for params in self._space.sample(self.random) if self._space.key(params) not in tried)
            untried = list(islice(new, 1))
        if untried:
            enqueue(self._study, untried[self.random.integers(len(untried))])
        # it may be behind others that wait and do not fit
        while self._is_waiting():
            if drawn := self._draw(driver, on_skipped):
                return drawn
        return None

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _promotable(self) -> FrozenTrial | None:
        """Return the stopped trial that is among the best of its rung by now and is to go on, or None."""
        pruner = self._study.pruner
        return pruner.promotable(self._study) if isinstance(pruner, RungPruner) else None

    def _untried(self) -> list[dict[str, Any]] | None:
        """Return the untried configurations that fit the images, or None where the space is too large to list."""
        feasible = self._space.configurations()
        if feasible is None:
            return None
        tried = self._tried.keys(self._trials())
        untried = [params for key, params in feasible.items() if key not in tried]
        if self._search.settings.max_latency_ms is None:
            return untried
        # latencies that have been measured since the space was listed refuse more
        return [params for params in untried if self._space.why_not(params) is None]

    def _is_waiting(self) -> bool:
        """Return whether a configuration is queued."""
        return any(trial.state == TrialState.WAITING for trial in self._trials())

    def _draw(self, driver: str | None, on_skipped: OnSkipped) -> tuple[optuna.Trial, TrialProposal] | None:
        """Draw once from the sampler; return None for a duplicate or an infeasible configuration, which it records."""
        trial = self._study.ask()
        if driver:
            trial.set_user_attr(DRIVER, driver)
        params: dict[str, Any] = {}
        for setting, distribution in self._search.space.items():
            if self._search.is_drawn(setting, params):
                suggest(trial, setting, distribution)
                params = self._search.snap(trial.params)
        if CONTINUES in trial.user_attrs:
            return trial, self._continue(trial, params)
        same = self._tried.find(params, self._trials(), before=trial.number)
        if same is not None:
            trial.set_user_attr(DUPLICATE_OF, same.number)
            tell_duplicate(self._study, trial, same)
            why = "which is infeasible" if INFEASIBLE in same.user_attrs else "not trained again"
            on_skipped(trial.number, params, f"the same as t{same.number:03d}, {why}")
            return None
        for name, violation in constraints(self._search.settings, self._space.costs(params)).items():
            trial.set_constraint(name, violation)
        if reason := self._space.why_not(params):
            trial.set_user_attr(INFEASIBLE, reason)
            tell_pruned(self._study, trial, violation=True)
            on_skipped(trial.number, params, f"infeasible, not trained: {reason}")
            return None
        return trial, _proposal(trial, params)

    def _continue(self, trial: optuna.Trial, params: Mapping[str, Any]) -> TrialProposal:
        """Let a trial go on with another one: it begins with the values and the rungs of that."""
        old = next(old for old in self._trials() if old.number == trial.user_attrs[CONTINUES])
        values = [value for _, value in sorted(old.intermediate_values.items())]
        for epoch, value in enumerate(values, start=1):
            trial.report(value, epoch)
        for key, value in rung_values(old).items():
            self._study._storage.set_trial_system_attr(trial._trial_id, key, value)
        return _proposal(trial, params, values=tuple(values))


def _proposal(trial: optuna.Trial, params: Mapping[str, Any], *, values: tuple[float, ...] = ()) -> TrialProposal:
    known = history(trial)
    return TrialProposal(trial.number, params, known[ATTEMPT], known[NODE_LOSSES], known[ROOT], values)
