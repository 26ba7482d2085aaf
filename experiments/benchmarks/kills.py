"""Kill trainers and drivers, resume one run twice at once, step the clock, and count what is lost: `make kills`.

Three workloads run side by side on one tracking store:

- trainers are killed with SIGKILL at random moments and resumed until they finish, some by two processes at once;
- drivers of searches are killed with SIGKILL at random moments, while trials run and while none does, and resumed;
- the clock of a trainer is stepped back and forth in mid-run, by libfaketime (Debian's package `faketime`) and by
  another boot time in /proc/stat, which needs root; without either this part is skipped.

At the end every run must have each point of a metric once and the status that its end deserves, and the weights of
every training must equal those of one that nothing interrupted, bit for bit. The exit code is 1 if not.
KILLS_SEED determines what is killed and when, KILLS_TRAINERS, KILLS_DRIVERS and KILLS_CLOCKS how often.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from arguments import take_no_arguments
from soak import Sandbox, check_files, check_run, check_study, conclude

from pipeline.tracking.tags import Role, Tag

EPOCHS = 8
TRAIN = f"smoke --epochs {EPOCHS} --train_examples none --batch_size 16 --checkpoint_minutes none".split()
SEARCH = "smoke --trials 5 --epochs 3 --workers 1 --final_top 1 --final_seeds 1".split()
WAIT_SECONDS = 600
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))

CLOSE_STALE = """
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.stale_runs import close_stale_runs
client = TrackingClient()
print(close_stale_runs(client, client.experiment_id()))
"""
IN_PRIVATE_MOUNTS = 'mount --bind "$0" /proc/stat && exec "$@"'


class Lab:
    """A sandbox with its tracking store in a file, and what happened in it."""

    def __init__(self, folder: Path) -> None:
        self.sandbox = Sandbox(folder)
        self.folder = folder
        self.sandbox.environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        self.counts: Counter[str] = Counter()
        self.broken: list[str] = []

    def start(
        self, arguments: Sequence[str], *, output: Path, prefix: Sequence[str] = (), **variables: str
    ) -> subprocess.Popen:
        """Start a command of the pipeline whose output goes to a file."""
        with output.open("w") as file:
            return subprocess.Popen(
                [*prefix, sys.executable, "-m", "pipeline", *arguments],
                cwd=self.folder,
                env=self.sandbox.environment | variables,
                start_new_session=True,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def check_end(self, process: subprocess.Popen, output: Path, *codes: int) -> None:
        """Record a process that ended otherwise than with one of these exit codes, or with a traceback."""
        text = output.read_text()
        if process.returncode not in codes or "Traceback" in text:
            self.broken.append(f"{process.args!r} ended with {process.returncode}: {text[-2000:]}")


def wait_for(pattern: str, output: Path, process: subprocess.Popen) -> bool:
    """Wait until a line of the output matches, and return False if the process ends before."""
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until:
        if re.search(pattern, output.read_text(), re.MULTILINE):
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.05)
    raise RuntimeError(f"no line {pattern} in {output}")


class Trainers:
    """Kill trainers and resume their runs, every second time by two processes at once."""

    def __init__(self, lab: Lab, kills: int, pairs: int, seed: str) -> None:
        self.lab, self.kills, self.pairs = lab, kills, pairs
        self.random = random.Random(seed)  # noqa: S311 - no secret
        self.experiment = "kills-trainers"
        # of an uninterrupted run: its start, until its first line, and all of it
        self.startup_seconds = self.seconds = 0.0

    def run(self) -> None:
        """Train once without interruption, and then until there were enough kills and pairs."""
        self.measure()
        number = 0
        while self.lab.counts["trainers killed"] < self.kills or self.lab.counts["pairs of resumes"] < self.pairs:
            number += 1
            self.train(number)

    def measure(self) -> None:
        """Time a run that nothing interrupts; its weights are the reference."""
        output = self.lab.folder / "reference.txt"
        began = time.monotonic()
        process = self.lab.start(["train", *TRAIN], output=output, MLFLOW_EXPERIMENT_NAME=self.experiment)
        wait_for("^data ", output, process)
        self.startup_seconds = time.monotonic() - began
        process.wait(WAIT_SECONDS)
        self.seconds = time.monotonic() - began
        self.lab.check_end(process, output, 0)

    def train(self, number: int) -> None:
        """Train one run, with kills, to its end."""
        known = {run.info.run_id for run in self.runs()}
        output = self.lab.folder / f"trainer-{number}.txt"
        began = time.monotonic()
        process = self.lab.start(["train", *TRAIN], output=output, MLFLOW_EXPERIMENT_NAME=self.experiment)
        # a kill before the first checkpoint leaves nothing to resume
        wait_for("^epoch ", output, process)
        self.startup_seconds = time.monotonic() - began
        is_killed = self.kill(process, self.random.uniform(0, max(5.0, self.seconds - self.startup_seconds)), output)
        if not is_killed:
            # the machine may have become busier or idler
            self.seconds = time.monotonic() - began
        (run_id,) = {run.info.run_id for run in self.runs()} - known
        while is_killed:
            is_killed = self.resume(run_id)

    def resume(self, run_id: str) -> bool:
        """Resume a run with one or two processes; return whether it was killed again."""
        outputs = [self.lab.folder / f"resume-{index}.txt" for index in range(2)]
        is_pair = self.lab.counts["pairs of resumes"] < self.pairs and self.random.random() < 0.6
        arguments = ["train", "--resume", run_id]
        processes = [
            self.lab.start(arguments, output=output, MLFLOW_EXPERIMENT_NAME=self.experiment)
            for output in (outputs if is_pair else outputs[:1])
        ]
        began = time.monotonic()
        if is_pair:
            self.lab.counts["pairs of resumes"] += 1
        self.await_winner(processes, outputs)
        winner, output = next(
            (one for one in zip(processes, outputs, strict=False) if one[0].poll() is None),
            (processes[0], outputs[0]),
        )
        return self.kill(winner, began + self.random.uniform(0, self.seconds) - time.monotonic(), output)

    def await_winner(self, processes: list[subprocess.Popen], outputs: list[Path]) -> None:
        """Wait until one of two processes is refused; one alone is not waited for."""
        until = time.monotonic() + WAIT_SECONDS
        while len(processes) == 2 and time.monotonic() < until:
            for process, output in zip(processes, outputs, strict=True):
                if process.poll() is not None:
                    self.lab.check_end(process, output, 2)
                    self.lab.counts["resumes refused beside another"] += process.returncode == 2
                    return
            if all(re.search("^epoch", output.read_text(), re.MULTILINE) for output in outputs):
                self.lab.broken.append("two resumes of one run train at once")
                return
            time.sleep(0.05)

    def kill(self, process: subprocess.Popen, after: float, output: Path) -> bool:
        """Kill a process after some seconds, unless it has ended, and return whether it was killed."""
        if self.lab.counts["trainers killed"] >= self.kills:
            after = WAIT_SECONDS
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, after))
            self.lab.check_end(process, output, 0)
            self.lab.counts["trainings finished"] += 1
            return False
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.lab.counts["trainers killed"] += 1
        return True

    def runs(self) -> list[Any]:
        return find_runs(self.experiment)


class Drivers:
    """Kill drivers of searches and resume their studies."""

    def __init__(self, lab: Lab, kills: int, seed: str) -> None:
        self.lab, self.kills = lab, kills
        self.random = random.Random(seed)  # noqa: S311 - no secret
        self.experiment = "kills-drivers"

    def run(self) -> None:
        """Search until enough drivers were killed, at least half of them while a trial ran."""
        number = 0
        while not self.is_enough():
            number += 1
            while self.search(f"kills-{number}"):
                pass

    def search(self, study: str) -> bool:
        """Begin a study or go on with it; return whether the driver was killed."""
        output = self.lab.folder / f"driver-{study}.txt"
        arguments = ["search", *SEARCH, "--study", study]
        process = self.lab.start(arguments, output=output, MLFLOW_EXPERIMENT_NAME=self.experiment)
        wait_for("^study ", output, process)
        # on a busy machine the first trial begins after minutes
        waits = self.random.random() < 0.7
        while waits and process.poll() is None and not self.is_trial_running(study):
            time.sleep(0.2)
        with suppress(subprocess.TimeoutExpired):
            process.wait(WAIT_SECONDS if self.is_enough() else self.random.uniform(0, 10))
            self.lab.check_end(process, output, 0)
            self.lab.counts["searches finished"] += 1
            return False
        # the driver alone: its trials have to notice
        process.kill()
        process.wait()
        self.lab.counts["drivers killed"] += 1
        self.lab.counts["of them while a trial ran"] += self.is_trial_running(study)
        return True

    def is_enough(self) -> bool:
        """Return whether enough drivers were killed."""
        counts = self.lab.counts
        return counts["drivers killed"] >= self.kills and counts["of them while a trial ran"] >= self.kills / 2

    def is_trial_running(self, study: str) -> bool:
        """Return whether a study has a running trial; the driver's death ends no trial in the study."""
        import optuna

        trials = optuna.load_study(study_name=study, storage=self.lab.sandbox.environment["OPTUNA_STORAGE"]).trials
        return any(trial.state.name == "RUNNING" for trial in trials)


class Clocks:
    """Step the clock of trainers in mid-run, and look meanwhile for stale runs and resume them, which must fail."""

    def __init__(self, lab: Lab, steps: int, seed: str) -> None:
        self.lab, self.steps = lab, steps
        self.random = random.Random(seed)  # noqa: S311 - no secret
        self.experiment = "kills-clocks"
        self.offset = 0
        self.stat, self.shift = lab.folder / "stat", lab.folder / "shift"
        self.boot = Path("/proc/stat").read_text() if FAKETIME else ""
        self.set_clock()

    @staticmethod
    def missing() -> str | None:
        """Return why clocks cannot be stepped here, or None."""
        if not FAKETIME:
            return "libfaketime is missing: apt install faketime"
        command = ["unshare", "--mount", "true"]
        if shutil.which("unshare") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            return "a private mount namespace needs root"
        return None

    def run(self) -> None:
        """Train runs until the clock was stepped often enough."""
        number = 0
        while self.lab.counts["clock steps"] < self.steps:
            number += 1
            self.train(number)

    def train(self, number: int) -> None:
        output = self.lab.folder / f"clock-{number}.txt"
        known = {run.info.run_id for run in find_runs(self.experiment)}
        process = self.start(["train", *TRAIN], output)
        wait_for("^epoch ", output, process)
        (run_id,) = {run.info.run_id for run in find_runs(self.experiment)} - known
        self.step(process)
        self.look(process, run_id)
        while process.poll() is None:
            self.step(process)
            with suppress(subprocess.TimeoutExpired):
                process.wait(self.random.uniform(1.0, 4.0))
        self.lab.check_end(process, output, 0)

    def step(self, process: subprocess.Popen) -> None:
        """Step the clock by 1 s to 1 h, forwards or back."""
        if self.lab.counts["clock steps"] < self.steps:
            self.offset += self.random.choice([-1, 1]) * round(3600 ** self.random.random())
            self.set_clock()
            self.lab.counts["clock steps"] += process.poll() is None

    def look(self, process: subprocess.Popen, run_id: str) -> None:
        """Close stale runs, and resume the live one: neither may find anything to do while it trains."""
        closed = subprocess.run(
            [*self.prefix(), sys.executable, "-c", CLOSE_STALE],
            cwd=self.lab.folder,
            env=self.lab.sandbox.environment | self.variables(),
            capture_output=True,
            text=True,
            check=False,
        )
        if process.poll() is not None:
            return
        if closed.stdout.strip() != "[]":
            self.lab.broken.append(f"of live runs, {closed.stdout} {closed.stderr[-2000:]}")
        output = self.lab.folder / "intruder.txt"
        intruder = self.start(["train", "--resume", run_id], output)
        intruder.wait(WAIT_SECONDS)
        if process.poll() is None:
            self.lab.check_end(intruder, output, 2)
            self.lab.counts["looks by others"] += 1

    def start(self, arguments: list[str], output: Path) -> subprocess.Popen:
        return self.lab.start(arguments, output=output, prefix=self.prefix(), **self.variables())

    def prefix(self) -> list[str]:
        return ["unshare", "--mount", "sh", "-c", IN_PRIVATE_MOUNTS, str(self.stat)]

    def variables(self) -> dict[str, str]:
        return {
            "MLFLOW_EXPERIMENT_NAME": self.experiment,
            "LD_PRELOAD": str(FAKETIME[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self.shift),
            # seconds for which the file is not read again: TensorFlow asks for the time often
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set_clock(self) -> None:
        """Shift the clock, and with it the time of the boot, as the kernel does when the clock is set."""
        self.shift.write_text(f"{self.offset:+d}")
        shifted = re.sub(r"^btime (\d+)", lambda match: f"btime {int(match[1]) + self.offset}", self.boot, flags=re.M)
        # in place, since the file is mounted
        self.stat.write_text(shifted)


def find_runs(experiment: str) -> list[Any]:
    """Return the runs of an experiment, which need not exist yet."""
    import mlflow

    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id], max_results=10_000)) if found else []


def check_runs(lab: Lab) -> list[str]:
    """Print what the stores hold, and return what is lost, doubled or wrong."""
    import mlflow
    import optuna

    client = mlflow.MlflowClient()
    broken: list[str] = []
    points = 0
    states: Counter[str] = Counter()
    for experiment in ("kills-trainers", "kills-clocks", "kills-drivers"):
        for run in find_runs(experiment):
            role = run.data.tags.get(Tag.ROLE, "none")
            states[f"{role} {run.info.status}"] += 1
            run_points, run_broken = check_run(client, run)
            points += run_points
            broken += run_broken
            # only trials are lost with their driver, and a training without a checkpoint with its process
            has_result = run.info.status == "FINISHED"
            if role in {Role.RUN, Role.SEARCH} and not has_result and "loss" in run.data.metrics:
                broken.append(f"{role} {run.info.run_id} is {run.info.status}")
    broken += check_weights()
    print("runs     ", ", ".join(f"{count} {state}" for state, count in sorted(states.items())))
    print("points   ", points)
    storage = lab.sandbox.environment["OPTUNA_STORAGE"]
    searched = find_runs("kills-drivers")
    for study in optuna.study.get_all_study_names(storage) if searched else ():
        broken += check_study(optuna.load_study(study_name=study, storage=storage), searched)
    return broken


def check_weights() -> list[str]:
    """Return a line for each finished training whose weights differ from those of the uninterrupted one."""
    import mlflow

    finished = [
        run
        for experiment in ("kills-trainers", "kills-clocks")
        for run in find_runs(experiment)
        if run.info.status == "FINISHED" and run.data.tags.get(Tag.ROLE) == Role.RUN
    ]
    reference = min(finished, key=lambda run: (run.info.experiment_id, run.info.start_time))
    weights = {
        run.info.run_id: mlflow.tensorflow.load_model(f"models:/{run.outputs.model_outputs[0].model_id}").get_weights()
        for run in finished
    }
    print("weights  ", f"of {len(weights) - 1} trainings compared with those of an uninterrupted one")
    return [
        f"run {run_id} has other weights than run {reference.info.run_id}"
        for run_id, values in weights.items()
        if any(
            one.tobytes() != other.tobytes() for one, other in zip(values, weights[reference.info.run_id], strict=True)
        )
    ]


def main() -> int:
    """Run the workloads, check the stores, print the figures, and return the exit code."""
    take_no_arguments(__doc__)
    number = {name: int(os.environ.get(f"KILLS_{name}", default)) for name, default in COUNTS.items()}
    seed = os.environ.get("KILLS_SEED", "0")
    lab = Lab(Path(tempfile.mkdtemp(prefix="kills-")))
    os.environ.update(lab.sandbox.environment)
    print(f"kills     seed {seed}, in {lab.folder}", flush=True)
    began = time.monotonic()
    # creates the store, which processes that start at once would do at the same time
    find_runs("none")
    trainers = Trainers(lab, number["TRAINERS"], number["PAIRS"], f"{seed} trainers")
    drivers = Drivers(lab, number["DRIVERS"], f"{seed} drivers")
    workloads: list[Trainers | Drivers | Clocks] = [trainers, drivers]
    if reason := Clocks.missing():
        print(f"clocks    skipped: {reason}")
    else:
        workloads.append(Clocks(lab, number["CLOCKS"], f"{seed} clocks"))

    def work(workload: Trainers | Drivers | Clocks) -> None:
        try:
            workload.run()
        except Exception as error:  # noqa: BLE001 - the other workloads go on
            lab.broken.append(f"{type(workload).__name__}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(workload,)) for workload in workloads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    broken = lab.broken + check_runs(lab)
    for process in lab.sandbox.live_processes():
        if process.pid != os.getpid():
            broken.append(f"process {process.pid} is left: {' '.join(process.cmdline())}")
            process.kill()
    broken += check_files(lab.sandbox)
    print("events   ", ", ".join(f"{count} {event}" for event, count in lab.counts.items()))
    print("took     ", f"{(time.monotonic() - began) / 60:.0f} min")
    return conclude(broken, lab.folder)


COUNTS = {"TRAINERS": 20, "PAIRS": 10, "DRIVERS": 10, "CLOCKS": 10}


if __name__ == "__main__":
    sys.exit(main())
