"""Tests of the spool: what it keeps on disk, and for whom."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pipeline.runtime.process import ProcessIdentity, process_of, this_process
from pipeline.tracking.outbox.records import (
    EndRun,
    LogBatch,
    LogDataset,
    LogFiles,
    LogModel,
    Point,
    RegisterCalibrated,
    RegisterVersion,
    WriteModelCard,
)
from pipeline.tracking.outbox.spool import (
    ABOUT,
    LOCK,
    Spool,
    copy_file,
    record_files,
    save_figure,
    set_aside_folders,
    spool_folders,
    write_text,
)
from pipeline.tracking.tags import Tag

RUN = "a" * 32


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "record",
    [
        LogBatch(RUN, (Point("loss", 0.5, 1000, 1),), {"depth": "3"}, {"device": "cpu"}, True, True),
        LogDataset(RUN, {"name": "digits", "digest": "d0"}, "train"),
        EndRun(RUN, "FINISHED", 1000, {Tag.OUTCOME: "finished"}, {Tag.PROCESS: "1"}, True),
        RegisterVersion(RUN, "digits", {"data": "digits"}),
        RegisterCalibrated(RUN, "digits", "1", "1.4, fitted on 9 validation images"),
        WriteModelCard(RUN),
    ],
    ids=lambda record: type(record).__name__,
)
def test_spool_returns_each_kind_of_record_as_it_was_put(record):
    Spool(RUN).put(record)
    (spooled,) = Spool(RUN).pending()
    assert spooled.record == record.as_retried()


def test_spool_keeps_the_files_of_a_record_until_it_is_removed(tmp_path):
    (tmp_path / "source.txt").write_text("copied")
    spool = Spool(RUN)
    spool.put(LogFiles(RUN, write=write_text("plots/a.txt", "written")))
    spool.put(LogModel(RUN, "model", write=copy_file("b.txt", tmp_path / "source.txt")))
    spool.put(LogFiles(RUN, write=save_figure(["plots/c.png", "plots/c.svg"], Figure())))
    text, model, picture = Spool(RUN).pending()
    assert (text.record.folder / "plots" / "a.txt").read_text() == "written"
    assert (model.record.name, (model.record.folder / "b.txt").read_text()) == ("model", "copied")
    assert (picture.record.folder / "plots" / "c.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (picture.record.folder / "plots" / "c.svg").read_bytes()
    spool.remove(text)
    assert not text.record.folder.exists() and not text.path.exists()


def test_spool_continues_the_numbers_of_an_earlier_process():
    Spool(RUN).put(LogBatch(RUN, tags={"number": "1"}))
    Spool(RUN).put(LogBatch(RUN, tags={"number": "2"}))
    assert [spooled.record.tags["number"] for spooled in Spool(RUN).pending()] == ["1", "2"]


def test_pending_files_of_an_earlier_process_are_those_that_it_wrote():
    Spool(RUN).put(LogFiles(RUN, write=write_text("plots/a.txt", "written")))
    (spooled,) = Spool(RUN).pending()
    assert spooled.record.files == ("plots/a.txt",)
    assert spooled.record.folder == spooled.path.with_suffix(".files")
    assert (spooled.record.complete_folder() / "plots" / "a.txt").read_text() == "written"


def test_pending_sets_aside_what_is_no_record_and_returns_the_rest():
    spool = Spool(RUN, destination="http://here")
    spool.put(LogBatch(RUN))
    spool.put(LogFiles(RUN, write=write_text("a.txt", "gone")))
    spool.put(LogBatch(RUN, tags={"last": "yes"}))
    (spool.folder / "000002.files" / "a.txt").unlink()
    odd = ["", "[]", "{}", "\0" * 100, "[" * 100_000, b"\xff\xfe\xff", json.dumps({"kind": "Other", "run_id": RUN})]
    for number, content in enumerate(odd, start=7):
        path = spool.folder / f"{number:06d}.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (spool.folder / "000020.json").mkdir()
    (spool.folder / "000021.json").symlink_to("nowhere")
    assert [spooled.record for spooled in spool.pending()] == [
        LogBatch(RUN, retried=True),
        LogBatch(RUN, tags={"last": "yes"}, retried=True),
    ]
    assert len(spool.refusals) == len(odd) + 3 and spool.refusals[0] == "its files are gone: a.txt"
    assert [path.name for path in record_files(spool.folder)] == ["000001.json", "000003.json"]
    assert set_aside_folders() == [spool.set_aside_folder]
    kept = record_files(spool.set_aside_folder)
    assert len(kept) == len(odd) + 3 and kept[2].read_text() == "[]"
    assert kept[0].with_suffix(".txt").read_text() == "its files are gone: a.txt\n"
    assert json.loads((spool.set_aside_folder / ABOUT).read_text()) == {"tracking_uri": "http://here"}
    assert len(Spool(RUN).pending()) == 2, "it is done once"


def test_set_aside_record_can_be_taken_back_with_its_files_and_destination():
    spool = Spool(RUN, destination="http://here")
    first, second = (spool.put(LogFiles(RUN, write=write_text("a.txt", text))) for text in ("one", "two"))
    spool.set_aside(first, "the run has been deleted")
    spool.set_aside(second, "the run has been deleted")
    with spool.lock():
        assert spool.pending() == []
    assert not spool.folder.exists(), "nothing of it is pending"
    again = Spool(RUN)
    assert again.take_back() == 2
    texts = [(spooled.record.folder / "a.txt").read_text() for spooled in again.pending()]
    assert texts == ["one", "two"]
    assert again.destination() == "http://here"
    assert set_aside_folders() == []


def test_record_that_cannot_be_moved_is_passed_over(tmp_path, monkeypatch):
    spool = Spool(RUN)
    spool.put(LogBatch(RUN))
    (spool.folder / "000007.json").write_text("[]")
    # no folder can be made below a file
    spool.set_aside_folder = tmp_path / "file" / "folder"
    (tmp_path / "file").write_text("")
    assert len(spool.pending()) == 1 and len(spool.pending()) == 1


@pytest.mark.parametrize("content", ["[1]", "", "{}", "null", "[" * 100_000, '"x"'])
def test_destination_in_a_damaged_file_is_unknown(content):
    spool = Spool(RUN, destination="http://here")
    spool.put(LogBatch(RUN))
    (spool.folder / ABOUT).write_text(content)
    assert spool.destination() == ""


def test_lock_is_held_by_one_and_removes_an_empty_folder():
    with Spool(RUN).lock() as first, Spool(RUN).lock() as second:
        assert (first, second) == (True, False)
        assert [Path(folder).name for folder in spool_folders()] == [RUN]
    assert spool_folders() == []


def test_lock_waits_for_another_process(monkeypatch):
    first = Spool(RUN).lock()
    assert first.__enter__()
    monkeypatch.setattr("pipeline.tracking.outbox.spool.time.sleep", lambda seconds: first.__exit__(None, None, None))
    with Spool(RUN).lock(seconds=60) as is_mine:
        assert is_mine


@pytest.mark.parametrize("left", ["", "[1]", "{}"])
def test_lock_without_locks_of_the_file_system_is_the_live_process_s_that_it_names(monkeypatch, left):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    spool = Spool(RUN)
    spool.put(LogBatch(RUN))
    file = spool.folder / LOCK
    file.write_text(left)
    with spool.lock() as is_mine:
        assert is_mine and ProcessIdentity.from_tags(json.loads(file.read_text())) == this_process()
        with Spool(RUN).lock() as again:
            assert not again, "one thread of a process sends them"
    assert not file.exists()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        file.write_text(json.dumps(process_of(other.pid).tags()))
        with Spool(RUN).lock() as is_mine:
            assert not is_mine
    with Spool(RUN).lock() as is_mine:
        assert is_mine, "the other process has ended"


def test_destination_is_that_of_the_first_record():
    assert Spool(RUN).destination() == ""
    Spool(RUN, destination="http://one").put(LogBatch(RUN))
    Spool(RUN, destination="http://other").put(LogBatch(RUN))
    assert Spool(RUN).destination() == "http://one"


def test_set_aside_records_have_numbers_and_reasons_of_their_own():
    spool = Spool(RUN, destination="http://here")
    for reason in ("first", "second"):
        spool.set_aside(spool.put(LogBatch(RUN, tags={"reason": reason})), reason)
    folder = spool.set_aside_folder
    assert [path.name for path in record_files(folder)] == ["000001.json", "000002.json"]
    assert [path.with_suffix(".txt").read_text() for path in record_files(folder)] == ["first\n", "second\n"]
    assert spool.refusals == ["first", "second"]
    assert folder.stat().st_mode & 0o077 == 0


def test_taken_back_records_come_after_those_that_are_pending():
    spool = Spool(RUN, destination="http://here")
    spool.set_aside(spool.put(LogBatch(RUN, tags={"number": "1"})), "odd")
    spool.put(LogBatch(RUN, tags={"number": "2"}))
    assert Spool(RUN).take_back() == 1
    assert [spooled.record.tags["number"] for spooled in Spool(RUN).pending()] == ["2", "1"]
    assert Spool(RUN).take_back() == 0


def test_put_on_a_full_disk_keeps_the_record_in_memory_and_its_files_elsewhere(monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.tracking.outbox.spool.make_private", full)
    spool = Spool(RUN)
    spooled = spool.put(LogFiles(RUN, write=write_text("plots/a.txt", "é")))
    assert spooled.path is None and not spool.folder.exists()
    assert (spooled.record.complete_folder() / "plots" / "a.txt").read_text("utf-8") == "é"
    with spool.lock() as is_mine:
        assert is_mine, "no other process can keep records here either"
    spool.remove(spooled)
    assert not spooled.record.folder.exists()


def test_files_whose_writer_fails_leave_nothing_and_raise():
    def fail(folder):
        (folder / "a.txt").write_text("half")
        raise ValueError("odd")

    spool = Spool(RUN)
    with pytest.raises(ValueError, match="odd"):
        spool.put(LogFiles(RUN, write=fail))
    assert not list(spool.folder.glob("*.files")) and spool.pending() == []


def test_files_of_an_interrupted_write_are_replaced():
    spool = Spool(RUN)
    spool.put(LogBatch(RUN))
    (spool.folder / "000002.files").mkdir()
    (spool.folder / "000002.files" / "half.txt").write_text("half")
    spooled = spool.put(LogFiles(RUN, write=write_text("a.txt", "whole")))
    assert [path.name for path in spooled.record.folder.iterdir()] == ["a.txt"]
    assert spooled.record.folder.stat().st_mode & 0o077 == 0
    (Spool(RUN).folder / "000007.files").mkdir()
    assert Spool(RUN).put(LogBatch(RUN)).path.name == "000008.json"
