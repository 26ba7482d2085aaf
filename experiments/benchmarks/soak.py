"""Run short trainings and small searches while trainer, driver and tracking server are killed at random: `make soak`.

Two workloads run side by side for SOAK_MINUTES: one trains, the other searches. Each of their processes may be killed,
and the next one then resumes the work. Meanwhile the tracking server is stopped, killed and restarted. SOAK_SEED
determines what is killed and when. At the end the interrupted work is resumed once more without faults, and every
promise of the service is checked, including that a driver's memory does not grow with its trials. The exit code is 1 if
a promise was broken.
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from arguments import take_no_arguments
from own_store import with_store

from pipeline.tracking.tags import Role, Tag

ROOT = Path(__file__).parent.parent.parent
# environment variable that identifies the processes of a soak
MARKER = "SOAK"
EXPERIMENT = "soak"
TRAIN = "smoke --epochs 12 --train_examples none --batch_size 16 --checkpoint_minutes none".split()
TRIALS = 5
SEARCH = f"smoke --trials {TRIALS} --epochs 3 --workers 1 --final_top 1 --final_seeds 1".split()

KILL_PROBABILITY = 0.6
# A process is killed at most so long after its first line of output.
KILL_SECONDS = 30
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
# within which a trainer has to end after a signal, and a driver, which ends its trials first
TRAIN_END_SECONDS, SEARCH_END_SECONDS = 10, 40
READY_SECONDS = 180

# Limits for a driver from the middle of its life on. Its first figures need some 90 MiB once, for their libraries, so
# memory is measured only until the search prints DRAWING and then draws them.
DRAWING = "the trials end"
MAX_GROWTH_MIB = 32
MAX_GROWTH_HANDLES = 20
# A driver that draws its figures again and again keeps some 30 KiB of each trial; a leaked figure has megabytes.
STEADY_SEARCH = "--trials 240 --slots 4 --figures 30".split()
MAX_STEADY_MIB = 0.1


class Sandbox:
    """A temporary folder with a tracking server, and the environment of the processes that run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        (folder / "tmp").mkdir()
        # MLflow's server leaves what it receives when it is killed
        (folder / "server-tmp").mkdir()
        self.environment = with_store(self.uri) | {
            MARKER: uuid.uuid4().hex,
            "XDG_CACHE_HOME": str(folder / "cache"),
            "MPLCONFIGDIR": str(folder / "matplotlib"),
            "TMPDIR": str(folder / "tmp"),
            "PYTHONPATH": str(ROOT),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_EXPERIMENT_NAME": EXPERIMENT,
            "OPTUNA_STORAGE": f"sqlite:///{folder}/optuna.db",
        }
        self._server: subprocess.Popen | None = None

    def start_server(self) -> None:
        command = ["server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "served")]
        self._server = self.start_module(
            ["mlflow", *command],
            temporary="server-tmp",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):  # noqa: S310 - own server
                return
            time.sleep(0.3)
        raise RuntimeError("mlflow server did not start")

    def stop_server(self, number: signal.Signals) -> None:
        """Send a signal to the server, and kill it if it does not end within ten seconds."""
        if self._server:
            os.killpg(self._server.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._server.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
            self._server = None

    def start_module(self, arguments: list[str], *, temporary: str = "tmp", **options: Any) -> subprocess.Popen:
        """Start `python -m ARGUMENTS` in the folder, with the name of its temporary one and options of Popen."""
        command = [sys.executable, "-m", *arguments]
        environment = self.environment | {"TMPDIR": str(self.folder / temporary)}
        return subprocess.Popen(command, cwd=self.folder, env=environment, start_new_session=True, **options)

    def live_processes(self) -> list[psutil.Process]:
        """Return all processes of this soak that are alive."""
        processes = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                is_own = process.environ().get(MARKER) == self.environment[MARKER]
                if is_own and process.status() != psutil.STATUS_ZOMBIE:
                    processes.append(process)
        return processes


class Workload:
    """Run a command again and again, kill some of its processes, and resume what was killed."""

    def __init__(self, sandbox: Sandbox, command: str, arguments: list[str], seed: str) -> None:
        self.sandbox, self.command, self.arguments = sandbox, command, arguments
        self.random = random.Random(seed)  # noqa: S311 - no secret
        self.counts: Counter[str] = Counter()
        self.growth: list[tuple[float, int]] = []  # of each driver: MiB and file handles
        self.broken: list[str] = []
        self._to_resume: list[str] | None = None  # arguments that resume what was interrupted
        self._number = 0

    def run_until(self, until: float) -> None:
        """Run processes one after the other until a time on the clock of time.monotonic."""
        while time.monotonic() < until:
            kills = self.random.random() < KILL_PROBABILITY
            number = self.random.choice(SIGNALS) if kills else None
            self.run_once(number, after=self.random.uniform(0, KILL_SECONDS))

    def run_once(self, number: signal.Signals | None = None, *, after: float = 0.0) -> bool:
        """Start a process that resumes what was interrupted, or else begins something new.

        Args:
            number: The signal to send to the process, if any.
            after: Seconds from its first line of output to that signal.

        Returns:
            Whether the process ended with exit code 0.
        """
        arguments = self._to_resume or self._new_arguments()
        output = self.sandbox.folder / f"{self.command}.txt"
        with output.open("w") as file:
            process = self.sandbox.start_module(
                ["pipeline", self.command, *arguments], stdout=file, stderr=subprocess.PIPE, text=True
            )
        # psutil cannot find a process any more once it has ended.
        observed = psutil.Process(process.pid)
        started = time.monotonic()
        # The first line comes after the imports; a kill before it would test nothing.
        while "\n" not in output.read_text() and process.poll() is None:
            time.sleep(0.05)
        observer = threading.Thread(target=self._observe, args=(observed, output))
        observer.start()
        try:
            _, errors = process.communicate(timeout=after if number else None)
        except subprocess.TimeoutExpired:
            assert number
            errors = self._kill(process, number)
        observer.join()
        succeeded = process.returncode == 0
        self.counts["finished" if succeeded else f"exit code {process.returncode}"] += 1
        if "Traceback" in errors:
            self.broken.append(f"{self.command} {' '.join(arguments)}, started at {started:.0f}: {errors[-2000:]}")
        self._to_resume = None if succeeded else self._resume_arguments(arguments, output.read_text(), errors)
        return succeeded

    def resume(self) -> bool:
        """Resume what was interrupted and return whether it ended with exit code 0.

        A trainer starts another run even if nothing was interrupted: that closes the runs of killed processes.
        """
        return self.run_once() if self._to_resume or self.command == "train" else True

    def _kill(self, process: subprocess.Popen, number: signal.Signals) -> str:
        """Send a signal to a process, wait until it has ended, and return its standard error."""
        process.send_signal(number)
        self.counts[f"killed by {number.name}"] += 1
        sent = time.monotonic()
        _, errors = process.communicate()
        seconds = time.monotonic() - sent
        if seconds > (TRAIN_END_SECONDS if self.command == "train" else SEARCH_END_SECONDS):
            self.broken.append(f"{self.command} took {seconds:.0f} s to end after {number.name}")
        return errors

    def _new_arguments(self) -> list[str]:
        self._number += 1
        if self.command == "train":
            return [*self.arguments, "--seed", str(self._number)]
        return [*self.arguments, "--study", f"soak-{self._number}"]

    def _resume_arguments(self, arguments: list[str], output: str, errors: str) -> list[str] | None:
        """Return the arguments that continue an interrupted process; None if it left nothing to resume."""
        if self.command == "search" or "error: the tracking store" in errors:
            return arguments
        return ["--resume", "latest"] if re.search("^epoch", output, re.MULTILINE) else None

    def _observe(self, process: psutil.Process, output: Path) -> None:
        """Sample the file handles of a process until it ends, and its memory until it draws its figures."""
        memory, handles = [], []
        with suppress(psutil.Error):
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                handles.append(process.num_fds())
                if DRAWING not in output.read_text():
                    memory.append(process.memory_info().rss / 2**20)
                time.sleep(0.5)
        if self.command == "search" and len(memory) > 20:
            self.growth.append((memory[-1] - memory[len(memory) // 2], handles[-3] - handles[len(handles) // 2]))


def measure_steady_growth(sandbox: Sandbox) -> float:
    """Return the growth of a driver's memory per trial, in MiB, after it has drawn its figures a few times."""
    command = [sys.executable, str(ROOT / "experiments" / "benchmarks" / "slots.py"), *STEADY_SEARCH]
    done = subprocess.run(command, env=sandbox.environment, capture_output=True, text=True, check=True)
    growth = re.search(r"(\S+) MiB per trial", done.stdout)
    assert growth, done.stdout
    return float(growth[1])


def disturb_server(sandbox: Sandbox, until: float, rng: random.Random, counts: Counter[str]) -> None:
    """Stop or kill the tracking server at random times, and start it again."""
    while time.monotonic() < until:
        time.sleep(rng.uniform(10, 40))
        number = rng.choice(SIGNALS)
        sandbox.stop_server(number)
        counts[f"ended by {number.name}"] += 1
        time.sleep(rng.uniform(0, 15))
        sandbox.start_server()


def check_stores(sandbox: Sandbox) -> list[str]:
    """Print what MLflow and Optuna hold, and return the promises that it breaks."""
    os.environ.update(sandbox.environment)
    # Imported here, because MLflow reads its settings from the environment.
    import mlflow
    import optuna

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment
    runs = client.search_runs([experiment.experiment_id], max_results=10_000)
    states = Counter((run.data.tags.get(Tag.ROLE, "none"), run.info.status) for run in runs)
    print("runs     ", ", ".join(f"{count} {role} {status}" for (role, status), count in sorted(states.items())))
    broken: list[str] = []
    points = 0
    for run in runs:
        run_points, run_broken = check_run(client, run)
        points += run_points
        broken += run_broken
    print("points   ", points, "of metrics, each step once in its run" if not broken else "")
    storage = sandbox.environment["OPTUNA_STORAGE"]
    for study in optuna.study.get_all_study_names(storage):
        broken += check_study(optuna.load_study(study_name=study, storage=storage), runs)
    return broken


def check_run(client: Any, run: Any) -> tuple[int, list[str]]:
    """Return the number of metric points of a run and the promises that it breaks.

    A run must be closed and have each step of a metric once, a finished one every epoch and no checkpoint on this
    machine.
    """
    from pipeline.training.checkpoint_manager import checkpoint_folder

    broken: list[str] = []
    run_id, status = run.info.run_id, run.info.status
    if status not in {"FINISHED", "FAILED", "KILLED"}:
        broken.append(f"run {run_id} ({run.info.run_name}) is {status}")
    points = 0
    for name in run.data.metrics if run.data.tags.get(Tag.ROLE) != Role.SEARCH else ():
        steps = [point.step for point in client.get_metric_history(run_id, name)]
        points += len(steps)
        if len(steps) != len(set(steps)):
            broken.append(f"run {run_id}: {name} has a step twice: {steps}")
        is_curve = status == "FINISHED" and name in {"loss", "val_accuracy"}
        if is_curve and steps != list(range(1, int(run.data.params["epochs"]) + 1)):
            broken.append(f"run {run_id}: {name} has steps {steps} of {run.data.params['epochs']}")
    if status == "FINISHED" and checkpoint_folder(run_id).exists():
        broken.append(f"run {run_id} is finished and has left checkpoints")
    return points, broken


def check_study(study: Any, runs: Any) -> list[str]:
    """Return the promises that a study breaks: as many finished trials as budgeted, each with a run of its own."""
    name = study.study_name
    finished = [trial for trial in study.trials if trial.state.name in {"COMPLETE", "PRUNED"}]
    # Duplicates are answered without a training and have no run.
    trained = [trial for trial in finished if "run_id" in trial.user_attrs]
    broken = [] if len(trained) == TRIALS else [f"study {name} has {len(trained)} trials of {TRIALS}"]
    if running := [trial.number for trial in study.trials if trial.state.name == "RUNNING"]:
        broken.append(f"study {name} has trials that are still running: {running}")
    runs_by_id = {run.info.run_id: run for run in runs}
    for trial in trained:
        run = runs_by_id.get(trial.user_attrs["run_id"])
        if run is None or run.data.tags.get(Tag.TRIAL_STATE) not in {"finished", "pruned", "diverged"}:
            broken.append(f"study {name}: trial {trial.number} has no run that says how it ended")
    if len({trial.user_attrs["run_id"] for trial in trained}) != len(trained):
        broken.append(f"study {name} has two trials with the same run")
    return broken


def check_files(sandbox: Sandbox) -> list[str]:
    """Return a line for each temporary file and each unsent record that is left."""
    cache = sandbox.folder / "cache" / "convmixer"
    leftovers = [path for path in (sandbox.folder / "tmp").rglob("*") if path.is_file()]
    leftovers += [path for path in cache.rglob("*") if path.suffix in {".part", ".sending"}]
    for name in ("outbox", "trials", "finals"):
        leftovers += (cache / name).iterdir() if (cache / name).exists() else ()
    return [f"{path.relative_to(sandbox.folder)} is left" for path in leftovers]


def check_growth(growth: list[tuple[float, int]]) -> list[str]:
    """Return a line for each driver whose memory or file handles grew beyond the limits."""
    return [
        f"a driver grew by {mib:.0f} MiB and {handles} file handles"
        for mib, handles in growth
        if mib > MAX_GROWTH_MIB or handles > MAX_GROWTH_HANDLES
    ]


def main() -> int:
    """Run the soak, resume what was interrupted, check the promises, and return the exit code."""
    take_no_arguments(__doc__)
    minutes, seed = float(os.environ.get("SOAK_MINUTES", "5")), os.environ.get("SOAK_SEED", "0")
    sandbox = Sandbox(Path(tempfile.mkdtemp(prefix="soak-")))
    print(f"soak      {minutes:g} minutes, seed {seed}, in {sandbox.folder}", flush=True)
    trainer = Workload(sandbox, "train", TRAIN, f"{seed} trainer")
    driver = Workload(sandbox, "search", SEARCH, f"{seed} driver")
    server_counts: Counter[str] = Counter()
    server_random = random.Random(f"{seed} server")  # noqa: S311 - no secret
    try:
        sandbox.start_server()
        until = time.monotonic() + 60 * minutes
        threads = [threading.Thread(target=workload.run_until, args=(until,)) for workload in (trainer, driver)]
        threads.append(threading.Thread(target=disturb_server, args=(sandbox, until, server_random, server_counts)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("recovery  without faults", flush=True)
        broken = [
            f"{workload.command} did not finish without faults"
            for workload in (driver, trainer)
            if not workload.resume()
        ]
        broken += check_stores(sandbox) + trainer.broken + driver.broken
        steady_growth = measure_steady_growth(sandbox)
        if steady_growth > MAX_STEADY_MIB:
            broken.append(f"a driver that draws its figures grew by {steady_growth:.2f} MiB per trial")
    finally:
        sandbox.stop_server(signal.SIGTERM)
    # the last processes may be on their way out
    time.sleep(2)
    for process in sandbox.live_processes():
        broken.append(f"process {process.pid} is left: {' '.join(process.cmdline())}")
        process.kill()
    broken += check_files(sandbox) + check_growth(driver.growth)
    for name, counts in (("trainer", trainer.counts), ("driver", driver.counts), ("server", server_counts)):
        print(f"{name:<9} ", ", ".join(f"{event} {count}" for event, count in sorted(counts.items())))
    if driver.growth:
        mib, handles = (max(values) for values in zip(*driver.growth, strict=True))
        print(
            f"growth    at most {mib:.0f} MiB and {handles} file handles in the second halves of "
            f"{len(driver.growth)} drivers"
        )
    print(f"steady    {steady_growth:.3f} MiB per trial")
    return conclude(broken, sandbox.folder)


def conclude(broken: list[str], folder: Path) -> int:
    """Print which promises were broken and return the exit code; the folder is removed if all were kept."""
    for line in broken:
        print(f"BROKEN    {line}")
    if broken:
        print(f"{len(broken)} promises broken; see {folder}")
        return 1
    print("all promises kept")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
