"""A search on a real Ray cluster whose nodes are lost and join, in a network of its own."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest

from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import ClusterLost, UsageError
from pipeline.search.executors.base import EpochReport, TrialJob
from pipeline.search.executors.ray_executor import RayExecutor, result_from_ray_error, summary_line
from pipeline.search.executors.ray_worker import TaskResult, TaskStarted
from pipeline.search.executors.trial import load_trial_data
from pipeline.tracking.outbox.delivery import export_records
from pipeline.tracking.outbox.records import LogBatch
from pipeline.tracking.outbox.spool import Spool
from pipeline.tracking.tags import RunRef, TrialOutcome
from tests.support import misbehaving
from tests.support.fake_ray import FakeRay, make_node
from tests.support.paths import ROOT
from tests.support.scripted import trial_result


def apart(command):
    """The command in a network namespace of its own, of which the loopback device is all there is."""
    inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
    return ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"]), *inside]


@pytest.mark.slow
@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:10001"])
def test_trials_of_lost_nodes_are_trained_again_and_a_node_that_joins_is_used(tmp_path, address):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -c requirements.lock -e '.[ray]'")
    if subprocess.run(apart(["true"]), capture_output=True, check=False).returncode:
        pytest.skip("network namespaces are not allowed here, and such a cluster listens on all addresses")
    path = str(ROOT)
    done = subprocess.run(
        apart([sys.executable, str(ROOT / "tests" / "support" / "ray_nodes.py"), str(tmp_path), address]),
        env=os.environ | {"PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["left"] == 0, "both of the first two nodes were killed, so the third trained the rest"
    assert told["before"] == "2 at a time on 2 nodes of Ray"
    assert told["ending"] == "its 6 trials are done"
    complete = [rate for rate, state in zip(told["params"], told["states"], strict=True) if state == "COMPLETE"]
    lost = [rate for rate, state in zip(told["params"], told["states"], strict=True) if state == "FAIL"]
    assert len(complete) == len(set(complete)) == 6
    assert 2 <= len(lost) <= 4, "a task may be sent once more to a node before that is known to be lost"
    assert set(lost) <= set(complete), "each is trained again"
    assert told["runs"] == [["FAILED", "node lost"]] * len(lost) + [["FINISHED", ""]] * 6
    assert sum("node lost: its node was lost" in line for line in told["said"]) == len(lost)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "dataset must hold the same images on every node: digits is another for the driver, got "),
        ({"dataset": "/no/such/folder"}, "dataset"),
    ],
)
def test_a_node_refuses_to_train_on_other_images_than_the_drivers_and_says_which_node(settings, reason):
    config = TrainingConfig.build({"dataset": "digits"} | settings)
    job = TrialJob(7, config, RunRef("", ""), "trial", fingerprint="another")
    with pytest.raises(UsageError) as refused:
        load_trial_data(job)
    assert str(refused.value).startswith(f"on {socket.gethostname()}: {reason}")


def test_trials_are_told_which_images_their_driver_has(began):
    cluster, ray = began(fingerprint="of the driver's")
    cluster.start(JOB, minutes=None)
    assert ray.specs[0].job.fingerprint == "of the driver's"


def test_a_cluster_that_is_not_there_is_refused_in_one_line(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster = RayExecutor("auto", fingerprint=None, trials_per_gpu=1, trials=None)
    with pytest.raises(UsageError, match=r"^cluster must be auto .* got auto: ") as refused, cluster:
        pass
    assert "\n" not in str(refused.value)


def test_without_ray_it_is_said_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    cluster = RayExecutor("local", fingerprint=None, trials_per_gpu=1, trials=None)
    with pytest.raises(UsageError, match=r"cluster needs Ray: pip install .*\.\[ray\]"), cluster:
        pass


JOB = TrialJob(7, TrainingConfig.build({"dataset": "digits"}), RunRef("http://server", "run"), "trial")


@pytest.fixture
def began(monkeypatch):
    """Begins a cluster of made nodes; yields what does so, which returns it and its stand-in for Ray."""
    with ExitStack() as life:

        def begin(*nodes, **more):
            ray = FakeRay(*nodes)
            monkeypatch.setattr("pipeline.search.executors.ray_executor._connect", lambda address: ray)
            given = {"fingerprint": None, "trials_per_gpu": 1, "trials": None, "tracking_uri": "http://server"} | more
            return life.enter_context(RayExecutor("auto", **given)), ray

        yield begin


def test_what_a_trial_says_after_its_end_is_not_passed_on(began):
    cluster, ray = began()
    cluster.start(JOB, minutes=None)
    ray.tasks[0].set_exception(ray.exceptions.NodeDiedError("gone"))
    assert [event.outcome for event in cluster.events(0)] == [TrialOutcome.LOST]
    late, other = EpochReport(7, 2, {"val_accuracy": 0.5}), EpochReport(8, 1, {"val_accuracy": 0.5})
    cluster.start(replace(JOB, number=8), minutes=None)
    for told in (late, other):  # by a node that was taken for dead, and went on
        cluster._queue.send.remote(told)
    assert cluster.events(0) == [other]


def test_a_trial_that_has_ended_leaves_nothing_pending_in_the_mailbox(began):
    cluster, ray = began()
    cluster.start(JOB, minutes=None)
    pending = cluster._queue.receive.remote(7)  # as its node does
    assert not pending.done()
    ray.tasks[0].set_exception(ray.exceptions.NodeDiedError("gone"))
    cluster.events(0)
    cluster.prune(7)  # too late
    ray.run_actors()
    assert pending.done() and not cluster._queue.instance._requests


@pytest.mark.parametrize("error", ["ConnectionError", "RayError"])
def test_with_the_head_node_all_trials_are_lost_and_then_it_is_said_what_to_do(began, error):
    cluster, ray = began(make_node(cpus=8))
    cluster.start(JOB, minutes=None)
    cluster.start(replace(JOB, number=8), minutes=None)
    ray.error = (
        ConnectionError("Client is shutting down.") if error == "ConnectionError" else ray.exceptions.RayError("-")
    )
    assert cluster.free() == 0
    cluster.start(replace(JOB, number=9), minutes=None)
    cluster.prune(7)
    cluster.stop_all(now=True)
    lost = cluster.events(0)
    assert [(event.number, event.outcome) for event in lost] == [(number, TrialOutcome.LOST) for number in (7, 8, 9)]
    assert lost[0].reason.startswith(f"the cluster's head node was lost: {error}: ")
    for asked in (cluster.free, lambda: cluster.events(0)):
        with pytest.raises(ClusterLost, match="^cluster must keep its head node.*: start the cluster again, then "):
            asked()
    assert cluster.describe() == "0 at a time on 0 nodes of Ray"


def test_a_trial_that_ended_as_the_head_node_was_lost_is_told_once(began):
    cluster, ray = began(make_node(cpus=8))
    cluster.start(JOB, minutes=None)
    cluster.start(replace(JOB, number=8), minutes=None)
    ray.tasks[0].set_result(TaskResult(trial_result(JOB), None, None))
    ray.tasks[1].set_exception(ConnectionError("Client is shutting down."))  # as its result is fetched
    assert [(event.number, event.outcome) for event in cluster.events(0)] == [
        (7, TrialOutcome.LOST),
        (8, TrialOutcome.LOST),
    ]


def test_a_node_that_is_deaf_to_a_kill_loses_the_process_that_should_have_heard_it(began, monkeypatch):
    monkeypatch.setattr("pipeline.search.executors.ray_executor.UNRESPONSIVE_SECONDS", 0)
    cluster, ray = began()
    cluster.start(JOB, minutes=None)
    cluster._queue.send.remote(TaskStarted(7))
    cluster.stop_all(now=False)
    assert ray.cancelled == ["cancelled"], "it had not been heard that it has a place"
    cluster.start(replace(JOB, number=8), minutes=None)
    cluster._queue.send.remote(TaskStarted(8))
    assert [event.number for event in cluster.events(0)] == [7]
    cluster.stop_all(now=False)
    cluster.events(0)
    assert ray.cancelled == ["cancelled"], "it ends after its step"
    cluster.stop_all(now=True)
    assert [(event.number, event.outcome) for event in cluster.events(0)] == [(8, TrialOutcome.STOPPED)]
    assert ray.cancelled == ["cancelled", "killed"]


@pytest.fixture
def looking(monkeypatch):
    """Has the nodes looked at whenever they are asked for."""
    monkeypatch.setattr("pipeline.search.executors.ray_executor.REFRESH_SECONDS", -1)


def test_a_search_that_has_used_gpus_waits_for_some_rather_than_fall_to_the_cpus_of_the_head(began, looking, caplog):
    cluster, ray = began(make_node(cpus=8), make_node(cpus=8, gpus=2))
    assert cluster.free() == 2
    cluster.start(JOB, minutes=None)
    ray.node_list = [make_node(cpus=8)]  # spot machines are taken away
    assert cluster.free() == cluster.free() == 0
    assert [record.message for record in caplog.records] == [
        "waiting for a node with a GPU, as the cluster has none now: trials do not go to its CPUs"
    ]
    cluster.start(replace(JOB, number=8), minutes=None)  # which comes to its place when there is one
    assert [options["num_gpus"] for options in ray.options] == [1, 1]
    assert [options["num_cpus"] for options in ray.options] == [4, 4]
    ray.node_list = [make_node(cpus=8), make_node(cpus=4, gpus=4)]
    assert cluster.free() == 4 - 2


def test_what_an_earlier_driver_had_is_what_trials_wait_for(began, looking, caplog):
    cluster, ray = began(make_node(cpus=8))
    cluster.restore(used_gpus=True, on_first_gpu=pytest.fail)
    assert cluster.free() == 0 and "waiting for a node with a GPU" in caplog.text
    ray.node_list = [make_node(cpus=8), make_node(cpus=8, gpus=2)]
    assert cluster.free() == 2


def test_that_there_are_gpus_is_noted_once_and_not_before_there_are(began, looking):
    notes = []
    cluster, ray = began(make_node(cpus=8))
    cluster.restore(used_gpus=False, on_first_gpu=lambda: notes.append("GPUs"))
    assert cluster.free() == 2 and notes == []
    ray.node_list = [make_node(cpus=8), make_node(cpus=8, gpus=2)]
    assert cluster.free() == cluster.free() == 2 and notes == ["GPUs"]


def test_who_asks_for_several_trials_a_gpu_waits_for_the_first_gpu(began, looking, caplog):
    cluster, ray = began(make_node(cpus=8), trials_per_gpu=2)
    assert cluster.free() == 0 and len(caplog.records) == 1
    ray.node_list = [make_node(cpus=8), make_node(cpus=8, gpus=1)]
    assert cluster.free() == 2


def test_a_cluster_without_gpus_trains_on_cpus(began, looking, caplog):
    cluster, ray = began(make_node(cpus=8), make_node(cpus=2))
    assert cluster.free() == 4 + 1 and not caplog.records
    cluster.start(JOB, minutes=None)
    assert ray.options[0] == {"num_cpus": 2, "num_gpus": 0, "max_retries": 0, "resources": {}}


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_trial_whose_node_is_still_importing(monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -c requirements.lock -e '.[ray]'")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    given = {"fingerprint": None, "trials_per_gpu": 1, "trials": 1}
    with RayExecutor(
        "local", **given, trial_function=misbehaving.do_nothing, preloaded=["tests.support.slow_import"]
    ) as cluster:
        cluster.start(JOB, minutes=None)
        while not cluster._tasks[7].started:
            cluster.events(1)
        began, heard = time.monotonic(), []
        while not heard:
            cluster.stop_all(now=True)
            heard = cluster.events(1)
        assert heard[0].outcome is TrialOutcome.STOPPED and time.monotonic() - began < 20


@pytest.mark.parametrize("uri", ["sqlite:////home/me/mlflow.db", "file:///home/me/mlruns", "/home/me/mlruns", ""])
def test_nodes_on_other_hosts_are_refused_in_one_line_where_they_could_not_tell_what_they_train(monkeypatch, uri):
    ray = FakeRay(make_node(), make_node(host="gpu-2"), make_node(cpus=0, host="head"), make_node(host="gpu-1"))
    monkeypatch.setattr("pipeline.search.executors.ray_executor._connect", lambda address: ray)
    cluster = RayExecutor("auto", fingerprint=None, trials_per_gpu=1, trials=None, tracking_uri=uri)
    with (
        pytest.raises(UsageError, match=r"^MLFLOW_TRACKING_URI must be a server.* \(gpu-1, gpu-2\): got ") as refused,
        cluster,
    ):
        pass
    assert "\n" not in str(refused.value) and ray.is_shut_down


@pytest.mark.parametrize(
    ("uri", "host"),
    [("sqlite:////home/me/mlflow.db", None), ("https://mlflow.example", "gpu-1"), ("postgresql://me@db/runs", "gpu-1")],
)
def test_a_file_of_runs_does_for_one_host_and_a_server_for_several(began, uri, host):
    cluster, _ = began(make_node(), make_node(host=host), make_node(cpus=0, host="head"), tracking_uri=uri)
    assert cluster.free() == 2


def test_a_node_that_joins_later_and_does_not_reach_the_runs_is_not_used(began, looking, caplog):
    cluster, ray = began(make_node(), tracking_uri="sqlite:////home/me/mlflow.db")
    ray.node_list = [make_node(), make_node(cpus=8, host="gpu-1")]
    assert cluster.free() == cluster.free() == 1
    assert [record.message for record in caplog.records] == [
        "a node on another host (gpu-1) is not used, as it does not reach the runs"
    ]
    cluster.start(JOB, minutes=None)
    assert ray.options[0]["resources"] == {"node:127.0.0.1": 0.001}, "and Ray sends nothing there"


@pytest.mark.parametrize("disk", ["there", "full"])
def test_what_a_node_could_not_tell_of_a_trial_lies_with_the_driver_when_its_end_is_known(
    began, monkeypatch, tmp_path, caplog, disk
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
    Spool("run", destination="http://server").put(LogBatch("run", tags={"a": "b"}))
    done = TaskResult(trial_result(JOB), None, export_records("run"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "driver"))
    if disk == "full":
        (tmp_path / "driver").write_text("no folder")
    cluster, ray = began()
    cluster.start(JOB, minutes=None)
    ray.tasks[0].set_result(done)
    assert [event.outcome for event in cluster.events(0)] == [TrialOutcome.FINISHED]
    if disk == "full":
        assert caplog.records[0].message.startswith("records of run run from its node are lost: ")
    else:
        assert [spooled.record.tags for spooled in Spool("run").pending()] == [{"a": "b"}]


NO_JOB = TrialJob(7, TrainingConfig.build({"dataset": "digits"}), RunRef("", ""), "trial")
SETUP = """[Node 10.0.0.7] Traceback (most recent call last):
  File "protocol.py", line 230, in _handle_http_protocol
ModuleNotFoundError: No module named 'smart_open'

Traceback (most recent call last):
  File "packaging.py", line 992, in download
    protocol.download_remote_uri(source_uri=pkg_uri)
OSError: [Errno 28] No space left on device
and more of it
"""


def of(name, *given):
    errors = pytest.importorskip("ray").exceptions
    return result_from_ray_error(NO_JOB, getattr(errors, name)(*given), errors)


@pytest.mark.parametrize(
    ("name", "given"), [("NodeDiedError", ["gone"]), ("WorkerCrashedError", []), ("LocalRayletDiedError", [])]
)
def test_a_lost_node_is_told_as_such(name, given):
    ended = of(name, *given)
    assert (ended.outcome, ended.reason, ended.retryable) == (TrialOutcome.LOST, f"its node was lost: {name}", True)


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("RuntimeEnvSetupError", [SETUP], "RuntimeEnvSetupError: OSError: [Errno 28] No space left on device"),
        ("RuntimeEnvSetupError", ["no pip\\nhere"], "RuntimeEnvSetupError: no pip\\nhere"),
        ("TaskUnschedulableError", ["gone"], "TaskUnschedulableError: The task is not schedulable: gone"),
    ],
)
def test_what_is_no_loss_of_a_node_is_told_with_its_reason_and_tried_again(name, given, reason):
    ended = of(name, *given)
    assert (ended.outcome, ended.reason, ended.retryable) == (TrialOutcome.RAISED, reason, True)
    assert given[0] in ended.output_tail


def test_what_the_task_itself_raised_and_a_want_of_memory_are_told_as_such():
    quoted = (
        'Traceback (most recent call last):\n  File "node.py", line 9\n    1 / 0\nZeroDivisionError: division by zero'
    )
    ended = of("RayTaskError", "carry_out", quoted, ZeroDivisionError("division by zero"))
    assert (ended.outcome, ended.reason) == (TrialOutcome.RAISED, "ZeroDivisionError: division by zero")
    assert not ended.retryable
    assert of("OutOfMemoryError", "low on memory\nmore").reason == "OutOfMemoryError: low on memory"


def test_an_error_without_words_is_no_line():
    assert summary_line(ValueError("")) == ""
