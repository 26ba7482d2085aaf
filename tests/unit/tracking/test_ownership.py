"""Tests of claims and heartbeats of runs, in a real MLflow store."""

import threading
import time
from datetime import UTC, datetime, timedelta

import mlflow
import pytest

from pipeline.runtime.code_version import CodeVersion
from pipeline.runtime.errors import Deleted, NothingToDo, Rejected, Stopped, Unavailable, UsageError
from pipeline.runtime.process import this_process
from pipeline.runtime.tables import markdown_text
from pipeline.tracking import ownership
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.tags import Role, RunOutcome, Tag


@pytest.fixture
def run_id(client):
    return client.create_run(mlflow.get_experiment_by_name("mine").experiment_id).info.run_id


def found(run_id):
    return mlflow.get_run(run_id)


def until(happened):
    """Waits for what another thread does."""
    for _ in range(3000):
        if happened():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen")


def beating(client, run_id, superseded=lambda process: None):
    return ownership.heartbeat_run(TrackingClient(), run_id, superseded=superseded, seconds=0.01)


def test_is_generated_name_knows_the_words_of_mlflow(client, run_id):
    assert ownership.is_generated_name(found(run_id).info.run_name)
    for name in ("bold-plan-x", "my-run-12", "baseline", "bold-ant"):
        assert not ownership.is_generated_name(name)


def test_claim_run_names_this_process_and_removes_the_outcome(client, run_id):
    ownership.end_run(TrackingClient(), run_id, RunOutcome.STOPPED, "by SIGTERM")
    ownership.claim_run(TrackingClient(), run_id, {Tag.ROLE: Role.RUN})
    tags = found(run_id).data.tags
    assert this_process().tags().items() <= tags.items()
    assert tags[Tag.ROLE] == "run"
    assert not {Tag.OUTCOME, Tag.OUTCOME_REASON} & tags.keys()


def test_heartbeat_run_reopens_a_run_that_was_closed_as_stale(client, run_id):
    ownership.claim_run(TrackingClient(), run_id)
    with beating(client, run_id):
        ownership.end_run(TrackingClient(), run_id, RunOutcome.FAILED, "taken for dead")
        until(lambda: found(run_id).info.status == "RUNNING" and Tag.OUTCOME not in found(run_id).data.tags)


def test_heartbeat_run_after_its_end_leaves_the_run_closed(client, run_id):
    ownership.claim_run(TrackingClient(), run_id)
    with beating(client, run_id):
        client.set_tag(run_id, Tag.HEARTBEAT, "never")
        until(lambda: found(run_id).data.tags[Tag.HEARTBEAT] != "never")
    ownership.end_run(TrackingClient(), run_id, RunOutcome.FINISHED, "")
    threading.Event().wait(0.1)
    assert found(run_id).info.status == "FINISHED"


def test_heartbeat_run_stops_when_another_process_claims_the_run(client, run_id):
    ownership.claim_run(TrackingClient(), run_id)
    takers = []
    with beating(client, run_id, superseded=takers.append):
        client.set_tag(run_id, Tag.PROCESS, "1")
        until(lambda: takers)
        beat = found(run_id).data.tags[Tag.HEARTBEAT]
        ownership.end_run(TrackingClient(), run_id, RunOutcome.FINISHED, "")
        threading.Event().wait(0.1)
    assert takers[0].id == 1
    assert (found(run_id).info.status, found(run_id).data.tags[Tag.HEARTBEAT]) == ("FINISHED", beat)


def test_set_parent_sets_parent_name_and_role(client, run_id):
    ownership.set_parent(TrackingClient(), run_id, parent="abc", name="resumed at epoch 7", role="resume")
    tags = found(run_id).data.tags
    assert (tags[Tag.PARENT_RUN_ID], tags[Tag.ROLE]) == ("abc", "resume")
    assert found(run_id).info.run_name == "resumed at epoch 7"


@pytest.mark.parametrize(
    ("version", "role", "kept"),
    [
        (None, {}, False),
        (CodeVersion("b" * 40, is_dirty=False), {}, False),
        (CodeVersion("a" * 40, is_dirty=False), {}, True),
        (None, {Tag.ROLE: "run"}, True),
    ],
)
def test_begin_run_forgets_the_commit_of_a_repository_that_does_not_track_this_program(
    client, run_id, monkeypatch, version, role, kept
):
    """`mlflow run` records the repository around the project's folder; a resumed run keeps what it was trained with."""
    monkeypatch.setattr(ownership, "code_version", lambda: version)
    git = {"mlflow.source.git.commit": "a" * 40, "mlflow.source.git.repoURL": "x", "mlflow.source.git.branch": "y"}
    TrackingClient().set_tags(run_id, git | role)
    began = ownership.begin_run(TrackingClient(), run_id)
    assert (git.items() <= began.data.tags.items()) is kept
    assert began.data.tags.keys().isdisjoint(git) is not kept


def test_begin_run_of_a_new_run_leaves_out_the_commit_of_another_repository(client, monkeypatch):
    monkeypatch.setattr(ownership, "code_version", lambda: None)
    monkeypatch.setattr(ownership, "resolve_tags", lambda: {"mlflow.source.git.commit": "a" * 40, "mlflow.user": "me"})
    experiment = mlflow.get_experiment_by_name("mine").experiment_id
    tags = ownership.begin_run(TrackingClient(), experiment_id=experiment).data.tags
    assert "mlflow.source.git.commit" not in tags and tags["mlflow.user"] == "me"


@pytest.mark.parametrize(
    ("generated", "reason", "name", "shown"),
    [
        (True, "depth must be at least 1, got 0", "", "refused: depth"),
        (True, "there is no GPU " + "!" * 100, "", "refused: there is no GPU !"),
        (True, "depth must be at least 1, got 0", "not begun", "not begun"),
        (False, "depth must be at least 1, got 0", "not begun", "baseline"),
    ],
)
def test_refuse_run_ends_a_run_with_the_reason_in_its_description_and_name(
    client, run_id, generated, reason, name, shown
):
    if not generated:
        client.set_tag(run_id, Tag.RUN_NAME, "baseline")
    ownership.refuse_run(TrackingClient(), run_id, reason, name=name, end_time=12.5)
    run = found(run_id)
    assert (run.info.status, run.info.end_time, run.data.tags[Tag.OUTCOME]) == ("FAILED", 12_500, "failed")
    assert run.data.tags[Tag.OUTCOME_REASON] == reason
    assert run.data.tags[Tag.DESCRIPTION].replace("\\", "") == reason
    assert run.info.run_name.startswith(shown) and len(run.info.run_name) < 60


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Stopped(15), (RunOutcome.STOPPED, "by SIGTERM")),
        (ValueError("no\nsuch"), (RunOutcome.FAILED, "ValueError: no\nsuch")),
        (KeyboardInterrupt(), (RunOutcome.FAILED, "KeyboardInterrupt: ")),
    ],
)
def test_outcome_of_error_tells_a_stop_from_a_failure(error, outcome):
    assert ownership.outcome_of_error(error) == outcome


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UsageError("as it is"), UsageError, "^as it is$"),
        (NothingToDo("done"), NothingToDo, "^done$"),
        (Deleted("restore it"), UsageError, "^restore it$"),
        (Rejected("no"), UsageError, "^the tracking store must accept the run: no$"),
        (Unavailable("away"), UsageError, "^the tracking store must be there and writable: .*Unavailable: away$"),
        (OSError("full"), UsageError, "^the tracking store must be there and writable: .*OSError: full$"),
    ],
)
def test_require_server_refuses_in_place_of_what_the_store_raises(store, monkeypatch, error, kind, message):
    with pytest.raises(kind, match=message), ownership.require_server():
        raise error
    # what is wrong then is most likely the path
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    if isinstance(error, Rejected | Unavailable):
        message = "must be absolute, .* got sqlite:///mlflow.db; try sqlite:////"
    with pytest.raises(kind, match=message), ownership.require_server():
        raise error


def test_check_unchanged_refuses_a_run_that_another_process_has_claimed_or_that_beats(client, run_id, monkeypatch):
    tracking = TrackingClient()
    ownership.claim_run(tracking, run_id)
    seen = found(run_id)
    monkeypatch.setattr(ownership, "CLAIM_SECONDS", 0.0)
    ownership.check_unchanged(tracking, seen)
    ownership.confirm_claim(tracking, seen, claim_seconds=0.0)
    client.set_tag(run_id, Tag.HEARTBEAT, "later")
    with pytest.raises(UsageError, match=f"another one has resumed run {run_id} .* at this moment; wait for it, or"):
        ownership.check_unchanged(tracking, seen)
    ownership.confirm_claim(tracking, seen, claim_seconds=0.0)
    client.set_tag(run_id, Tag.PROCESS, "1")
    with pytest.raises(UsageError, match=f"another one has resumed run {run_id} "):
        ownership.confirm_claim(tracking, seen, claim_seconds=0.0)


def test_forget_claim_removes_the_tags_of_a_claim_alone(client, run_id):
    client.set_tag(run_id, Tag.STUDY, "mine")
    ownership.claim_run(TrackingClient(), run_id, {Tag.ROLE: Role.RUN})
    ownership.forget_claim(TrackingClient(), found(run_id))
    tags = found(run_id).data.tags
    assert not {*this_process().tags(), Tag.HEARTBEAT} & tags.keys()
    assert (tags[Tag.ROLE], tags[Tag.STUDY]) == ("run", "mine")


def test_lock_run_is_held_by_one_process_at_a_time(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ownership.lock_run("a") as first, ownership.lock_run("a") as second, ownership.lock_run("b") as other:
        assert (first, second, other) == (True, False, True)
    with ownership.lock_run("a") as again:
        assert again
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with ownership.lock_run("a") as first, ownership.lock_run("a") as second:
        assert (first, second) == (True, True), "a cache that takes no locks stops nobody"


@pytest.mark.parametrize(("took", "waited"), [(0.25, 2.0), (3.0, 6.0)])
def test_confirm_claim_waits_longer_where_the_store_is_slow(client, run_id, monkeypatch, took, waited):
    ownership.claim_run(TrackingClient(), run_id)
    pauses = []
    monkeypatch.setattr(ownership.time, "sleep", pauses.append)
    ownership.confirm_claim(TrackingClient(), found(run_id), claim_seconds=took)
    assert pauses == [waited]


def test_claim_run_sets_a_heartbeat_of_this_moment_that_is_exact(client, run_id):
    ownership.claim_run(TrackingClient(), run_id)
    heartbeat = datetime.fromisoformat(found(run_id).data.tags[Tag.HEARTBEAT])
    assert heartbeat.utcoffset() == timedelta(0) and abs(heartbeat - datetime.now(UTC)) < timedelta(minutes=1)
    assert len(found(run_id).data.tags[Tag.HEARTBEAT]) == len("2026-01-01T00:00:00.000000+00:00")


def test_reopen_run_removes_the_outcome_of_a_run_that_has_ended_alone(client, run_id):
    tracking = TrackingClient()
    ownership.end_run(tracking, run_id, RunOutcome.FAILED, "odd")
    ownership.reopen_run(tracking, found(run_id))
    assert found(run_id).info.status == "RUNNING"
    assert not {Tag.OUTCOME, Tag.OUTCOME_REASON} & found(run_id).data.tags.keys()
    client.set_tag(run_id, Tag.OUTCOME, "failed")
    ownership.reopen_run(tracking, found(run_id))
    assert found(run_id).data.tags[Tag.OUTCOME] == "failed", "its owner is about to end it"


def test_end_run_without_a_time_ends_it_now_with_the_tags_of_its_outcome(client, run_id):
    ownership.end_run(TrackingClient(), run_id, RunOutcome.STOPPED, "by SIGTERM")
    run = found(run_id)
    assert run.info.status == "KILLED" and abs(run.info.end_time / 1000 - time.time()) < 60
    assert (run.data.tags[Tag.OUTCOME], run.data.tags[Tag.OUTCOME_REASON]) == ("stopped", "by SIGTERM")


def test_begin_run_of_a_deleted_run_raises_deleted(client, run_id):
    client.delete_run(run_id)
    with pytest.raises(Deleted, match="mlflow runs restore"):
        ownership.begin_run(TrackingClient(), run_id)


def test_begin_run_opens_a_run_again_or_a_new_one_in_the_present_experiment(client, run_id):
    client.set_terminated(run_id)
    again = ownership.begin_run(TrackingClient(), run_id)
    assert (again.info.run_id, again.info.status) == (run_id, "RUNNING")
    new = ownership.begin_run(TrackingClient())
    assert new.info.run_id != run_id and new.info.status == "RUNNING"
    assert new.info.experiment_id == TrackingClient().experiment_id()
    other = client.create_experiment("of the new run")
    assert ownership.begin_run(TrackingClient(), experiment_id=other).info.experiment_id == other


def test_begin_run_of_a_new_run_claims_it_with_the_first_request(client, monkeypatch):
    """Killed after it, the process leaves a run that the next command can close."""
    tags = {Tag.ROLE: "report", Tag.REPORT_RUNS: "x" * 9000}
    with monkeypatch.context() as patch:
        patch.delattr(TrackingClient, "log_batch")
        run = ownership.begin_run(TrackingClient(), tags=tags)
    assert ownership.is_owner(run) and Tag.HEARTBEAT in run.data.tags
    assert run.data.tags[Tag.ROLE] == "report" and run.data.tags[Tag.REPORT_RUNS] == "x" * 5000
    ownership.end_run(TrackingClient(), run.info.run_id, RunOutcome.FINISHED, "")


@pytest.mark.parametrize("uri", ["sqlite:////a/mlflow.db", "http://sqlite:///a", "", "sqlite:///"])
def test_check_store_path_accepts_what_names_the_same_store_in_every_folder(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    ownership.check_store_path()


def test_check_store_path_names_the_absolute_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///a.db")
    with pytest.raises(UsageError, match=f"got sqlite:///a.db; try sqlite:///{tmp_path}/mlflow.db$"):
        ownership.check_store_path()


def test_refuse_run_escapes_the_reason_and_ends_it_now(client, run_id):
    ownership.refuse_run(TrackingClient(), run_id, "a_b must be *c*")
    run = found(run_id)
    assert run.data.tags[Tag.DESCRIPTION] == markdown_text("a_b must be *c*") != "a_b must be *c*"
    assert run.info.run_name == "refused: a_b" and abs(run.info.end_time / 1000 - time.time()) < 60


def test_reason_of_a_run_that_ends_holds_no_token(client, run_id):
    ownership.refuse_run(TrackingClient(), run_id, "https://t0ken@mlflow.example/api timed out")
    tags = found(run_id).data.tags
    assert "mlflow.example/api timed out" in tags[Tag.OUTCOME_REASON]
    assert not [name for name, value in tags.items() if "t0ken" in value]
