"""Tests of moving records to a tracking store and between machines; those with a server are the outbox's."""

import io
import stat
import threading
import zipfile
from contextlib import suppress

import mlflow
import pytest
import requests

from pipeline.runtime.errors import NotFound, Rejected, Unavailable
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.outbox import delivery
from pipeline.tracking.outbox.delivery import (
    describe_all_set_aside,
    describe_error,
    describe_pending,
    export_records,
    forward_spool,
    import_records,
    send_pending,
    take_back_set_aside,
    tracking_address,
)
from pipeline.tracking.outbox.records import LogBatch, LogFiles, Record
from pipeline.tracking.outbox.spool import Spool, write_text
from tests.support.stores import tracking_store


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


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with tracking_store(tmp_path_factory.mktemp("store"), "mine") as uri:
        yield uri


@pytest.fixture
def spools(store, machine):
    """Return a function that leaves records of a new run for the store, and returns their spool."""

    def leave_tags(*tags, destination=None):
        run = mlflow.MlflowClient().create_run(mlflow.get_experiment_by_name("mine").experiment_id)
        spool = Spool(run.info.run_id, destination=tracking_address() if destination is None else destination)
        for value in tags:
            spool.put(LogBatch(run.info.run_id, tags={value: "yes"}))
        return spool

    return leave_tags


def run_tags(spool):
    return mlflow.get_run(spool.folder.name).data.tags


def refuse(monkeypatch, error, tag=""):
    """Let MLflow fail with an error on each call, or on those with a tag."""
    send = Record.send

    def fail(record, client):
        if tag in record.tags or not tag:
            raise error
        send(record, client)

    monkeypatch.setattr(Record, "send", fail)


def test_send_pending_says_what_was_sent_of_each_run(spools):
    one, two = spools("a"), spools("a", "b")
    assert sorted(send_pending(), key=len) == [
        f"sent     1 record of run {one.folder.name} that were pending on this machine",
        f"sent     2 records of run {two.folder.name} that were pending on this machine",
    ]
    assert run_tags(two)["b"] == "yes"
    assert send_pending() == [] and not one.folder.exists()


def test_send_pending_of_named_runs_leaves_the_others(spools):
    one, two = spools("a"), spools("a")
    (line,) = send_pending([two.folder.name])
    assert two.folder.name in line and "a" in run_tags(two)
    assert "a" not in run_tags(one)


def test_send_pending_after_an_outage_keeps_the_rest_and_says_why(spools, monkeypatch):
    spool = spools(*"abc")
    monkeypatch.setattr(delivery, "MAX_RECORDS", 1)
    with monkeypatch.context() as patch:
        refuse(patch, ConnectionError("refused"), "b")
        assert send_pending() == [
            f"pending  1 sent, 2 records of run {spool.folder.name} in {spool.folder}: ConnectionError: refused"
        ]
    assert {"a", "b", "c"} & run_tags(spool).keys() == {"a"}
    send_pending()
    assert {"a", "b", "c"} <= run_tags(spool).keys()


def test_send_pending_sets_aside_the_refused_record_alone_and_sends_it_when_asked(spools, monkeypatch):
    spool = spools(*"abc")
    with monkeypatch.context() as patch:
        refuse(patch, ValueError("odd"), "b")
        sent, aside = send_pending()
    assert sent.startswith("sent     2 records of run ")
    folder = spool.set_aside_folder
    assert aside.startswith(
        f"aside    1 record of run {folder.name} cannot be sent (ValueError: odd), and is kept in {folder}: delete that"
    )
    assert aside.endswith("--resend true` sends what it holds")
    assert describe_all_set_aside() == [aside]
    assert {"a", "b", "c"} & run_tags(spool).keys() == {"a", "c"}
    take_back_set_aside()
    assert describe_all_set_aside() == []
    (line,) = send_pending()
    assert line.startswith("sent     1 record of run ") and "b" in run_tags(spool)


def test_describe_all_set_aside_of_several_records_names_the_first_reason(spools, monkeypatch):
    spool = spools(*"abc")
    with monkeypatch.context() as patch:
        refuse(patch, ValueError("odd"))
        send_pending()
    name = spool.folder.name
    (line,) = describe_all_set_aside()
    assert f"3 records of run {name} cannot be sent (ValueError: odd and 2 more), and are kept in " in line
    next(spool.set_aside_folder.glob("*1.txt")).unlink()
    assert "(for an unknown reason and 2 more)" in describe_all_set_aside()[0]


def test_send_pending_to_another_store_names_it(spools):
    spool = spools("a", destination="http://elsewhere")
    line = (
        f"pending  1 record of run {spool.folder.name} in {spool.folder}: they are for http://elsewhere: "
        "name it in MLFLOW_TRACKING_URI, or delete the folder"
    )
    assert send_pending() == [line]
    spools("a", destination="http://elsewhere")
    (both,) = send_pending()
    assert both.startswith("pending  records of 2 runs for other tracking servers: `")
    assert len(send_pending(each=True)) == 2 and line in send_pending(each=True)


def test_take_back_set_aside_leaves_the_records_of_a_live_process(spools, monkeypatch):
    spool = spools("a")
    with monkeypatch.context() as patch:
        refuse(patch, ValueError("odd"))
        send_pending()
    with spool.lock():
        take_back_set_aside()
        assert len(describe_all_set_aside()) == 1


def test_forward_spool_sends_what_another_process_has_left_unless_it_lives(spools, monkeypatch):
    spool, client = spools("a"), TrackingClient()
    name = spool.folder.name
    with spool.lock():
        forward_spool(client, name)
    assert "a" not in run_tags(spool)
    with monkeypatch.context() as patch:
        refuse(patch, ConnectionError("refused"))
        with pytest.raises(Unavailable, match="ConnectionError: refused"):
            forward_spool(client, name)
    forward_spool(client, name)
    assert "a" in run_tags(spool)


def test_describe_error_is_one_line_without_a_password_that_names_the_cause():
    error = OSError("https://me:secret@host\nis away" + "!" * 1000)
    text = describe_error(error)
    assert text.startswith("OSError: https://") and "secret" not in text and "\n" not in text and len(text) == 200
    rejected = Rejected("no")
    assert describe_error(rejected) == "Rejected: no"
    rejected.__cause__ = KeyError("why")
    assert describe_error(rejected) == "KeyError: no"
    assert describe_error(NotFound("x")) == "NotFound: x"


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{here}/mlflow.db"),
        ("sqlite:////a/mlflow.db", "sqlite:////a/mlflow.db"),
        ("https://me:secret@host", "https://me:***@host"),
    ],
)
def test_tracking_address_is_absolute_and_without_a_password(monkeypatch, tmp_path, uri, address):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: uri)
    assert tracking_address() == address.format(here=tmp_path)


def test_describe_pending_says_how_many_why_and_what_to_do():
    line = describe_pending("r1", 2, "away")
    assert line.startswith("pending  2 records of run r1: the tracking server did not accept them (away); `")
    assert line.endswith("` sends them when the server is back") and "doctor" in line


def upload_failed(status):
    """Return what requests raises for the answer to an upload."""
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("no", response=response)


@pytest.mark.parametrize(
    ("error", "answers", "second"),
    [
        (ConnectionError("refused"), True, "pending"),
        (upload_failed(503), False, "pending"),
        (upload_failed(503), True, "sent"),
    ],
)
def test_send_pending_goes_on_with_other_runs_only_if_the_server_answers(spools, monkeypatch, error, answers, second):
    first, other = sorted((spools("a"), spools("b")), key=lambda spool: spool.folder.name)
    send = Record.send

    def fail(record, client):
        if record.run_id == first.folder.name:
            raise error
        send(record, client)

    monkeypatch.setattr(Record, "send", fail)
    monkeypatch.setattr(TrackingClient, "is_available", lambda self: answers)
    lines = send_pending()
    assert lines[0] == f"pending  1 record of run {first.folder.name} in {first.folder}: {describe_error(error)}"
    assert lines[1].startswith(f"{second} ") and other.folder.name in lines[1]
    assert second == "sent" or lines[1].endswith(f": {describe_error(error)}")


def test_send_pending_of_a_damaged_destination_is_for_the_server_that_has_the_run(spools, monkeypatch):
    spool = spools("a")
    (spool.folder / "about.json").write_text("[1]")
    with monkeypatch.context() as patch:
        patch.setattr(TrackingClient, "get_run", raises(Unavailable("away")))
        (line,) = send_pending()
        assert line.startswith("pending  1 record of run ") and line.endswith(": Unavailable: away")
        patch.setattr(TrackingClient, "get_run", raises(NotFound("no")))
        (line,) = send_pending()
        assert "which tracking server they are for is not known, as about.json there is damaged, and the" in line
        assert line.endswith("name theirs in MLFLOW_TRACKING_URI, or delete the folder")
    (line,) = send_pending()
    assert line.startswith("sent     1 record of run ") and run_tags(spool)["a"] == "yes"


def raises(error):
    """Return a function that raises an error."""

    def fail(*arguments, **options):
        raise error

    return fail


def test_send_pending_without_a_client_says_why(spools, monkeypatch):
    spool = spools("a")
    monkeypatch.setattr(delivery, "TrackingClient", raises(OSError("no such store")))
    (line,) = send_pending()
    assert line == f"pending  1 record of run {spool.folder.name} in {spool.folder}: OSError: no such store"


def test_export_records_waits_for_another_process_that_is_sending_them(machine, monkeypatch):
    leave("r1")
    lock = Spool("r1").lock()
    assert lock.__enter__()
    monkeypatch.setattr("pipeline.tracking.outbox.spool.time.sleep", lambda seconds: lock.__exit__(None, None, None))
    assert export_records("r1") is not None


def test_export_records_of_files_alone_returns_none_and_leaves_no_folder(machine):
    leave("r1")
    for spooled in Spool("r1").pending():
        Spool("r1").remove(spooled)
    assert export_records("r1") is None
    assert not Spool("r1").folder.exists()


def test_import_records_adds_the_records_to_a_lock_that_is_held(machine, monkeypatch):
    leave("r1")
    content = export_records("r1")
    machine("driver")
    monkeypatch.setattr(delivery, "ARCHIVE_PATIENCE_SECONDS", 0.0)
    with Spool("r1").lock():
        import_records("r1", content)
        assert len(Spool("r1").pending()) == 2


def test_import_records_while_the_last_of_others_is_sent_keeps_all_of_them(machine):
    leave("r1")
    content = export_records("r1")
    machine("driver")
    sender = Spool("r1").lock()
    assert sender.__enter__()
    # it removes the folder of the records when it has sent them all
    end = threading.Timer(0.5, sender.__exit__, (None, None, None))
    end.start()
    import_records("r1", content)
    end.join()
    assert len(Spool("r1").pending()) == 2


def test_import_records_of_two_tasks_of_one_run_keeps_both_in_order(machine):
    archives = []
    for name in ("training", "evaluation"):
        machine(name)
        spool = Spool("r1", destination="http://server")
        spool.put(LogBatch("r1", tags={"of": name}))
        spool.put(LogFiles("r1", write=write_text("plots/curve.txt", name)))
        archives.append(export_records("r1"))
    machine("driver")
    for archive in archives:
        import_records("r1", archive)
    batch, files, later_batch, later_files = (spooled.record for spooled in Spool("r1").pending())
    assert [batch.tags["of"], later_batch.tags["of"]] == ["training", "evaluation"]
    assert [(one.folder / "plots" / "curve.txt").read_text() for one in (files, later_files)] == [
        "training",
        "evaluation",
    ]
    assert {path.name for path in Spool("r1").folder.iterdir() if path.is_dir()} == {"000002.files", "000004.files"}
