"""Measure what a search's driver costs, with trials that replay recorded curves in many slots at once.

Usage:
  slots.py                              trials per minute with 1, 2, 4, 8 and 16 slots
  slots.py --trials 1100 --slots 64     cost of a trial to the driver, early and late in a study
  slots.py --trials 320 --slots 64 --epoch_seconds 7.5 --pruner none
                                        how busy the driver keeps the slots when trials take a minute

Study and tracking are real: each in a sqlite file of its own by default, or where --storage and MLFLOW_TRACKING_URI
say, or with --postgres in PostgreSQL and on an MLflow server, both started for the benchmark. --study resumes a study,
so that the slots can be observed after a thousand trials.

In the second form epochs take no time, and 64 trials are always running. The time from the end of one trial to the end
of the next is then all the driver's: it proposes, prunes and records trials, and opens and closes a run in MLflow for
each. With --figures 50 it also draws the study's figures every fifty trials, as a search does at its end, and prints by
how much its memory grows per trial after the first few times.
"""

import argparse
import gc
import heapq
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pandas as pd
import psutil

from pipeline.runtime.console import Console
from pipeline.runtime.signals import Interrupts
from pipeline.search import results
from pipeline.search.executors.base import EpochReport, Executor, TrialJob, TrialResult
from pipeline.search.loop import SearchLoop
from pipeline.search.session import SearchContext
from pipeline.search.space import parse_search
from pipeline.search.study import Study
from pipeline.tracking.study_run import StudyRun, open_study_run
from pipeline.tracking.tags import RunOutcome, TrialOutcome

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CURVES = HERE / "kernel-patch-depth.csv"
SETTINGS = ["kernel_size", "patch_size", "depth"]
SEARCH = "recipe: smoke\nspace: {learning_rate: {low: 0.0001, high: 0.1, log: true}, depth: {low: 1, high: 12}}\n"
# Read now, because MLflow sets the variable too.
TRACKING_URI = os.environ.get("MLFLOW_TRACKING_URI")
# The cost of every hundredth trial is printed, as the mean over the 40 trials around it.
PRINT_EVERY, WINDOW = 100, 40
# Figures are drawn so many times before memory is taken to have settled.
SETTLING_DRAWS = 3


class SleepingExecutor(Executor):
    """An executor whose trials report a recorded curve, sleeping a fixed time per epoch."""

    def __init__(self, slots: int, epoch_seconds: float) -> None:
        rows = pd.read_csv(CURVES)
        self._curves = [group["val_accuracy"].tolist() for _, group in rows.groupby(SETTINGS)]
        self._slots, self._epoch_seconds = slots, epoch_seconds
        self._due: list[tuple[float, int, int]] = []  # time, trial, epoch; a heap
        self._jobs: dict[int, TrialJob] = {}
        self._started: dict[int, float] = {}
        self._pruned: set[int] = set()
        self.end_times: list[tuple[float, float]] = []  # of each trial, on time.perf_counter and time.process_time
        self.spans: list[tuple[float, float]] = []  # start and due end of each trial, on time.monotonic

    def describe(self) -> str:
        return f"{self._slots} at a time, sleeping"

    def free(self) -> int:
        return self._slots - len(self._jobs)

    def start(self, job: TrialJob, *, minutes: float | None) -> None:
        self._jobs[job.number] = job
        self._started[job.number] = time.monotonic()
        heapq.heappush(self._due, (time.monotonic() + self._epoch_seconds, job.number, 1))

    def events(self, timeout: float) -> list[EpochReport | TrialResult]:
        due, number, epoch = self._due[0]
        pause = min(timeout, due - time.monotonic())
        if pause > 0:
            time.sleep(pause)
        if due > time.monotonic():
            return []
        heapq.heappop(self._due)
        curve = self._curves[number % len(self._curves)]
        if epoch > len(curve) or number in self._pruned:
            self.spans.append((self._started.pop(number), due))
            return [self._finish(number, curve[: epoch - 1])]
        # The result follows the report of the last epoch without a pause.
        pause = self._epoch_seconds if epoch < len(curve) else 0.0
        heapq.heappush(self._due, (due + pause, number, epoch + 1))
        return [EpochReport(number, epoch, {"val_accuracy": curve[epoch - 1], "val_loss": 1.0})]

    def prune(self, number: int) -> None:
        self._pruned.add(number)

    def stop(self, number: int) -> None:
        self._pruned.add(number)

    def stop_all(self, *, now: bool) -> None:
        self._pruned |= set(self._jobs)

    def _finish(self, number: int, curve: list[float]) -> TrialResult:
        del self._jobs[number]
        self.end_times.append((time.perf_counter(), time.process_time()))
        metrics = {"best_val_accuracy": max(curve), "best_val_loss": 1.0, "parameters": 1e5, "seconds": 1.0}
        return TrialResult(
            number,
            outcome=TrialOutcome.PRUNED if number in self._pruned else TrialOutcome.FINISHED,
            reason="",
            retryable=False,
            metrics=metrics | {"epochs": float(len(curve))},
            output_tail="",
            slot="sleeping",
            started_seconds=None,
        )


class TrialMonitor(Console):
    """A console that, for each line of a search, measures its driver in place of printing the line.

    Args:
        executor: Where the trials run.
        study: Its figures are drawn.
        runs: Where the figures are logged.
        figures_every: Number of trials after which figures are drawn; None never draws them.
        print_cost: Whether to print what a trial costs.
    """

    def __init__(
        self,
        executor: SleepingExecutor,
        study: Study,
        runs: StudyRun,
        *,
        figures_every: int | None,
        print_cost: bool,
    ) -> None:
        self._executor, self._study, self._runs = executor, study, runs
        self._figures_every, self._print_cost = figures_every, print_cost
        self.memory_mib: list[float] = []  # each time after figures were drawn

    def print(self, *lines: str) -> None:
        finished = len(self._executor.end_times)
        if self._figures_every and finished % self._figures_every == 0:
            log_figures(self._study, self._runs)
            # Figures are reference cycles, which Python frees at a time of its own choosing; that is no leak.
            gc.collect()
            self.memory_mib.append(memory_mib())
            print(f"  trial {finished:5}: {self.memory_mib[-1]:.0f} MiB after its figures", flush=True)
        middle = finished - WINDOW // 2
        if self._print_cost and middle > 0 and middle % PRINT_EVERY == 0:
            print_cost(middle, self._executor.end_times)


def run_search(options: argparse.Namespace, slots: int, trials: int, epoch_seconds: float) -> SleepingExecutor:
    """Run a search of so many trials, and return the executor that ran them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sleeping.yaml"
        file.write_text(SEARCH)
        search = parse_search([str(file), "--trials", str(trials), "--pruner", options.pruner])
        mlflow.set_tracking_uri(options.tracking_uri or f"sqlite:///{folder}/mlflow.db")
        url = options.storage or f"sqlite:///{folder}/optuna.db"
        name = options.study or f"sleeping-{time.time_ns()}"
        study = Study(search, url=url, name=name, image_shape=(32, 32, 3), training_images=50_000, classes=10)
        runs = open_study_run(name, known=None, trials=0)
        executor = SleepingExecutor(slots, epoch_seconds)
        monitor = TrialMonitor(executor, study, runs, figures_every=options.figures, print_cost=not epoch_seconds)
        context = SearchContext(study, runs, executor, interrupts=Interrupts(), heartbeat=lambda: None, console=monitor)
        SearchLoop(context).run()
        runs.close(RunOutcome.FINISHED, "")
        memory = monitor.memory_mib
        if len(memory) > SETTLING_DRAWS:
            trials_since = options.figures * (len(memory) - SETTLING_DRAWS)
            growth = (memory[-1] - memory[SETTLING_DRAWS - 1]) / trials_since
            print(f"  {growth:.3f} MiB per trial since the figures were drawn {SETTLING_DRAWS} times")
        return executor


def log_figures(study: Study, runs: StudyRun) -> None:
    """Log the study's table and figures to MLflow, as a search does at its end."""
    runs.run.log_table("leaderboard.csv", results.leaderboard(study))
    for path, figure in results.figures(study):
        runs.run.log_figure(path, figure)


def print_cost(trial: int, end_times: list[tuple[float, float]]) -> None:
    """Print the mean cost of the last WINDOW trials, as that of the trial in their middle."""
    (started, cpu_started), (ended, cpu_ended) = end_times[-1 - WINDOW], end_times[-1]
    seconds, cpu_seconds = (ended - started) / WINDOW, (cpu_ended - cpu_started) / WINDOW
    print(f"  trial {trial:5}: {seconds:.3f} s, {cpu_seconds:.3f} s of CPU, {memory_mib():.0f} MiB", flush=True)


def memory_mib() -> float:
    """Return the resident memory of this process, in MiB."""
    return psutil.Process().memory_info().rss / 2**20


def busy_share(spans: list[tuple[float, float]], slots: int) -> float:
    """Return the share of the slots' time in which they held a trial.

    It is taken from the time when all slots had a trial to the start of the last trial.
    """
    starts = sorted(start for start, _ in spans)
    first, last = starts[slots - 1], starts[-1]
    used = sum(max(0.0, min(end, last) - max(start, first)) for start, end in spans)
    return used / (slots * (last - first))


@contextmanager
def running_servers() -> Iterator[tuple[str, str]]:
    """Run PostgreSQL and an MLflow server on it; yield the URLs of an empty study storage and of the server."""
    sys.path.insert(0, str(ROOT))
    from tests.support.postgres import running_postgres
    from tests.support.servers import server

    with tempfile.TemporaryDirectory() as folder, running_postgres() as postgres:
        os.environ |= postgres.environment
        with server(folder, store=postgres.database("mlflow")) as tracking_server:
            yield postgres.database("optuna"), tracking_server.uri


def measure(options: argparse.Namespace) -> None:
    """Print a line for each number of slots."""
    epoch_seconds = options.epoch_seconds
    if epoch_seconds is None:
        epoch_seconds = 0.0 if options.trials else 1.0
    process = psutil.Process()
    for slots in options.slots:
        started, cpu_started = time.perf_counter(), sum(process.cpu_times()[:2])
        executor = run_search(options, slots, options.trials or 3 * slots, epoch_seconds)
        seconds, cpu_seconds = time.perf_counter() - started, sum(process.cpu_times()[:2]) - cpu_started
        trials = len(executor.end_times)
        busy = f"{busy_share(executor.spans, slots):6.1%} busy  " if epoch_seconds and trials > slots else ""
        print(
            f"{slots:3} slots  {trials:5} trials  {60 * trials / seconds:7.1f} per minute  {busy}"
            f"{cpu_seconds / trials:6.3f} s of CPU each  {memory_mib():5.0f} MiB",
            flush=True,
        )


def main() -> None:
    """Print the table, or the cost of a trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, help="trials per search; by default three per slot")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="a search for each number")
    parser.add_argument("--epoch_seconds", type=float, help="by default 1, or 0 with --trials")
    parser.add_argument("--pruner", default="median")
    parser.add_argument("--storage", help="URL of the study's storage")
    parser.add_argument("--study", help="name of the study")
    parser.add_argument("--figures", type=int, help="draw the study's figures after each so many trials")
    parser.add_argument("--postgres", action="store_true", help="start PostgreSQL and an MLflow server")
    options = parser.parse_args()
    options.tracking_uri = TRACKING_URI
    if options.postgres:
        with running_servers() as (options.storage, options.tracking_uri):
            measure(options)
    else:
        measure(options)


if __name__ == "__main__":
    main()
