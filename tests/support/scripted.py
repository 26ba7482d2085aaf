"""Searches that cost nothing: an executor that answers from a script, and recorders in place of MLflow and terminal."""

import shutil
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import mlflow
import optuna
from optuna.storages._rdb.storage import _VersionManager
from sqlalchemy import event

from pipeline.search.executors.base import EpochReport, Executor, TrialResult
from pipeline.search.session import SearchContext
from pipeline.search.space import parse_search
from pipeline.search.study import Study
from pipeline.tracking.tags import RunRef, TrialOutcome
from tests.support.stores import made_once, tracking_store

# Spaces with any number of configurations, with six, and with two
CONTINUOUS = "recipe: smoke\nspace: {learning_rate: {low: 0.0001, high: 0.1, log: true}}\n"
DISCRETE = "recipe: smoke\nspace: {kernel_size: [1, 3, 5], depth: [1, 2]}\n"
SMALL = "recipe: smoke\nspace: {depth: [1, 2]}\n"


def make_search(folder, text=CONTINUOUS, *flags, name="mine"):
    """Return a search from a file's text and flags."""
    path = Path(folder) / f"{name}.yaml"
    path.write_text(text)
    return parse_search([str(path), *flags])


def open_study(folder, search, *, name="mine", image_shape=(8, 8, 1)):
    """Open the search's study in a file of the folder, as each driver does; a new one in memory where that is None."""
    url = None if folder is None else study_url(folder, "optuna.db")
    study = Study(search, url=url, name=name, image_shape=image_shape, training_images=180, classes=10)
    if url is None:
        return study
    engine = study.optuna_study._storage.backend.engine
    # No power cut is tested
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    engine.dispose()
    return study


def finish(study, times=1, value=0.5):
    """Ask and complete so many trials, and return the proposals."""
    proposals = [study.ask() for _ in range(times)]
    for one in proposals:
        study.complete(one.number, [value])
    return proposals


def states(study):
    """Return the names of the states of all trials."""
    return [trial.state.name for trial in study.trials()]


def study_url(folder, name):
    """Return the URL of the file with that name in a folder, in which there are Optuna's tables."""
    file = Path(folder) / name
    if not file.exists():
        shutil.copy(_empty_storage(), file)
    return f"sqlite:///{file}"


@cache
def _empty_storage():
    """Return a file with Optuna's tables."""
    file = made_once("optuna.db", lambda url: optuna.storages.RDBStorage(url).engine.dispose())
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    storage.engine.dispose()
    # Whenever Optuna opens a storage it executes ten modules to learn this, which is half of the time that it takes
    newest = storage.get_head_version()
    _VersionManager.get_head_version = lambda manager: newest
    return file


@contextmanager
def mlflow_store(folder):
    """Use an empty MLflow store in the folder, whose experiment `mine` is the active one."""
    with tracking_store(folder, "mine") as uri:
        mlflow.set_experiment("mine")
        try:
            yield uri
        finally:
            mlflow.end_run()


def epoch_report(job, epoch, accuracy, loss=1.0):
    metrics = {"val_accuracy": accuracy, "val_loss": loss, "loss": loss, "epoch_seconds": 0.5}
    metrics |= {"val_balanced_accuracy": 0.75 * accuracy, "val_macro_f1": 0.25 * accuracy}
    return EpochReport(job.number, epoch, metrics)


def trial_result(job, outcome=TrialOutcome.FINISHED, reason="", *, retryable=None, **metrics):
    """Return the result of a trial; a crash is retryable unless told otherwise."""
    if retryable is None:
        retryable = outcome is TrialOutcome.CRASHED
    return TrialResult(job.number, outcome, reason, retryable, metrics, f"output of {job.number}", "cpu", 0.03)


def successful_trial(job, *accuracies, loss=1.0, parameters=100.0, **more):
    """Return the events of a trial that succeeds: a report an epoch, and its result."""
    figures = more | {"best_val_accuracy": max(accuracies), "best_val_loss": loss, "parameters": parameters}
    figures |= {"best_val_balanced_accuracy": 0.75 * max(accuracies), "best_val_macro_f1": 0.25 * max(accuracies)}
    figures |= {"epochs": float(len(accuracies)), "seconds": 2.0 * len(accuracies)}
    reports = [epoch_report(job, epoch, accuracy, loss) for epoch, accuracy in enumerate(accuracies, start=1)]
    return [*reports, trial_result(job, **figures)]


class ScriptedExecutor(Executor):
    """An executor whose trials send the events that `answer(job)` returns, one at a time and in turn."""

    def __init__(self, answer, slots=1):
        self.answer, self.slots = answer, slots
        self.started, self.minutes, self.stops = [], [], []
        self.most = 0  # trials at a time
        self._running = {}

    def describe(self):
        return f"{self.slots} at a time"

    def __exit__(self, *error):
        pass

    def free(self):
        return self.slots - len(self._running)

    def start(self, job, *, minutes):
        assert self.free(), "no slot is free"
        self.started.append(job)
        self.minutes.append(minutes)
        self._running[job.number] = (job, list(self.answer(job)))
        self.most = max(self.most, len(self._running))

    def events(self, timeout):
        happened = []
        for number, (_, events) in list(self._running.items()):
            if events:
                happened.append(events.pop(0))
                if isinstance(happened[-1], TrialResult):
                    del self._running[number]
        return happened

    def prune(self, number):
        self._end(number, TrialOutcome.PRUNED)

    def stop(self, number):
        self._end(number, TrialOutcome.STOPPED)

    def stop_all(self, *, now):
        self.stops.append(now)
        for number in self._running:
            self.stop(number)

    def _end(self, number, outcome):
        job, _ = self._running[number]
        self._running[number] = (job, [trial_result(job, outcome, "by the driver", epochs=1.0, seconds=2.0)])


class RecordingRuns:
    """Stands in for the run of a study: records what is logged of the runs below it."""

    tracking_uri = "sqlite:///nowhere.db"
    id = "the study's run"

    def __init__(self):
        self.children, self.closed, self.finished = {}, {}, {}
        self.measured, self.params, self.presented = {}, {}, {}

    def start_child(self, name, *, role, tags, parent=None):
        run_id = f"run {len(self.children)}"
        self.children[run_id] = {"name": name, "role": role, "tags": dict(tags), "parent": parent}
        return RunRef(self.tracking_uri, run_id)

    def present_child(self, run_id, *, description, name=None, tags=None):
        named = {} if name is None else {"name": name}
        self.presented[run_id] = self.presented.get(run_id, {}) | {"description": description, **named, **(tags or {})}

    def log_child_params(self, run_id, params):
        self.params[run_id] = dict(params)

    def end_trial(self, run_id, outcome, *, reason, output_tail):
        self.closed[run_id] = outcome

    def end_child(self, run_id, outcome):
        self.finished[run_id] = outcome

    def describe_registration(self, run_id):
        return f"the model of {run_id}"

    def log_child_metrics(self, run_id, metrics):
        self.measured[run_id] = dict(metrics)


class RecordingConsole:
    """Stands in for the terminal: records lines and the positions of the progress bar."""

    def __init__(self):
        self.lines, self.positions = [], []

    def print(self, *lines):
        self.lines.extend(lines)

    def progress(self, done, total, text):
        self.positions.append((done, total, text))


def search_context(study, executor, *, runs=None, interrupts=lambda: 0, heartbeat=lambda: None, console=None, **more):
    """Return the context of a search that is driven in this process."""
    runs, console = runs or RecordingRuns(), console or RecordingConsole()
    return SearchContext(study, runs, executor, interrupts, heartbeat, console, **more)
