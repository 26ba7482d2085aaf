"""A run says whose it is, takes its status back, and is left to another process that goes on with it."""

import os
import threading

import mlflow
import pytest

from pipeline.runtime.errors import Stopped, UsageError
from pipeline.runtime.process import this_process
from pipeline.tracking import ownership
from pipeline.tracking.tags import Role, Tag


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


def beating(client, run_id, taken=lambda process: None):
    return ownership.heartbeat_run(client, run_id, taken=taken, seconds=0.01)


def test_what_was_refused_is_said_in_the_run_that_mlflow_run_opened(monkeypatch, run_id):
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    ownership.fail_project_run("depth must be more")
    assert found(run_id).info.status == "FAILED"
    assert (found(run_id).data.tags[Tag.OUTCOME], found(run_id).data.tags[Tag.OUTCOME_REASON]) == (
        "failed",
        "depth must be more",
    )


def test_a_run_in_which_work_has_begun_is_not_refused(monkeypatch, client, run_id):
    client.set_tag(run_id, "role", "run")
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    ownership.fail_project_run("depth must be more")
    assert found(run_id).info.status == "RUNNING"


def test_nobody_is_told_where_no_mlflow_run_or_no_such_run_is(monkeypatch, store):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    ownership.fail_project_run("depth must be more")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    ownership.fail_project_run("depth must be more")


def test_a_claimed_run_names_this_process_and_forgets_how_it_ended(client, run_id):
    ownership.end_run(client, run_id, "stopped", "by SIGTERM")
    ownership.claim_run(client, run_id, {Tag.ROLE: Role.RUN})
    tags = found(run_id).data.tags
    assert this_process().tags().items() <= tags.items()
    assert tags[Tag.ROLE] == "run"
    assert not {Tag.OUTCOME, Tag.OUTCOME_REASON} & tags.keys()


def test_a_live_run_that_finds_itself_closed_takes_its_status_back(client, run_id):
    ownership.claim_run(client, run_id)
    with beating(client, run_id):
        ownership.end_run(client, run_id, "failed", "taken for dead")
        until(lambda: found(run_id).info.status == "RUNNING" and Tag.OUTCOME not in found(run_id).data.tags)


def test_a_run_that_has_been_closed_after_its_last_beat_stays_closed(client, run_id):
    ownership.claim_run(client, run_id)
    with beating(client, run_id):
        client.set_tag(run_id, Tag.HEARTBEAT, "never")
        until(lambda: found(run_id).data.tags[Tag.HEARTBEAT] != "never")
    ownership.end_run(client, run_id, "finished", "")
    threading.Event().wait(0.1)
    assert found(run_id).info.status == "FINISHED"


def test_a_run_that_another_process_has_claimed_is_left_to_it(client, run_id):
    ownership.claim_run(client, run_id)
    takers = []
    with beating(client, run_id, taken=takers.append):
        client.set_tag(run_id, "process", "1")
        until(lambda: takers)
        beat = found(run_id).data.tags[Tag.HEARTBEAT]
        ownership.end_run(client, run_id, "finished", "")
        threading.Event().wait(0.1)
    assert takers[0].id == 1
    assert (found(run_id).info.status, found(run_id).data.tags[Tag.HEARTBEAT]) == ("FINISHED", beat)


@pytest.mark.parametrize(
    ("error", "status", "ended", "reason"),
    [
        (UsageError("dataset must be there"), "FAILED", "failed", "dataset must be there"),
        (Stopped(15), "KILLED", "stopped", "by SIGTERM"),
    ],
)
def test_what_fails_before_anything_begins_in_the_run_of_mlflow_run_closes_it(
    client, run_id, monkeypatch, error, status, ended, reason
):
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(type(error)), ownership.close_if_unused(client, run_id):
        raise error
    tags = found(run_id).data.tags
    assert (found(run_id).info.status, tags[Tag.OUTCOME], tags[Tag.OUTCOME_REASON]) == (status, ended, reason)


def test_a_run_that_has_begun_is_closed_by_those_who_began_it(client, run_id, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(ZeroDivisionError), ownership.close_if_unused(client, run_id):
        del os.environ["MLFLOW_RUN_ID"]
        1 / 0  # noqa: B018
    assert found(run_id).info.status == "RUNNING"


def test_a_nested_run_is_below_the_other_with_a_name_and_role_of_its_own(client, run_id):
    ownership.set_parent(client, run_id, parent="abc", name="resumed at epoch 7", role="resume")
    tags = found(run_id).data.tags
    assert (tags[Tag.PARENT_RUN_ID], tags[Tag.ROLE]) == ("abc", "resume")
    assert found(run_id).info.run_name == "resumed at epoch 7"
