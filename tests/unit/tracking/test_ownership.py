"""Tests of claims and heartbeats of runs, in a real MLflow store."""

import threading

import mlflow
import pytest

from pipeline.runtime.code_version import CodeVersion
from pipeline.runtime.process import this_process
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
