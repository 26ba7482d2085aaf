"""A driver process whose trials sleep: `python sleeping_driver.py FOLDER SECONDS -- SEARCH --flags`.

With the variable TOGETHER no trial goes on before so many drivers have begun one each.
"""

import os
import sys
import time
from pathlib import Path

from pipeline.commands import search as searching
from pipeline.data.dataset import load_dataset
from pipeline.search import space
from pipeline.search.executors.base import Executor
from tests.support.scripted import trained


class Sleeping(Executor):
    """One slot; a trial's epochs take some time each, and it notes when and in which process it began and ended."""

    def __init__(self, folder, seconds):
        self._log, self._seconds = Path(folder) / f"{os.getpid()}.txt", seconds
        self._left, self._number, self._said = [], None, ""

    def __exit__(self, *error):
        pass

    def describe(self):
        return "1 at a time, asleep"

    def free(self):
        return not self._left

    def start(self, job, *, minutes):
        if job.role == "step":
            self._left = trained(job, 0.5, step_seconds=0.01, tracing_seconds=0.1)[-1:]
        else:
            more = {"test_accuracy": 0.5} if job.role == "winner" else {}
            self._left = trained(job, 0.1, job.config.learning_rate, latency_ms=1.0, **more)
        config = f"{job.config.kernel_size},{job.config.depth},{job.config.seed}"
        self._number, self._said = job.number, f"{job.role} {config}"
        self._note("began")

    def events(self, timeout):
        if self._said.startswith("trial") and self._others_are_awaited():
            time.sleep(min(timeout, 0.1))
            return []
        time.sleep(self._seconds if self._left else timeout)
        happened, self._left = self._left[:1], self._left[1:]
        if happened and not self._left:
            self._note("ended")
        return happened

    def prune(self, number):
        pass

    def stop(self, number):
        self._left = []

    def stop_all(self, *, now):
        self._left = []

    def _others_are_awaited(self):
        began = [file for file in self._log.parent.glob("*.txt") if " trial " in file.read_text(encoding="ascii")]
        return len(began) < int(os.environ.get("TOGETHER", "1"))

    def _note(self, what):
        with open(self._log, "a", encoding="ascii") as log:
            log.write(f"{what} {self._number} {self._said} {time.time()}\n")


def main(folder, seconds, arguments):
    search = space.parse_search(arguments, program="search", description="Search.")
    searching.LocalExecutor = lambda slots: Sleeping(folder, float(seconds))
    return searching.run_search(search, load_dataset(search.base.data, seed=search.base.seed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[4:]))
