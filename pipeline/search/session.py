"""The session of a search: how its driver holds the study, alone or with other drivers, and what its parts share."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from pipeline.runtime.console import Console
from pipeline.runtime.errors import Unavailable
from pipeline.runtime.signals import Interrupts
from pipeline.search.attributes import FINISHER, RUN_ID
from pipeline.search.coordination import DriverRegistry
from pipeline.search.events import SearchEvents
from pipeline.search.executors.base import EpochReport, Executor, TrialJob, TrialResult
from pipeline.search.study import Study
from pipeline.tracking.study_run import StudyRun, join_study_run, open_study_run
from pipeline.tracking.tags import Role, RunOutcome, RunRef

# For events of trials, or until a tracking server that does not answer is asked again
WAIT_SECONDS = 1.0


class Coordinator(ABC):
    """What a driver may do with its study and the study's MLflow run, beside other drivers or as the only one."""

    @abstractmethod
    def open_run(self) -> StudyRun:
        """Open the study's MLflow run, or reopen it where the search is resumed."""

    @abstractmethod
    def recover_stale_trials(self) -> int:
        """Requeue the trials that dead drivers left running, close their runs, and return how many trials these are."""

    @abstractmethod
    def heartbeat(self) -> None:
        """Renew this driver's entry in the registry if that is due; cheap to call often.

        Raises:
            UsageError: another driver has taken this one for dead.
        """

    @abstractmethod
    def claim_final(self) -> bool:
        """Return whether this driver is the one that trains the finalists."""

    @abstractmethod
    def end_run(self, outcome: RunOutcome, reason: str) -> str | None:
        """Close the MLflow runs that are this driver's to close.

        Returns:
            A line that says what could not be sent to the tracking server, if anything.
        """

    @abstractmethod
    def close(self) -> None:
        """Leave the study to other drivers."""


class ExclusiveCoordinator(Coordinator):
    """The only driver of a study.

    Raises:
        UsageError: another driver is alive.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        with ExitStack() as stack:
            has_lock = stack.enter_context(study.lock_file())
            self._registry = DriverRegistry(study.attrs, study.set_attr, exclusive=True, has_lock=has_lock)
            self._lock = stack.pop_all()

    def open_run(self) -> StudyRun:
        self._run = open_study_run(
            self._study.name,
            known=self._study.get_attr(RUN_ID),
            trials=self._study.n_finished(),
            measures_energy=_runs_here(self._study),
        )
        self._study.set_attr(RUN_ID, self._run.id)
        return self._run

    def recover_stale_trials(self) -> int:
        stale = self._study.requeue_stale()
        self._run.close_lost()
        return len(stale)

    def heartbeat(self) -> None:
        self._registry.heartbeat()

    def claim_final(self) -> bool:
        return True

    def end_run(self, outcome: RunOutcome, reason: str) -> str | None:
        return self._run.close(outcome, reason)

    def close(self) -> None:
        self._registry.close()
        self._lock.close()


class SharedCoordinator(Coordinator):
    """One of several drivers of a study.

    Raises:
        UsageError: an exclusive driver is alive, or the study is not on PostgreSQL.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._registry = study.share()
        self._is_finisher = False

    def open_run(self) -> StudyRun:
        # Locked, so that two drivers that start at once open one run
        with self._study.locked():
            self._run = join_study_run(
                self._study.name,
                known=self._study.get_attr(RUN_ID),
                driver=self._registry.id,
                measures_energy=_runs_here(self._study),
            )
            self._study.set_attr(RUN_ID, self._run.study_run.id)
        return self._run.study_run

    def recover_stale_trials(self) -> int:
        with self._study.locked():
            dead, stale = self._registry.refresh(), self._study.requeue_stale()
            if self._is_alone():
                self._run.study_run.close_lost()  # an exclusive driver may have left runs too
        for driver in dead:
            self._run.close_driver(driver)
            self._registry.unregister(driver)
        return len(stale)

    def heartbeat(self) -> None:
        if self._registry.heartbeat():
            self._study.refresh()
            if self._registry.refresh():
                self.recover_stale_trials()

    def claim_final(self) -> bool:
        """Return whether this driver is the one that trains the finalists: the first that asks, as long as it lives."""
        study = self._study
        with study.locked() as lease:
            others = self._registry.live_drivers() - {self._registry.id}
            self._is_finisher = study.get_attr(FINISHER) not in others
            if self._is_finisher:
                study.set_attr(FINISHER, self._registry.id)
        return self.claim_final() if lease.lost else self._is_finisher

    def end_run(self, outcome: RunOutcome, reason: str) -> str | None:
        with self._study.locked():
            is_last = self._registry.leave()
        if is_last or self._is_finisher:
            return self._run.close(outcome, reason)
        return self._run.leave(outcome, reason)

    def close(self) -> None:
        self._registry.close()

    def _is_alone(self) -> bool:
        return self._registry.live_drivers() == {self._registry.id}


def _runs_here(study: Study) -> bool:
    """Return whether the trials of a study run on the driver's machine alone."""
    return study.search.settings.cluster in {None, "local"}


@dataclass(frozen=True)
class SearchContext:
    """What the parts of a search share: its study, its MLflow runs, where trials run, and the terminal."""

    study: Study
    runs: StudyRun
    executor: Executor
    interrupts: Interrupts  # how often the process has been asked to stop
    heartbeat: Callable[[], None]  # to be called about once a second
    console: Console = field(default_factory=Console)
    guessing: float | None = None  # what a classifier that ignores the images may reach by the monitored metric
    data_fingerprint: str = ""
    notify: SearchEvents | None = None  # who is to be told what happens

    def wait_for_events(self) -> list[EpochReport | TrialResult]:
        """Return what trials have sent, after a second at most; stop the trials if the process was asked to stop."""
        if self.interrupts():
            self.executor.stop_all(now=self.interrupts() > 1)
        events = self.executor.events(WAIT_SECONDS)
        if events and self.notify:
            self.notify.beat()
        self.heartbeat()
        return events

    def start_child(
        self, name: str, *, role: Role, tags: Mapping[str, str], parent: str | None = None
    ) -> RunRef | None:
        """Open an MLflow run below the study's, as soon as the tracking server answers.

        Meanwhile running trials go on, but their events are not read.

        Returns:
            The run, or None if the process was asked to stop before.
        """
        while True:
            try:
                return self.runs.start_child(name, role=role, tags=tags, parent=parent)
            except Unavailable:
                if self.interrupts():
                    return None
                self.heartbeat()
                time.sleep(WAIT_SECONDS)

    def run_job(self, job: TrialJob) -> TrialResult:
        """Run one job while no other runs, and return its result."""
        (result,) = self.run_jobs([job])
        return result

    def run_jobs(self, jobs: Sequence[TrialJob]) -> list[TrialResult]:
        """Run jobs at once, a slot each, while no others run, and return their results in the order of their ends."""
        results: list[TrialResult] = []
        for job in jobs:
            self.executor.start(job, minutes=None)
        while len(results) < len(jobs):
            results += [event for event in self.wait_for_events() if isinstance(event, TrialResult)]
        return results
