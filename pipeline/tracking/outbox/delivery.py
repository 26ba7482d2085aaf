"""Sends what runs that are over have left on this machine."""

import io
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient

from pipeline.runtime.files import make_private
from pipeline.runtime.text import one_line
from pipeline.runtime.urls import mask_password
from pipeline.tracking.outbox import records
from pipeline.tracking.outbox.records import Record
from pipeline.tracking.outbox.spool import ABOUT, Spool, spool_folders

REASON_CHARACTERS = 200
HOW = "`mlflow run . -e doctor` sends it when the server is back"
WHICH = "`mlflow run . -e doctor` names them"


@dataclass
class DeliveryResult:
    """What became of a run's records."""

    sent: int = 0
    left: int = 0
    why: str = ""  # of those that are left
    away: bool = False  # whether it is that no server answered


def send_pending(runs: Sequence[str] | None = None, *, each: bool = False) -> list[str]:
    """Send what lies on this machine for the present tracking server; returns a line for each run that had something.

    Args:
        runs: the ids of those to send; None: all. What a live process sends itself is left to it.
        each: a line also for each run whose records go to another server; without it these have one together.
    """
    found = [folder for folder in spool_folders() if runs is None or folder.name in runs]
    lines, elsewhere, here, away = [], [], address(), ""
    for folder in found:
        spool = Spool(folder.name)
        with spool.held() as mine:
            waiting = spool.waiting() if mine else []
            if not waiting:
                continue
            if (to := spool.goes_to()) != here:
                why = f"it goes to {to}: name that in MLFLOW_TRACKING_URI, or delete the folder to give it up"
                elsewhere.append(_line(folder, DeliveryResult(left=len(waiting), why=why)))
                continue
            if away:
                done = DeliveryResult(left=len(waiting), why=away)
            else:
                done = drain(MlflowClient(), spool, waiting)
                away = done.why if done.away else ""
        lines.append(_line(folder, done))
    if len(elsewhere) > 1 and not each:
        elsewhere = [f"kept     records of {len(elsewhere)} runs wait for other tracking servers: {WHICH}"]
    return lines + elsewhere


def drain(client: MlflowClient, spool: Spool, waiting: list[Record]) -> DeliveryResult:
    """Send the records of a run in order; what MLflow refuses is kept and passed over."""
    done = DeliveryResult(left=len(waiting))
    while waiting:
        some = records.coalesce(waiting)
        try:
            records.send(client, some)
        except Exception as error:  # noqa: BLE001 - each kind of store raises its own
            done.why = reason(error)
            if not records.is_permanent(error):
                done.away = True
                break
        else:
            for record in some:
                spool.drop(record)
            done.sent += len(some)
            done.left -= len(some)
        del waiting[: len(some)]
    return done


def reason(error: Exception) -> str:
    """Why something could not be sent, in one line without a password."""
    return one_line(f"{type(error).__name__}: {mask_password(str(error))}")[:REASON_CHARACTERS]


def address() -> str:
    """The present tracking server, without a password."""
    uri = mlflow.get_tracking_uri()
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        uri = f"sqlite:///{Path.cwd() / uri.removeprefix('sqlite:///')}"
    return mask_password(uri)


def pending_line(run_id: str, left: int, why: str) -> str:
    """What is said of a run whose records are kept."""
    return f"kept     {left} record(s) of run {run_id}, as the tracking server did not take them ({why}); {HOW}"


def _line(folder: Path, done: DeliveryResult) -> str:
    if not done.left:
        return f"sent     {done.sent} record(s) of run {folder.name} that were waiting here"
    sent = f"{done.sent} sent, " if done.sent else ""
    return f"kept     {sent}{done.left} record(s) of run {folder.name} wait in {folder}: {done.why}"


ARCHIVE_PATIENCE_SECONDS = 10.0  # with another process that sends it at this moment
ARCHIVE_PAUSE_SECONDS = 0.2


def export_records(run_id: str) -> bytes | None:
    """Take away the records that a run has left here; None where there are none, or another process sends them."""
    until = time.monotonic() + ARCHIVE_PATIENCE_SECONDS
    spool = Spool(run_id)
    while spool.folder.is_dir():
        with spool.held() as mine:
            if mine:
                return _taken(spool)
        if time.monotonic() > until:
            break
        time.sleep(ARCHIVE_PAUSE_SECONDS)
    return None


def import_records(run_id: str, parcel: bytes) -> None:
    """Lay a parcel's records where this machine keeps those of a run.

    Raises:
        OSError: there is no place for them.
    """
    spool = Spool(run_id)
    with spool.held(), tarfile.open(fileobj=io.BytesIO(parcel)) as archive:
        archive.extractall(make_private(spool.folder), filter="data")


def _taken(spool: Spool) -> bytes | None:
    records = spool.waiting()
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for path in [spool.folder / ABOUT, *(path for record in records for path in (record.path, record.files))]:
            if path and path.exists():
                archive.add(path, path.name)
    for record in records:
        spool.drop(record)
    return content.getvalue() if records else None
