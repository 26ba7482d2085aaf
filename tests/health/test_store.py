"""The doctor at a real MLflow store: what it leaves there, whom it closes, and a store that is not there."""

import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime

import mlflow
import psutil
import pytest
from mlflow.entities import ViewType
from scripted import mlflow_store

from pipeline.errors import UsageError
from pipeline.health import store as health
from pipeline.lifetime.process import this_process
from pipeline.outbox.delivery import address
from pipeline.outbox.spool import Spool

ELSEWHERE = replace(this_process(), host="another")


@pytest.fixture(autouse=True)
def store(tmp_path):
    with mlflow_store(tmp_path) as uri:
        yield uri


@pytest.fixture
def client():
    return mlflow.MlflowClient()


@pytest.fixture
def opened(client, tmp_path):
    """Opens a run of some process, which gave its last sign so many minutes ago."""
    experiment = client.create_experiment("opened", artifact_location=str(tmp_path / "artifacts"))

    def open_it(process, *, minutes):
        heard = time.time() - 60 * minutes
        tags = process.tags() | {"beat": datetime.fromtimestamp(heard, UTC).isoformat(), "role": "run"}
        return client.create_run(experiment, start_time=int(1000 * heard), tags=tags).info.run_id

    return open_it


def status(run_id):
    return mlflow.get_run(run_id).info.status


def test_a_store_that_answers_is_well_and_the_run_it_was_tried_with_is_deleted(client):
    answers, room = health.store()
    assert answers.state == "ok" and "answers and can be written" in answers.text
    assert " free for artifacts in " in room.text
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert client.search_runs(experiments) == []
    (tried,) = client.search_runs(experiments, run_view_type=ViewType.DELETED_ONLY)
    assert tried.info.status == "FINISHED"


def test_the_run_that_mlflow_run_opened_is_used_and_named(monkeypatch, client, opened):
    run_id = opened(this_process(), minutes=0)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert next(health.store()).state == "ok"
    run = client.get_run(run_id)
    assert (run.info.run_name, run.data.tags["role"], run.info.lifecycle_stage) == ("doctor", "doctor", "active")
    assert [file.path for file in client.list_artifacts(run_id)] == [health.TEXT]


def test_a_store_that_does_not_answer_is_broken(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://someone:secret@127.0.0.1:1")
    (finding,) = health.store()
    assert finding.state == "broken"
    assert "http://someone:***@127.0.0.1:1" in finding.text and "secret" not in finding.text


def test_a_store_that_no_run_has_made_yet_is_not_made_by_looking(tmp_path):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/none.db")
    (finding,) = health.store()
    assert finding.state == "ok" and f"the first run makes it in {tmp_path}" in finding.text
    assert list(health.open_runs()) == []
    with pytest.raises(UsageError, match="there is none in"):
        list(health.close(("x",)))
    assert not (tmp_path / "none.db").exists()


def test_what_a_run_could_not_tell_is_sent(monkeypatch, tmp_path, client, opened):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run_id = opened(this_process(), minutes=0)
    Spool(run_id, to=address()).put("batch", run_id, {"tags": {"late": "told"}}, None)
    (finding,) = health.outbox()
    assert finding.state == "ok" and run_id in finding.text
    assert client.get_run(run_id).data.tags["late"] == "told"
    assert list(health.outbox()) == []


def test_what_cannot_be_sent_yet_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Spool("0" * 32, to="http://elsewhere").put("batch", "0" * 32, {"tags": {"late": "told"}}, None)
    (finding,) = health.outbox()
    assert finding.state == "look" and "it goes to http://elsewhere" in finding.text


def test_each_run_that_cannot_be_sent_yet_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run_ids = ["0" * 32, "1" * 32]
    for run_id in run_ids:
        Spool(run_id, to="http://elsewhere").put("batch", run_id, {"tags": {"late": "told"}}, None)
    assert [run_id in finding.text for run_id, finding in zip(run_ids, health.outbox(), strict=True)] == [True, True]


def test_runs_of_every_experiment_that_lost_their_process_are_closed_and_silent_ones_named(opened):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        gone = replace(this_process(), id=process.pid, started=psutil.Process(process.pid).create_time())
    lost, silent, lives = opened(gone, minutes=1), opened(ELSEWHERE, minutes=9), opened(this_process(), minutes=9)
    closed, named = health.open_runs()
    assert (lost in closed.text, silent in named.text) == (True, True)
    assert {finding.state for finding in (closed, named)} == {"look"}
    assert [status(run_id) for run_id in (lost, silent, lives)] == ["FAILED", "RUNNING", "RUNNING"]


def test_a_run_of_another_host_is_closed_on_request_with_the_reason(opened):
    run_id = opened(ELSEWHERE, minutes=9)
    (finding,) = health.close((run_id,))
    assert finding.state == "ok" and run_id in finding.text
    run = mlflow.get_run(run_id)
    assert (run.info.status, run.data.tags["ended"]) == ("FAILED", "failed")
    assert run.data.tags["ended.reason"].startswith("closed by hand: no sign of process ")
    assert f"on another for 9 min; mlflow run . -P resume={run_id}" in run.data.tags["ended.reason"]
    with pytest.raises(UsageError, match="has ended as FAILED"):
        list(health.close((run_id,)))


@pytest.mark.parametrize(("process", "minutes"), [(this_process(), 9), (ELSEWHERE, 1)], ids=["here", "elsewhere"])
def test_a_run_that_lives_is_not_closed_and_nor_is_one_named_beside_it(opened, process, minutes):
    lives, dead = opened(process, minutes=minutes), opened(ELSEWHERE, minutes=9)
    with pytest.raises(UsageError, match="stop that first"):
        list(health.close((dead, lives)))
    assert status(dead) == "RUNNING"


def test_an_id_that_no_run_has_is_refused():
    with pytest.raises(UsageError, match="close must name runs of this tracking store by their ids, got 'x'"):
        list(health.close(("x",)))
