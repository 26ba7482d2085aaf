"""What the parts of a search share: its study, its runs, where trials run, and how to be stopped and to speak."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.study.study import Study
from pipeline.study.track_study import Away, StudyRun
from pipeline.workers.jobs import Ended, Executor, Job, Report, RunRef

WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Session:
    """One driver's hold on a search."""

    study: Study
    runs: StudyRun
    executor: Executor
    interrupts: Callable[[], int]  # how often the process has been asked to stop
    beat: Callable[[], None]  # to be called about once a second
    say: Callable[[str], None]  # a line for the terminal
    progress: Callable[[float, int, str], None] = lambda done, of, more: None  # so much of so many, and words after it

    def events(self) -> list[Report | Ended]:
        """What has happened, after a second at most; if the process was asked to stop, so are the trials."""
        if self.interrupts():
            self.executor.stop_all(now=self.interrupts() > 1)
        happened = self.executor.events(WAIT_SECONDS)
        self.beat()
        return happened

    def child(self, name: str, *, role: str, tags: Mapping[str, str], under: str | None = None) -> RunRef | None:
        """Open a run below the study's, as soon as the tracking server answers; None if asked to stop before.

        Running trials go on meanwhile, but nobody listens to them.
        """
        while True:
            try:
                return self.runs.child(name, role=role, tags=tags, under=under)
            except Away:
                if self.interrupts():
                    return None
                self.beat()
                time.sleep(WAIT_SECONDS)

    def alone(self, job: Job) -> Ended:
        """Carry out one job, while nothing else runs."""
        self.executor.start(job, minutes=None)
        while True:
            for event in self.events():
                if isinstance(event, Ended):
                    return event
