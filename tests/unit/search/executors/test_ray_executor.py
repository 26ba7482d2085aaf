"""Trials on fake and real Ray clusters whose nodes are lost, join, have GPUs, or cannot reach the runs."""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest

from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import ClusterLost, UsageError
from pipeline.search.executors import ray_executor
from pipeline.search.executors.base import EpochReport, TrialJob
from pipeline.search.executors.ray_executor import RayExecutor
from pipeline.search.executors.ray_worker import TaskCheckpoint, TaskResult, TaskStarted
from pipeline.search.executors.rung_checkpoints import CheckpointFile
from pipeline.tracking.outbox.delivery import export_records
from pipeline.tracking.outbox.records import LogBatch
from pipeline.tracking.outbox.spool import Spool
from pipeline.tracking.tags import RunRef, TrialOutcome
from tests.support import misbehaving
from tests.support.fake_ray import FakeRay, make_node
from tests.support.paths import ROOT
from tests.support.scripted import trial_result


def in_network_namespace(command):
    """Return the command that runs a command in a network namespace with a loopback device only."""
    inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
    return ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"]), *inside]


@pytest.mark.slow
@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:10001"])
def test_trials_of_lost_nodes_are_retried_on_a_node_that_joins(tmp_path, address):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -c requirements.lock -e '.[ray]'")
    if subprocess.run(in_network_namespace(["true"]), capture_output=True, check=False).returncode:
        pytest.skip("network namespaces are not allowed here, and such a cluster listens on all addresses")
    done = subprocess.run(
        in_network_namespace(
            [sys.executable, str(ROOT / "tests" / "support" / "ray_nodes.py"), str(tmp_path), address]
        ),
        # a home without a token: such a cluster requires none
        env=os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["left"] == 0, "the first two nodes were removed, so the third trained the rest"
    assert report["before"] == "2 at a time on 2 nodes of Ray"
    assert report["ending"] == "its 6 trials are done"
    complete = [rate for rate, state in zip(report["params"], report["states"], strict=True) if state == "COMPLETE"]
    lost = [rate for rate, state in zip(report["params"], report["states"], strict=True) if state == "FAIL"]
    assert len(complete) == len(set(complete)) == 6
    assert 2 <= len(lost) <= 4, "a task may be sent to a node once more before Ray knows that the node is lost"
    assert set(lost) <= set(complete), "each is trained again"
    assert report["runs"] == [["FAILED", "node lost"]] * len(lost) + [["FINISHED", ""]] * 6
    assert sum("node lost: its node was lost" in line for line in report["lines"]) == len(lost)


def test_start_passes_the_fingerprint_of_the_data_to_the_task(connected):
    executor, ray = connected(fingerprint="of the driver's")
    executor.start(JOB, minutes=None)
    assert ray.specs[0].job.fingerprint == "of the driver's"


JOB = TrialJob(7, TrainingConfig.build({"dataset": "digits"}), RunRef("http://server", "run"), "trial")


@pytest.fixture
def connected(monkeypatch):
    """Return a function that opens an executor on a FakeRay with the given nodes; it returns both."""
    with ExitStack() as stack:

        def connect(*nodes, **changes):
            ray = FakeRay(*nodes)
            monkeypatch.setattr("pipeline.search.executors.ray_executor.connect", ray.connect)
            options = {"fingerprint": None, "trials_per_gpu": 1, "trials": None, "tracking_uri": "http://server"}
            return stack.enter_context(RayExecutor("auto", **(options | changes))), ray

        yield connect


def test_start_passes_what_the_node_needs_to_the_task(connected, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    monkeypatch.setenv("MLFLOW_RUN_ID", "of the driver")
    executor, ray = connected(make_node(cpus=8, gpus=1), trials_per_gpu=2)
    executor.start(JOB, minutes=1.5)
    spec = ray.specs[0]
    assert (spec.minutes, spec.cpus, spec.trials_per_gpu, spec.weights) == (1.5, 4, 2, None)
    assert spec.environment == {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "secret"}
    assert (ray.options[0]["num_gpus"], ray.options[0]["max_retries"]) == (0.5, 0)


def test_weights_go_to_the_node_of_a_winner_and_come_back_from_that_of_a_final(connected, tmp_path):
    weights = tmp_path / "1-0.weights.npz"
    executor, ray = connected(make_node(cpus=16))
    executor.start(replace(JOB, role="final", weights=weights), minutes=None)
    ray.tasks[0].set_result(TaskResult(trial_result(JOB), b"trained", None))
    executor.events(0)
    assert weights.read_bytes() == b"trained"
    for role in ("winner", "final"):
        executor.start(replace(JOB, role=role, weights=weights), minutes=None)
    assert [spec.weights for spec in ray.specs] == [None, b"trained", None]


def test_checkpoints_of_a_node_are_kept_and_go_to_the_next_one(connected, tmp_path):
    executor, ray = connected(make_node(cpus=16))
    job = replace(JOB, checkpoints=tmp_path / "7", rungs=(1,))
    executor.start(job, minutes=None)
    file = CheckpointFile("epoch-000001.checkpoint", b"saved")
    executor._queue.send.remote(TaskCheckpoint(7, file))
    assert executor.events(0) == []
    ray.tasks[0].set_exception(ray.exceptions.NodeDiedError("gone"))
    assert [event.outcome for event in executor.events(0)] == [TrialOutcome.LOST]
    executor.start(replace(job, number=8, resume=True), minutes=None)
    assert [spec.checkpoint for spec in ray.specs] == [None, file]


def test_trials_bounds_the_slots_without_gpus_only(connected, uncached_nodes):
    executor, ray = connected(make_node(cpus=64), trials=3)
    assert executor.free() == 3
    ray.node_list = [make_node(cpus=64, gpus=8)]
    assert executor.free() == 8


def test_events_waits_for_new_messages_after_it_has_returned_the_others(connected):
    executor, _ = connected()
    executor.start(JOB, minutes=None)
    executor._queue.send.remote(EpochReport(7, 1, {"val_accuracy": 0.5}))
    assert len(executor.events(0)) == 1
    assert not executor._queue_not_empty.done()


def test_repeated_stop_all_does_not_postpone_the_kill_of_an_unresponsive_worker(connected, monkeypatch):
    executor, ray = connected()
    executor.start(JOB, minutes=None)
    executor._queue.send.remote(TaskStarted(7))
    executor.events(0)
    now = time.monotonic()
    # a driver that was interrupted asks again at each of its looks for events
    for seconds in range(int(ray_executor.UNRESPONSIVE_SECONDS) + 2):
        monkeypatch.setattr(ray_executor.time, "monotonic", lambda seconds=seconds: now + seconds)
        executor.stop_all(now=True)
        executor.events(0)
    assert ray.cancelled == ["killed"]


def test_events_drops_messages_of_trials_that_have_ended(connected):
    executor, ray = connected()
    executor.start(JOB, minutes=None)
    ray.tasks[0].set_exception(ray.exceptions.NodeDiedError("gone"))
    assert [event.outcome for event in executor.events(0)] == [TrialOutcome.LOST]
    late, other = EpochReport(7, 2, {"val_accuracy": 0.5}), EpochReport(8, 1, {"val_accuracy": 0.5})
    executor.start(replace(JOB, number=8), minutes=None)
    # from a node that was declared dead and continued
    for message in (late, other):
        executor._queue.send.remote(message)
    assert executor.events(0) == [other]


def test_result_closes_the_pending_receive_of_its_trial(connected):
    executor, ray = connected()
    executor.start(JOB, minutes=None)
    pending = executor._queue.receive.remote(7)  # as its node does
    assert not pending.done()
    ray.tasks[0].set_exception(ray.exceptions.NodeDiedError("gone"))
    executor.events(0)
    executor.prune(7)  # too late
    ray.run_actors()
    assert pending.done() and not executor._queue.instance._requests


@pytest.mark.parametrize("error", ["ConnectionError", "RayError"])
def test_lost_head_node_loses_all_trials_then_raises_cluster_lost(connected, error):
    executor, ray = connected(make_node(cpus=8))
    executor.start(JOB, minutes=None)
    executor.start(replace(JOB, number=8), minutes=None)
    ray.error = (
        ConnectionError("Client is shutting down.") if error == "ConnectionError" else ray.exceptions.RayError("-")
    )
    assert executor.free() == 0
    executor.start(replace(JOB, number=9), minutes=None)
    executor.prune(7)
    executor.stop_all(now=True)
    lost = executor.events(0)
    assert [(event.number, event.outcome) for event in lost] == [(number, TrialOutcome.LOST) for number in (7, 8, 9)]
    assert lost[0].reason.startswith(f"the cluster's head node was lost: {error}: ")
    for call in (executor.free, lambda: executor.events(0)):
        with pytest.raises(ClusterLost, match="^cluster must keep its head node.*: start the cluster again, then "):
            call()
    assert executor.describe() == "0 at a time on 0 nodes of Ray"


def test_trial_that_ends_as_the_head_node_is_lost_has_one_result(connected):
    executor, ray = connected(make_node(cpus=8))
    executor.start(JOB, minutes=None)
    executor.start(replace(JOB, number=8), minutes=None)
    ray.tasks[0].set_result(TaskResult(trial_result(JOB), None, None))
    ray.tasks[1].set_exception(ConnectionError("Client is shutting down."))  # as its result is fetched
    assert [(event.number, event.outcome) for event in executor.events(0)] == [
        (7, TrialOutcome.LOST),
        (8, TrialOutcome.LOST),
    ]


def test_unresponsive_worker_is_killed_with_its_process(connected, monkeypatch):
    monkeypatch.setattr("pipeline.search.executors.ray_executor.UNRESPONSIVE_SECONDS", 0)
    executor, ray = connected()
    executor.start(JOB, minutes=None)
    executor._queue.send.remote(TaskStarted(7))
    executor.stop_all(now=False)
    assert ray.cancelled == ["cancelled"], "its message that it has started was not read yet"
    executor.start(replace(JOB, number=8), minutes=None)
    executor._queue.send.remote(TaskStarted(8))
    assert [event.number for event in executor.events(0)] == [7]
    executor.stop_all(now=False)
    executor.events(0)
    assert ray.cancelled == ["cancelled"], "it ends after its step"
    executor.stop_all(now=True)
    assert [(event.number, event.outcome) for event in executor.events(0)] == [(8, TrialOutcome.STOPPED)]
    assert ray.cancelled == ["cancelled", "killed"]


@pytest.fixture
def uncached_nodes(monkeypatch):
    """List the nodes anew at every call."""
    monkeypatch.setattr("pipeline.search.executors.ray_executor.REFRESH_SECONDS", -1)


def test_trials_wait_for_gpus_once_the_cluster_has_had_some(connected, uncached_nodes, caplog):
    executor, ray = connected(make_node(cpus=8), make_node(cpus=8, gpus=2))
    assert executor.free() == 2
    executor.start(JOB, minutes=None)
    ray.node_list = [make_node(cpus=8)]  # spot machines are taken away
    assert executor.free() == executor.free() == 0
    assert [record.message for record in caplog.records] == [
        "waiting for a node with a GPU, as the cluster has none now: trials do not go to its CPUs"
    ]
    executor.start(replace(JOB, number=8), minutes=None)
    assert [options["num_gpus"] for options in ray.options] == [1, 1]
    assert [options["num_cpus"] for options in ray.options] == [4, 4]
    ray.node_list = [make_node(cpus=8), make_node(cpus=4, gpus=4)]
    assert executor.free() == 4 - 2


def test_restore_with_used_gpus_makes_trials_wait_for_gpus(connected, uncached_nodes, caplog):
    executor, ray = connected(make_node(cpus=8))
    executor.restore(used_gpus=True, on_first_gpu=pytest.fail)
    assert executor.free() == 0 and "waiting for a node with a GPU" in caplog.text
    ray.node_list = [make_node(cpus=8), make_node(cpus=8, gpus=2)]
    assert executor.free() == 2


def test_restore_without_used_gpus_calls_on_first_gpu_once(connected, uncached_nodes):
    notes = []
    executor, ray = connected(make_node(cpus=8))
    executor.restore(used_gpus=False, on_first_gpu=lambda: notes.append("GPUs"))
    assert executor.free() == 2 and notes == []
    ray.node_list = [make_node(cpus=8), make_node(cpus=8, gpus=2)]
    assert executor.free() == executor.free() == 2 and notes == ["GPUs"]


def test_several_trials_per_gpu_wait_for_the_first_gpu(connected, uncached_nodes, caplog):
    executor, ray = connected(make_node(cpus=8), trials_per_gpu=2)
    assert executor.free() == 0 and len(caplog.records) == 1
    ray.node_list = [make_node(cpus=8), make_node(cpus=8, gpus=1)]
    assert executor.free() == 2


def test_cluster_without_gpus_runs_trials_on_cpus(connected, uncached_nodes, caplog):
    executor, ray = connected(make_node(cpus=8), make_node(cpus=2))
    assert executor.free() == 4 + 1 and not caplog.records
    executor.start(JOB, minutes=None)
    assert ray.options[0] == {"num_cpus": 2, "num_gpus": 0, "max_retries": 0, "resources": {}}


@pytest.mark.slow
def test_stop_all_now_ends_trial_whose_node_is_still_importing(monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -c requirements.lock -e '.[ray]'")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    given = {"fingerprint": None, "trials_per_gpu": 1, "trials": 1}
    with RayExecutor(
        "local", **given, trial_function=misbehaving.do_nothing, preloaded=["tests.support.slow_import"]
    ) as executor:
        executor.start(JOB, minutes=None)
        while not executor._tasks[7].started:
            executor.events(1)
        started, events = time.monotonic(), []
        while not events:
            executor.stop_all(now=True)
            events = executor.events(1)
        assert events[0].outcome is TrialOutcome.STOPPED and time.monotonic() - started < 20


@pytest.mark.parametrize("uri", ["sqlite:////home/me/mlflow.db", "file:///home/me/mlruns", "/home/me/mlruns", ""])
def test_nodes_that_cannot_reach_the_runs_raise_usage_error_of_one_line(monkeypatch, uri):
    ray = FakeRay(make_node(), make_node(host="gpu-2"), make_node(cpus=0, host="head"), make_node(host="gpu-1"))
    monkeypatch.setattr("pipeline.search.executors.ray_executor.connect", ray.connect)
    executor = RayExecutor("auto", fingerprint=None, trials_per_gpu=1, trials=None, tracking_uri=uri)
    with (
        pytest.raises(UsageError, match=r"^MLFLOW_TRACKING_URI must be a server.* \(gpu-1, gpu-2\): got ") as refused,
        executor,
    ):
        pass
    assert "\n" not in str(refused.value) and ray.is_shut_down


@pytest.mark.parametrize(
    ("uri", "host"),
    [("sqlite:////home/me/mlflow.db", None), ("https://mlflow.example", "gpu-1"), ("postgresql://me@db/runs", "gpu-1")],
)
def test_tracking_uri_that_all_nodes_reach_is_accepted(connected, uri, host):
    executor, _ = connected(make_node(), make_node(host=host), make_node(cpus=0, host="head"), tracking_uri=uri)
    assert executor.free() == 2


def test_node_that_joins_without_reaching_the_runs_is_not_used(connected, uncached_nodes, caplog):
    executor, ray = connected(make_node(), tracking_uri="sqlite:////home/me/mlflow.db")
    ray.node_list = [make_node(), make_node(cpus=8, host="gpu-1")]
    assert executor.free() == executor.free() == 1
    assert [record.message for record in caplog.records] == [
        "a node on another host (gpu-1) is not used, as it does not reach the runs"
    ]
    executor.start(JOB, minutes=None)
    assert ray.options[0]["resources"] == {"node:127.0.0.1": 0.001}, "and Ray sends nothing there"


@pytest.mark.parametrize("disk", ["there", "full"])
def test_unsent_records_of_a_node_are_imported_before_its_result_is_returned(
    connected, monkeypatch, tmp_path, caplog, disk
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
    Spool("run", destination="http://server").put(LogBatch("run", tags={"a": "b"}))
    done = TaskResult(trial_result(JOB), None, export_records("run"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "driver"))
    if disk == "full":
        (tmp_path / "driver").write_text("no folder")
    executor, ray = connected()
    executor.start(JOB, minutes=None)
    ray.tasks[0].set_result(done)
    assert [event.outcome for event in executor.events(0)] == [TrialOutcome.FINISHED]
    if disk == "full":
        assert caplog.records[0].message.startswith("records of run run from its node are lost: ")
    else:
        assert [spooled.record.tags for spooled in Spool("run").pending()] == [{"a": "b"}]
