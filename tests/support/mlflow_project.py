"""The project as users start it: the command `mlflow run`, and the environment of its processes."""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from typing import NamedTuple

import mlflow
import psutil
import pytest
from mlflow.exceptions import ExecutionException
from mlflow.tracking import fluent

from tests.support.paths import ROOT
from tests.support.stores import environment


def mlflow_run(*options, project=ROOT, **parameters):
    """Return the command `mlflow run` in an activated environment, with options and parameters of the entry point."""
    command = [sys.executable, "-m", "mlflow", "run", str(project), "--env-manager", "local", *options]
    return [*command, *(word for pair in parameters.items() for word in ("-P", "=".join(map(str, pair))))]


def run_to_end(command, uri, experiment, *, variables=(), **options):
    """Run a command with a tracking store and an experiment, and return it completed, whatever its exit code."""
    env = environment(uri, experiment) | dict(variables)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False, **options)


def start(command, uri, experiment):
    """Start a command in a process group of its own, with a tracking store and an experiment; return its process."""
    return subprocess.Popen(
        command,
        env=environment(uri, experiment),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextmanager
def started(command, uri, experiment):
    """Start a command as `start` does and yield its process; nothing of its process group outlives the block."""
    process = start(command, uri, experiment)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)


class ProjectResult(NamedTuple):
    """How a run of the project ended, and what its process printed."""

    run: mlflow.projects.SubmittedRun | None  # None if it has failed
    stdout: str
    stderr: str

    @property
    def succeeded(self):
        return self.run is not None


def run_project(uri, experiment, *, entry_point="main", **parameters):
    """Run an entry point with `mlflow.projects.run`, which `mlflow run` calls, and return its ProjectResult.

    The command itself takes 7 s of CPU time to import; test_train.py tests it.
    """
    with environment_of(uri, experiment), capture_descriptor(1) as stdout, capture_descriptor(2) as stderr:
        try:
            run = mlflow.projects.run(
                str(ROOT), entry_point, parameters=parameters, env_manager="local", experiment_name=experiment
            )
        except ExecutionException:
            run = None
    return ProjectResult(run, "".join(stdout), "".join(stderr))


@contextmanager
def capture_descriptor(number):
    """Collect what this process and those it starts write to a file descriptor; the list is filled at the end."""
    captured, original = [], os.dup(number)
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), number)
        try:
            yield captured
        finally:
            os.dup2(original, number)
            os.close(original)
            file.seek(0)
            captured.append(file.read())


@contextmanager
def environment_of(uri, experiment):
    """Use a tracking store and an experiment in this process, for a command that is called in it."""
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        # such as the number of the experiment that another test has set
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)
        for name, value in environment(uri, experiment).items():
            patch.setenv(name, value)
        # these take precedence over the variables where a test has set them before
        mlflow.set_tracking_uri(uri)
        patch.setattr(fluent, "_active_experiment_id", None)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before)


def process_tree(process):
    """Return a process and all that it has started, itself first."""
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def have_ended(processes, *, seconds=10):
    """Return True once processes have ended, False if one is alive after so many seconds."""
    _, alive = psutil.wait_procs([process for process in processes if process.is_running()], timeout=seconds)
    return all(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in alive)
