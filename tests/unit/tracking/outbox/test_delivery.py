"""Tests of moving records between machines."""

import io
import stat
import zipfile
from contextlib import suppress

import pytest

from pipeline.tracking.outbox import delivery
from pipeline.tracking.outbox.delivery import export_records, import_records
from pipeline.tracking.outbox.records import LogBatch, LogFiles
from pipeline.tracking.outbox.spool import Spool, write_text


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes this process one on another machine, whose disk is its own."""

    def go_to(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    go_to("node")
    return go_to


def leave(run_id):
    spool = Spool(run_id, destination="http://server")
    spool.put(LogBatch(run_id, tags={"a": "b"}))
    spool.put(LogFiles(run_id, write=write_text("plots/curve.txt", "0.5")))


def test_import_records_restores_records_files_and_destination(machine):
    leave("r1")
    content = export_records("r1")
    assert not Spool("r1").folder.exists(), "nobody sends them from here"
    machine("driver")
    import_records("r1", content)
    there = Spool("r1")
    first, second = (spooled.record for spooled in there.pending())
    assert first == LogBatch("r1", tags={"a": "b"}, retried=True) and isinstance(second, LogFiles)
    assert (second.folder / "plots" / "curve.txt").read_text() == "0.5"
    assert there.destination() == "http://server"
    assert stat.S_IMODE(there.folder.stat().st_mode) == 0o700


def test_import_records_writes_nothing_outside_the_spool(machine, tmp_path):
    machine("driver")
    outside = tmp_path / "outside"
    outside.mkdir()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("../../../../escaped.json", "{}")
        archive.writestr(f"{outside}/absolute.json", "{}")
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, str(outside))
        archive.writestr("link/through.json", "{}")
    with suppress(OSError):
        import_records("r1", content.getvalue())
    folder = Spool("r1").folder
    written = [path for path in tmp_path.rglob("*.json") if not path.is_relative_to(folder)]
    assert written == [] and not any(path.is_symlink() for path in folder.rglob("*"))


def test_import_records_of_a_truncated_archive_raises(machine):
    leave("r1")
    content = export_records("r1")
    with pytest.raises(zipfile.BadZipFile):
        import_records("r1", content[: len(content) // 2])


def test_export_records_without_records_returns_none(machine):
    assert export_records("r1") is None
    assert not Spool("r1").folder.exists()


def test_export_records_leaves_a_locked_spool(machine, monkeypatch):
    monkeypatch.setattr(delivery, "ARCHIVE_PATIENCE_SECONDS", 0.0)
    leave("r1")
    with Spool("r1").lock() as mine:
        assert mine and export_records("r1") is None
    assert len(Spool("r1").pending()) == 2
    assert export_records("r1") is not None
