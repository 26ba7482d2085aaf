"""Short runs and small searches under random kills of trainer, driver and tracking server: `make soak`.

Two hands work side by side for SOAK_MINUTES, one training runs, one searching; each is killed now and then and told to
go on. A third stops, kills and starts the tracking server. What is done to whom comes from SOAK_SEED. In the end all is
told once more to go on, in peace, and then every promise is checked, and that a driver's memory does not grow with its
trials. Exit code 1: one was broken.
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

import psutil

from pipeline.tracking.tags import Role, Tag

PROJECT = Path(__file__).parent.parent.parent
MARK = "SOAK"  # the variable by which all processes of a soak are known
RUN = "smoke --epochs 12 --train_examples none --batch_size 16 --checkpoint_minutes none".split()
SEARCH = "smoke --trials 5 --epochs 3 --workers 1 --final_top 1 --final_seeds 1".split()
KILL_SECONDS = 30  # after the first line at the latest
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
GROWTH_HANDLES = 20  # of a driver, from the middle of its life
GROWTH_MIB = 32  # while trials run, after half of them; the first figures cost some 90 MiB once, for their libraries
# A driver that draws its figures again and again keeps some 30 KiB of each trial; a figure that stayed has megabytes.
STEADY, STEADY_MIB = "--trials 240 --slots 4 --figures 30".split(), 0.1
DRAWS = "the search ends"  # a driver says so, then draws
READY_SECONDS = 180


class Place:
    """A folder, a tracking server in it, and the environment of what runs there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as asked:
            asked.bind(("127.0.0.1", 0))
            self.port = asked.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        (folder / "tmp").mkdir()
        mine = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        self.environment = mine | {
            MARK: uuid.uuid4().hex,
            "XDG_CACHE_HOME": str(folder / "cache"),
            "MPLCONFIGDIR": str(folder / "matplotlib"),
            "TMPDIR": str(folder / "tmp"),
            "PYTHONPATH": str(PROJECT),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_EXPERIMENT_NAME": "soak",
            "OPTUNA_STORAGE": f"sqlite:///{folder}/optuna.db",
        }
        self._server: subprocess.Popen | None = None

    def start_server(self) -> None:
        command = ["server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "served")]
        self._server = self.begin(["mlflow", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):  # noqa: S310 - ours
                return
            time.sleep(0.3)
        raise RuntimeError("mlflow server did not start")

    def end_server(self, number: signal.Signals) -> None:
        if self._server:
            os.killpg(self._server.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._server.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
            self._server = None

    def begin(self, words: list[str], **how) -> subprocess.Popen:
        command = [sys.executable, "-m", *words]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, start_new_session=True, **how)

    def family(self) -> list[psutil.Process]:
        """All processes of this soak that live."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.environment[MARK] and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


class Hand:
    """Starts one thing after another, kills it or not, and has it go on."""

    def __init__(self, place: Place, command: str, words: list[str], seed: str) -> None:
        self.place, self.command, self.words = place, command, words
        self.random = random.Random(seed)  # noqa: S311 - nothing secret
        self.counts: Counter[str] = Counter()
        self.growth: list[tuple[float, int]] = []  # of drivers: MiB, and file handles
        self.faults: list[str] = []
        self._open: list[str] | None = None  # what has to go on
        self._begun = 0

    def work(self, until: float) -> None:
        while time.monotonic() < until:
            kill = self.random.random() < 0.6
            self.once(self.random.choice(SIGNALS) if kill else None, after=self.random.uniform(0, KILL_SECONDS))

    def once(self, number: signal.Signals | None = None, *, after: float = 0.0) -> bool:
        """Start what is next, or go on with what was killed; returns whether it ended well."""
        words = self._open or self._next()
        told_to = self.place.folder / f"{self.command}.txt"
        with told_to.open("w") as file:
            process = self.place.begin(
                ["pipeline", self.command, *words], stdout=file, stderr=subprocess.PIPE, text=True
            )
        watched = psutil.Process(process.pid)  # now, as one that has ended is none any more
        began = time.monotonic()
        while "\n" not in told_to.read_text() and process.poll() is None:
            time.sleep(0.05)  # imports are behind its first line; before that nothing is at stake
        watch = threading.Thread(target=self._watch, args=(watched, told_to))
        watch.start()
        try:
            _, said = process.communicate(timeout=after if number else None)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            self.counts[f"killed by {number.name}"] += 1
            told = time.monotonic()
            _, said = process.communicate()
            if time.monotonic() - told > 40 or (self.command == "train" and time.monotonic() - told > 10):
                self.faults.append(f"{self.command} took {time.monotonic() - told:.0f} s to end by {number.name}")
        watch.join()
        well = process.returncode == 0
        self.counts["ended well" if well else f"exit code {process.returncode}"] += 1
        if "Traceback" in said:
            self.faults.append(f"{self.command} {' '.join(words)}, after {began:.0f}: {said[-2000:]}")
        self._open = None if well else self._again(words, told_to.read_text(), said)
        return well

    def recover(self) -> bool:
        """Have what is open go on, or start one thing more, which closes what lost its process."""
        return self.once() if self._open or self.command == "train" else True

    def _next(self) -> list[str]:
        self._begun += 1
        if self.command == "train":
            return [*self.words, "--seed", str(self._begun)]
        return [*self.words, "--study", f"soak-{self._begun}"]

    def _again(self, words: list[str], out: str, said: str) -> list[str] | None:
        if self.command == "search" or "error: the tracking store" in said:
            return words
        return ["--resume", "latest"] if re.search("^epoch", out, re.MULTILINE) else None

    def _watch(self, process: psutil.Process, told_to: Path) -> None:
        """Follow the memory of a process, until it draws, and its handles."""
        memory, handles = [], []
        with suppress(psutil.Error):
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                handles.append(process.num_fds())
                if DRAWS not in told_to.read_text():
                    memory.append(process.memory_info().rss / 2**20)
                time.sleep(0.5)
        if self.command == "search" and len(memory) > 20:
            self.growth.append((memory[-1] - memory[len(memory) // 2], handles[-3] - handles[len(handles) // 2]))


def steady(place: Place) -> float:
    """How much the memory of a driver grows a trial, in MiB, once it has drawn its figures a few times."""
    script = [sys.executable, str(PROJECT / "experiments" / "benchmarks" / "slots.py"), *STEADY]
    done = subprocess.run(script, env=place.environment, capture_output=True, text=True, check=True)
    return float(re.search(r"(\S+) MiB a trial", done.stdout)[1])


def harass(place: Place, until: float, chance: random.Random, counts: Counter[str]) -> None:
    """Stop or kill the tracking server now and then, and start it again."""
    while time.monotonic() < until:
        time.sleep(chance.uniform(10, 40))
        number = chance.choice(SIGNALS)
        place.end_server(number)
        counts[f"server ended by {number.name}"] += 1
        time.sleep(chance.uniform(0, 15))
        place.start_server()


def check(place: Place) -> list[str]:
    """What MLflow, Optuna and the disk hold that was promised not to be; MLflow comes late, for its environment."""
    os.environ.update(place.environment)
    import mlflow
    import optuna

    from pipeline.training.checkpoint_manager import checkpoint_folder

    faults: list[str] = []
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("soak")
    runs = client.search_runs([experiment.experiment_id], max_results=10_000)
    states = Counter((run.data.tags.get(Tag.ROLE, "none"), run.info.status) for run in runs)
    print("runs     ", ", ".join(f"{count} {role} {status}" for (role, status), count in sorted(states.items())))
    points = 0
    for run in runs:
        if run.info.status not in {"FINISHED", "FAILED", "KILLED"}:
            faults.append(f"run {run.info.run_id} ({run.info.run_name}) is {run.info.status}")
        for name in run.data.metrics if run.data.tags.get(Tag.ROLE) != Role.SEARCH else ():
            steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
            points += len(steps)
            if len(steps) != len(set(steps)):
                faults.append(f"run {run.info.run_id}: {name} has a step twice: {steps}")
            whole = run.info.status == "FINISHED" and name in {"loss", "val_accuracy"}
            if whole and steps != list(range(1, int(run.data.params["epochs"]) + 1)):
                faults.append(f"run {run.info.run_id}: {name} has steps {steps} of {run.data.params['epochs']}")
        if run.info.status == "FINISHED" and checkpoint_folder(run.info.run_id).exists():
            faults.append(f"run {run.info.run_id} is finished and has left checkpoints")
    print("points   ", points, "of metrics, each step once in its run" if not faults else "")
    storage = place.environment["OPTUNA_STORAGE"]
    for study in optuna.study.get_all_study_names(storage):
        faults += study_faults(optuna.load_study(study_name=study, storage=storage), runs)
    return faults


def study_faults(study, runs) -> list[str]:
    """Whether the finished trials of a study are as many as were asked for, each with one run of its own."""
    done = [trial for trial in study.trials if trial.state.name in {"COMPLETE", "PRUNED"}]
    trained = [trial for trial in done if "run_id" in trial.user_attrs]
    faults = [] if len(trained) == 5 else [f"study {study.study_name} has {len(trained)} trials of 5"]
    if left := [trial.number for trial in study.trials if trial.state.name == "RUNNING"]:
        faults.append(f"study {study.study_name} has trials that run: {left}")
    known = {run.info.run_id: run for run in runs}
    for trial in trained:
        run = known.get(trial.user_attrs["run_id"])
        if run is None or run.data.tags.get(Tag.TRIAL_STATE) not in {"finished", "pruned", "diverged"}:
            faults.append(f"study {study.study_name}: trial {trial.number} has no run that says how it ended")
    if len({trial.user_attrs["run_id"] for trial in trained}) != len(trained):
        faults.append(f"study {study.study_name} has a run that is counted twice")
    return faults


def left_files(place: Place) -> list[str]:
    """Temporary files, and what was to be told and was not."""
    cache = place.folder / "cache" / "convmixer"
    found = [path for path in (place.folder / "tmp").rglob("*") if path.is_file()]
    found += [path for path in cache.rglob("*") if path.suffix in {".part", ".sending"}]
    for name in ("outbox", "trials", "finals"):
        found += (cache / name).iterdir() if (cache / name).exists() else ()
    return [f"{path.relative_to(place.folder)} is left" for path in found]


def main() -> int:
    """Soak, recover, check, print; returns the exit code."""
    minutes, seed = float(os.environ.get("SOAK_MINUTES", "5")), os.environ.get("SOAK_SEED", "0")
    place = Place(Path(tempfile.mkdtemp(prefix="soak-")))
    print(f"soak      {minutes:g} minutes, seed {seed}, in {place.folder}", flush=True)
    trainer = Hand(place, "train", RUN, f"{seed} trainer")
    driver = Hand(place, "search", SEARCH, f"{seed} driver")
    servers: Counter[str] = Counter()
    chance = random.Random(f"{seed} server")  # noqa: S311
    try:
        place.start_server()
        until = time.monotonic() + 60 * minutes
        hands = [threading.Thread(target=hand.work, args=(until,)) for hand in (trainer, driver)]
        hands.append(threading.Thread(target=harass, args=(place, until, chance, servers)))
        for hand in hands:
            hand.start()
        for hand in hands:
            hand.join()
        print("recovery  in peace", flush=True)
        faults = [f"{hand.command} did not end well in peace" for hand in (driver, trainer) if not hand.recover()]
        faults += check(place) + trainer.faults + driver.faults
        if (grown := steady(place)) > STEADY_MIB:
            faults.append(f"a driver that draws its figures grew by {grown:.2f} MiB a trial")
    finally:
        place.end_server(signal.SIGTERM)
    time.sleep(2)
    alive = place.family()
    faults += [f"process {one.pid} is left: {' '.join(one.cmdline())}" for one in alive]
    for one in alive:
        one.kill()
    faults += left_files(place)
    for mib, handles in driver.growth:
        if mib > GROWTH_MIB or handles > GROWTH_HANDLES:
            faults.append(f"a driver grew by {mib:.0f} MiB and {handles} file handles")
    for name, counts in (("trainer", trainer.counts), ("driver", driver.counts), ("server", servers)):
        print(f"{name:<9} ", ", ".join(f"{what} {count}" for what, count in sorted(counts.items())))
    if driver.growth:
        mib, handles = (max(values) for values in zip(*driver.growth, strict=True))
        print(
            f"growth    of {len(driver.growth)} drivers' second halves: at most {mib:.0f} MiB, {handles} file handles"
        )
    print(f"steady    {grown:.3f} MiB a trial")
    for fault in faults:
        print(f"BROKEN    {fault}")
    print("all promises kept" if not faults else f"{len(faults)} promises broken; see {place.folder}")
    if not faults:
        shutil.rmtree(place.folder)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
