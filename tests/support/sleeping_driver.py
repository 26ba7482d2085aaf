"""A driver process whose trials sleep: `python sleeping_driver.py FOLDER SECONDS -- SEARCH --flags`.

With the variable TOGETHER no trial goes on before so many drivers have started one each.
"""

import os
import sys
import time
from pathlib import Path
from unittest.mock import patch

from pipeline.commands.search import run_search
from pipeline.data.dataset import load_dataset
from pipeline.search.executors.base import Executor
from pipeline.search.space import parse_search
from tests.support.scripted import successful_trial


class SleepingExecutor(Executor):
    """One slot, whose epochs take some time each; it logs when and in which process jobs start and end."""

    def __init__(self, folder, seconds):
        self._log, self._seconds = Path(folder) / f"{os.getpid()}.txt", seconds
        self._events, self._number, self._job = [], None, ""

    def __exit__(self, *error):
        pass

    def describe(self):
        return "1 at a time, asleep"

    def free(self):
        return 0 if self._events else 1

    def start(self, job, *, minutes):
        if job.role == "step":
            self._events = successful_trial(job, 0.5, step_seconds=0.01, tracing_seconds=0.1)[-1:]
        else:
            more = {"test_accuracy": 0.5} if job.role == "winner" else {}
            self._events = successful_trial(job, 0.5, job.config.learning_rate, latency_ms=1.0, **more)
        config = f"{job.config.kernel_size},{job.config.depth},{job.config.seed}"
        self._number, self._job = job.number, f"{job.role} {config}"
        self._write("began")

    def events(self, timeout):
        if self._job.startswith("trial") and self._others_are_awaited():
            time.sleep(min(timeout, 0.1))
            return []
        time.sleep(self._seconds if self._events else timeout)
        happened, self._events = self._events[:1], self._events[1:]
        if happened and not self._events:
            self._write("ended")
        return happened

    def prune(self, number):
        pass

    def stop(self, number):
        self._events = []

    def stop_all(self, *, now):
        self._events = []

    def _others_are_awaited(self):
        started = [file for file in self._log.parent.glob("*.txt") if " trial " in file.read_text(encoding="ascii")]
        return len(started) < int(os.environ.get("TOGETHER", "1"))

    def _write(self, what):
        with open(self._log, "a", encoding="ascii") as log:
            log.write(f"{what} {self._number} {self._job} {time.time()}\n")


def main(folder, seconds, arguments):
    search = parse_search(arguments)
    executor = SleepingExecutor(folder, float(seconds))
    with patch("pipeline.commands.search.build_executor", lambda search, data: executor):
        return run_search(search, load_dataset(search.base.data, seed=search.base.seed)).exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[4:]))
