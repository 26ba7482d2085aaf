"""What TensorFlow says in a process of its own, and what becomes of one that dies."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import mlflow
import numpy as np
import psutil
import pytest
from mlflow.entities import ViewType

from pipeline.commands import doctor_checks
from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import private_folder
from pipeline.runtime.process import this_process
from pipeline.tracking.outbox.delivery import tracking_address
from pipeline.tracking.outbox.records import LogBatch
from pipeline.tracking.outbox.spool import Spool
from pipeline.tracking.tags import Role, Tag
from tests.support.scripted import mlflow_store


def said(**told):
    answer = {"version": "2.21.0", "device": "CPU some", "precision": "float32", "unused": None} | told
    return f"print('some library chatters'); print({json.dumps(answer)!r})"


def test_tensorflow_computes_here():
    (finding,) = doctor_checks.check_tensorflow()
    assert finding.state == "ok" and " computes on CPU " in finding.text


def test_a_gpu_that_it_does_not_use_is_broken():
    well, broken = doctor_checks.check_tensorflow(said(unused="this machine has NVIDIA H200 but ...: a cure"))
    assert (well.state, broken.state, broken.text[-6:]) == ("ok", "broken", "a cure")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "its process ended with -4"),
    ],
)
def test_one_that_raises_or_dies_is_broken_and_takes_nobody_with_it(code, reason):
    (finding,) = doctor_checks.check_tensorflow(code)
    assert finding.state == "broken" and reason in finding.text


def test_one_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(doctor_checks, "TENSORFLOW_SECONDS", 0.2)
    (finding,) = doctor_checks.check_tensorflow("import time; time.sleep(60)")
    assert finding.state == "broken" and "has not begun" in finding.text


def test_what_lies_in_the_cache_is_counted(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (private_folder("data", "one") / "images").write_bytes(bytes(10**8))
    (private_folder("checkpoints", "run") / "epoch").write_bytes(b"")
    (private_folder("data") / "one.lock").touch()
    room, held = doctor_checks.check_cache()
    assert str(tmp_path) in room.text and room.state in {"ok", "look", "broken"}
    assert held.state == "ok"
    assert held.text.endswith("1 decoded data sets (0.1 GB), checkpoints of 1 unfinished runs (0.0 GB)")


def test_a_cache_that_cannot_be_written_is_broken(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    (finding,) = doctor_checks.check_cache()
    assert finding.state == "broken" and "name another folder in XDG_CACHE_HOME" in finding.text


@pytest.mark.parametrize(("free", "state"), [(0.9e9, "broken"), (1e9, "look"), (4.9e9, "look"), (5e9, "ok")])
def test_a_disk_with_little_room_is_told(monkeypatch, tmp_path, free, state):
    asked = []
    monkeypatch.setattr(psutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=int(free)))
    finding = doctor_checks.check_disk(tmp_path / "not" / "yet", "artifacts")
    assert (finding.state, asked) == (state, [str(tmp_path)])
    assert finding.text.startswith(f"{free / 1e9:.1f} GB free for artifacts in ")
    assert ("make room" in finding.text) == (state != "ok")


@pytest.fixture
def project(tmp_path):
    """A project that asks for packages; returns its folder."""

    def made(asked, lock):
        (tmp_path / "pyproject.toml").write_text(f"[project]\ndependencies = {asked}\n")
        (tmp_path / "requirements.lock").write_text(lock)
        return tmp_path

    return made


def found(folder):
    return [(finding.state, finding.text) for finding in doctor_checks.check_packages(folder)]


def test_this_python_is_the_one_that_the_lock_is_for(monkeypatch):
    assert [finding.state for finding in doctor_checks.check_python()] == ["ok"]
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    (finding,) = doctor_checks.check_python()
    assert finding.state == "broken" and "is not 3.11: " in finding.text


def test_packages_as_pinned_are_well(project):
    lock = f"numpy=={np.__version__}\n    # via what not\nno-such-package==1 ; sys_platform == 'win32'\n"
    assert found(project(["numpy==0"], lock)) == [("ok", "1 packages, each as requirements.lock has it")]


def test_another_version_than_the_pinned_is_looked_at(project):
    ((state, text),) = found(project([], "numpy==0.1\n"))
    assert (state, f"numpy {np.__version__} (pinned: 0.1)" in text) == ("look", True)


def test_a_platform_may_have_a_version_of_its_own(project):
    lock = f"numpy==0.1 ; sys_platform == 'win32'\nnumpy=={np.__version__} ; sys_platform != 'win32'\n"
    assert [state for state, _ in found(project([], lock))] == ["ok"]


def test_a_package_that_is_asked_for_and_missing_is_broken(project):
    asked = ["no-such-package[extra]==1; sys_platform == 'linux'"]
    ((state, text),) = found(project(asked, "no-such-package==1\n"))
    assert state == "broken" and text.startswith("not installed: no-such-package; ")


def test_of_many_the_first_are_named(project):
    lock = "".join(f"{name}==0.0.1\n" for name in "numpy pandas keras mlflow optuna pydantic tqdm".split())
    ((_, text),) = found(project([], lock))
    assert "optuna" in text and "pydantic" not in text and " and 2 more; " in text


def test_without_a_lock_it_is_said_that_nothing_was_looked_up(tmp_path):
    ((state, text),) = found(tmp_path)
    assert state == "look" and "requirements.lock: No such file" in text


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
        tags = process.tags() | {Tag.HEARTBEAT: datetime.fromtimestamp(heard, UTC).isoformat(), Tag.ROLE: Role.RUN}
        return client.create_run(experiment, start_time=int(1000 * heard), tags=tags).info.run_id

    return open_it


def status(run_id):
    return mlflow.get_run(run_id).info.status


def test_a_store_that_answers_is_well_and_the_run_it_was_tried_with_is_deleted(client):
    answers, room = doctor_checks.check_store()
    assert answers.state == "ok" and "answers and can be written" in answers.text
    assert " free for artifacts in " in room.text
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert client.search_runs(experiments) == []
    (tried,) = client.search_runs(experiments, run_view_type=ViewType.DELETED_ONLY)
    assert tried.info.status == "FINISHED"


def test_the_run_that_mlflow_run_opened_is_used_and_named(monkeypatch, client, opened):
    run_id = opened(this_process(), minutes=0)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert next(doctor_checks.check_store()).state == "ok"
    run = client.get_run(run_id)
    assert (run.info.run_name, run.data.tags[Tag.ROLE], run.info.lifecycle_stage) == ("doctor", "doctor", "active")
    assert [file.path for file in client.list_artifacts(run_id)] == [doctor_checks.TEXT]


def test_a_store_that_does_not_answer_is_broken(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://someone:secret@127.0.0.1:1")
    (finding,) = doctor_checks.check_store()
    assert finding.state == "broken"
    assert "http://someone:***@127.0.0.1:1" in finding.text and "secret" not in finding.text


def test_a_store_that_no_run_has_made_yet_is_not_made_by_looking(tmp_path):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/none.db")
    (finding,) = doctor_checks.check_store()
    assert finding.state == "ok" and f"the first run makes it in {tmp_path}" in finding.text
    assert list(doctor_checks.check_open_runs()) == []
    with pytest.raises(UsageError, match="there is none in"):
        list(doctor_checks.close_runs(("x",)))
    assert not (tmp_path / "none.db").exists()


def test_what_a_run_could_not_tell_is_sent(monkeypatch, tmp_path, client, opened):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run_id = opened(this_process(), minutes=0)
    Spool(run_id, destination=tracking_address()).put(LogBatch(run_id, tags={"late": "told"}))
    (finding,) = doctor_checks.check_outbox()
    assert finding.state == "ok" and run_id in finding.text
    assert client.get_run(run_id).data.tags["late"] == "told"
    assert list(doctor_checks.check_outbox()) == []


def test_what_cannot_be_sent_yet_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Spool("0" * 32, destination="http://elsewhere").put(LogBatch("0" * 32, tags={"late": "told"}))
    (finding,) = doctor_checks.check_outbox()
    assert finding.state == "look" and "they are for http://elsewhere" in finding.text


def test_each_run_that_cannot_be_sent_yet_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run_ids = ["0" * 32, "1" * 32]
    for run_id in run_ids:
        Spool(run_id, destination="http://elsewhere").put(LogBatch(run_id, tags={"late": "told"}))
    assert [run_id in finding.text for run_id, finding in zip(run_ids, doctor_checks.check_outbox(), strict=True)] == [
        True,
        True,
    ]


def test_runs_of_every_experiment_that_lost_their_process_are_closed_and_silent_ones_named(opened):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        gone = replace(this_process(), id=process.pid, started=psutil.Process(process.pid).create_time())
    lost, silent, lives = opened(gone, minutes=1), opened(ELSEWHERE, minutes=9), opened(this_process(), minutes=9)
    closed, named = doctor_checks.check_open_runs()
    assert (lost in closed.text, silent in named.text) == (True, True)
    assert {finding.state for finding in (closed, named)} == {"look"}
    assert [status(run_id) for run_id in (lost, silent, lives)] == ["FAILED", "RUNNING", "RUNNING"]


def test_a_run_of_another_host_is_closed_on_request_with_the_reason(opened):
    run_id = opened(ELSEWHERE, minutes=9)
    (finding,) = doctor_checks.close_runs((run_id,))
    assert finding.state == "ok" and run_id in finding.text
    run = mlflow.get_run(run_id)
    assert (run.info.status, run.data.tags[Tag.OUTCOME]) == ("FAILED", "failed")
    assert run.data.tags[Tag.OUTCOME_REASON].startswith("closed by hand: process ")
    assert (
        f"on another has sent no heartbeat for 9 min; `mlflow run . -P resume={run_id}`"
        in run.data.tags[Tag.OUTCOME_REASON]
    )
    with pytest.raises(UsageError, match="has ended as FAILED"):
        list(doctor_checks.close_runs((run_id,)))


@pytest.mark.parametrize(("process", "minutes"), [(this_process(), 9), (ELSEWHERE, 1)], ids=["here", "elsewhere"])
def test_a_run_that_lives_is_not_closed_and_nor_is_one_named_beside_it(opened, process, minutes):
    lives, dead = opened(process, minutes=minutes), opened(ELSEWHERE, minutes=9)
    with pytest.raises(UsageError, match="stop that first"):
        list(doctor_checks.close_runs((dead, lives)))
    assert status(dead) == "RUNNING"


def test_an_id_that_no_run_has_is_refused():
    with pytest.raises(UsageError, match="close must name runs of this tracking store by their ids, got 'x'"):
        list(doctor_checks.close_runs(("x",)))
