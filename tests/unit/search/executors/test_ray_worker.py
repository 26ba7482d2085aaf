"""The message queue between the tasks of a cluster and their driver."""

import asyncio
import os
import socket
import sys
from dataclasses import replace

import pytest

from pipeline.search.executors import ray_worker
from pipeline.search.executors.base import TrialJob
from pipeline.search.executors.local import LocalExecutor
from pipeline.search.executors.ray_worker import KILL, MessageQueue, TaskCheckpoint, TaskSpec, TaskStarted
from pipeline.search.executors.rung_checkpoints import CheckpointFile
from pipeline.search.executors.slots import CONTEXT_MIB, Gpu
from pipeline.tracking.outbox.delivery import import_records
from pipeline.tracking.outbox.records import LogBatch
from pipeline.tracking.outbox.spool import Spool
from pipeline.tracking.tags import RunRef, TrialOutcome
from tests.support import misbehaving
from tests.support.fake_ray import FakeRay
from tests.support.trial_driver import TINY


def test_receive_returns_requests_of_its_trial_in_order_even_if_sent_before():
    async def exchange():
        queue = MessageQueue()
        await queue.request(1, "pruned")
        await queue.request(1, "stopped")
        await queue.request(2, "kill")
        return [await queue.receive(1), await queue.receive(1), await queue.receive(2)]

    assert asyncio.run(exchange()) == ["pruned", "stopped", "kill"]


def test_drain_returns_each_message_once_and_wait_blocks_until_the_next():
    async def exchange():
        queue = MessageQueue()
        await queue.send(TaskStarted(1))
        await asyncio.wait_for(queue.wait(), 5)
        messages = await queue.drain()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.wait(), 0.05)
        return messages, await queue.drain()

    assert asyncio.run(exchange()) == ([TaskStarted(1)], [])


def test_close_ends_the_pending_receive_and_the_number_can_be_used_again():
    async def exchange():
        queue = MessageQueue()
        pending = asyncio.create_task(queue.receive(1))
        await asyncio.sleep(0)
        await queue.close(1)
        await asyncio.wait_for(pending, 5)
        await queue.close(2)  # no receive is pending
        await queue.request(1, "stopped")
        return await queue.receive(1)

    assert asyncio.run(exchange()) == "stopped"


@pytest.fixture
def spec(tmp_path):
    """A task of a job whose weights file does not exist on this node."""

    def make_spec(**changes):
        job = TrialJob(7, TINY, RunRef("", ""), "winner", weights=tmp_path / "driver" / "1.weights.npz")
        options = {
            "minutes": None,
            "cpus": 2,
            "trials_per_gpu": 1,
            "environment": {},
            "weights": b"weights",
            "checkpoint": None,
        }
        return TaskSpec(job, **(options | {"trial_function": misbehaving.do_nothing, "preloaded": ()} | changes))

    return make_spec


def test_local_weights_are_a_file_of_the_node_while_the_task_runs(spec, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ray_worker._local_files(spec()) as job:
        assert job.weights.read_bytes() == b"weights"
        assert job.weights.name == "1.weights.npz"
    assert not job.weights.exists()


@pytest.fixture
def run_task(monkeypatch, tmp_path):
    """Return a function that runs a task in this process, and returns its result and the messages for the driver."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fake = FakeRay()
    fake.get_gpu_ids = list
    monkeypatch.setitem(sys.modules, "ray", fake)
    executors = []

    def open_executor(trial_function, preloaded):
        executors.append(LocalExecutor([], trial_function=trial_function, preloaded=preloaded).__enter__())
        return executors[-1]

    monkeypatch.setattr(ray_worker, "_local_executor", open_executor)
    queue = fake.remote(MessageQueue).remote()

    def run(spec, *requests):
        for request in requests:
            queue.request.remote(7, request)
        result = ray_worker.run_task(spec, queue)
        fake.run_actors()
        return result, queue.instance

    yield run
    for executor in executors:
        executor.__exit__()
    fake.shutdown()


def test_run_task_sends_its_start_and_its_reports_and_returns_weights_of_a_final_and_unsent_records(
    spec, run_task, tmp_path
):
    made = spec(trial_function=misbehaving.write_weights, weights=None)
    Spool("run", destination="http://server").put(LogBatch("run", tags={"a": "b"}))
    job = replace(made.job, role="final", run=RunRef("", "run"))
    returned, queue = run_task(replace(made, job=job))
    assert (returned.result.outcome, returned.result.number) == (TrialOutcome.FINISHED, 7)
    assert returned.weights == b"weights"
    assert queue._messages == [TaskStarted(7)]
    assert not queue._requests, "nothing is left pending in the queue"
    assert not (tmp_path / "driver").exists()
    import_records("run", returned.records)
    assert [spooled.record.tags for spooled in Spool("run").pending()] == [{"a": "b"}]


def test_run_task_of_a_winner_gives_its_weights_to_the_trial_and_returns_none(spec, run_task):
    returned, _ = run_task(spec(trial_function=misbehaving.read_weights))
    assert (returned.result.metrics, returned.weights) == ({"bytes": len(b"weights")}, None)


def test_run_task_gives_the_checkpoint_to_the_trial_and_sends_those_that_it_saves(spec, run_task, tmp_path):
    made = spec(trial_function=misbehaving.save_checkpoint, checkpoint=CheckpointFile("epoch-000001.checkpoint", b"1"))
    _, queue = run_task(replace(made, job=replace(made.job, checkpoints=tmp_path / "driver" / "7")))
    assert queue._messages[1:] == [
        TaskCheckpoint(7, CheckpointFile("epoch-000002.checkpoint", b"1 and more")),
    ]
    assert not (tmp_path / "driver").exists()


def test_run_task_has_the_credentials_of_the_driver_and_forwards_reports(spec, run_task, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    made = spec(trial_function=misbehaving.three_epochs, environment={"MLFLOW_TRACKING_USERNAME": "me"})
    _, queue = run_task(made)
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me"
    assert [message.epoch for message in queue._messages[1:]] == [1, 2, 3]
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")


@pytest.mark.parametrize(
    ("request_", "outcome"),
    [
        (TrialOutcome.PRUNED, TrialOutcome.PRUNED),
        (TrialOutcome.STOPPED, TrialOutcome.STOPPED),
        (KILL, TrialOutcome.STOPPED),
    ],
)
def test_run_task_forwards_the_requests_of_the_driver(spec, run_task, request_, outcome):
    returned, _ = run_task(spec(trial_function=misbehaving.step_forever), request_)
    assert returned.result.outcome is outcome
    assert ("SIGKILL" in returned.result.reason) == (request_ == KILL)


def test_assigned_slot_names_the_host_and_has_the_cpus_of_the_task(spec):
    slot = ray_worker._assigned_slot(spec(), [])
    assert (slot.name, slot.gpu, slot.threads) == (f"{socket.gethostname()} CPU 1 of 1", None, 2)


def test_assigned_slot_is_a_share_of_the_gpu_that_ray_gave_to_the_task(spec, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(ray_worker, "find_gpus", lambda visible: [Gpu(visible, 24_000)])
    slot = ray_worker._assigned_slot(spec(trials_per_gpu=2), ["3"])
    assert (slot.gpu, slot.threads, slot.memory_mib) == ("3", 2, 24_000 // 2 - CONTEXT_MIB)
