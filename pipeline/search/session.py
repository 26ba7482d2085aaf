"""A driver's hold on a study: alone, as most searches are, or together with others that share its budget."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from pipeline.runtime.errors import Unavailable, UsageError
from pipeline.search.attributes import FINAL, FINAL_OF, FINISHER, LEASE, RUN_ID, WINNER
from pipeline.search.coordination import Lease, is_alive, others_live
from pipeline.search.executors.base import EpochReport, Executor, TrialJob, TrialResult
from pipeline.search.study import Study
from pipeline.tracking.study_run import StudyRun, join_study_run, open_study_run
from pipeline.tracking.tags import Role, RunOutcome, RunRef


class Coordinator(Protocol):
    """What a search may do with its study, and with its run in MLflow."""

    def open_run(self) -> StudyRun:
        """Open the run of the study, or go on with it."""
        ...

    def take_over(self) -> int:
        """Queue again what lost drivers left and close its runs; returns how many trials that were."""
        ...

    def beat(self) -> None:
        """Say that this driver lives; cheap to call often.

        Raises:
            UsageError: the study is another's now.
        """
        ...

    def finishes(self) -> bool:
        """Whether the end of the search, with its final, is this driver's to carry out."""
        ...

    def close(self, outcome: RunOutcome, reason: str) -> str | None:
        """Close the runs that are this driver's to close; returns a line on what could not be told, if any."""
        ...

    def release(self) -> None:
        """Leave the study to others."""
        ...


class ExclusiveCoordinator:
    """The one driver of a study.

    Raises:
        UsageError: another driver lives.
    """

    def __init__(self, study: Study) -> None:
        if others_live(study.attrs()):
            raise UsageError("drivers must be shared, as other drivers share this study: -P drivers=shared joins them")
        self._study = study
        self._lease = Lease(lambda: study.get_attr(LEASE), lambda value: study.set_attr(LEASE, value))
        self.beat, self.release = self._lease.beat, self._lease.release

    def open_run(self) -> StudyRun:
        self._run = open_study_run(
            self._study.name, known=self._study.get_attr(RUN_ID), trials=self._study.n_finished()
        )
        self._study.set_attr(RUN_ID, self._run.id)
        return self._run

    def take_over(self) -> int:
        lost = self._study.requeue_lost()
        self._run.close_lost()
        return len(lost)

    def finishes(self) -> bool:
        return True

    def close(self, outcome: RunOutcome, reason: str) -> str | None:
        return self._run.close(outcome, reason)


class SharedCoordinator:
    """One of the drivers that hold a study together.

    Raises:
        UsageError: a driver holds it alone, or it does not lie on PostgreSQL.
    """

    def __init__(self, study: Study) -> None:
        held = study.get_attr(LEASE)
        if held and is_alive(held):
            raise UsageError(
                f"drivers must all be shared: process {held['process']} on {held['host']} holds this study alone"
            )
        self._study = study
        self._drivers = study.share()
        self._finishes = False

    def open_run(self) -> StudyRun:
        with self._study.alone():  # one run, also where two begin at once
            self._run = join_study_run(self._study.name, known=self._study.get_attr(RUN_ID), driver=self._drivers.id)
            self._study.set_attr(RUN_ID, self._run.study_run.id)
        return self._run.study_run

    def take_over(self) -> int:
        with self._study.alone():
            gone, lost = self._drivers.look(), self._study.requeue_lost()
            if self._drivers.living() == {self._drivers.id}:
                self._run.study_run.close_lost()  # what a driver left, too, that held the study alone
        for driver in gone:
            self._run.close_driver(driver)
            self._drivers.bury(driver)
        return len(lost)

    def beat(self) -> None:
        if self._drivers.beat():
            self._study.refresh()
            if self._drivers.look():
                self.take_over()

    def finishes(self) -> bool:
        study, living = self._study, self._drivers.living
        with study.alone() as held:
            self._finishes = study.get_attr(FINISHER) not in living() - {self._drivers.id}
            if self._finishes:
                study.set_attr(FINISHER, self._drivers.id)
                if study.get_attr(FINAL_OF) != study.n_finished():  # a winner among fewer trials is none any more
                    study.set_attr(FINAL, None)
                    study.set_attr(WINNER, None)
                    study.set_attr(FINAL_OF, study.n_finished())
        return self.finishes() if held.lost else self._finishes

    def close(self, outcome: RunOutcome, reason: str) -> str | None:
        with self._study.alone():
            last = self._drivers.living() == {self._drivers.id}
        close = self._run.close if last or self._finishes else self._run.leave
        return close(outcome, reason)

    def release(self) -> None:
        self._drivers.leave()


WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class SearchContext:
    """One driver's hold on a search."""

    study: Study
    runs: StudyRun
    executor: Executor
    interrupts: Callable[[], int]  # how often the process has been asked to stop
    beat: Callable[[], None]  # to be called about once a second
    say: Callable[[str], None]  # a line for the terminal
    progress: Callable[[float, int, str], None] = lambda done, of, more: None  # so much of so many, and words after it

    def events(self) -> list[EpochReport | TrialResult]:
        """What has happened, after a second at most; if the process was asked to stop, so are the trials."""
        if self.interrupts():
            self.executor.stop_all(now=self.interrupts() > 1)
        happened = self.executor.events(WAIT_SECONDS)
        self.beat()
        return happened

    def start_child(
        self, name: str, *, role: Role, tags: Mapping[str, str], parent: str | None = None
    ) -> RunRef | None:
        """Open a run below the study's, as soon as the tracking server answers; None if asked to stop before.

        Running trials go on meanwhile, but nobody listens to them.
        """
        while True:
            try:
                return self.runs.start_child(name, role=role, tags=tags, parent=parent)
            except Unavailable:
                if self.interrupts():
                    return None
                self.beat()
                time.sleep(WAIT_SECONDS)

    def alone(self, job: TrialJob) -> TrialResult:
        """Carry out one job, while nothing else runs."""
        self.executor.start(job, minutes=None)
        while True:
            for event in self.events():
                if isinstance(event, TrialResult):
                    return event
