"""A driver's hold on a study: alone, as most searches are, or together with others that share its budget."""

from typing import Protocol

from pipeline.errors import UsageError
from pipeline.study.drivers import others_live
from pipeline.study.final import NOTE
from pipeline.study.lease import Lease, lives
from pipeline.study.study import Study
from pipeline.study.study_report import WINNER
from pipeline.study.track_study import StudyRun
from pipeline.study.track_together import JoinedRun

LEASE, RUN = "lease", "run_id"  # the study's notes: who holds it alone, and its MLflow run
FINISHER, FINAL_OF = "finisher", "final_of"  # of several: who runs the final, and among how many trials


class Hold(Protocol):
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

    def close(self, status: str, ended: str, reason: str) -> str | None:
        """Close the runs that are this driver's to close; returns a line on what could not be told, if any."""
        ...

    def release(self) -> None:
        """Leave the study to others."""
        ...


class Alone:
    """The one driver of a study.

    Raises:
        UsageError: another driver lives.
    """

    def __init__(self, study: Study) -> None:
        if others_live(study.notes()):
            raise UsageError("drivers must be shared, as other drivers share this study: -P drivers=shared joins them")
        self._study = study
        self._lease = Lease(lambda: study.noted(LEASE), lambda value: study.note(LEASE, value))
        self.beat, self.release = self._lease.beat, self._lease.release

    def open_run(self) -> StudyRun:
        self._run = StudyRun(self._study.name, known=self._study.noted(RUN), trials=self._study.spent())
        self._study.note(RUN, self._run.id)
        return self._run

    def take_over(self) -> int:
        lost = self._study.requeue_lost()
        self._run.close_lost()
        return len(lost)

    def finishes(self) -> bool:
        return True

    def close(self, status: str, ended: str, reason: str) -> str | None:
        return self._run.close(status, ended, reason)


class Together:
    """One of the drivers that hold a study together.

    Raises:
        UsageError: a driver holds it alone, or it does not lie on PostgreSQL.
    """

    def __init__(self, study: Study) -> None:
        held = study.noted(LEASE)
        if held and lives(held):
            raise UsageError(
                f"drivers must all be shared: process {held['process']} on {held['host']} holds this study alone"
            )
        self._study = study
        self._drivers = study.share()
        self._finishes = False

    def open_run(self) -> StudyRun:
        with self._study.alone():  # one run, also where two begin at once
            self._run = JoinedRun(self._study.name, known=self._study.noted(RUN), driver=self._drivers.id)
            self._study.note(RUN, self._run.id)
        return self._run

    def take_over(self) -> int:
        with self._study.alone():
            gone, lost = self._drivers.look(), self._study.requeue_lost()
            if self._drivers.living() == {self._drivers.id}:
                self._run.close_lost()  # what a driver left, too, that held the study alone
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
            self._finishes = study.noted(FINISHER) not in living() - {self._drivers.id}
            if self._finishes:
                study.note(FINISHER, self._drivers.id)
                if study.noted(FINAL_OF) != study.spent():  # a winner among fewer trials is none any more
                    study.note(NOTE, None)
                    study.note(WINNER, None)
                    study.note(FINAL_OF, study.spent())
        return self.finishes() if held.lost else self._finishes

    def close(self, status: str, ended: str, reason: str) -> str | None:
        with self._study.alone():
            last = self._drivers.living() == {self._drivers.id}
        close = self._run.close if last or self._finishes else self._run.leave
        return close(status, ended, reason)

    def release(self) -> None:
        self._drivers.leave()
