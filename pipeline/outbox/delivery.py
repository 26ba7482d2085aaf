"""Sends what runs that are over have left on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient

from pipeline.outbox import sending
from pipeline.outbox.record import Record
from pipeline.outbox.spool import Spool, folders
from pipeline.printable import one_line
from pipeline.store_urls import masked

REASON_CHARACTERS = 200
HOW = "`mlflow run . -e doctor` sends it when the server is back"
WHICH = "`mlflow run . -e doctor` names them"


@dataclass
class Sent:
    """What became of a run's records."""

    sent: int = 0
    left: int = 0
    why: str = ""  # of those that are left
    away: bool = False  # whether it is that no server answered


def deliver(runs: Sequence[str] | None = None, *, each: bool = False) -> list[str]:
    """Send what lies on this machine for the present tracking server; returns a line for each run that had something.

    Args:
        runs: the ids of those to send; None: all. What a live process sends itself is left to it.
        each: a line also for each run whose records go to another server; without it these have one together.
    """
    found = [folder for folder in folders() if runs is None or folder.name in runs]
    lines, elsewhere, here, away = [], [], address(), ""
    for folder in found:
        spool = Spool(folder.name)
        with spool.held() as mine:
            waiting = spool.waiting() if mine else []
            if not waiting:
                continue
            if (to := spool.goes_to()) != here:
                why = f"it goes to {to}: name that in MLFLOW_TRACKING_URI, or delete the folder to give it up"
                elsewhere.append(_line(folder, Sent(left=len(waiting), why=why)))
                continue
            if away:
                done = Sent(left=len(waiting), why=away)
            else:
                done = drain(MlflowClient(), spool, waiting)
                away = done.why if done.away else ""
        lines.append(_line(folder, done))
    if len(elsewhere) > 1 and not each:
        elsewhere = [f"kept     records of {len(elsewhere)} runs wait for other tracking servers: {WHICH}"]
    return lines + elsewhere


def drain(client: MlflowClient, spool: Spool, waiting: list[Record]) -> Sent:
    """Send the records of a run in order; what MLflow refuses is kept and passed over."""
    done = Sent(left=len(waiting))
    while waiting:
        some = sending.together(waiting)
        try:
            sending.send(client, some)
        except Exception as error:  # noqa: BLE001 - each kind of store raises its own
            done.why = reason(error)
            if not sending.refused(error):
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
    return one_line(f"{type(error).__name__}: {masked(str(error))}")[:REASON_CHARACTERS]


def address() -> str:
    """The present tracking server, without a password."""
    uri = mlflow.get_tracking_uri()
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        uri = f"sqlite:///{Path.cwd() / uri.removeprefix('sqlite:///')}"
    return masked(uri)


def left_line(run_id: str, left: int, why: str) -> str:
    """What is said of a run whose records are kept."""
    return f"kept     {left} record(s) of run {run_id}, as the tracking server did not take them ({why}); {HOW}"


def _line(folder: Path, done: Sent) -> str:
    if not done.left:
        return f"sent     {done.sent} record(s) of run {folder.name} that were waiting here"
    sent = f"{done.sent} sent, " if done.sent else ""
    return f"kept     {sent}{done.left} record(s) of run {folder.name} wait in {folder}: {done.why}"
