"""Tests of the spool: what it keeps on disk, and for whom."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pipeline.tracking.outbox.records import EndRun, LogBatch, LogDataset, LogFiles, LogModel, Point, RegisterVersion
from pipeline.tracking.outbox.spool import Spool, copy_file, save_figure, spool_folders, write_text
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
    spool.put(LogFiles(RUN, write=save_figure("plots/c.png", Figure())))
    text, model, picture = Spool(RUN).pending()
    assert (text.record.folder / "plots" / "a.txt").read_text() == "written"
    assert (model.record.name, (model.record.folder / "b.txt").read_text()) == ("model", "copied")
    assert (picture.record.folder / "plots" / "c.png").read_bytes().startswith(b"\x89PNG")
    spool.remove(text)
    assert not text.record.folder.exists() and not text.path.exists()


def test_spool_continues_the_numbers_of_an_earlier_process():
    Spool(RUN).put(LogBatch(RUN, tags={"number": "1"}))
    Spool(RUN).put(LogBatch(RUN, tags={"number": "2"}))
    assert [spooled.record.tags["number"] for spooled in Spool(RUN).pending()] == ["1", "2"]


def test_spool_passes_over_files_that_are_no_records():
    spool = Spool(RUN)
    spool.put(LogBatch(RUN))
    for number, content in enumerate(["", "[]", "{}", json.dumps({"kind": "Other", "run_id": RUN})], start=7):
        (spool.folder / f"{number:06d}.json").write_text(content)
    assert [spooled.record for spooled in spool.pending()] == [LogBatch(RUN, retried=True)]


def test_lock_is_held_by_one_and_removes_an_empty_folder():
    with Spool(RUN).lock() as first, Spool(RUN).lock() as second:
        assert (first, second) == (True, False)
        assert [Path(folder).name for folder in spool_folders()] == [RUN]
    assert spool_folders() == []


def test_destination_is_that_of_the_first_record():
    assert Spool(RUN).destination() == ""
    Spool(RUN, destination="http://one").put(LogBatch(RUN))
    Spool(RUN, destination="http://other").put(LogBatch(RUN))
    assert Spool(RUN).destination() == "http://one"
