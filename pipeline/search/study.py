"""An Optuna study that a driver holds: what to try next, what came of it, and how far the budget goes."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline.runtime.errors import UsageError
from pipeline.search.attributes import ABANDONED, ATTEMPT, DRIVER, DUPLICATE_OF, INFEASIBLE, NODE_LOSSES, TRAINABLE
from pipeline.search.coordination import AdvisoryLock, DriverRegistry, LockLease
from pipeline.search.distributions import values
from pipeline.search.space import SearchSpec, infeasibility
from pipeline.search.storage import SingleWriterCache, open_storage

RE_ASKS = 30  # draws in a row that have been tried before, until one that has not is taken at random
ENUMERATED = 10_000  # a space with more configurations is not written out: each is checked, a second for all
DRAWS = 10_000  # at random from such a space, until those that fit the images count as used up

QUEUED = "fixed_params"  # Optuna's own, of a trial that was enqueued


@dataclass(frozen=True)
class TrialProposal:
    """A configuration to be trained, under its number in the study."""

    number: int
    params: Mapping[str, Any]
    attempt: int  # counted from 1; more where a process died under it
    node_losses: int  # how often it has lost its node


class Study:
    """The trials of one question, kept in Optuna's storage; every method writes at once, so that a kill loses nothing.

    Optuna sees an out-of-memory or infeasible configuration as PRUNED with a violated constraint: told as FAIL it would
    propose the like again and again.
    """

    def __init__(
        self, search: SearchSpec, *, url: str | None, name: str, image_shape: Sequence[int], training_images: int
    ) -> None:
        """Open the study, or begin it.

        Args:
            url: of the storage; None keeps the study in memory.
            image_shape: (height, width, channels), in pixels.
            training_images: how many there are after the split.
        """
        self.search = search
        self.name = name
        self._fits: Callable[[Mapping[str, object]], str | None] = lambda params: infeasibility(
            search, params, image_shape=image_shape, training_images=training_images
        )
        self._storage = open_storage(url)
        self._study = optuna.create_study(
            study_name=name, storage=self._storage, directions=search.directions, load_if_exists=True
        )
        self._drivers: DriverRegistry | None = None
        self._seed(search.base.seed, len(self.trials()))
        self._study.pruner = _pruner(search)
        for params in search.enqueue:  # skipped where they are there: a kill may have come between two of them
            self._study.enqueue_trial(dict(params), skip_if_exists=True)
        self._asked: dict[int, optuna.Trial] = {}
        self._abandoned: set[str] = set()  # configurations that failed for good; the next driver tries them again
        self._fitting: dict[str, dict[str, Any]] | None = None

    def _seed(self, *seeds: int) -> None:
        seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
        self._random = np.random.default_rng(seed)
        self._study.sampler = _sampler(self.search, seed)

    def share(self) -> DriverRegistry:
        """Hold the study together with other drivers from now on; returns this one among them.

        Raises:
            UsageError: it lies where they cannot have a lock.
        """
        engine = self._storage.backend.engine if isinstance(self._storage, SingleWriterCache) else None
        if engine is None or engine.dialect.name != "postgresql":
            raise UsageError("drivers=shared must have its study on PostgreSQL: storage=postgresql://me@host/studies")
        self._lock = AdvisoryLock(engine, self.name)
        self._drivers = DriverRegistry(self.attrs, self.set_attr)
        self._seed(self.search.base.seed, len(self.trials()), int(self._drivers.id, 16))  # else all drew the same
        return self._drivers

    @property
    def shared(self) -> bool:
        return self._drivers is not None

    @contextmanager
    def alone(self) -> Iterator[LockLease]:
        """Within it no other driver asks or takes over, and what they have written is known."""
        if self._drivers is None:
            yield LockLease()
            return
        with self._lock.held() as held:
            self.refresh()
            self._drivers.look()
            yield held

    def refresh(self) -> None:
        """See what other drivers have written."""
        if isinstance(self._storage, SingleWriterCache):
            self._storage.refresh()

    def running(self) -> int:
        """Trials on their way, those of other drivers too."""
        if not self.shared:
            return len(self._asked)
        return sum(trial.state == TrialState.RUNNING for trial in self.trials())

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number; not to be changed."""
        return self._study.get_trials(deepcopy=False)

    def set_attr(self, key: str, value: object) -> None:
        """Keep something of the study's own, as JSON."""
        self._study.set_user_attr(key, value)

    def get_attr(self, key: str) -> Any:
        """What was kept, or None; read from the storage, where another process may have written."""
        return self.attrs().get(key)

    def attrs(self) -> Mapping[str, Any]:
        """All that was kept."""
        return self._storage.get_study_user_attrs(self._study._study_id)

    def n_finished(self) -> int:
        """Trials that count: completed or pruned, neither duplicates nor infeasible."""
        done = {TrialState.COMPLETE, TrialState.PRUNED}
        return sum(trial.state in done and not _free(trial) for trial in self.trials())

    def requeue_lost(self) -> list[FrozenTrial]:
        """Give up the trials that run for no driver and queue their configurations again; returns them."""
        living = self._living()
        lost = [
            trial
            for trial in self.trials()
            if trial.state == TrialState.RUNNING
            and trial.number not in self._asked
            and trial.user_attrs.get(DRIVER) not in living
        ]
        for trial in lost:  # queued first: a kill between the two repeats a configuration rather than lose it
            params = trial.system_attrs.get(QUEUED, {}) | trial.params  # which it may not have been given all yet
            self._enqueue(params, **_history(trial))
            self._study.tell(trial.number, state=TrialState.FAIL)
        return lost

    def ask(self) -> TrialProposal | None:
        """The next configuration to train; None where no further one that fits the images is known."""
        self.requeue_lost()  # a storage that went away may have begun one without telling
        untried = self._untried()
        if untried == []:
            return None
        for _ in range(RE_ASKS):
            if untried and self.search.settings.sampler == "grid" and not self._waiting():
                self._enqueue(untried[0])
            if proposal := self._draw():
                return proposal
        if untried is None:
            tried = self._tried()
            untried = list(islice((params for params in self.at_random() if _key(params) not in tried), 1))
        if not untried:
            return None
        self._enqueue(untried[self._random.integers(len(untried))])
        return self._draw()

    def at_random(self) -> Iterator[dict[str, Any]]:
        """Configurations that fit the images, as they come; some may come again."""
        draws = (self.search.drawn(self._random) for _ in range(DRAWS))
        return (params for params in draws if self._fits(params) is None)

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Take a trial's value at an epoch; returns whether it should be pruned."""
        if len(self.search.directions) > 1:
            return False  # Optuna ranks no unfinished trial among two metrics
        self._asked[number].report(value, epoch)
        return self._asked[number].should_prune()

    def complete(self, number: int, found: Sequence[float]) -> None:
        """Tell the values of a trial that went to its end."""
        self._tell_complete(self._asked.pop(number), found)

    def prune(self, number: int, *, violation: bool = False) -> None:
        """Tell of a trial that ended early; `violation` where its configuration cannot be trained here at all."""
        self._tell_pruned(self._asked.pop(number), violation=violation)

    def fail(self, number: int, *, again: bool) -> None:
        """Tell of a trial that died; `again` queues its configuration once more."""
        trial = self._asked.pop(number)
        if again:
            history = _history(trial)
            self._enqueue(trial.params, **history | {ATTEMPT: history[ATTEMPT] + 1})
        else:
            self._abandoned.add(_key(self.search.exact(trial.params)))
            if self._drivers:
                trial.set_user_attr(ABANDONED, True)
        self._study.tell(trial, state=TrialState.FAIL)

    def requeue(self, number: int, *, lost: bool = False) -> None:
        """Tell of a trial that was stopped through no fault of its own: it is queued as if it had not begun.

        Args:
            lost: with its node, which may have been its fault: that is counted.
        """
        trial = self._asked.pop(number)
        history = _history(trial)
        self._enqueue(trial.params, **history | {NODE_LOSSES: history[NODE_LOSSES] + lost})
        self._study.tell(trial, state=TrialState.FAIL)

    def annotate(self, number: int, figures: Mapping[str, object]) -> None:
        """Keep figures of a running trial for the tables."""
        for name, value in figures.items():
            self._asked[number].set_user_attr(name, value)

    def best(self) -> FrozenTrial | None:
        """The complete trial with the best first value, the first of equals; None where none is complete."""
        ranked = self.ranked()
        return ranked[0] if ranked else None

    def ranked(self) -> list[FrozenTrial]:
        """The complete trials, best first value first, the earlier of equals first; no duplicates."""
        sign = -1 if self.search.directions[0] == "maximize" else 1
        done = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE and not _free(trial)]
        return sorted(done, key=lambda trial: (sign * trial.values[0], trial.number))

    def front(self) -> list[int]:
        """Numbers of the trials that no other beats in both of two metrics, by number."""
        return sorted(trial.number for trial in self._study.best_trials if not _free(trial))

    def counted(self) -> bool:
        """Whether the space is small enough to know when all of it has been tried."""
        many = self.search.configurations()
        return many is not None and many <= ENUMERATED

    def importances(self) -> dict[str, float]:
        """Share of the first metric's variation that each setting explains (fANOVA); empty below four values."""
        done = self.ranked()
        if len({trial.values[0] for trial in done}) < 4 or len(self.search.space) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(
            self._study, evaluator=evaluator, target=lambda trial: trial.values[0]
        )

    def _draw(self) -> TrialProposal | None:
        """One draw of the sampler; None if it was answered from the record or cannot be trained."""
        trial = self._study.ask(dict(self.search.space))
        if self._drivers:
            trial.set_user_attr(DRIVER, self._drivers.id)
        params = self.search.exact(trial.params)
        same = next((old for old in self.trials() if old.number < trial.number and self._covers(old, params)), None)
        if same is not None:
            trial.set_user_attr(DUPLICATE_OF, same.number)
            self._repeat(trial, same)
            return None
        if reason := self._fits(params):
            trial.set_user_attr(INFEASIBLE, reason)
            self._tell_pruned(trial, violation=True)
            return None
        self._asked[trial.number] = trial
        return TrialProposal(trial.number, params, **_history(trial))

    def _covers(self, old: FrozenTrial, params: Mapping[str, object]) -> bool:
        """Whether an older trial answers for these settings, or is about to: one that waits or runs again does not."""
        key = _key(params)
        if DUPLICATE_OF in old.user_attrs or _key(self.search.exact(old.params)) != key:
            return False
        return self._settled(old, key)

    def _settled(self, trial: FrozenTrial, key: str) -> bool:
        for_good = key in self._abandoned or (
            ABANDONED in trial.user_attrs and trial.user_attrs[DRIVER] in self._living()
        )
        return trial.state != TrialState.WAITING and (trial.state != TrialState.FAIL or for_good)

    def _living(self) -> frozenset[str]:
        return self._drivers.living() if self._drivers else frozenset()

    def _repeat(self, trial: optuna.Trial, same: FrozenTrial) -> None:
        if same.state == TrialState.COMPLETE:
            self._tell_complete(trial, same.values)
        elif same.state == TrialState.PRUNED:
            for epoch, value in same.intermediate_values.items():
                trial.report(value, epoch)
            self._tell_pruned(trial, violation=same.constraints.get(TRAINABLE, 0.0) > 0)
        else:  # there is no value, or not yet
            self._study.tell(trial, state=TrialState.FAIL)

    def _tell_complete(self, trial: optuna.Trial, found: Sequence[float]) -> None:
        trial.set_constraint(TRAINABLE, 0.0)
        self._study.tell(trial, list(found))

    def _tell_pruned(self, trial: optuna.Trial, *, violation: bool) -> None:
        trial.set_constraint(TRAINABLE, float(violation))
        self._study.tell(trial, state=TrialState.PRUNED)

    def _enqueue(self, params: Mapping[str, Any], *, attempt: int = 1, node_losses: int = 0) -> None:
        self._study.enqueue_trial(dict(params), user_attrs={ATTEMPT: attempt, NODE_LOSSES: node_losses})

    def _waiting(self) -> bool:
        return any(trial.state == TrialState.WAITING for trial in self.trials())

    def _untried(self) -> list[dict[str, Any]] | None:
        """The configurations that fit the images and that no trial answers for; None where they cannot be counted."""
        if not self.counted():
            return None
        if self._fitting is None:
            names = list(self.search.space)
            every = product(*(values(self.search.space[name]) or () for name in names))
            combinations = (dict(zip(names, combination, strict=True)) for combination in every)
            self._fitting = {_key(params): params for params in combinations if self._fits(params) is None}
        tried = self._tried()
        return [params for key, params in self._fitting.items() if key not in tried]

    def _tried(self) -> set[str]:
        keys = ((trial, _key(self.search.exact(trial.params))) for trial in self.trials())
        return {key for trial, key in keys if self._settled(trial, key)}


def _key(params: Mapping[str, object]) -> str:
    return json.dumps(params, sort_keys=True, default=str)


def _history(trial: optuna.Trial | FrozenTrial) -> dict[str, int]:
    """What a trial's configuration has been through, as `Asked` has it."""
    return {ATTEMPT: trial.user_attrs.get(ATTEMPT, 1), NODE_LOSSES: trial.user_attrs.get(NODE_LOSSES, 0)}


def _free(trial: FrozenTrial) -> bool:
    return DUPLICATE_OF in trial.user_attrs or INFEASIBLE in trial.user_attrs


def _sampler(search: SearchSpec, seed: int) -> optuna.samplers.BaseSampler:
    if search.settings.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=seed)  # a grid is walked by what is enqueued


def _pruner(search: SearchSpec) -> optuna.pruners.BasePruner:
    settings = search.settings
    if settings.pruner == "none":
        return optuna.pruners.NopPruner()
    # while the learning rate is high, accuracies say little of how trials end (experiments/README.md)
    warmup = search.base.epochs // 2 if settings.pruner_epochs is None else settings.pruner_epochs
    return optuna.pruners.MedianPruner(n_startup_trials=settings.pruner_trials, n_warmup_steps=warmup)
