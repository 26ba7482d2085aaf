"""An Optuna study: its trials, what became of them, and how much of the budget is left."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

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
    EPOCHS,
    FIGURES,
    IMPORTED_FROM,
    INFEASIBLE,
    NODE_LOSSES,
    RESUMED_AFTER,
    RUN_ID,
    SEARCHED_SECONDS,
    STARTED_FROM,
    TRAINABLE,
)
from pipeline.search.coordination import AdvisoryLock, DriverRegistry, LockLease, lock_file
from pipeline.search.feasible_space import FeasibleSpace
from pipeline.search.limits import architecture, constraints, why_too_costly
from pipeline.search.promotion import RungPruner, checkpoints_folder, continued_trials, root
from pipeline.search.proposals import OnSkipped, Proposals, TrialProposal
from pipeline.search.pruners import build_pruner
from pipeline.search.space import SearchSpec
from pipeline.search.start_from import OlderStudy
from pipeline.search.storage import SingleWriterCache, open_storage
from pipeline.search.trial_states import enqueue, has_no_training, history, is_free, tell_complete, tell_pruned
from pipeline.search.tried import TriedConfigurations

# Optuna's own system attribute of a trial that was enqueued
QUEUED_PARAMS = "fixed_params"


class Study:
    """The trials of a search, kept in Optuna's storage.

    Every method writes at once, so that a kill loses nothing.

    Attributes:
        optuna_study: the study as Optuna has it.
        space: which configurations can be trained.
        on_skipped: told of each trial for which nothing is trained.
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
        self._storage = open_storage(url)
        self.optuna_study = optuna.create_study(
            study_name=name, storage=self._storage, directions=search.directions, load_if_exists=True
        )
        dashboard.name_metrics(self.optuna_study, list(search.settings.metric))
        self.optuna_study.pruner = build_pruner(search.settings, epochs=search.most_epochs)
        self.on_skipped: OnSkipped = lambda number, params, reason: None
        self._registry: DriverRegistry | None = None
        self._lock: AdvisoryLock | None = None
        self.space = FeasibleSpace(search, image_shape=image_shape, training_images=training_images, classes=classes)
        self._tried = TriedConfigurations(search, self.space, live_drivers=self._live_drivers)
        self._proposals = Proposals(search, self.optuna_study, self.space, self._tried)
        # Those that are there already are skipped, as a kill may have come between two of them
        for params in search.enqueue:
            self.optuna_study.enqueue_trial(dict(params), skip_if_exists=True)
        self._running: dict[int, optuna.Trial] = {}

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
        self._proposals.seed(self.search.base.seed, len(self.trials()), int(registry.id, 16))
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
        return self.optuna_study.get_trials(deepcopy=False)

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
            trial.state in finished and trial.number > after and trial.number not in continued and not is_free(trial)
            for trial in trials
        )

    def epochs_trained(self) -> int:
        """Return the number of epochs that all trials have trained so far, running and failed ones included."""
        trials = self.trials()
        epochs = {
            trial.number: int(trial.user_attrs.get(EPOCHS) or max(trial.intermediate_values, default=0))
            for trial in trials
        }
        return sum(
            epochs[trial.number] - min(epochs[trial.number], _taken_over(trial, epochs))
            for trial in trials
            if not is_free(trial)
        )

    def import_trials(self, older: Sequence[OlderStudy]) -> list[str]:
        """Add the trials of older studies that are not there yet, and return a line for each study."""
        lines = []
        with self.locked():
            done = list(self.get_attr(STARTED_FROM) or [])
            for study in older:
                if study.source in done:
                    continue
                tried = self._tried.keys(self.trials())
                reasons = []
                for params, trial, origin in study.trials:
                    key = self.space.key(params)
                    if reason := self._why_not_imported(params, trial):
                        reasons.append(reason)
                    elif key not in tried:
                        self._import(params, trial, origin)
                        tried.add(key)
                self.set_attr(STARTED_FROM, done := [*done, study.source])
                left_out = f"; {len(reasons)} of them left out, the first because {reasons[0]}" if reasons else ""
                lines.append(study.summary + left_out)
        return lines

    def _why_not_imported(self, params: Mapping[str, Any], trial: FrozenTrial) -> str | None:
        """Return which rule or limit of this search, that an older one need not have had, a trial breaks, or None."""
        costs = {"latency_ms": trial.user_attrs["latency_ms"]} if "latency_ms" in trial.user_attrs else {}
        return self.space.why_not(params) or why_too_costly(self.search.settings, costs)

    def _import(self, params: Mapping[str, Any], trial: FrozenTrial, origin: str) -> None:
        kept = {name: trial.user_attrs[name] for name in (*FIGURES, RUN_ID) if name in trial.user_attrs}
        self.optuna_study.add_trial(
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
        self.optuna_study.set_user_attr(key, value)

    def get_attr(self, key: str) -> Any:
        """Return an attribute of the study, or None; read from the storage, where another process may have set it."""
        return self.attrs().get(key)

    def set_note(self, text: str) -> None:
        """Set the study's note in optuna-dashboard, see `dashboard.set_note`."""
        dashboard.set_note(self._storage, self.optuna_study._study_id, text)

    def attrs(self) -> Mapping[str, Any]:
        """Return all attributes of the study."""
        return self._storage.get_study_user_attrs(self.optuna_study._study_id)

    def searched_seconds(self) -> float:
        """Return for how long the study has been searched, as far as a driver has recorded it."""
        return float(self.get_attr(SEARCHED_SECONDS) or 0)

    def record_searched_seconds(self, seconds: float) -> None:
        """Record for how long the study has been searched, unless another driver has recorded more."""
        with self._written_by_one():
            self.set_attr(SEARCHED_SECONDS, max(seconds, self.searched_seconds()))

    def ask(self) -> TrialProposal | None:
        """Return the next configuration to train, or None if no untried one that fits the images is known."""
        # A storage that was unavailable may have started a trial whose number never reached this process
        self.requeue_stale()
        if self.search.settings.max_latency_ms is not None:
            self.space.latencies = self.get_attr(ARCHITECTURES) or {}
        driver = self._registry.id if self._registry else None
        drawn = self._proposals.ask(driver=driver, on_skipped=self.on_skipped)
        if drawn is None:
            return None
        trial, proposal = drawn
        self._running[trial.number] = trial
        return proposal

    def checkpoints(self, proposal: TrialProposal) -> dict[str, Any]:
        """Return where and when a trial saves checkpoints, as arguments of TrialJob; nothing where none goes on."""
        pruner = self.optuna_study.pruner
        if not isinstance(pruner, RungPruner):
            return {}
        return {
            "checkpoints": checkpoints_folder(self.name) / str(proposal.root),
            "rungs": tuple(pruner.rungs),
            "resume": proposal.root != proposal.number,
        }

    def n_feasible(self) -> int | None:
        """Return the number of configurations that fit the images, or None where the space is too large to list."""
        feasible = self.space.configurations()
        return None if feasible is None else len(feasible)

    def random_configurations(self) -> Iterator[dict[str, Any]]:
        """Yield random configurations that fit the images; some may come again."""
        return self.space.sample(self._proposals.random)

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
        with self._written_by_one():
            self.set_attr(ARCHITECTURES, (self.get_attr(ARCHITECTURES) or {}) | {network: milliseconds})
        for name, violation in constraints(self.search.settings, {"latency_ms": milliseconds}).items():
            trial.set_constraint(name, violation)

    def refuse(self, number: int, reason: str) -> None:
        """End a running trial as infeasible: it was found to be beyond a limit before it was trained."""
        trial = self._running.pop(number)
        trial.set_user_attr(INFEASIBLE, reason)
        tell_pruned(self.optuna_study, trial, violation=True)

    def complete(self, number: int, values: Sequence[float]) -> None:
        """End a trial as complete, with a value for each metric, and remove its checkpoints."""
        trial = self._running.pop(number)
        tell_complete(self.optuna_study, trial, values)
        shutil.rmtree(checkpoints_folder(self.name) / str(root(trial)), ignore_errors=True)

    def prune(self, number: int, *, violation: bool = False) -> None:
        """End a trial as pruned.

        Args:
            number: of the trial.
            violation: whether its configuration cannot be trained here at all.
        """
        tell_pruned(self.optuna_study, self._running.pop(number), violation=violation)

    def fail(self, number: int, *, retry: bool) -> None:
        """End a trial as failed; with `retry` its configuration is queued as the next attempt."""
        trial = self._running.pop(number)
        if retry:
            known = history(trial)
            enqueue(self.optuna_study, trial.params, **known | {ATTEMPT: known[ATTEMPT] + 1})
        else:
            self._tried.abandon(trial.params)
            if self.shared:
                trial.set_user_attr(ABANDONED, True)
        self.optuna_study.tell(trial, state=TrialState.FAIL)

    def requeue(self, number: int, *, node_lost: bool = False) -> None:
        """Queue the configuration of a trial again that was stopped through no fault of its own, as the same attempt.

        Args:
            number: of the trial.
            node_lost: whether it was stopped by the loss of its node. The configuration may have caused that, so the
                losses are counted.
        """
        trial = self._running.pop(number)
        known = history(trial)
        if node_lost:
            known[NODE_LOSSES] += 1
        enqueue(self.optuna_study, trial.params, **known)
        self.optuna_study.tell(trial, state=TrialState.FAIL)

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
            enqueue(self.optuna_study, params, **history(trial))
            self.optuna_study.tell(trial.number, state=TrialState.FAIL)
        return stale

    def best(self) -> FrozenTrial | None:
        """Return the complete trial with the best first value, the earlier of equals; None if no trial is complete."""
        ranked = self.ranked()
        return ranked[0] if ranked else None

    def ranked(self) -> list[FrozenTrial]:
        """Return the complete trials without duplicates, best first value first, the earlier of equals first."""
        sign = -1 if self.search.directions[0] == "maximize" else 1
        complete = [
            trial for trial in self.trials() if trial.state == TrialState.COMPLETE and not has_no_training(trial)
        ]
        return sorted(complete, key=lambda trial: (sign * trial.values[0], trial.number))

    def pareto_front(self) -> list[int]:
        """Return the numbers of the trials that no other trial beats in both of two metrics."""
        return sorted(trial.number for trial in self.optuna_study.best_trials if not has_no_training(trial))

    def _written_by_one(self) -> AbstractContextManager[object]:
        """Keep other drivers from writing between reading and writing."""
        return self._lock.locked() if self._lock else nullcontext()

    def _trial(self, number: int) -> FrozenTrial:
        """Return a trial by its number; another process may have started ones that are not known here yet."""
        return next(trial for trial in self.trials() if trial.number == number)

    def _engine(self) -> Engine | None:
        return self._storage.backend.engine if isinstance(self._storage, SingleWriterCache) else None

    def _live_drivers(self) -> frozenset[str]:
        """Return the ids of the live drivers that share the study; none if it is not shared."""
        return self._registry.live_drivers() if self._registry else frozenset()


def _taken_over(trial: FrozenTrial, epochs: Mapping[int, int]) -> int:
    """Return how many of its epochs a trial has from others; until it has ended, those of the one that it continues."""
    known = trial.user_attrs.get(RESUMED_AFTER)
    return epochs.get(trial.user_attrs.get(CONTINUES, -1), 0) if known is None else int(known)
