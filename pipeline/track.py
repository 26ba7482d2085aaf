"""A run in MLflow from its opening to its end, whatever ends it; what it leaves there is tracked_run.py's."""

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import mlflow

from pipeline.checkpoints.leftovers import clear_finished
from pipeline.lifetime import interrupt, liveness, ownership
from pipeline.lifetime.ancestors import OPENED
from pipeline.lifetime.interrupt import Stopped, stoppable
from pipeline.lifetime.ownership import answering
from pipeline.lifetime.process import Process
from pipeline.outbox.delivery import deliver
from pipeline.outbox.outbox import PATIENCE_SECONDS
from pipeline.store_urls import masked
from pipeline.system_metrics import system_metrics as system_metrics_of
from pipeline.tracked_run import Run

STOP_SECONDS = 2.0  # of the ten in which a run that is asked to stop ends, for what is still to be told


@contextmanager
def run(*, system_metrics: bool, resumed: str | None = None) -> Iterator[Run]:
    """The run that `mlflow run` opened, else a new one; closed and told why it ended whatever happens within.

    Status FINISHED, FAILED for an exception, KILLED for a signal; tags `ended` (finished, failed, stopped) and
    `ended.reason`, since an `mlflow run` that outlives this process writes FAILED over KILLED.

    Args:
        resumed: id of a run that is to be opened again instead.

    Raises:
        UsageError: the run that `mlflow run` opened is not in the tracking store that this process sees.
    """
    with stoppable():
        opened = Run(*_open(resumed))
        log = opened.system if system_metrics else None
        with _closed(opened), system_metrics_of(opened.id, log) if log else nullcontext():
            yield opened


@contextmanager
def trial(run_id: str) -> Iterator[Run]:
    """The run that a driver has begun, closed like `run`; MLflow need not answer, as the driver tells what is left."""
    with stoppable(), _closed(Run(run_id), away_seconds=STOP_SECONDS) as opened:
        yield opened


@contextmanager
def _closed(opened: Run, *, away_seconds: float = PATIENCE_SECONDS) -> Iterator[Run]:
    """Within it a run is under way; it is told why it ended whatever happens."""
    try:
        yield opened
        opened.settle(away_seconds)
        opened.end("finished", "")
    except Stopped as stopped:
        opened.end("stopped", f"by {stopped}")
        opened.outbox.flush(at_most=STOP_SECONDS)
        raise
    except BaseException as error:
        with suppress(Exception):  # on a full disk, say; the run must be closed all the same
            opened.text("traceback.txt", "".join(traceback.format_exception(error)))
        opened.end("failed", f"{type(error).__name__}: {error}")
        opened.outbox.flush(away_seconds=away_seconds)
        raise
    else:
        opened.outbox.flush(away_seconds=STOP_SECONDS)
    finally:
        opened.outbox.close()


@contextmanager
def owned(opened: Run, *, below: str) -> Iterator[list[str]]:
    """Within it a run that no driver watches says whose it is and that it lives.

    The run that `mlflow run` opened, if that is another, is put below it under the name `below`, and ends with it.
    Yields a line for each other run that left something to be told, and for each other run of the experiment that has
    lost its process: those of this host are closed.

    Raises:
        UsageError: the tracking store does not answer.
    """
    client = mlflow.MlflowClient()

    def take(process: Process) -> None:
        opened.taken = True
        interrupt.stop(f"as {process} has gone on with the run")

    with stoppable() as stopping:
        with answering():
            ownership.claim(client, opened.id, {"role": "run"})
            child = os.environ.pop(OPENED, opened.id)
            if child != opened.id:
                ownership.nest(client, child, parent=opened.id, name=below, role="resume")
                opened.below = child
            lines = [*deliver(), *liveness.lost(client, opened.experiment_id)]
            clear_finished(client)
        with ownership.beating(client, opened.id, taken=take):
            stopping.last_words = lambda stopped: _last_words(opened, stopped)
            yield lines


def _last_words(opened: Run, stopped: Stopped) -> None:
    """What is told of a run whose main thread does not come to it."""
    opened.end("stopped", f"by {stopped}")
    opened.outbox.flush(at_most=STOP_SECONDS)


def _open(run_id: str | None) -> tuple[str, mlflow.entities.Run]:
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its INFO tells of tables and monitors
    with answering():
        found = ownership.begin(mlflow.MlflowClient(), run_id)
    return found.info.run_id, found


def next_steps(opened: Run) -> list[str]:
    """Where the plots of a run lie and how to see and serve it: lines for the terminal."""
    uri = mlflow.get_tracking_uri()
    page = f"#/experiments/{opened.experiment_id}/runs/{opened.id}"
    # beside this Python, as the person's shell need not have it on PATH
    command = shlex.quote(str(Path(sys.executable).parent / "mlflow"))
    lines = [kept] if (kept := opened.outbox.left()) else []
    if not opened.artifacts.startswith("mlflow-artifacts:"):  # which nobody can open
        lines.append(f"plots    {opened.artifacts}/plots")
    if uri.startswith(("http://", "https://")):
        lines.append(f"compare  {masked(uri).rstrip('/')}/{page}")
    else:
        lines.append(f"compare  {command} ui --backend-store-uri {shlex.quote(masked(uri))}")
        lines.append(f"         then http://127.0.0.1:5000/{page}")
    if said := opened.registered():
        lines.append(f"registry {said}")
    if opened.model_uri:
        store = f"MLFLOW_TRACKING_URI={shlex.quote(masked(uri))}"
        lines.append(f"serve    {store} {command} models serve -m {opened.model_uri} --env-manager local")
    return lines
