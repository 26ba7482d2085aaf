"""Delivery of the records that runs have left on this machine, to the tracking server or to another machine."""

import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow

from pipeline.runtime.errors import NotFound, TrackingError, Unavailable
from pipeline.runtime.files import private_folder
from pipeline.runtime.shell import project_command
from pipeline.runtime.text import count, one_line
from pipeline.runtime.urls import mask_password
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.errors import http_status, is_unavailable
from pipeline.tracking.outbox.records import MAX_RECORDS, FileRecord, coalesce
from pipeline.tracking.outbox.spool import (
    ABOUT,
    REASON_SUFFIX,
    Spool,
    SpooledRecord,
    record_files,
    set_aside_folders,
    spool_folders,
)

REASON_CHARACTERS = 200
ASIDE = "aside"  # begins the lines on records that have been set aside
HOW_TO_SEND = f"`{project_command('doctor')}` sends them when the server is back"
ARCHIVE_PATIENCE_SECONDS = 10.0  # with another process that is sending the records


@dataclass
class DeliveryResult:
    """What became of a run's records."""

    sent: int = 0
    pending: int = 0
    reason: str = ""  # why records are pending
    is_unavailable: bool = False  # whether that is because a store did not answer, or answered so
    has_answer: bool = False  # whether it was an answer

    def describe(self, folder: Path) -> Iterator[str]:
        """Yield lines on the records of the run whose spool is `folder`, if any was sent or is pending."""
        if self.pending:
            sent = f"{self.sent} sent, " if self.sent else ""
            yield f"pending  {sent}{count(self.pending, 'record')} of run {folder.name} in {folder}: {self.reason}"
        elif self.sent:
            yield f"sent     {count(self.sent, 'record')} of run {folder.name} that were pending on this machine"


def send_pending(run_ids: Sequence[str] | None = None, *, each: bool = False) -> list[str]:
    """Send the records on this machine that are for the present tracking server.

    What a live process sends itself is left to it, and what can never be sent is set aside.

    Args:
        run_ids: The runs whose records to send; None is all.
        each: Return a line also for each run whose records are for another server; else these have one line together.

    Returns:
        Lines for each run that had records.
    """
    lines: list[str] = []
    for_other_servers: list[str] = []
    sender = _Sender()
    for folder in spool_folders():
        if run_ids is not None and folder.name not in run_ids:
            continue
        spool = Spool(folder.name)
        with spool.lock() as is_mine:
            pending = spool.pending() if is_mine else []
            other = sender.reason_for_another_server(spool) if pending else ""
            if other:
                for_other_servers += DeliveryResult(pending=len(pending), reason=other).describe(folder)
            else:
                lines += sender.send(spool, pending).describe(folder)
        if spool.refusals:
            lines.append(describe_set_aside(spool.set_aside_folder, spool.refusals))
    if len(for_other_servers) > 1 and not each:
        return [
            *lines,
            f"pending  records of {len(for_other_servers)} runs for other tracking servers: "
            f"`{project_command('doctor')}` names them",
        ]
    return lines + for_other_servers


class _Sender:
    """Sends the records of several runs to the present tracking server, until that is found not to answer."""

    def __init__(self) -> None:
        self._address = tracking_address()
        self._unavailable = ""  # why nothing more is sent

    def reason_for_another_server(self, spool: Spool) -> str:
        """Return why a run's records are not sent to the present server; empty if they are for it."""
        if destination := spool.destination():
            if destination == self._address:
                return ""
            return f"they are for {destination}: name it in MLFLOW_TRACKING_URI, or delete the folder"
        # the file that names their server is damaged: ids of runs are random, so a server that has the run is theirs
        try:
            TrackingClient().get_run(spool.folder.name)
        except NotFound:
            return (
                f"which tracking server they are for is not known, as {ABOUT} there is damaged, and the present one "
                "does not hold the run: name theirs in MLFLOW_TRACKING_URI, or delete the folder"
            )
        except Exception as error:  # noqa: BLE001 - each kind of store raises its own
            self._unavailable = describe_error(error)
        return ""

    def send(self, spool: Spool, pending: list[SpooledRecord]) -> DeliveryResult:
        """Send the records of a run, unless the server has been found not to answer."""
        if self._unavailable or not pending:
            return DeliveryResult(pending=len(pending), reason=self._unavailable)
        try:
            client = TrackingClient()
        except Exception as error:  # noqa: BLE001 - each kind of store raises its own
            self._unavailable = describe_error(error)
            return self.send(spool, pending)
        result = drain(client, spool, pending)
        # a server that answers other questions has refused this run alone, at least for now
        if result.is_unavailable and not (result.has_answer and client.is_available()):
            self._unavailable = result.reason
        return result


def drain(client: TrackingClient, spool: Spool, pending: list[SpooledRecord]) -> DeliveryResult:
    """Send the records of a run in order until a store does not answer; set aside those that can never be sent."""
    result = DeliveryResult(pending=len(pending))
    one_by_one = 0  # records of a call that was refused: it may have been one of them alone
    while pending:
        record, n_records = coalesce(
            [spooled.record for spooled in pending[:MAX_RECORDS]], at_most=1 if one_by_one else MAX_RECORDS
        )
        one_by_one = max(0, one_by_one - 1)
        try:
            record.send(client)
        except Exception as error:  # noqa: BLE001 - each kind of store raises its own
            if is_unavailable(error):
                result.reason, result.is_unavailable = describe_error(error), True
                result.has_answer = http_status(error) is not None
                break
            if n_records > 1:
                one_by_one = n_records
                continue
            spool.set_aside(pending[0], describe_error(error))
        else:
            for spooled in pending[:n_records]:
                spool.remove(spooled)
            result.sent += n_records
        result.pending -= n_records
        del pending[:n_records]
    return result


def describe_set_aside(folder: Path, reasons: Sequence[str]) -> str:
    """Return a line on the records of a run that have been set aside in a folder, and what to do."""
    others = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    return (
        f"{ASIDE}    {count(len(reasons), 'record')} of run {folder.name} cannot be sent ({reasons[0]}{others}), and "
        f"{'are' if len(reasons) > 1 else 'is'} kept in {folder}: delete that, or after a repair "
        f"`{project_command('doctor', '--resend', 'true')}` sends what it holds"
    )


def describe_all_set_aside() -> list[str]:
    """Return a line for each run of which records have been set aside on this machine."""
    found = ((folder, record_files(folder)) for folder in set_aside_folders())
    return [describe_set_aside(folder, [_reason(path) for path in paths]) for folder, paths in found if paths]


def take_back_set_aside() -> None:
    """Make the records that have been set aside on this machine pending again, but for those of live processes.

    Raises:
        OSError: One of them could not be moved.
    """
    for folder in set_aside_folders():
        spool = Spool(folder.name)
        with spool.lock() as is_mine:
            if is_mine:
                spool.take_back()


def _reason(path: Path) -> str:
    """Return why the record in a file was set aside."""
    try:
        return one_line(path.with_suffix(REASON_SUFFIX).read_text(encoding="utf-8", errors="replace").strip())
    except OSError:
        return "for an unknown reason"


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
    spool = Spool(run_id)
    if not spool.folder.is_dir():
        return None
    with spool.lock(seconds=ARCHIVE_PATIENCE_SECONDS) as is_mine:
        return _export_locked(spool) if is_mine else None


def import_records(run_id: str, archive: bytes) -> None:
    """Put the records of an archive into this machine's spool of a run, behind those that it has.

    Two tasks of one run, such as the training and the evaluation of a winner, each count their records from 1.

    Raises:
        OSError: There is no place for them.
    """
    spool = Spool(run_id)
    # zipfile writes files and folders below the target only, whatever the names say, and checks each file's CRC.
    # tarfile does the former with `filter=`, which came with Python 3.11.4.
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as content,
        # not in the spool, which a process that has sent the rest of it removes
        TemporaryDirectory(dir=private_folder("imports")) as temporary,
        spool.lock(seconds=ARCHIVE_PATIENCE_SECONDS),
    ):
        content.extractall(temporary)
        spool.take_in(Path(temporary))


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
