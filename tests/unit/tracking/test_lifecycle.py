"""Tests of how a run is opened in a real MLflow store, and how it is ended."""

import os
import re
import signal
import sqlite3
from contextlib import closing, suppress
from functools import partial

import mlflow
import pytest
from mlflow.tracking import fluent

import pipeline.tracking.lifecycle
from pipeline.runtime.errors import Stopped, UsageError
from pipeline.runtime.signals import handle_signals
from pipeline.tracking import ownership
from pipeline.tracking.experiment_page import VIEW
from pipeline.tracking.lifecycle import attach_run, start_run
from pipeline.tracking.outbox import delivery
from pipeline.tracking.outbox.outbox import Outbox
from pipeline.tracking.outbox.records import LogBatch, LogFiles
from pipeline.tracking.outbox.spool import Spool
from pipeline.tracking.project_run import ProjectRun, close_if_unused
from pipeline.tracking.tags import Role, Tag
from tests.support.sleepers import wait_for


@pytest.fixture(autouse=True)
def no_other_machines(monkeypatch):
    """Do not wait for the claims of other machines."""
    monkeypatch.setattr(ownership, "CLAIM_SECONDS", 0.0)


def found(run_id):
    return mlflow.get_run(run_id)


def test_start_run_uses_the_project_run_and_keeps_its_parameters(opened_by_mlflow):
    with start_run(role=Role.RUN) as run:
        run.log_params({"learning_rate": "0.001", "depth": "8"})
    assert run.id == opened_by_mlflow
    assert found(run.id).data.params == {"learning_rate": "1e-3", "depth": "8"}


def test_tags_for_people_come_before_those_for_programs(opened_by_mlflow):
    with close_if_unused(ProjectRun.find()), start_run(role=Role.RUN, tags={Tag.DATA: "digits"}) as run:
        pass
    names = [name for name in found(run.id).data.tags if not name.startswith("mlflow.")]
    assert names[:2] == [Tag.ROLE, Tag.DATA] and names[-1] == Tag.OUTCOME
    assert len(names) > 3 and all(name.startswith("convmixer.") for name in names[2:-1])


def test_start_run_refuses_a_project_run_in_which_something_has_begun(opened_by_mlflow, monkeypatch):
    """Such as a second command of a program that passes its variable on."""
    with start_run(role=Role.RUN):
        pass
    before = found(opened_by_mlflow).to_dictionary()
    monkeypatch.setenv("MLFLOW_RUN_ID", opened_by_mlflow)
    with pytest.raises(UsageError, match="^MLFLOW_RUN_ID must name a run in which nothing has begun"):
        start_run(role=Role.REPORT).__enter__()
    assert found(opened_by_mlflow).to_dictionary() == before


def test_start_run_logs_the_machines_metrics_in_the_run_if_asked(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
    with start_run(role=Role.RUN) as without:
        pass
    with start_run(role=Role.RUN, system_metrics=True) as run:
        wait_for(lambda: "system/cpu_utilization_percentage" in found(run.id).data.metrics)
    assert not found(without.id).data.metrics


def test_start_run_without_an_error_ends_as_finished(store):
    with start_run(role=Role.RUN) as run:
        pass
    assert found(run.id).info.status == "FINISHED"
    assert found(run.id).data.tags[Tag.OUTCOME] == "finished"


def test_run_that_ends_while_the_artifact_store_is_away_is_not_left_running(store, monkeypatch):
    def fail(*arguments):
        raise ConnectionError("nobody there")

    monkeypatch.setattr(LogFiles, "_send", fail)
    monkeypatch.setattr("pipeline.tracking.lifecycle.STOP_SECONDS", 0.1)
    with suppress(Stopped), start_run(role=Role.RUN) as run:
        run.log_text("a.txt", "a")
        raise Stopped(signal.SIGTERM)
    assert (found(run.id).info.status, found(run.id).data.tags[Tag.OUTCOME]) == ("KILLED", "stopped")
    monkeypatch.undo()
    assert delivery.send_pending([run.id])[0].startswith("sent     2 records")
    assert mlflow.artifacts.load_text(f"runs:/{run.id}/a.txt") == "a"


def test_start_run_after_an_exception_ends_as_failed_with_a_traceback(store):
    with pytest.raises(ZeroDivisionError), start_run(role=Role.RUN) as run:
        1 / 0  # noqa: B018
    assert found(run.id).info.status == "FAILED"
    assert found(run.id).data.tags[Tag.OUTCOME] == "failed"
    assert found(run.id).data.tags[Tag.OUTCOME_REASON] == "ZeroDivisionError: division by zero"
    assert "1 / 0" in mlflow.artifacts.load_text(f"runs:/{run.id}/traceback.txt")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_start_run_after_a_signal_ends_as_killed(store, number):
    with pytest.raises(Stopped), start_run(role=Role.RUN) as run:
        os.kill(os.getpid(), number)
    assert found(run.id).info.status == "KILLED"
    assert found(run.id).data.tags[Tag.OUTCOME] == "stopped"
    assert found(run.id).data.tags[Tag.OUTCOME_REASON] == f"by {number.name}"


def test_start_run_after_a_signal_that_ends_in_another_error_ends_as_killed(store):
    with pytest.raises(Stopped), start_run(role=Role.RUN) as run:
        with suppress(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        raise SystemError("bad argument to internal function")
    assert found(run.id).info.status == "KILLED"
    assert found(run.id).data.tags[Tag.OUTCOME_REASON] == "by SIGTERM"


def test_resumed_run_ends_the_project_run_below_it(opened_by_mlflow):
    interrupted = mlflow.MlflowClient().create_run("1").info.run_id
    with start_run(role=Role.RUN, resume=found(interrupted), resume_name="resumed at epoch 7") as run:
        assert {Tag.HOST, Tag.PROCESS, Tag.HEARTBEAT} <= found(run.id).data.tags.keys()
        below = found(opened_by_mlflow)
        assert (below.data.tags[Tag.PARENT_RUN_ID], below.data.tags[Tag.ROLE]) == (run.id, "resume")
        assert below.info.run_name == "resumed at epoch 7"
    assert "MLFLOW_RUN_ID" not in os.environ
    assert found(opened_by_mlflow).info.status == found(run.id).info.status == "FINISHED"


def test_superseded_run_is_not_ended(store):
    with pytest.raises(Stopped), start_run(role=Role.RUN) as run:
        run.is_superseded = True
        os.kill(os.getpid(), signal.SIGTERM)
    assert found(run.id).info.status == "RUNNING"
    assert Tag.OUTCOME not in found(run.id).data.tags
    mlflow.MlflowClient().set_terminated(run.id)


def claim_as_another_process(run_id):
    mlflow.MlflowClient().set_tag(run_id, Tag.PROCESS, "1")
    mlflow.MlflowClient().set_tag(run_id, Tag.HEARTBEAT, "new")


def test_resumed_run_that_another_machine_has_claimed_since_the_look_is_left_to_it(store):
    with start_run(role=Role.RUN) as run:
        pass
    seen = found(run.id)
    claim_as_another_process(run.id)
    with (
        pytest.raises(UsageError, match=f"another one has resumed run {run.id}"),
        start_run(role=Role.RUN, resume=seen),
    ):
        raise AssertionError
    assert (found(run.id).info.status, found(run.id).data.tags[Tag.PROCESS]) == ("FINISHED", "1")


def test_resumed_run_that_another_machine_claims_at_the_same_time_is_left_to_the_last_one(store, monkeypatch):
    with start_run(role=Role.RUN) as run:
        pass
    monkeypatch.setattr(ownership.time, "sleep", lambda seconds: claim_as_another_process(run.id))
    with (
        pytest.raises(UsageError, match=f"another one has resumed run {run.id}"),
        start_run(role=Role.RUN, resume=found(run.id)),
    ):
        raise AssertionError
    monkeypatch.undo()
    again = found(run.id)
    assert (again.info.status, again.data.tags[Tag.PROCESS]) == ("RUNNING", "1")
    assert Tag.OUTCOME not in again.data.tags
    assert "traceback.txt" not in [file.path for file in mlflow.MlflowClient().list_artifacts(run.id)]
    mlflow.MlflowClient().set_terminated(run.id)


def test_attach_run_without_a_server_leaves_its_records_for_delivery(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(pipeline.tracking.lifecycle, "STOP_SECONDS", 0.1)
    run_id = mlflow.MlflowClient().create_run("1").info.run_id
    mlflow.set_tracking_uri("http://127.0.0.1:1")
    try:
        with attach_run(run_id) as run:
            run.log_params({"depth": "3"})
            run.log_epoch(1, {"loss": 2.0})
    finally:
        mlflow.set_tracking_uri(store)
    about = run.outbox._spool.folder / "about.json"
    about.write_text(about.read_text().replace("http://127.0.0.1:1", store))
    assert delivery.send_pending([run_id])[0].startswith("sent     ")
    told = found(run_id)
    assert (told.info.status, told.data.params, told.data.metrics) == ("FINISHED", {"depth": "3"}, {"loss": 2.0})


def test_start_run_in_another_sqlite_file_names_the_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    refusal = rf"must be absolute.*got sqlite:///mlflow.db; try sqlite:///{tmp_path}"
    with pytest.raises(UsageError, match=refusal), start_run(role=Role.RUN):
        pass
    mlflow.set_tracking_uri(before)


def test_deleted_experiment_is_refused_by_its_name_with_the_command_that_restores_it(store, monkeypatch):
    experiment_id = mlflow.create_experiment("gone")
    mlflow.delete_experiment(experiment_id)
    command = f"`mlflow experiments restore --experiment-id {experiment_id}` restores it"
    monkeypatch.setattr(fluent, "_active_experiment_id", None)
    for name, value in (("MLFLOW_EXPERIMENT_NAME", "gone"), ("MLFLOW_EXPERIMENT_ID", experiment_id)):
        with monkeypatch.context() as asked:
            # MLflow sets the latter itself
            asked.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
            asked.setenv(name, value)
            with (
                pytest.raises(UsageError, match=re.escape(f"experiment gone has been deleted: {command}")),
                start_run(role=Role.RUN),
            ):
                pass


def test_experiment_id_that_does_not_exist_is_refused_in_one_line(store, monkeypatch):
    monkeypatch.setattr(fluent, "_active_experiment_id", None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "987654")
    with (
        pytest.raises(UsageError, match="MLFLOW_EXPERIMENT_ID .*987654.* does not exist") as refused,
        start_run(role=Role.RUN),
    ):
        pass
    assert "\n" not in str(refused.value)


def test_run_that_is_deleted_before_it_is_resumed_is_refused_with_the_command_that_restores_it(store):
    with start_run(role=Role.RUN) as run:
        pass
    mlflow.delete_run(run.id)
    with (
        pytest.raises(UsageError, match=f"`mlflow runs restore --run-id {run.id}` restores it"),
        start_run(role=Role.RUN, resume=found(run.id)),
    ):
        pass


def test_start_run_below_another_run_holds_the_lock_of_its_own_and_prepares_the_experiment(store):
    with start_run(role=Role.EVALUATE, parent="a" * 32) as run:
        tags = found(run.id).data.tags
        assert (tags[Tag.PARENT_RUN_ID], tags[Tag.ROLE]) == ("a" * 32, "evaluate")
        assert run.is_claimed and ownership.is_owner(found(run.id))
        with ownership.lock_run(run.id) as is_mine:
            assert not is_mine
    with ownership.lock_run(run.id) as is_mine:
        assert is_mine
    assert VIEW in mlflow.get_experiment(run.experiment_id).tags


def test_start_run_sends_what_other_runs_have_left_and_says_so(store):
    other = mlflow.MlflowClient().create_run("1").info.run_id
    Spool(other, destination=delivery.tracking_address()).put(LogBatch(other, tags={"left": "yes"}))
    with start_run(role=Role.RUN) as run:
        assert run.notices == [f"sent     1 record of run {other} that were pending on this machine"]
    assert found(other).data.tags["left"] == "yes"
    mlflow.MlflowClient().set_terminated(other)


def test_run_that_another_process_claims_while_it_goes_on_stops_and_is_left_to_it(store, monkeypatch):
    # more often, SQLite's lock is so seldom free that the claim below may wait in vain
    beat = partial(ownership.heartbeat_run, seconds=0.2)
    monkeypatch.setattr(pipeline.tracking.lifecycle, "heartbeat_run", beat)
    with pytest.raises(Stopped, match="as process 1 on .* has resumed the run$"), start_run(role=Role.RUN) as run:
        claim_as_another_process(run.id)
        wait_for(lambda: False, seconds=20)
    assert run.is_superseded
    again = found(run.id)
    assert again.info.status == "RUNNING" and Tag.OUTCOME not in again.data.tags
    mlflow.MlflowClient().set_terminated(run.id)


def test_run_that_another_process_has_claimed_unseen_is_left_to_it(store):
    with start_run(role=Role.RUN) as run:
        claim_as_another_process(run.id)
    assert found(run.id).info.status == "RUNNING"
    mlflow.MlflowClient().set_terminated(run.id)


def test_run_whose_main_thread_does_not_react_is_ended_at_the_deadline(store):
    with handle_signals() as shutdown:
        before = shutdown.on_deadline
        with start_run(role=Role.RUN) as run:
            shutdown.on_deadline(Stopped(signal.SIGTERM))
            assert (found(run.id).info.status, found(run.id).data.tags[Tag.OUTCOME]) == ("KILLED", "stopped")
        assert shutdown.on_deadline is before


def test_traceback_of_a_failed_run_hides_passwords(store):
    with pytest.raises(RuntimeError), start_run(role=Role.RUN) as run:
        raise RuntimeError("https://me:secret@host is away")
    text = mlflow.artifacts.load_text(f"runs:/{run.id}/traceback.txt")
    assert text.startswith("Traceback") and "https://me:***@host is away" in text


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [(ZeroDivisionError("no"), "FAILED", "ZeroDivisionError: no"), (Stopped(signal.SIGTERM), "KILLED", "by SIGTERM")],
)
def test_attach_run_ends_the_run_with_the_reason_and_raises(store, error, status, reason):
    run_id = mlflow.MlflowClient().create_run("1").info.run_id
    with pytest.raises(type(error)), attach_run(run_id) as run:
        run.log_epoch(1, {"loss": 2.0})
        raise error
    told = found(run_id)
    assert (told.info.status, told.data.tags[Tag.OUTCOME_REASON], told.data.metrics) == (status, reason, {"loss": 2.0})
    files = [file.path for file in mlflow.MlflowClient().list_artifacts(run_id)]
    assert files == (["traceback.txt"] if status == "FAILED" else [])
    assert run.outbox._is_closed


@pytest.mark.parametrize("is_attached", [True, False])
@pytest.mark.parametrize("error", [None, Stopped(signal.SIGTERM), ZeroDivisionError("no")], ids=repr)
def test_end_of_a_run_waits_long_for_a_server_only_if_it_opened_the_run_and_was_not_stopped(
    store, monkeypatch, error, is_attached
):
    flush, asked = Outbox.flush, []

    def record(self, **options):
        asked.append(options)
        return flush(self, **options)

    monkeypatch.setattr(Outbox, "flush", record)
    run_id = mlflow.MlflowClient().create_run("1").info.run_id
    with suppress(Stopped, ZeroDivisionError), attach_run(run_id) if is_attached else start_run(role=Role.RUN):
        if error:
            raise error
    patience = {"unavailable_seconds": 2.0 if is_attached else 20.0}
    if error is None:
        assert asked == [patience, {"unavailable_seconds": 2.0}]
    else:
        assert asked == [{"at_most": 2.0} if isinstance(error, Stopped) else patience]
    mlflow.MlflowClient().set_terminated(run_id)


def test_all_runs_of_this_file_have_ended(store):
    with closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as database, database:
        (still_open,) = database.execute("select count(*) from runs where status = 'RUNNING'").fetchone()
    assert still_open == 0
