"""Parts of gpu.py that run the project's commands: doctor, searches, trials that fail, and a run that is resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import psutil
from gpu_process import CommandFailed, MemoryWatch, OutOfTime, Session, used_mib

# A small network: a search is to measure processes and memory, not the compiler.
TRIAL = {
    "filters": 64,
    "depth": 2,
    "train_examples": 10_000,
    "epochs": 3,
    "batch_size": 128,
    "jit_compile": False,
    "batch_norm_momentum": 0.9,
}
SMALL_TRIAL = TRIAL | {"filters": 8, "depth": 1, "kernel_size": 3, "train_examples": 200, "batch_size": 32}
TRIALS = {False: 12, True: 2}  # by whether it is small
# Each activation of it takes 64 GB in bfloat16.
TOO_LARGE = {"filters": 4096, "patch_size": 1, "batch_size": 8192}
# of the trial that is killed, which must still train when its first epoch has been recorded
KILLED_EPOCHS = {False: 40, True: 6}


def run_doctor(session: Session) -> Iterator[dict[str, Any]]:
    """Yield the doctor's lines."""
    # its errors are lines of it
    for line in session.command("doctor", may_fail=True):
        state, _, text = line.partition(" ")
        yield {"what": text.strip(), "state": state}


def search(session: Session, *, slots: int) -> Iterator[dict[str, Any]]:
    """Run a search without pruning, and yield how long it and its trials took."""
    name = f"search-{slots}-{int(time.time())}"
    began = time.monotonic()
    with MemoryWatch() as memory:
        run_search(session, name, {"trials": TRIALS[session.is_small]} | share(session, slots))
    seconds = time.monotonic() - began
    trials = read_trials(session, name)
    yield {
        "what": f"trials_per_gpu={slots}",
        "seconds": round(seconds, 1),
        "finished": sum(trial["state"] == "finished" for trial in trials),
        "trials": len(trials),
        "trial_seconds": round(median(trial.get("seconds", 0.0) for trial in trials), 2),
        "start_seconds": round(median(trial.get("tracing_seconds", 0.0) for trial in trials), 2),
    } | memory.figures()


def run_out_of_memory(session: Session) -> Iterator[dict[str, Any]]:
    """Train a trial that does not fit into the device's memory."""
    if used_mib() is None:
        yield {"what": "left out: without a GPU there is no device memory to run out of"}
        return
    name = f"memory-{int(time.time())}"
    with MemoryWatch() as memory:
        run_search(session, name, {"trials": 1} | TOO_LARGE, may_fail=True)
    states = [trial["state"] for trial in read_trials(session, name)]
    yield {"what": "a trial of more memory than there is", "state": ", ".join(states)} | memory.figures()


def kill_trial(session: Session) -> Iterator[dict[str, Any]]:
    """Kill the process of a trial while it trains; the search trains it again."""
    name = f"killed-{int(time.time())}"
    with MemoryWatch() as memory:
        file = write_search(session, name, {"trials": 1, "epochs": KILLED_EPOCHS[session.is_small]})
        with session.running(command("search", file, "--study", name)) as process:
            victim = wait_for_trial(session, name, process)
            victim.send_signal(signal.SIGKILL)
            assert process.stdout
            process.stdout.read()
            session.check(process, process.wait(), f"study {name}")
    states = [trial["state"] for trial in read_trials(session, name)]
    yield {"what": "a trial killed once", "states": ", ".join(states)} | memory.figures()


def resume_run(session: Session) -> Iterator[dict[str, Any]]:
    """Kill a run after its second epoch, resume it, and compare it with one that was left alone."""
    settings = SMALL_TRIAL if session.is_small else TRIAL
    flags = [word for key, value in {**settings, "epochs": 4}.items() for word in (f"--{key}", str(value))]
    train = ["train", "quick", "--dataset", session.dataset, *flags]
    session.command(*train)
    [whole] = read_runs(session, 1)
    with MemoryWatch() as memory, session.running(command(*train)) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                break
        else:
            session.check(process, process.wait() or 1, "it ended before its second epoch")
        process.send_signal(signal.SIGKILL)
        process.wait()
    yield {"what": "a run killed after two epochs"} | memory.figures()
    [killed] = read_runs(session, 1)
    session.command("train", "--resume", killed)
    one, two = (read_losses(session, run) for run in (whole, killed))
    if len(one) != len(two) or whole == killed:
        raise CommandFailed(f"{len(one)} epochs of the whole run, {len(two)} of the resumed one")
    largest = max(abs(a - b) for a, b in zip(one, two, strict=True))
    yield {
        "what": "the same run, resumed",
        "equal": one == two,
        "largest_difference_of_val_loss": float(f"{largest:.3g}"),
    }


def share(session: Session, slots: int) -> dict[str, int]:
    """Return the settings for so many trials at a time; on a CPU no more than it has cores."""
    if used_mib() is not None:
        return {"trials_per_gpu": slots}
    return {"workers": min(slots, len(os.sched_getaffinity(0)))}


def run_search(session: Session, name: str, settings: dict[str, Any], *, may_fail: bool = False) -> None:
    """Run a search to its end, in a study of this name."""
    session.command("search", write_search(session, name, settings), "--study", name, may_fail=may_fail)


def write_search(session: Session, name: str, settings: dict[str, Any]) -> str:
    """Write a search's file, and return its path. JSON is YAML."""
    trial = SMALL_TRIAL if session.is_small else TRIAL
    fixed = {"recipe": "quick", "dataset": session.dataset, "pruner": "none", "sampler": "random", "final_top": 0}
    content = fixed | trial | settings | {"space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}}
    file = session.folder / f"{name}.yaml"
    file.write_text(json.dumps(content))
    return str(file)


def command(*arguments: str) -> list[str]:
    """Return the command line of a command of the project."""
    return [sys.executable, "-m", "pipeline", *arguments]


def wait_for_trial(session: Session, study: str, driver: subprocess.Popen[str]) -> psutil.Process:
    """Return the process of a study's only trial, once it has ended an epoch.

    Raises:
        CommandFailed: The driver has ended.
        OutOfTime: It had not until the deadline.
    """
    while time.monotonic() < session.deadline and driver.poll() is None:
        # what is only timed before the first trial has a process too, but no run
        if any("val_loss" in trial for trial in read_trials(session, study)):
            # a trial leads a process group; the server that forks it does not
            for child in psutil.Process(driver.pid).children(recursive=True):
                if os.getpgid(child.pid) == child.pid:
                    return child
        time.sleep(0.2)
    session.check(driver, driver.poll() or 1, "the search ended before its trial")
    raise OutOfTime


def read_trials(session: Session, study: str) -> list[dict[str, Any]]:
    """Return state and metrics of each trial of a study."""
    from pipeline.tracking.tags import Role, Tag

    query = f"tags.{Tag.STUDY} = '{study}' and tags.{Tag.ROLE} = '{Role.TRIAL}'"
    return [{"state": run.data.tags.get(Tag.TRIAL_STATE)} | run.data.metrics for run in _find(session, query)]


def read_runs(session: Session, count: int) -> list[str]:
    """Return the ids of the newest runs."""
    from pipeline.tracking.tags import Role, Tag

    return [run.info.run_id for run in _find(session, f"tags.{Tag.ROLE} = '{Role.RUN}'")[:count]]


def read_losses(session: Session, run: str) -> list[float]:
    """Return the validation loss of each epoch of a run."""
    import mlflow

    history = mlflow.MlflowClient(session.tracking_uri).get_metric_history(run, "val_loss")
    return [point.value for point in sorted(history, key=lambda point: point.step)]


def _find(session: Session, query: str) -> list[Any]:
    """Return the runs that a query finds, the newest first."""
    import mlflow

    client = mlflow.MlflowClient(session.tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, filter_string=query, order_by=["attributes.start_time DESC"]))
