"""The checks of the command `doctor`, one by one."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import mlflow
import numpy as np
import psutil
import pytest
import sqlalchemy.exc
from mlflow.entities import ViewType

from pipeline.commands import doctor_checks
from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import private_folder
from pipeline.runtime.process import process_of, this_process
from pipeline.runtime.shell import project_command
from pipeline.tracking import stale_runs
from pipeline.tracking.outbox.delivery import tracking_address
from pipeline.tracking.outbox.records import LogBatch
from pipeline.tracking.outbox.spool import Spool
from pipeline.tracking.tags import Role, Tag
from tests.support.scripted import mlflow_store


def printing(**changes):
    """Code that prints what the check expects of its process, after a line of some library."""
    answer = {"version": "2.21.0", "device": "CPU some", "precision": "float32", "unused": None} | changes
    return f"print('some library chatters'); print({json.dumps(answer)!r})"


def test_check_tensorflow_names_the_device():
    (result,) = doctor_checks.check_tensorflow()
    assert result.state == "ok" and " computes on CPU " in result.text


def test_check_tensorflow_hides_a_webhook_from_the_process_that_it_starts(monkeypatch):
    monkeypatch.setenv("CONVMIXER_NOTIFY_URL", "https://host/secret")
    (result,) = doctor_checks.check_tensorflow(f"import os; os.environ['CONVMIXER_NOTIFY_URL']; {printing()}")
    assert (
        result.text
        == "TensorFlow does not work here: KeyError: 'CONVMIXER_NOTIFY_URL'; install requirements.lock again"
    )


def test_check_tensorflow_with_an_unused_gpu_is_an_error():
    works, unused = doctor_checks.check_tensorflow(printing(unused="this machine has NVIDIA H200 but ...: a remedy"))
    assert (works.state, unused.state, unused.text[-6:]) == ("ok", "error", "remedy")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "its process ended with -4"),
    ],
)
def test_check_tensorflow_that_raises_or_dies_is_an_error(code, reason):
    (result,) = doctor_checks.check_tensorflow(code)
    assert result.state == "error" and reason in result.text


def test_check_tensorflow_that_hangs_is_an_error_after_the_timeout(monkeypatch):
    monkeypatch.setattr(doctor_checks, "TENSORFLOW_SECONDS", 0.2)
    (result,) = doctor_checks.check_tensorflow("import time; time.sleep(60)")
    assert result.state == "error" and "has not computed anything" in result.text


def test_check_cache_counts_what_it_holds(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (private_folder("data", "one") / "images").write_bytes(bytes(10**8))
    (private_folder("checkpoints", "run") / "epoch").write_bytes(b"")
    (private_folder("data") / "one.lock").touch()
    disk, content = doctor_checks.check_cache()
    assert str(tmp_path) in disk.text and disk.state in {"ok", "warning", "error"}
    assert content.state == "ok"
    assert content.text.endswith(
        "1 decoded data sets (0.1 GB), checkpoints of 1 unfinished runs (0.0 GB), 0 compiled functions (0.0 MB)"
    )


def test_check_cache_that_cannot_be_written_is_an_error(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    (result,) = doctor_checks.check_cache()
    assert result.state == "error" and "name another folder in XDG_CACHE_HOME" in result.text


@pytest.mark.parametrize(("free", "state"), [(0.9e9, "error"), (1e9, "warning"), (4.9e9, "warning"), (5e9, "ok")])
def test_check_disk_with_little_free_space_is_a_warning_or_an_error(monkeypatch, tmp_path, free, state):
    paths = []
    monkeypatch.setattr(psutil, "disk_usage", lambda path: paths.append(path) or SimpleNamespace(free=int(free)))
    result = doctor_checks.check_disk(tmp_path / "not" / "yet", "artifacts")
    assert (result.state, paths) == (state, [str(tmp_path)])
    assert result.text.startswith(f"{free / 1e9:.1f} GB free for artifacts in ")
    assert ("delete files" in result.text) == (state != "ok")


@pytest.fixture
def project(tmp_path):
    """Return a function that writes a project with these dependencies and this lock, and returns its folder."""

    def write_project(dependencies, lock):
        (tmp_path / "pyproject.toml").write_text(f"[project]\ndependencies = {dependencies}\n")
        (tmp_path / "requirements.lock").write_text(lock)
        return tmp_path

    return write_project


def check(folder):
    return [(result.state, result.text) for result in doctor_checks.check_packages(folder)]


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 1), (3, 13, 9)])
def test_check_python_of_a_version_of_the_lock_is_ok(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    assert [result.state for result in doctor_checks.check_python()] == ["ok"]


@pytest.mark.parametrize("version", [(3, 10, 20), (3, 14, 0)])
def test_check_python_of_another_version_than_the_lock_is_an_error(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    (result,) = doctor_checks.check_python()
    assert result.state == "error" and "is not one of 3.11 to 3.13: " in result.text


def test_check_packages_as_pinned_is_ok(project):
    lock = f"numpy=={np.__version__}\n    # via what not\nno-such-package==1 ; sys_platform == 'win32'\n"
    assert check(project(["numpy==0"], lock)) == [("ok", "1 packages, each in the version of requirements.lock")]


def test_check_packages_with_another_version_is_a_warning(project):
    ((state, text),) = check(project([], "numpy==0.1\n"))
    assert (state, f"numpy {np.__version__} (pinned: 0.1)" in text) == ("warning", True)


def test_check_packages_accepts_the_version_of_any_platform(project):
    lock = f"numpy==0.1 ; sys_platform == 'win32'\nnumpy=={np.__version__} ; sys_platform != 'win32'\n"
    assert [state for state, _ in check(project([], lock))] == ["ok"]


def test_check_packages_with_a_required_one_missing_is_an_error(project):
    required = ["no-such-package[extra]==1; sys_platform == 'linux'"]
    ((state, text),) = check(project(required, "no-such-package==1\n"))
    assert state == "error" and text.startswith("not installed: no-such-package; ")


def test_check_packages_lists_the_first_few_differences(project):
    lock = "".join(f"{name}==0.0.1\n" for name in "numpy pandas keras mlflow optuna pydantic tqdm".split())
    ((_, text),) = check(project([], lock))
    assert "optuna" in text and "pydantic" not in text and " and 2 more; " in text


def test_check_packages_without_a_lock_is_a_warning(tmp_path):
    ((state, text),) = check(tmp_path)
    assert state == "warning" and "requirements.lock: No such file" in text


ELSEWHERE = replace(this_process(), host="another")


@pytest.fixture(autouse=True)
def store(tmp_path):
    with mlflow_store(tmp_path) as uri:
        yield uri


@pytest.fixture
def client():
    return mlflow.MlflowClient()


@pytest.fixture
def open_run(client, tmp_path):
    """Return a function that opens a run of a process with its last heartbeat so many minutes ago."""
    experiment = client.create_experiment("opened", artifact_location=str(tmp_path / "artifacts"))

    def open_run(process, *, minutes):
        last_seen = time.time() - 60 * minutes
        tags = process.tags() | {Tag.HEARTBEAT: datetime.fromtimestamp(last_seen, UTC).isoformat(), Tag.ROLE: Role.RUN}
        return client.create_run(experiment, start_time=int(1000 * last_seen), tags=tags).info.run_id

    return open_run


def status(run_id):
    return mlflow.get_run(run_id).info.status


def test_check_store_that_can_be_written_is_ok_and_leaves_nothing(client, tmp_path):
    before = client.search_experiments()
    store, disk = doctor_checks.check_store()
    assert store.state == "ok" and "answers and can be written" in store.text
    assert " free for artifacts in " in disk.text
    after = client.search_experiments()
    assert [experiment.to_proto() for experiment in after] == [experiment.to_proto() for experiment in before]
    assert client.search_runs([experiment.experiment_id for experiment in after], run_view_type=ViewType.ALL) == []
    assert not list(tmp_path.rglob(doctor_checks.TEXT_FILE))


def test_check_store_without_a_run_finds_artifacts_that_cannot_be_written(client, tmp_path):
    (tmp_path / "file").touch()
    client.create_experiment("newest", artifact_location=str(tmp_path / "file" / "artifacts"))
    (result,) = doctor_checks.check_store()
    assert result.state == "error" and str(tmp_path / "file") in result.text
    assert client.get_experiment_by_name("newest").tags == {}


def test_check_store_writes_to_the_run_that_mlflow_run_opened(monkeypatch, client, tmp_path):
    experiment = client.create_experiment("given", artifact_location=str(tmp_path))
    run_id = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert next(doctor_checks.check_store()).state == "ok"
    run = client.get_run(run_id)
    assert (run.info.run_name, run.data.tags[Tag.ROLE], run.info.lifecycle_stage) == ("doctor", "doctor", "active")
    assert [file.path for file in client.list_artifacts(run_id)] == [doctor_checks.TEXT_FILE]


def test_check_store_leaves_a_run_alone_in_which_a_training_has_begun(monkeypatch, client, open_run):
    run_id = open_run(this_process(), minutes=0)
    before = client.get_run(run_id).to_dictionary()
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert next(doctor_checks.check_store()).state == "ok"
    assert client.get_run(run_id).to_dictionary() == before


def test_check_store_that_does_not_answer_is_an_error_without_the_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://someone:secret@127.0.0.1:1")
    (result,) = doctor_checks.check_store()
    assert result.state == "error"
    assert "http://someone:***@127.0.0.1:1" in result.text and "secret" not in result.text


def test_check_open_runs_of_a_store_that_does_not_answer_leaves_the_other_checks_to_come(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:1")
    (result,) = doctor_checks.check_open_runs()
    assert result.state == "warning" and result.text.startswith("open runs were not looked for: ")


def test_check_open_runs_of_a_database_that_does_not_answer_leaves_the_other_checks_to_come(monkeypatch):
    def refuse():
        raise sqlalchemy.exc.OperationalError("connect", {}, OSError("connection refused"))

    mlflow.set_tracking_uri("http://127.0.0.1:1")
    monkeypatch.setattr(doctor_checks, "TrackingClient", refuse)
    (result,) = doctor_checks.check_open_runs()
    assert result.state == "warning" and "connection refused" in result.text


def test_checks_do_not_create_a_missing_store(tmp_path):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/none.db")
    (result,) = doctor_checks.check_store()
    assert result.state == "ok" and f"the first run creates it in {tmp_path}" in result.text
    assert list(doctor_checks.check_open_runs()) == []
    with pytest.raises(UsageError, match="there is none in"):
        list(doctor_checks.close_runs(("x",)))
    assert not (tmp_path / "none.db").exists()


def test_check_outbox_sends_pending_records(monkeypatch, tmp_path, client, open_run):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run_id = open_run(this_process(), minutes=0)
    Spool(run_id, destination=tracking_address()).put(LogBatch(run_id, tags={"late": "yes"}))
    (result,) = doctor_checks.check_outbox()
    assert result.state == "ok" and run_id in result.text
    assert client.get_run(run_id).data.tags["late"] == "yes"
    assert list(doctor_checks.check_outbox()) == []


def test_check_outbox_with_records_for_another_server_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Spool("0" * 32, destination="http://elsewhere").put(LogBatch("0" * 32, tags={"late": "yes"}))
    (result,) = doctor_checks.check_outbox()
    assert result.state == "warning" and "they are for http://elsewhere" in result.text


def test_check_outbox_names_each_run_with_pending_records(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run_ids = ["0" * 32, "1" * 32]
    for run_id in run_ids:
        Spool(run_id, destination="http://elsewhere").put(LogBatch(run_id, tags={"late": "yes"}))
    assert [run_id in result.text for run_id, result in zip(run_ids, doctor_checks.check_outbox(), strict=True)] == [
        True,
        True,
    ]


def test_check_outbox_counts_what_was_set_aside_and_resends_it_on_request(monkeypatch, tmp_path, client, open_run):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run_id = open_run(this_process(), minutes=0)
    client.delete_run(run_id)
    spool = Spool(run_id, destination=tracking_address())
    spool.put(LogBatch(run_id, tags={"late": "yes"}))
    for _ in range(2):
        (result,) = doctor_checks.check_outbox()
        assert result.state == "warning" and f"1 record of run {run_id} cannot be sent" in result.text
        assert "doctor --resend true` sends what it holds" in result.text
    client.restore_run(run_id)
    (result,) = doctor_checks.check_outbox(resend=True)
    assert result.state == "ok"
    assert client.get_run(run_id).data.tags["late"] == "yes"
    assert list(doctor_checks.check_outbox()) == []


def test_check_open_runs_closes_stale_runs_and_reports_unresponsive_ones(open_run):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        gone = process_of(process.pid)
    stale, unresponsive, alive = (
        open_run(gone, minutes=1),
        open_run(ELSEWHERE, minutes=9),
        open_run(this_process(), minutes=9),
    )
    closed, reported = doctor_checks.check_open_runs()
    assert (stale in closed.text, unresponsive in reported.text) == (True, True)
    assert {result.state for result in (closed, reported)} == {"warning"}
    assert [status(run_id) for run_id in (stale, unresponsive, alive)] == ["FAILED", "RUNNING", "RUNNING"]


def test_close_runs_closes_a_run_of_another_host_with_the_reason(open_run):
    run_id = open_run(ELSEWHERE, minutes=9)
    (result,) = doctor_checks.close_runs((run_id,))
    assert result.state == "ok" and run_id in result.text
    run = mlflow.get_run(run_id)
    assert (run.info.status, run.data.tags[Tag.OUTCOME]) == ("FAILED", "failed")
    assert run.data.tags[Tag.OUTCOME_REASON].startswith("closed by hand: process ")
    assert (
        f"on another has sent no heartbeat for 9 min; `{project_command('train', '--resume', run_id)}`"
        in run.data.tags[Tag.OUTCOME_REASON]
    )
    with pytest.raises(UsageError, match="has ended as FAILED"):
        list(doctor_checks.close_runs((run_id,)))


@pytest.fixture(autouse=True)
def short_watch(monkeypatch):
    monkeypatch.setattr(stale_runs, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(stale_runs, "WATCH_PAUSE_SECONDS", 0.1)


@pytest.mark.parametrize("process", [this_process(), ELSEWHERE], ids=["here", "elsewhere"])
def test_close_runs_with_one_alive_closes_none(client, open_run, process):
    """One that this host cannot see is alive if it sends a heartbeat, whatever time that says."""
    alive, dead = open_run(process, minutes=9), open_run(ELSEWHERE, minutes=9)
    beating = threading.Timer(0.2, client.set_tag, [alive, Tag.HEARTBEAT, "2020-01-01T00:00:00+00:00"])
    beating.start()
    with pytest.raises(UsageError, match=f"{alive}.*stop that first"):
        list(doctor_checks.close_runs((dead, alive)))
    beating.join()
    assert status(dead) == "RUNNING"


def test_close_runs_with_an_unknown_id_is_refused():
    with pytest.raises(UsageError, match="close must name runs of this tracking store by their ids, got 'x'"):
        list(doctor_checks.close_runs(("x",)))


def test_check_environment_names_what_is_overridden():
    results = list(doctor_checks.check_environment({"KERAS_HOME": "/no/such/folder", "XLA_FLAGS": "--some"}))
    assert ("warning", "XLA_FLAGS='--some' is ignored: it would decide a result") in {
        (result.state, result.text) for result in results
    }


def test_check_environment_with_a_broken_keras_json_is_an_error(tmp_path):
    (tmp_path / "keras.json").write_text("[]")
    (result,) = doctor_checks.check_environment({"KERAS_HOME": str(tmp_path)})
    assert result.state == "error" and "must hold a JSON object" in result.text
