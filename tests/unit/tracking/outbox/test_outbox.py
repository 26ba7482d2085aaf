"""Tests of the outbox with a real MLflow server that is away, fails, is slow or loses answers."""

import stat
import tempfile
import threading
import time
from pathlib import Path

import mlflow
import psutil
import pytest
from mlflow.models import Model

from pipeline.runtime.errors import NotFound, Rejected
from pipeline.runtime.process import this_process
from pipeline.runtime.shell import project_command
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.outbox import delivery, outbox, spool
from pipeline.tracking.outbox.outbox import Outbox
from pipeline.tracking.outbox.records import (
    EndRun,
    LogBatch,
    LogFiles,
    LogModel,
    Point,
    RegisterVersion,
    WriteModelCard,
)
from pipeline.tracking.tags import Tag
from tests.support.servers import Proxy, server

STEPS = list(range(1, 6))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """What a test leaves waiting is no later run's to send."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def through(tmp_path_factory):
    """A proxy before a server."""
    with server(tmp_path_factory.mktemp("server")) as one:
        proxy = Proxy(one.port)
        yield proxy
        proxy.close()


@pytest.fixture
def proxy(through, monkeypatch):
    """The proxy as MLflow's store, with a client that tries no call twice by itself."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(outbox, "PAUSES", (0.05,))
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(through.uri)
    through.fault = lambda method, path: None
    yield through
    through.fault = lambda method, path: None
    mlflow.set_tracking_uri(before)


@pytest.fixture
def run_id(proxy):
    return mlflow.MlflowClient().create_run("0").info.run_id


@pytest.fixture
def box(run_id):
    opened = Outbox(run_id)
    yield opened
    opened.close()


def point(box, step, name="loss"):
    box.put(LogBatch(box._run_id, metrics=[Point(name, 1.0 / step, 1000 + step, step)], one_point_a_step=True))


def curve(run_id, name="loss"):
    return [metric.step for metric in mlflow.MlflowClient().get_metric_history(run_id, name)]


def end(run_id, status="FINISHED", **more):
    return EndRun(run_id, status, 123_000, {Tag.OUTCOME: status.lower()}, **more)


def test_outbox_sends_points_in_order_and_leaves_no_folder(proxy, box, run_id):
    for step in STEPS:
        point(box, step)
    assert box.flush() == 0
    assert curve(run_id) == STEPS
    box.close()
    assert not box._spool.folder.exists()


@pytest.mark.parametrize("fault", ["away", "500", "lost"])
def test_outbox_after_an_outage_sends_each_point_once(proxy, box, run_id, fault):
    point(box, 1)
    box.flush()
    proxy.fault = lambda method, path: fault if "log-batch" in path else None
    for step in STEPS[1:]:
        began = time.monotonic()
        point(box, step)
        assert time.monotonic() - began < 5, "training waits for no server"
        box.flush(at_most=0.2)
    if fault != "lost":  # whose points have arrived, as is found out by asking
        assert box.pending()
        assert box._failures
    proxy.fault = lambda method, path: None
    assert box.flush() == 0
    assert curve(run_id) == STEPS


def test_send_pending_after_a_lost_answer_sends_each_point_once(proxy, run_id):
    first = Outbox(run_id)
    point(first, 1)
    first.flush()
    proxy.fault = lambda method, path: "lost" if "log-batch" in path else "away"
    point(first, 2)
    first.flush(at_most=0.5)
    point(first, 3)
    first.close()
    proxy.fault = lambda method, path: None
    # another machine has gone on with the run and logged this step at another moment
    mlflow.MlflowClient().log_metric(run_id, "loss", 0.3, timestamp=9000, step=3)
    (line,) = delivery.send_pending()
    assert line.startswith("sent     ") and run_id in line
    assert sorted(curve(run_id)) == [1, 2, 3]
    assert delivery.send_pending() == []


def test_outbox_after_a_lost_answer_keeps_each_value_of_a_summary_metric_once(proxy, box, run_id):
    proxy.fault = lambda method, path: "lost" if "log-batch" in path else None
    for time_ms in (1, 2, 2):
        box.put(LogBatch(run_id, metrics=[Point("trials", float(time_ms), time_ms, 0)]))
    proxy.fault = lambda method, path: None
    assert box.flush() == 0
    history = mlflow.MlflowClient().get_metric_history(run_id, "trials")
    assert sorted(metric.value for metric in history) == [1.0, 2.0]


def test_outbox_with_a_slow_server_coalesces_what_waits(proxy, box, run_id):
    point(box, 1)
    box.flush()
    proxy.fault = lambda method, path: 2
    proxy.passed.clear()
    began = time.monotonic()
    for step in STEPS[1:]:
        point(box, step)
    assert time.monotonic() - began < 2
    assert box.flush() == 0
    assert len(proxy.passed) <= 2, "the first, and then all that had come meanwhile"
    proxy.fault = lambda method, path: None
    assert curve(run_id) == STEPS


def test_send_pending_sends_files_and_the_end_of_a_run(proxy, run_id, tmp_path):
    proxy.fault = lambda method, path: "away"
    box = Outbox(run_id)
    box.put(LogBatch(run_id, params={"depth": "3"}, tags={"device": "cpu"}))
    box.put(LogFiles(run_id, write=spool.write_text("plots/how.txt", "it went well")))
    point(box, 1)
    box.put(end(run_id, process=this_process().tags()))
    assert box.flush(unavailable_seconds=0.2) == 4
    line = box.pending()
    box.close()
    assert "4 records of run" in line and project_command("doctor") in line and "\n" not in line
    (kept,) = delivery.send_pending()
    assert kept.startswith("pending  4 records")
    proxy.fault = lambda method, path: None
    assert delivery.send_pending() == [f"sent     4 records of run {run_id} that were pending on this machine"]
    run = mlflow.get_run(run_id)
    assert (run.info.status, run.info.end_time, run.data.tags[Tag.OUTCOME]) == ("FINISHED", 123_000, "finished")
    assert (run.data.params, run.data.tags[Tag.DEVICE]) == ({"depth": "3"}, "cpu")
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/plots/how.txt") == "it went well"
    assert curve(run_id) == [1]


def test_end_run_of_a_superseded_process_leaves_the_run_open(proxy, box, run_id):
    mlflow.MlflowClient().log_batch(run_id, tags=[mlflow.entities.RunTag(Tag.PROCESS, "1")])
    box.put(end(run_id, "KILLED", process=this_process().tags()))
    assert box.flush() == 0
    assert mlflow.get_run(run_id).info.status == "RUNNING"


def test_end_run_with_keep_status_leaves_a_run_that_has_ended(proxy, box, run_id):
    mlflow.MlflowClient().set_terminated(run_id, "KILLED")
    box.put(end(run_id, keep_status=True))
    box.flush()
    assert mlflow.get_run(run_id).info.status == "KILLED"


def test_outbox_raises_a_rejection_once_and_sends_the_rest(proxy, box, run_id):
    box.put(LogBatch(run_id, params={"depth": "3"}))
    box.flush()
    box.put(LogBatch(run_id, params={"depth": "4"}))
    box.put(end(run_id))
    assert box.flush() == 0
    with pytest.raises(Rejected, match="depth"):
        box.raise_rejection()
    box.raise_rejection()
    assert mlflow.get_run(run_id).info.status == "FINISHED"


def test_outbox_raises_the_error_of_a_record_of_an_unknown_run_as_it_is(proxy, box):
    box.put(LogBatch("f" * 32, tags={"a": "b"}))
    assert box.flush() == 0
    with pytest.raises(NotFound, match="f" * 32):
        box.raise_rejection()


def test_record_that_raises_anything_else_is_set_aside_and_the_rest_is_sent(proxy, box, run_id, monkeypatch):
    def fail(self, client):
        raise AttributeError("of a library")

    monkeypatch.setattr(LogFiles, "_send", fail)
    point(box, 1)
    box.put(LogFiles(run_id, write=spool.write_text("a.txt", "text")))
    box.put(end(run_id))
    assert box.flush() == 0
    with pytest.raises(Rejected, match="AttributeError: of a library"):
        box.raise_rejection()
    assert mlflow.get_run(run_id).info.status == "FINISHED"
    (line,) = delivery.describe_all_set_aside()
    assert f"1 record of run {run_id} cannot be sent (AttributeError: of a library)" in line


def test_one_refused_record_takes_no_other_of_its_call_with_it(proxy, run_id):
    proxy.fault = lambda method, path: "away" if "log-batch" in path else None
    box = Outbox(run_id)
    point(box, 1)
    box.put(LogBatch(run_id, metrics=[Point("not/a\nname", 1.0, 1000, 1)]))
    point(box, 2)
    box.flush(at_most=0.2)
    proxy.fault = lambda method, path: None
    assert box.flush() == 0
    box.close()
    assert curve(run_id) == [1, 2]
    assert len(delivery.describe_all_set_aside()) == 1


def test_outbox_that_cannot_remove_what_it_has_sent_goes_on(proxy, box, run_id, monkeypatch):
    def refuse(path, **options):
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "unlink", refuse)
    for step in STEPS:
        point(box, step)
    assert box.flush(at_most=20) == 0
    assert curve(run_id) == STEPS


def leave(run_id, *more):
    """Leave a tag for a run on this machine, and what else an earlier process may have left."""
    left = spool.Spool(run_id, destination=delivery.tracking_address())
    left.put(LogBatch(run_id, tags={"left": "yes"}))
    for record in more:
        left.put(record)
    return left.folder


@pytest.mark.parametrize("damage", ["json", "kind", "files", "model", "refused"])
def test_send_pending_of_a_damaged_record_sets_it_aside_and_sends_all_others(proxy, damage):
    runs = sorted(mlflow.MlflowClient().create_run("0").info.run_id for _ in range(3))
    odd = {
        "files": LogFiles(runs[0], write=spool.write_text("a.txt", "text")),
        "model": LogModel(runs[0], "model", write=spool.write_text("MLmodel", "{")),
        "refused": LogBatch(runs[0], metrics=[Point("loss", 1.0, 10**30, 1)]),
    }.get(damage, LogBatch(runs[0]))
    folder = leave(runs[0], odd, LogBatch(runs[0], tags={"after": "yes"}))
    if damage in ("json", "kind"):
        (folder / "000002.json").write_text("{" if damage == "json" else '{"kind": "Newer", "run_id": "a"}')
    if damage == "files":
        (folder / "000002.files" / "a.txt").unlink()
    for run_id in runs[1:]:
        leave(run_id)
    lines = delivery.send_pending()
    assert [line[:8] for line in lines] == ["sent    ", "aside   ", "sent    ", "sent    "]
    assert "\n" not in lines[1] and str(spool.set_aside_folders()[0]) in lines[1] and "--resend true" in lines[1]
    assert [mlflow.get_run(run_id).data.tags.get("left") for run_id in runs] == ["yes"] * 3
    assert mlflow.get_run(runs[0]).data.tags["after"] == "yes"
    assert delivery.send_pending() == []
    delivery.take_back_set_aside()
    assert delivery.send_pending()[0].startswith("aside   "), "it is tried again where that is asked for"


def test_outbox_of_a_run_whose_earlier_process_left_a_damaged_record_warns_and_sends_the_rest(proxy, run_id, caplog):
    folder = leave(run_id, LogBatch(run_id))
    (folder / "000002.json").write_text("{")
    box = Outbox(run_id)
    (warning,) = [record.getMessage() for record in caplog.records if record.name == outbox.__name__]
    assert warning.startswith("aside    1 record of run ") and str(spool.set_aside_folders()[0]) in warning
    assert box.flush() == 0
    box.close()
    assert mlflow.get_run(run_id).data.tags["left"] == "yes"


def test_send_pending_of_a_deleted_run_sends_its_records_once_it_is_restored(proxy, run_id):
    mlflow.MlflowClient().delete_run(run_id)
    leave(run_id)
    assert "cannot be sent" in delivery.send_pending()[0]
    mlflow.MlflowClient().restore_run(run_id)
    delivery.take_back_set_aside()
    assert delivery.send_pending()[0].startswith("sent")
    assert mlflow.get_run(run_id).data.tags["left"] == "yes"


def test_send_pending_of_one_run_whose_records_a_server_fails_on_sends_the_others(proxy):
    runs = sorted(mlflow.MlflowClient().create_run("0").info.run_id for _ in range(2))
    leave(runs[0], EndRun(runs[0], "FINISHED", 1, {}))
    leave(runs[1])
    proxy.fault = lambda method, path: "500" if "runs/update" in path else None
    first, second = delivery.send_pending()
    assert first.startswith("pending  1 sent, 1 record") and second.startswith("sent")


def test_send_pending_asks_a_server_that_is_away_for_one_run_only(proxy):
    for run_id in sorted(mlflow.MlflowClient().create_run("0").info.run_id for _ in range(3)):
        leave(run_id)
    asked = []
    proxy.fault = lambda method, path: asked.append(path) or "away"
    lines = delivery.send_pending()
    assert [line[:7] for line in lines] == ["pending"] * 3
    # its batch, and a look whether another process had logged the parameters of it
    assert len(asked) == 2


def test_send_pending_of_records_whose_destination_is_damaged_asks_the_server_for_their_run(proxy, run_id):
    (leave(run_id) / spool.ABOUT).write_text("[1]")
    (leave("f" * 32) / spool.ABOUT).write_text("[1]")
    sent, other = sorted(delivery.send_pending(), reverse=True)
    assert sent.startswith("sent     1 record") and run_id in sent
    assert "the present one does not hold the run: name theirs in MLFLOW_TRACKING_URI" in other


def test_send_pending_leaves_the_records_of_a_live_process(proxy, box, run_id):
    proxy.fault = lambda method, path: "away"
    point(box, 1)
    box.flush(at_most=0.1)
    assert delivery.send_pending() == []


def test_outbox_waits_for_a_process_that_sends_what_the_run_has_left(proxy, run_id):
    leave(run_id)
    other = spool.Spool(run_id).lock()
    assert other.__enter__()
    end_of_other = threading.Timer(0.5, other.__exit__, (None, None, None))
    end_of_other.start()
    box = Outbox(run_id)
    end_of_other.join()
    assert box.flush() == 0
    box.close()
    assert mlflow.get_run(run_id).data.tags["left"] == "yes"


def test_send_pending_keeps_records_for_another_server(proxy, run_id, monkeypatch):
    proxy.fault = lambda method, path: "away"
    box = Outbox(run_id)
    point(box, 1)
    box.close()
    proxy.fault = lambda method, path: None
    mlflow.set_tracking_uri("http://127.0.0.1:1")
    (line,) = delivery.send_pending([run_id])
    assert f"they are for {proxy.uri}: name it in MLFLOW_TRACKING_URI" in line
    mlflow.set_tracking_uri(proxy.uri)
    assert delivery.send_pending([run_id])[0].startswith("sent")


def test_send_pending_reports_runs_of_other_servers_in_one_line_unless_each():
    for number in range(3):
        run_id = f"{number}" * 32
        spool.Spool(run_id, destination=f"http://elsewhere-{number}").put(LogBatch(run_id))
    (line,) = delivery.send_pending()
    assert line == f"pending  records of 3 runs for other tracking servers: `{project_command('doctor')}` names them"
    each = delivery.send_pending(each=True)
    assert [f"they are for http://elsewhere-{number}:" in line for number, line in enumerate(each)] == [True] * 3


def test_spool_folder_is_private_and_holds_no_password(proxy, run_id, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    mlflow.set_tracking_uri(proxy.uri.replace("//", "//me:hunter2@"))
    proxy.fault = lambda method, path: "500"
    box = Outbox(run_id)
    box.put(LogFiles(run_id, write=spool.write_text("a/b.txt", "text")))
    box.flush(at_most=0.2)
    left = box.pending()
    box.close()
    found = [box._spool.folder, *box._spool.folder.rglob("*")]
    assert len(found) >= 5
    assert "hunter2" not in left + "".join(path.read_text() for path in found if path.is_file())
    assert not [path for path in found if path.name != "a" and path.name != "b.txt" and path.stat().st_mode & 0o077]
    assert stat.S_IMODE(box._spool.folder.stat().st_mode) == 0o700
    mlflow.set_tracking_uri(proxy.uri)
    proxy.fault = lambda method, path: None
    box._spool.folder.joinpath(spool.ABOUT).write_text(f'{{"tracking_uri": "{proxy.uri}"}}')
    assert delivery.send_pending([run_id])[0].startswith("sent")


def test_outbox_on_a_full_disk_sends_from_memory(proxy, run_id, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool, "write_atomic", full)
    monkeypatch.setattr(spool, "make_private", full)
    box = Outbox(run_id)
    point(box, 1)
    box.put(LogFiles(run_id, write=spool.write_text("a.txt", "text")))
    assert box.flush() == 0
    box.close()
    assert curve(run_id) == [1]
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/a.txt") == "text"


def test_outbox_close_leaves_no_thread_and_no_open_file(proxy, run_id):
    before = set(threading.enumerate())
    box = Outbox(run_id)
    point(box, 1)
    assert run_id in str(psutil.Process().open_files()), "the lock"
    (thread,) = (one for one in threading.enumerate() if one not in before and one.name == "outbox")
    assert thread.daemon
    box.flush()
    box.close()
    assert run_id not in str(psutil.Process().open_files())
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.mark.parametrize("fault", [pytest.param("away", marks=pytest.mark.slow), "lost"])
def test_register_version_after_failed_calls_registers_once(proxy, box, run_id, fault):
    client = mlflow.MlflowClient()
    model = client.create_logged_model("0", name="served", source_run_id=run_id)
    client.finalize_logged_model(model.model_id, "READY")
    failed = set()

    def first_time(method, path):
        call = (method, path.partition("?")[0])
        of_the_registry = "registered-models" in path or "model-versions" in path
        if not of_the_registry or call in failed:
            return None
        failed.add(call)
        return fault

    proxy.fault = first_time
    box.put(RegisterVersion(run_id, f"once-{fault}", {Tag.DATA: "digits"}))
    assert box.flush() == 0
    box.raise_rejection()
    proxy.fault = lambda method, path: None
    assert len(failed) >= 6
    (version,) = client.search_model_versions(f"name = 'once-{fault}'")
    assert version.run_id == run_id and version.tags[Tag.DATA] == "digits"
    assert client.get_model_version_by_alias(f"once-{fault}", "champion").version == version.version
    assert client.get_run(run_id).data.tags[Tag.REGISTERED] == f"models:/once-{fault}/1"


def test_register_version_without_a_model_raises_after_the_run_has_ended(proxy, box, run_id):
    box.put(end(run_id))
    box.put(RegisterVersion(run_id, "unmade", {}))
    assert box.flush() == 0
    with pytest.raises(Rejected, match="has stored no model served to register"):
        box.raise_rejection()
    assert mlflow.MlflowClient().get_run(run_id).info.status == "FINISHED"


def test_outbox_warns_once_of_an_outage_and_once_of_its_end(proxy, box, run_id, caplog):
    def warnings():
        return [record.getMessage() for record in caplog.records if record.name == outbox.__name__]

    assert box.pending() is None and box.failure() == ""
    point(box, 1)
    box.flush()
    proxy.fault = lambda method, path: "away" if "log-batch" in path else None
    for step in (2, 3):
        point(box, step)
        box.flush(at_most=0.3)
    (warning,) = warnings()
    reason = box.failure()
    assert reason and reason in box.pending()
    assert warning.startswith("the tracking server does not answer; training goes on") and f"({reason})" in warning
    proxy.fault = lambda method, path: None
    assert box.flush() == 0
    assert warnings()[1:] == ["the tracking server answers again and has all pending records"]
    assert box.pending() is None and box.failure() == ""
    point(box, 4)
    box.flush()
    assert len(warnings()) == 2


def test_outbox_raises_the_first_of_several_rejections(proxy, box, run_id):
    box.put(LogBatch("e" * 32, tags={"a": "b"}))
    box.put(LogBatch("f" * 32, tags={"a": "b"}))
    assert box.flush() == 0
    with pytest.raises(NotFound, match="e" * 32):
        box.raise_rejection()
    box.raise_rejection()


def test_model_card_of_a_model_on_a_server_leaves_no_temporary_file(proxy, tmp_path, monkeypatch):
    client = TrackingClient()
    run = client.create_run(client.create_experiment("served"))
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    folder = tmp_path / "files"
    folder.mkdir()
    Model(metadata={"classes": ["cat", "dog"]}).save(str(folder / "MLmodel"))
    LogModel(run.info.run_id, "model").with_files(folder).send(client)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    WriteModelCard(run.info.run_id).send(client)
    assert not list((tmp_path / "temporary").rglob("MLmodel"))
    assert "cat, dog" in mlflow.artifacts.load_text(f"{run.info.artifact_uri}/model_card.md")


def test_flush_of_a_closed_outbox_does_not_wait(proxy, run_id):
    proxy.fault = lambda method, path: "away"
    box = Outbox(run_id)
    point(box, 1)
    box.close()
    assert box.flush(unavailable_seconds=60) == 1
