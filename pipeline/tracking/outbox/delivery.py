"""Delivery of the records that runs have left on this machine, to the tracking server or to another machine."""

import io
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow

from pipeline.runtime.errors import TrackingError, Unavailable
from pipeline.runtime.files import make_private
from pipeline.runtime.shell import project_command
from pipeline.runtime.text import count, one_line
from pipeline.runtime.urls import mask_password
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.outbox.records import FileRecord, coalesce, is_permanent
from pipeline.tracking.outbox.spool import ABOUT, Spool, SpooledRecord, spool_folders

REASON_CHARACTERS = 200
HOW_TO_SEND = f"`{project_command('doctor')}` sends them when the server is back"
ARCHIVE_PATIENCE_SECONDS = 10.0  # with another process that is sending the records
ARCHIVE_PAUSE_SECONDS = 0.2


@dataclass
class DeliveryResult:
    """What became of a run's records."""

    sent: int = 0
    pending: int = 0
    reason: str = ""  # why records are pending
    is_unavailable: bool = False  # whether that is because no server answered

    def describe(self, folder: Path) -> str:
        """Return a line on the records of the run whose spool is `folder`."""
        if not self.pending:
            return f"sent     {count(self.sent, 'record')} of run {folder.name} that were pending on this machine"
        sent = f"{self.sent} sent, " if self.sent else ""
        return f"pending  {sent}{count(self.pending, 'record')} of run {folder.name} in {folder}: {self.reason}"


def send_pending(run_ids: Sequence[str] | None = None, *, each: bool = False) -> list[str]:
    """Send the records on this machine that are for the present tracking server.

    What a live process sends itself is left to it.

    Args:
        run_ids: The runs whose records to send; None is all.
        each: Return a line also for each run whose records are for another server; else these have one line together.

    Returns:
        A line for each run that had records.
    """
    lines: list[str] = []
    for_other_servers: list[str] = []
    here, unavailable = tracking_address(), ""
    for folder in spool_folders():
        if run_ids is not None and folder.name not in run_ids:
            continue
        spool = Spool(folder.name)
        with spool.lock() as is_mine:
            pending = spool.pending() if is_mine else []
            if not pending:
                continue
            destination = spool.destination()
            if destination != here:
                reason = f"they are for {destination}: name it in MLFLOW_TRACKING_URI, or delete the folder"
                for_other_servers.append(DeliveryResult(pending=len(pending), reason=reason).describe(folder))
                continue
            if unavailable:
                result = DeliveryResult(pending=len(pending), reason=unavailable)
            else:
                result = drain(TrackingClient(), spool, pending)
                unavailable = result.reason if result.is_unavailable else ""
        lines.append(result.describe(folder))
    if len(for_other_servers) > 1 and not each:
        return [
            *lines,
            f"pending  records of {len(for_other_servers)} runs for other tracking servers: "
            f"`{project_command('doctor')}` names them",
        ]
    return lines + for_other_servers


def drain(client: TrackingClient, spool: Spool, pending: list[SpooledRecord]) -> DeliveryResult:
    """Send the records of a run in order until no server answers; those that MLflow refuses are kept."""
    result = DeliveryResult(pending=len(pending))
    while pending:
        record, n_records = coalesce([spooled.record for spooled in pending])
        try:
            record.send(client)
        except Exception as error:  # noqa: BLE001 - each kind of store raises its own
            result.reason = describe_error(error)
            if not is_permanent(error):
                result.is_unavailable = True
                break
        else:
            for spooled in pending[:n_records]:
                spool.remove(spooled)
            result.sent += n_records
            result.pending -= n_records
        del pending[:n_records]
    return result


def forward_spool(client: TrackingClient, run_id: str) -> None:
    """Send the records that another process has left of a run; a process that lives sends its own.

    Raises:
        Unavailable: No server answers.
    """
    spool = Spool(run_id)
    with spool.lock() as is_mine:
        result = drain(client, spool, spool.pending()) if is_mine else DeliveryResult()
    if result.is_unavailable:
        raise Unavailable(result.reason)


def describe_error(error: Exception) -> str:
    """Return why something could not be sent, in one line without a password."""
    name = type(error.__cause__ or error) if isinstance(error, TrackingError) else type(error)
    return one_line(f"{name.__name__}: {mask_password(str(error))}")[:REASON_CHARACTERS]


def tracking_address() -> str:
    """Return the URI of the present tracking server, absolute and without a password."""
    uri = mlflow.get_tracking_uri()
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        uri = f"sqlite:///{Path.cwd() / uri.removeprefix('sqlite:///')}"
    return mask_password(uri)


def describe_pending(run_id: str, pending: int, reason: str) -> str:
    """Return a line on the pending records of a run."""
    return (
        f"pending  {count(pending, 'record')} of run {run_id}: the tracking server did not accept them ({reason}); "
        f"{HOW_TO_SEND}"
    )


def export_records(run_id: str) -> bytes | None:
    """Take the records of a run from this machine.

    Returns:
        An archive for `import_records`; None if there are no records, or another process is sending them.
    """
    deadline = time.monotonic() + ARCHIVE_PATIENCE_SECONDS
    spool = Spool(run_id)
    while spool.folder.is_dir():
        with spool.lock() as is_mine:
            if is_mine:
                return _export_locked(spool)
        if time.monotonic() > deadline:
            break
        time.sleep(ARCHIVE_PAUSE_SECONDS)
    return None


def import_records(run_id: str, archive: bytes) -> None:
    """Put the records of an archive into this machine's spool of a run.

    Raises:
        OSError: There is no place for them.
    """
    spool = Spool(run_id)
    # zipfile writes files and folders below the target only, whatever the names say, and checks each file's CRC.
    # tarfile does the former with `filter=`, which came with Python 3.11.4.
    with spool.lock(), zipfile.ZipFile(io.BytesIO(archive)) as content:
        content.extractall(make_private(spool.folder))


def _export_locked(spool: Spool) -> bytes | None:
    pending = spool.pending()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", strict_timestamps=False) as archive:
        for path in [spool.folder / ABOUT, *(path for spooled in pending for path in _paths(spooled))]:
            if path.exists():
                archive.write(path, path.relative_to(spool.folder))
    for spooled in pending:
        spool.remove(spooled)
    return content.getvalue() if pending else None


def _paths(spooled: SpooledRecord) -> list[Path]:
    folder = spooled.record.folder if isinstance(spooled.record, FileRecord) else None
    files = sorted(folder.rglob("*")) if folder else []
    return [path for path in (spooled.path, folder, *files) if path]
