"""What a search's driver costs: trials that sleep along recorded curves, in many slots at once.

python experiments/benchmarks/slots.py                            trials a minute with 1, 2, 4, 8 and 16 slots
python experiments/benchmarks/slots.py --trials 1100 --slots 64   what one trial costs the driver, early and late
python experiments/benchmarks/slots.py --trials 320 --slots 64 --epoch_seconds 7.5 --pruner none
                                                                  how busy it keeps slots with trials of a minute

Study and MLflow are real, each in a sqlite file of its own, or where --storage and MLFLOW_TRACKING_URI say, or with
--postgres on servers that are started for it: PostgreSQL, and MLflow's with its runs there. With --study what is named
is gone on with, so that slots can be watched after a thousand trials. In the second form nothing sleeps: 64 trials are
always on their way, and the time from one end to the next is all of it the driver's: asking, pruning, telling, and
opening and closing a run in MLflow. With --figures 50 it draws the study's figures every fifty trials, as searches do
at their end, and says how its memory grows by the trial after the first few.
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
from pipeline.search import results
from pipeline.search.executors.base import EpochReport, Executor, TrialJob, TrialResult
from pipeline.search.loop import SearchLoop
from pipeline.search.session import SearchContext
from pipeline.search.space import parse_search
from pipeline.search.study import Study
from pipeline.tracking.study_run import StudyRun, open_study_run
from pipeline.tracking.tags import RunOutcome, TrialOutcome

HERE = Path(__file__).parent
CURVES = HERE / "kernel-patch-depth.csv"
SETTINGS = ["kernel_size", "patch_size", "depth"]
SEARCH = "recipe: smoke\nspace: {learning_rate: {low: 0.0001, high: 0.1, log: true}, depth: {low: 1, high: 12}}\n"
TRACKING = os.environ.get("MLFLOW_TRACKING_URI")  # which MLflow sets too
EVERY, WINDOW = 100, 40  # which trials' costs are printed, and how many around one are meant
FIRST = 3  # times that figures are drawn until memory is taken for what it stays at


class Asleep(Executor):
    """Slots whose trials report a recorded curve, an epoch every so many seconds."""

    def __init__(self, slots: int, epoch_seconds: float) -> None:
        rows = pd.read_csv(CURVES)
        self._curves = [group["val_accuracy"].tolist() for _, group in rows.groupby(SETTINGS)]
        self._slots, self._seconds = slots, epoch_seconds
        self._due: list[tuple[float, int, int]] = []  # (when, number, epoch)
        self._jobs: dict[int, TrialJob] = {}
        self._pruned: set[int] = set()
        self.ends: list[tuple[float, float]] = []  # on time.perf_counter() and time.process_time()
        self.spans: list[tuple[float, float]] = []  # of trials, from their start to when they were over, heard or not
        self._began: dict[int, float] = {}

    def describe(self) -> str:
        return f"{self._slots} at a time, asleep"

    def free(self) -> int:
        return self._slots - len(self._jobs)

    def start(self, job: TrialJob, *, minutes: float | None) -> None:
        self._jobs[job.number] = job
        self._began[job.number] = time.monotonic()
        heapq.heappush(self._due, (time.monotonic() + self._seconds, job.number, 1))

    def events(self, timeout: float) -> list[EpochReport | TrialResult]:
        when, number, epoch = self._due[0]
        pause = min(timeout, when - time.monotonic())
        if pause > 0:
            time.sleep(pause)
        if when > time.monotonic():
            return []
        heapq.heappop(self._due)
        curve = self._curves[number % len(self._curves)]
        if epoch > len(curve) or number in self._pruned:
            self.spans.append((self._began.pop(number), when))
            return [self._end(number, curve[: epoch - 1])]
        heapq.heappush(self._due, (when + self._seconds * (epoch < len(curve)), number, epoch + 1))
        return [EpochReport(number, epoch, {"val_accuracy": curve[epoch - 1], "val_loss": 1.0})]

    def prune(self, number: int) -> None:
        self._pruned.add(number)

    def stop(self, number: int) -> None:
        self._pruned.add(number)

    def stop_all(self, *, now: bool) -> None:
        self._pruned |= set(self._jobs)

    def _end(self, number: int, curve: list[float]) -> TrialResult:
        del self._jobs[number]
        self.ends.append((time.perf_counter(), time.process_time()))
        outcome = TrialOutcome.PRUNED if number in self._pruned else TrialOutcome.FINISHED
        figures = {"best_val_accuracy": max(curve), "best_val_loss": 1.0, "parameters": 1e5, "seconds": 1.0}
        return TrialResult(number, outcome, "", False, figures | {"epochs": float(len(curve))}, "", "asleep", None)


def drive(given: argparse.Namespace, slots: int, trials: int, epoch_seconds: float) -> Asleep:
    """Run a search of so many trials; where nothing sleeps, what one takes is printed every hundred."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "asleep.yaml"
        file.write_text(SEARCH)
        flags = ["--trials", str(trials), "--pruner", given.pruner]
        search = parse_search([str(file), *flags])
        mlflow.set_tracking_uri(given.tracking or f"sqlite:///{folder}/mlflow.db")
        url, name = given.storage or f"sqlite:///{folder}/optuna.db", given.study or f"asleep-{time.time_ns()}"
        study = Study(search, url=url, name=name, image_shape=(32, 32, 3), training_images=50_000)
        runs, executor = open_study_run(name, known=None, trials=0), Asleep(slots, epoch_seconds)
        drawn = []

        class OnTrialEnd(Console):
            """A console that prints the benchmark's figures instead of the line of each trial."""

            def print(self, *lines: str) -> None:
                if given.figures and len(executor.ends) % given.figures == 0:
                    draw(study, runs)
                    gc.collect()  # figures are circles of references, which Python finds when it likes: no leak
                    drawn.append(_memory())
                    print(f"  trial {len(executor.ends):5}: {drawn[-1]:.0f} MiB after its figures", flush=True)
                trial = len(executor.ends) - WINDOW // 2
                if not epoch_seconds and trial > 0 and trial % EVERY == 0:
                    _print_cost(trial, executor.ends)

        SearchLoop(SearchContext(study, runs, executor, lambda: 0, lambda: None, OnTrialEnd())).run()
        runs.close(RunOutcome.FINISHED, "")
        if len(drawn) > FIRST:
            grown = (drawn[-1] - drawn[FIRST - 1]) / (given.figures * (len(drawn) - FIRST))
            print(f"  {grown:.3f} MiB a trial since the figures were drawn {FIRST} times")
        return executor


def draw(study: Study, runs: StudyRun) -> None:
    """Leave the study's table and figures in MLflow."""
    runs.run.log_table("leaderboard.csv", results.leaderboard(study))
    for path, figure in results.figures(study):
        runs.run.log_figure(path, figure)


def _print_cost(trial: int, ends: list[tuple[float, float]]) -> None:
    (began, used), (ended, then) = ends[-1 - WINDOW], ends[-1]
    seconds, cpu = (ended - began) / WINDOW, (then - used) / WINDOW
    print(f"  trial {trial:5}: {seconds:.3f} s, {cpu:.3f} s of CPU, {_memory():.0f} MiB", flush=True)


def _memory() -> float:
    return psutil.Process().memory_info().rss / 2**20


def busy(spans: list[tuple[float, float]], slots: int) -> float:
    """Share of the slots' time in which a trial was in them, from when all had one to when the last trial began."""
    starts = sorted(began for began, _ in spans)
    first, last = starts[slots - 1], starts[-1]
    used = sum(max(0.0, min(ended, last) - max(began, first)) for began, ended in spans)
    return used / (slots * (last - first))


@contextmanager
def servers() -> Iterator[tuple[str, str]]:
    """PostgreSQL, and MLflow's server with its runs there; the URLs of an empty storage and of the server."""
    sys.path.insert(0, str(HERE.parent.parent / "tests"))
    from tests.support.postgres import running_postgres
    from tests.support.servers import server

    with tempfile.TemporaryDirectory() as folder, running_postgres() as postgres:
        os.environ |= postgres.environment
        with server(folder, store=postgres.database("mlflow")) as one:
            yield postgres.database("optuna"), one.uri


def main() -> None:
    """Print the table, or the cost of a trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--epoch_seconds", type=float)
    parser.add_argument("--pruner", default="median")
    parser.add_argument("--storage")
    parser.add_argument("--study")
    parser.add_argument("--figures", type=int)
    parser.add_argument("--postgres", action="store_true")
    given = parser.parse_args()
    given.tracking = TRACKING
    if given.postgres:
        with servers() as (given.storage, given.tracking):
            measure(given)
    else:
        measure(given)


def measure(given: argparse.Namespace) -> None:
    """Print a line for each number of slots."""
    epoch_seconds = given.epoch_seconds
    if epoch_seconds is None:
        epoch_seconds = 0.0 if given.trials else 1.0
    me = psutil.Process()
    for slots in given.slots:
        began, used = time.perf_counter(), sum(me.cpu_times()[:2])
        executor = drive(given, slots, given.trials or 3 * slots, epoch_seconds)
        seconds, cpu = time.perf_counter() - began, sum(me.cpu_times()[:2]) - used
        trials = len(executor.ends)
        asleep = f"{busy(executor.spans, slots):6.1%} busy  " if epoch_seconds and trials > slots else ""
        print(
            f"{slots:3} slots  {trials:5} trials  {60 * trials / seconds:7.1f} a minute  {asleep}"
            f"{cpu / trials:6.3f} s of CPU each  {_memory():5.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
