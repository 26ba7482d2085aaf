"""Whether the tracking store answers, can be written, and which of its open runs have lost their process."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.errors import UsageError
from pipeline.health.disk import space
from pipeline.health.finding import Finding
from pipeline.lifetime import liveness, ownership
from pipeline.lifetime.ancestors import OPENED
from pipeline.outbox.delivery import deliver
from pipeline.settings import shown
from pipeline.store_urls import masked, unusable

TEXT = "doctor.txt"


def store() -> Iterator[Finding]:
    """Read it, and write a tag and a file to a run: the one that `mlflow run` opened, or one that is deleted again."""
    uri = mlflow.get_tracking_uri()
    if new := _not_there_yet(uri):
        yield Finding("ok", f"tracking store {masked(uri)}: the first run makes it in {new}")
        return
    began = time.monotonic()
    try:
        client = MlflowClient()
        own = os.environ.get(OPENED)
        run = client.get_run(own) if own else client.create_run(_experiment(client), run_name="doctor")
        try:
            ownership.claim(client, run.info.run_id, {"role": "doctor", "mlflow.runName": "doctor"})
            client.log_text(run.info.run_id, f"{masked(uri)} can be written\n", TEXT)
        finally:
            if not own:
                client.set_terminated(run.info.run_id)
                client.delete_run(run.info.run_id)
    except Exception as error:  # noqa: BLE001 - each kind of store raises its own
        yield Finding("broken", str(unusable("the tracking store", uri, error)))
        return
    yield Finding("ok", f"tracking store {masked(uri)}: answers and can be written ({time.monotonic() - began:.1f} s)")
    artifacts = urlsplit(run.info.artifact_uri)
    if artifacts.scheme in {"", "file"}:
        yield space(Path(url2pathname(artifacts.path)), "artifacts")


def open_runs() -> Iterator[Finding]:
    """Close what has lost its process on this host, and name what others have been silent about."""
    if _not_there_yet(mlflow.get_tracking_uri()):
        return
    client = MlflowClient()
    for experiment_id in _experiments(client):
        for line in liveness.close_lost(client, experiment_id):
            yield Finding("look", line)
        for line in liveness.silent(client, experiment_id):
            yield Finding("look", line)


def outbox() -> Iterator[Finding]:
    """Send what runs of this machine could not tell while the tracking server was away."""
    for line in deliver(each=True):
        yield Finding("ok" if line.startswith("sent") else "look", line)


def close(run_ids: tuple[str, ...]) -> Iterator[Finding]:
    """Close open runs that somebody knows to be dead, each as FAILED; all of them, or none.

    Raises:
        UsageError: there is no such run, it has ended, or its process has given a sign of late.
    """
    if folder := _not_there_yet(mlflow.get_tracking_uri()):
        raise UsageError(f"close must name runs of this tracking store: there is none in {folder}")
    client = MlflowClient()
    found = [_to_close(client, run_id) for run_id in run_ids]
    for one in found:
        why = f"closed by hand: no sign of {one.process or 'its process'} for {one.silence() / 60:.0f} min"
        said = liveness.close(client, one, why)
        yield Finding("ok", f"closed run {one.run.info.run_id} ({one.run.info.run_name}): {said}")


def _to_close(client: MlflowClient, run_id: str) -> liveness.Open:
    try:
        one = liveness.judged(client.get_run(run_id))
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise unusable("the tracking store", mlflow.get_tracking_uri(), error) from None
        raise UsageError(f"close must name runs of this tracking store by their ids, got {shown(run_id)}") from None
    name = f"run {run_id} ({one.run.info.run_name})"
    if one.run.info.status != "RUNNING":
        raise UsageError(f"close takes runs that are open: {name} has ended as {one.run.info.status}")
    if one.fate == "lives" or (one.fate == "elsewhere" and one.silence() < liveness.SILENCE_SECONDS):
        raise UsageError(
            f"close takes runs whose process is gone: {name} gave a sign {one.silence():.0f} s ago as "
            f"{one.process or 'a program that does not say who it is'}: stop that first"
        )
    return one


def _experiments(client: MlflowClient) -> Iterator[str]:
    token = None
    while True:
        page = client.search_experiments(page_token=token)
        yield from (experiment.experiment_id for experiment in page)
        if not (token := page.token):
            return


def _experiment(client: MlflowClient) -> str:
    """One that is there."""
    return next(_experiments(client), None) or client.create_experiment("Default")


def _not_there_yet(uri: str) -> Path | None:
    """The folder of a sqlite store that no run has made yet."""
    path = Path(uri.removeprefix("sqlite:///"))
    return path.absolute().parent if uri.startswith("sqlite:///") and not path.exists() else None
