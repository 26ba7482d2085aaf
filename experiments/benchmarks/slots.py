"""What a search's driver costs: trials that sleep along recorded curves, in many slots at once.

python experiments/benchmarks/slots.py                            trials a minute with 1, 2, 4, 8 and 16 slots
python experiments/benchmarks/slots.py --trials 1000 --slots 64   what one trial costs the driver, early and late

Study and MLflow are real, each in a sqlite file of its own, or where --storage and MLFLOW_TRACKING_URI say. In the
second form nothing sleeps: 64 trials are always on their way, and the time from one end to the next is all of it the
driver's: asking, pruning, telling, and opening and closing a run in MLflow.
"""

import argparse
import heapq
import os
import tempfile
import time
from pathlib import Path

import mlflow
import pandas as pd
import psutil

from pipeline.space import from_command_line
from pipeline.study.driver import Driver
from pipeline.study.session import Session
from pipeline.study.study import Study
from pipeline.study.track_study import StudyRun
from pipeline.workers.jobs import Ended, Job, Outcome, Report

CURVES = Path(__file__).parent / "kernel-patch-depth.csv"
SETTINGS = ["kernel_size", "patch_size", "depth"]
SEARCH = "recipe: smoke\nspace: {learning_rate: {low: 0.0001, high: 0.1, log: true}, depth: {low: 1, high: 12}}\n"
TRACKING = os.environ.get("MLFLOW_TRACKING_URI")  # which MLflow sets too
WINDOW = 20  # trials whose mean cost stands for the one in their middle


class Asleep:
    """Slots whose trials report a recorded curve, an epoch every so many seconds."""

    def __init__(self, slots: int, epoch_seconds: float) -> None:
        rows = pd.read_csv(CURVES)
        self._curves = [group["val_accuracy"].tolist() for _, group in rows.groupby(SETTINGS)]
        self._slots, self._seconds = slots, epoch_seconds
        self._due: list[tuple[float, int, int]] = []  # (when, number, epoch)
        self._jobs: dict[int, Job] = {}
        self._pruned: set[int] = set()
        self.ends: list[tuple[float, float]] = []  # on time.perf_counter() and time.process_time()

    def free(self) -> int:
        return self._slots - len(self._jobs)

    def start(self, job: Job, *, minutes: float | None) -> None:
        self._jobs[job.number] = job
        heapq.heappush(self._due, (time.monotonic() + self._seconds, job.number, 1))

    def events(self, timeout: float) -> list[Report | Ended]:
        when, number, epoch = self._due[0]
        pause = min(timeout, when - time.monotonic())
        if pause > 0:
            time.sleep(pause)
        if when > time.monotonic():
            return []
        heapq.heappop(self._due)
        curve = self._curves[number % len(self._curves)]
        if epoch > len(curve) or number in self._pruned:
            return [self._end(number, curve[: epoch - 1])]
        heapq.heappush(self._due, (when + self._seconds, number, epoch + 1))
        return [Report(number, epoch, {"val_accuracy": curve[epoch - 1], "val_loss": 1.0})]

    def prune(self, number: int) -> None:
        self._pruned.add(number)

    def stop(self, number: int) -> None:
        self._pruned.add(number)

    def stop_all(self, *, now: bool) -> None:
        self._pruned |= set(self._jobs)

    def _end(self, number: int, curve: list[float]) -> Ended:
        del self._jobs[number]
        self.ends.append((time.perf_counter(), time.process_time()))
        outcome = Outcome.PRUNED if number in self._pruned else Outcome.FINISHED
        figures = {"best_val_accuracy": max(curve), "best_val_loss": 1.0, "parameters": 1e5, "seconds": 1.0}
        return Ended(number, outcome, "", False, figures | {"epochs": float(len(curve))}, "", "asleep", None)


def drive(slots: int, trials: int, epoch_seconds: float, storage: str | None, *, costs: bool) -> None:
    """Run a search of so many trials; `costs` prints what one takes, every hundred."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "asleep.yaml"
        file.write_text(SEARCH)
        search = from_command_line([str(file), "--trials", str(trials)], program="slots", description="")
        mlflow.set_tracking_uri(TRACKING or f"sqlite:///{folder}/mlflow.db")
        url, name = storage or f"sqlite:///{folder}/optuna.db", f"asleep-{time.time_ns()}"
        study = Study(search, url=url, name=name, image_shape=(32, 32, 3), training_images=50_000)
        runs, executor = StudyRun(name, known=None, trials=0), Asleep(slots, epoch_seconds)

        def say(line: str) -> None:
            if costs and len(executor.ends) % 100 == 0:
                _print_cost(executor.ends)

        Driver(Session(study, runs, executor, lambda: 0, beat=lambda: None, say=say)).search()
        runs.close("FINISHED", "finished", "")


def _print_cost(ends: list[tuple[float, float]]) -> None:
    (began, used), (ended, then) = ends[-1 - WINDOW], ends[-1]
    print(f"  trial {len(ends):5}: {(ended - began) / WINDOW:.3f} s, {(then - used) / WINDOW:.3f} s of CPU", flush=True)


def main() -> None:
    """Print the table, or the cost of a trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--epoch_seconds", type=float, default=1.0)
    parser.add_argument("--storage")
    given = parser.parse_args()
    me = psutil.Process()
    for slots in given.slots:
        began, used = time.perf_counter(), sum(me.cpu_times()[:2])
        trials = given.trials or 3 * slots
        drive(slots, trials, 0.0 if given.trials else given.epoch_seconds, given.storage, costs=bool(given.trials))
        seconds, cpu = time.perf_counter() - began, sum(me.cpu_times()[:2]) - used
        memory = me.memory_info().rss / 2**20
        print(
            f"{slots:3} slots  {trials:5} trials  {60 * trials / seconds:7.1f} a minute  "
            f"{cpu / trials:6.3f} s of CPU each  {memory:5.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
