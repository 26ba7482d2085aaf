"""What a run has left on one machine, packed up for another to send."""

import io
import tarfile
import time

from pipeline.cache import make_private
from pipeline.outbox.spool import ABOUT, Spool

PATIENCE_SECONDS = 10.0  # with another process that sends it at this moment
PAUSE_SECONDS = 0.2


def packed(run_id: str) -> bytes | None:
    """Take away the records that a run has left here; None where there are none, or another process sends them."""
    until = time.monotonic() + PATIENCE_SECONDS
    spool = Spool(run_id)
    while spool.folder.is_dir():
        with spool.held() as mine:
            if mine:
                return _taken(spool)
        if time.monotonic() > until:
            break
        time.sleep(PAUSE_SECONDS)
    return None


def unpacked(run_id: str, parcel: bytes) -> None:
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
