"""An Optuna study: which configuration to try next, what became of the others, and how much of the budget is left."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine

from pipeline.runtime.errors import UsageError
from pipeline.search import dashboard
from pipeline.search.attributes import (
    ABANDONED,
    ARCHITECTURES,
    ATTEMPT,
    CONTINUES,
    DRIVER,
    DUPLICATE_OF,
    EPOCHS,
    FIGURES,
    IMPORTED_FROM,
    INFEASIBLE,
    NODE_LOSSES,
    ROOT,
    RUN_ID,
    SEARCHED_SECONDS,
    STARTED_FROM,
    TRAINABLE,
)
from pipeline.search.coordination import AdvisoryLock, DriverRegistry, LockLease, lock_file
from pipeline.search.distributions import suggest
from pipeline.search.limits import architecture, constraints, known_costs, why_too_costly
from pipeline.search.promotion import RungPruner, checkpoints_folder, continued_trials, root, rung_values
from pipeline.search.pruners import build_pruner
from pipeline.search.samplers import build_sampler
from pipeline.search.space import SearchSpec, infeasibility
from pipeline.search.start_from import OlderStudy
from pipeline.search.storage import SingleWriterCache, open_storage

# Draws in a row that repeat an earlier configuration, before an untried one is taken at random
MAX_REDRAWS = 30
# A larger space is not written out: to check that many configurations against the images takes a second
MAX_ENUMERATED = 10_000
# Random draws from such a space, after which the configurations that fit the images count as used up
MAX_RANDOM_DRAWS = 10_000
# Optuna's own system attribute of a trial that was enqueued
QUEUED_PARAMS = "fixed_params"


@dataclass(frozen=True)
class TrialProposal:
    """A configuration to train, and the number of its trial in the study."""

    number: int
    params: Mapping[str, Any]
    attempt: int  # counted from 1; more after a crash
    node_losses: int  # how many nodes were lost under this configuration
    root: int  # number of the first trial that it continues, or its own
    values: tuple[float, ...] = ()  # of the epochs that the trial which it continues has trained


class Study:
    """The trials of a search, kept in Optuna's storage.

    Every method writes at once, so that a kill loses nothing.

    A configuration that is infeasible or runs out of memory is a PRUNED trial with a violated constraint: if it were
    told as FAIL, Optuna would propose similar ones again and again.
    """

    def __init__(
        self,
        search: SearchSpec,
        *,
        url: str | None,
        name: str,
        image_shape: Sequence[int],
        training_images: int,
        classes: int,
    ) -> None:
        """Open the study, or create it.

        Args:
            search: what is searched.
            url: of the storage; None keeps the study in memory.
            name: of the study.
            image_shape: (height, width, channels), in pixels.
            training_images: number of training images after the split.
            classes: number of classes.

        Raises:
            UsageError: the storage cannot be opened, or the study has another metric.
        """
        self.search = search
        self.name = name
        self._image_shape, self._training_images, self._classes = image_shape, training_images, classes
        self._storage = open_storage(url)
        self.optuna_study = self._study = optuna.create_study(
            study_name=name, storage=self._storage, directions=search.directions, load_if_exists=True
        )
        dashboard.name_metrics(self._study, list(search.settings.metric))
        # Told the number and the settings of a trial for which nothing is trained, and why
        self.on_skipped: Callable[[int, Mapping[str, Any], str], None] = lambda number, params, reason: None
        self._registry: DriverRegistry | None = None
        self._lock: AdvisoryLock | None = None
        self._seed(search.base.seed, len(self.trials()))
        self._study.pruner = build_pruner(search.settings, epochs=search.most_epochs)
        # Those that are there already are skipped, as a kill may have come between two of them
        for params in search.enqueue:
            self._study.enqueue_trial(dict(params), skip_if_exists=True)
        self._running: dict[int, optuna.Trial] = {}
        # Keys of configurations that failed for good; the next driver tries them again
        self._abandoned: set[str] = set()
        self._feasible: dict[str, dict[str, Any]] | None = None
        # Milliseconds by network, as of the last draw
        self._latencies: dict[str, float] = {}
        # Of configurations as they are drawn: it takes longer to find out what of one has an effect
        self._keys: dict[str, str] = {}

    def share(self) -> DriverRegistry:
        """Share the study with other drivers from now on, and return their registry.

        Raises:
            UsageError: the study is not on PostgreSQL, which has the lock that drivers share, or an exclusive driver
                holds it.
        """
        engine = self._engine()
        if engine is None or engine.dialect.name != "postgresql":
            raise UsageError("drivers=shared must have its study on PostgreSQL: storage=postgresql://me@host/studies")
        registry = DriverRegistry(self.attrs, self.set_attr, exclusive=False)
        self._registry, self._lock = registry, AdvisoryLock(engine, self.name)
        # Each driver has its own seed, as all would draw the same configurations otherwise
        self._seed(self.search.base.seed, len(self.trials()), int(registry.id, 16))
        return registry

    def lock_file(self) -> AbstractContextManager[bool]:
        """Hold the lock file beside a study on sqlite, see `coordination.lock_file`."""
        return lock_file(self._engine(), self.name)

    @property
    def shared(self) -> bool:
        """Return whether other drivers may write in the study."""
        return self._registry is not None

    @contextmanager
    def locked(self) -> Iterator[LockLease]:
        """Hold the lock that all drivers of the study share, and know what the others have written."""
        if self._registry is None or self._lock is None:
            yield LockLease()
            return
        with self._lock.locked() as lease:
            self.refresh()
            self._registry.refresh()
            yield lease

    def refresh(self) -> None:
        """Read at the next access what other drivers have written."""
        if isinstance(self._storage, SingleWriterCache):
            self._storage.refresh()

    def trials(self) -> list[FrozenTrial]:
        """Return all trials by number; they must not be changed."""
        return self._study.get_trials(deepcopy=False)

    def _trial(self, number: int) -> FrozenTrial:
        """Return a trial by its number; another process may have started ones that are not known here yet."""
        return next(trial for trial in self.trials() if trial.number == number)

    def n_running(self) -> int:
        """Return the number of running trials, those of other drivers included."""
        if not self.shared:
            return len(self._running)
        return sum(trial.state == TrialState.RUNNING for trial in self.trials())

    def n_finished(self, *, after: int = -1) -> int:
        """Return the number of trials that count against the budget: complete or pruned, but nothing that was free.

        Args:
            after: count those with a greater number.
        """
        finished = {TrialState.COMPLETE, TrialState.PRUNED}
        trials = self.trials()
        continued = continued_trials(trials)
        return sum(
            trial.state in finished and trial.number > after and trial.number not in continued and not _is_free(trial)
            for trial in trials
        )

    def epochs_trained(self) -> int:
        """Return the number of epochs that all trials have trained so far, running and failed ones included."""
        trials = self.trials()
        epochs = {
            trial.number: int(trial.user_attrs.get(EPOCHS) or max(trial.intermediate_values, default=0))
            for trial in trials
        }
        # Those of the trials that others go on with count once
        taken_over = sum(
            epochs.get(trial.user_attrs[CONTINUES], 0)
            for trial in trials
            if CONTINUES in trial.user_attrs and epochs[trial.number]
        )
        return sum(epochs[trial.number] for trial in trials if not _is_free(trial)) - taken_over

    def import_trials(self, older: Sequence[OlderStudy]) -> list[str]:
        """Add the trials of older studies that are not there yet, and return a line for each study."""
        lines = []
        with self.locked():
            done = list(self.get_attr(STARTED_FROM) or [])
            for study in older:
                if study.source in done:
                    continue
                tried = self._tried()
                for params, trial, origin in study.trials:
                    if self._key(params) not in tried:
                        self._import(params, trial, origin)
                self.set_attr(STARTED_FROM, done := [*done, study.source])
                lines.append(study.summary)
        return lines

    def _import(self, params: Mapping[str, Any], trial: FrozenTrial, origin: str) -> None:
        kept = {name: trial.user_attrs[name] for name in (*FIGURES, RUN_ID) if name in trial.user_attrs}
        self._study.add_trial(
            optuna.create_trial(
                state=trial.state,
                values=trial.values,
                params=dict(params),
                distributions={name: self.search.space[name] for name in params},
                user_attrs={IMPORTED_FROM: origin, **kept},
                intermediate_values=trial.intermediate_values,
                constraints={TRAINABLE: 0.0},
            )
        )

    def set_attr(self, key: str, value: object) -> None:
        """Set an attribute of the study, a value that JSON can hold."""
        self._study.set_user_attr(key, value)

    def get_attr(self, key: str) -> Any:
        """Return an attribute of the study, or None; read from the storage, where another process may have set it."""
        return self.attrs().get(key)

    def set_note(self, text: str) -> None:
        """Set the study's note in optuna-dashboard, see `dashboard.set_note`."""
        dashboard.set_note(self._storage, self._study._study_id, text)

    def attrs(self) -> Mapping[str, Any]:
        """Return all attributes of the study."""
        return self._storage.get_study_user_attrs(self._study._study_id)

    def searched_seconds(self) -> float:
        """Return for how long the study has been searched, as far as a driver has recorded it."""
        return float(self.get_attr(SEARCHED_SECONDS) or 0)

    def record_searched_seconds(self, seconds: float) -> None:
        """Record for how long the study has been searched, unless another driver has recorded more."""
        # Locked, since another driver may write between reading and writing
        with self._lock.locked() if self._lock else nullcontext():
            self.set_attr(SEARCHED_SECONDS, max(seconds, self.searched_seconds()))

    def ask(self) -> TrialProposal | None:
        """Return the next configuration to train, or None if no untried one that fits the images is known."""
        # A storage that was unavailable may have started a trial whose number never reached this process
        self.requeue_stale()
        if self.search.settings.max_latency_ms is not None:
            self._latencies = self.get_attr(ARCHITECTURES) or {}
        if proposal := self._promote():
            return proposal
        untried = self._untried()
        if untried == []:
            return None
        for _ in range(MAX_REDRAWS):
            if untried and self.search.settings.sampler == "grid" and not self._is_waiting():
                self._enqueue(untried[0])
            if proposal := self._draw():
                return proposal
        if untried is None:
            tried = self._tried()
            untried = list(
                islice((params for params in self.random_configurations() if self._key(params) not in tried), 1)
            )
        if not untried:
            return None
        self._enqueue(untried[self._random.integers(len(untried))])
        return self._draw()

    def _promote(self) -> TrialProposal | None:
        """Return the continuation of a stopped trial that is among the best of its rung by now, or None."""
        pruner = self._study.pruner
        old = pruner.promotable(self._study) if isinstance(pruner, RungPruner) else None
        if old is None:
            return None
        # Behind those that wait, which `_draw` takes first
        self._enqueue(old.params, continues=old.number, root=root(old))
        return self._draw()

    def checkpoints(self, proposal: TrialProposal) -> dict[str, Any]:
        """Return where and when a trial saves checkpoints, as arguments of TrialJob; nothing where none goes on."""
        pruner = self._study.pruner
        if not isinstance(pruner, RungPruner):
            return {}
        return {
            "checkpoints": checkpoints_folder(self.name) / str(proposal.root),
            "rungs": tuple(pruner.rungs),
            "resume_after": len(proposal.values),
        }

    def n_feasible(self) -> int | None:
        """Return the number of configurations that fit the images, or None where the space is too large to list."""
        feasible = self._feasible_configurations()
        return None if feasible is None else len(feasible)

    def random_configurations(self) -> Iterator[dict[str, Any]]:
        """Yield random configurations that fit the images; some may come again."""
        for _ in range(MAX_RANDOM_DRAWS):
            params = self.search.sample(self._random)
            if self._infeasibility(params) is None:
                yield params

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Record a trial's value at an epoch, counted from 1, and return whether the trial should be pruned."""
        # Optuna ranks no unfinished trial by two metrics
        if len(self.search.directions) > 1:
            return False
        trial = self._running[number]
        if epoch in self._trial(number).intermediate_values:
            # It was taken over from the trial that this one continues
            return False
        trial.report(value, epoch)
        return trial.should_prune()

    def set_trial_attrs(self, number: int, attrs: Mapping[str, object]) -> None:
        """Set attributes of a running trial."""
        for name, value in attrs.items():
            self._running[number].set_user_attr(name, value)

    def record_latency(self, number: int, milliseconds: float) -> None:
        """Keep what was measured of the network of a running trial, for all trials of the same."""
        trial = self._running[number]
        network = architecture(self.search.config(self.search.snap(trial.params)))
        # Locked, since another driver may write between reading and writing
        with self._lock.locked() if self._lock else nullcontext():
            self.set_attr(ARCHITECTURES, (self.get_attr(ARCHITECTURES) or {}) | {network: milliseconds})
        for name, violation in constraints(self.search.settings, {"latency_ms": milliseconds}).items():
            trial.set_constraint(name, violation)

    def refuse(self, number: int, reason: str) -> None:
        """End a running trial as infeasible: it was found to be beyond a limit before it was trained."""
        trial = self._running.pop(number)
        trial.set_user_attr(INFEASIBLE, reason)
        self._tell_pruned(trial, violation=True)

    def complete(self, number: int, values: Sequence[float]) -> None:
        """End a trial as complete, with a value for each metric."""
        self._tell_complete(self._running.pop(number), values)

    def prune(self, number: int, *, violation: bool = False) -> None:
        """End a trial as pruned.

        Args:
            number: of the trial.
            violation: whether its configuration cannot be trained here at all.
        """
        self._tell_pruned(self._running.pop(number), violation=violation)

    def fail(self, number: int, *, retry: bool) -> None:
        """End a trial as failed; with `retry` its configuration is queued as the next attempt."""
        trial = self._running.pop(number)
        if retry:
            history = _history(trial)
            self._enqueue(trial.params, **history | {ATTEMPT: history[ATTEMPT] + 1})
        else:
            self._abandoned.add(self._key(self.search.snap(trial.params)))
            if self.shared:
                trial.set_user_attr(ABANDONED, True)
        self._study.tell(trial, state=TrialState.FAIL)

    def requeue(self, number: int, *, node_lost: bool = False) -> None:
        """Queue the configuration of a trial again that was stopped through no fault of its own, as the same attempt.

        Args:
            number: of the trial.
            node_lost: whether it was stopped by the loss of its node. The configuration may have caused that, so the
                losses are counted.
        """
        trial = self._running.pop(number)
        history = _history(trial)
        if node_lost:
            history[NODE_LOSSES] += 1
        self._enqueue(trial.params, **history)
        self._study.tell(trial, state=TrialState.FAIL)

    def requeue_stale(self) -> list[FrozenTrial]:
        """Queue the configurations of running trials again that no live driver trains, and return these trials."""
        live = self._live_drivers()
        stale = [
            trial
            for trial in self.trials()
            if trial.state == TrialState.RUNNING
            and trial.number not in self._running
            and trial.user_attrs.get(DRIVER) not in live
        ]
        # Queued first: a kill between the two repeats a configuration, rather than losing it
        for trial in stale:
            # A trial may not have been given all of its parameters yet
            params = trial.system_attrs.get(QUEUED_PARAMS, {}) | trial.params
            self._enqueue(params, **_history(trial))
            self._study.tell(trial.number, state=TrialState.FAIL)
        return stale

    def best(self) -> FrozenTrial | None:
        """Return the complete trial with the best first value, the earlier of equals; None if no trial is complete."""
        ranked = self.ranked()
        return ranked[0] if ranked else None

    def ranked(self) -> list[FrozenTrial]:
        """Return the complete trials without duplicates, best first value first, the earlier of equals first."""
        sign = -1 if self.search.directions[0] == "maximize" else 1
        complete = [
            trial for trial in self.trials() if trial.state == TrialState.COMPLETE and not _has_no_training(trial)
        ]
        return sorted(complete, key=lambda trial: (sign * trial.values[0], trial.number))

    def pareto_front(self) -> list[int]:
        """Return the numbers of the trials that no other trial beats in both of two metrics."""
        return sorted(trial.number for trial in self._study.best_trials if not _has_no_training(trial))

    def is_enumerable(self) -> bool:
        """Return whether the space is small enough to know when all of it has been tried."""
        number = self.search.n_configurations()
        return number is not None and number <= MAX_ENUMERATED

    def _engine(self) -> Engine | None:
        return self._storage.backend.engine if isinstance(self._storage, SingleWriterCache) else None

    def _seed(self, *seeds: int) -> None:
        """Seed the sampler and this study's own random choices."""
        seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
        self._random = np.random.default_rng(seed)
        self._study.sampler = build_sampler(self.search.settings, seed=seed, conditional=bool(self.search.conditions))

    def _draw(self) -> TrialProposal | None:
        """Draw once from the sampler; return None for a duplicate or an infeasible configuration, which it records."""
        trial = self._study.ask()
        if self._registry:
            trial.set_user_attr(DRIVER, self._registry.id)
        params: dict[str, Any] = {}
        for setting, distribution in self.search.space.items():
            if self.search.is_drawn(setting, params):
                suggest(trial, setting, distribution)
                params = self.search.snap(trial.params)
        if CONTINUES in trial.user_attrs:
            return self._continue(trial, params)
        continued = continued_trials(self.trials())
        older = (old for old in self.trials() if old.number < trial.number and old.number not in continued)
        same = next((old for old in older if self._duplicates(old, params)), None)
        if same is not None:
            trial.set_user_attr(DUPLICATE_OF, same.number)
            self._tell_duplicate(trial, same)
            why = "which is infeasible" if INFEASIBLE in same.user_attrs else "not trained again"
            self.on_skipped(trial.number, params, f"the same as t{same.number:03d}, {why}")
            return None
        for name, violation in constraints(self.search.settings, self._costs(params)).items():
            trial.set_constraint(name, violation)
        if reason := self._infeasibility(params):
            trial.set_user_attr(INFEASIBLE, reason)
            self._tell_pruned(trial, violation=True)
            self.on_skipped(trial.number, params, f"infeasible, not trained: {reason}")
            return None
        self._running[trial.number] = trial
        history = _history(trial)
        return TrialProposal(trial.number, params, history[ATTEMPT], history[NODE_LOSSES], root=trial.number)

    def _continue(self, trial: optuna.Trial, params: Mapping[str, Any]) -> TrialProposal:
        """Let a trial go on with another one: it begins with the values and the rungs of that."""
        old = self._trial(trial.user_attrs[CONTINUES])
        values = [value for _, value in sorted(old.intermediate_values.items())]
        for epoch, value in enumerate(values, start=1):
            trial.report(value, epoch)
        for key, value in rung_values(old).items():
            self._storage.set_trial_system_attr(trial._trial_id, key, value)
        self._running[trial.number] = trial
        history = _history(trial)
        return TrialProposal(trial.number, params, history[ATTEMPT], history[NODE_LOSSES], root(old), tuple(values))

    def _infeasibility(self, params: Mapping[str, object]) -> str | None:
        """Return why a configuration does not fit the images or the limits of the search, or None if it does."""
        reason = infeasibility(
            self.search, params, image_shape=self._image_shape, training_images=self._training_images
        )
        return reason or why_too_costly(self.search.settings, self._costs(params))

    def _costs(self, params: Mapping[str, object]) -> dict[str, float]:
        """Return what of the costs of a configuration is known before it is trained."""
        settings = self.search.settings
        if settings.max_parameters is None and settings.max_latency_ms is None:
            return {}
        try:
            config = self.search.config(params)
        except UsageError:
            # It is infeasible anyhow
            return {}
        return known_costs(config, self._latencies, image_shape=self._image_shape, classes=self._classes)

    def _duplicates(self, old: FrozenTrial, params: Mapping[str, object]) -> bool:
        """Return whether an older trial has, or is about to have, the result of these settings."""
        key = self._key(params)
        if DUPLICATE_OF in old.user_attrs or self._key(self.search.snap(old.params)) != key:
            return False
        return self._is_final(old, key)

    def _key(self, params: Mapping[str, Any]) -> str:
        """Return a text that is the same for configurations with which a training goes the same way."""
        drawn = json.dumps(params, sort_keys=True)
        if drawn not in self._keys:
            self._keys[drawn] = self.search.key(params)
        return self._keys[drawn]

    def _is_final(self, trial: FrozenTrial, key: str) -> bool:
        """Return whether a trial's configuration is not to be trained again: it neither waits nor may be retried."""
        abandoned = key in self._abandoned or (
            ABANDONED in trial.user_attrs and trial.user_attrs[DRIVER] in self._live_drivers()
        )
        return trial.state != TrialState.WAITING and (trial.state != TrialState.FAIL or abandoned)

    def _live_drivers(self) -> frozenset[str]:
        """Return the ids of the live drivers that share the study; none if it is not shared."""
        return self._registry.live_drivers() if self._registry else frozenset()

    def _tell_duplicate(self, trial: optuna.Trial, same: FrozenTrial) -> None:
        """End a trial as the one ended that has the same configuration."""
        if same.state == TrialState.COMPLETE:
            self._tell_complete(trial, same.values)
        elif same.state == TrialState.PRUNED:
            for epoch, value in same.intermediate_values.items():
                trial.report(value, epoch)
            self._tell_pruned(trial, violation=same.constraints.get(TRAINABLE, 0.0) > 0)
        else:
            # It has no value, or has none yet
            self._study.tell(trial, state=TrialState.FAIL)

    def _tell_complete(self, trial: optuna.Trial, values: Sequence[float]) -> None:
        trial.set_constraint(TRAINABLE, 0.0)
        self._study.tell(trial, list(values))

    def _tell_pruned(self, trial: optuna.Trial, *, violation: bool) -> None:
        trial.set_constraint(TRAINABLE, float(violation))
        self._study.tell(trial, state=TrialState.PRUNED)

    def _enqueue(self, params: Mapping[str, Any], **history: int) -> None:
        """Queue a configuration, with attributes of the trial that tries it again or continues it."""
        self._study.enqueue_trial(dict(params), user_attrs={ATTEMPT: 1, NODE_LOSSES: 0} | history)

    def _is_waiting(self) -> bool:
        """Return whether a configuration is queued."""
        return any(trial.state == TrialState.WAITING for trial in self.trials())

    def _feasible_configurations(self) -> Mapping[str, dict[str, Any]] | None:
        """Return the configurations that fit the images by key, or None where the space is too large to list."""
        if not self.is_enumerable():
            return None
        if self._feasible is None:
            feasible = [params for params in self.search.configurations() if self._infeasibility(params) is None]
            self._feasible = {}
            for params in feasible:
                # The first of those that train alike
                self._feasible.setdefault(self._key(params), params)
        return self._feasible

    def _untried(self) -> list[dict[str, Any]] | None:
        """Return the untried configurations that fit the images, or None where the space is too large to list."""
        feasible = self._feasible_configurations()
        if feasible is None:
            return None
        tried = self._tried()
        return [params for key, params in feasible.items() if key not in tried]

    def _tried(self) -> set[str]:
        """Return the keys of the configurations that are not to be trained again."""
        keys = ((trial, self._key(self.search.snap(trial.params))) for trial in self.trials())
        return {key for trial, key in keys if self._is_final(trial, key)}


def _history(trial: optuna.Trial | FrozenTrial) -> dict[str, int]:
    """Return what another try of a trial's configuration has to know, as the arguments of `_enqueue`."""
    known = {name: trial.user_attrs[name] for name in (CONTINUES, ROOT) if name in trial.user_attrs}
    return {ATTEMPT: trial.user_attrs.get(ATTEMPT, 1), NODE_LOSSES: trial.user_attrs.get(NODE_LOSSES, 0)} | known


def _is_free(trial: FrozenTrial) -> bool:
    """Return whether a trial costs no budget, as this search has trained nothing for it."""
    return _has_no_training(trial) or IMPORTED_FROM in trial.user_attrs


def _has_no_training(trial: FrozenTrial) -> bool:
    """Return whether a trial has no result of its own."""
    return DUPLICATE_OF in trial.user_attrs or INFEASIBLE in trial.user_attrs
