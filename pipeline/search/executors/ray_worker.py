"""Ray's side of a trial: the task that runs it on a node, and the message queue between the node and the driver."""

import asyncio
import atexit
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeAlias

from pipeline.runtime.files import temporary_directory
from pipeline.search.executors.base import EpochReport, TrialJob, TrialResult
from pipeline.search.executors.local import LocalExecutor
from pipeline.search.executors.rung_checkpoints import CheckpointFile, newest_file, store_file
from pipeline.search.executors.slots import Slot, find_gpus, make_slots
from pipeline.search.executors.worker_process import TrialFunction
from pipeline.tracking.outbox.delivery import export_records
from pipeline.tracking.tags import TrialOutcome

# Interval at which a task looks for requests from the driver
POLL_SECONDS = 0.2

# Request beside PRUNED and STOPPED: kill the trial at once, whatever it is doing
KILL = "kill"


@dataclass(frozen=True)
class TaskSpec:
    """What a node needs to train a job."""

    job: TrialJob
    minutes: float | None
    cpus: int  # for this trial
    trials_per_gpu: int
    environment: Mapping[str, str]  # the tracking server's credentials
    weights: bytes | None  # with which a winner or an ensemble is evaluated
    checkpoint: CheckpointFile | None  # from which a trial goes on
    trial_function: TrialFunction
    preloaded: Sequence[str]


@dataclass(frozen=True)
class TaskStarted:
    """Message of a task that runs on a node."""

    number: int


@dataclass(frozen=True)
class TaskCheckpoint:
    """Message of a task whose trial has saved a checkpoint."""

    number: int
    file: CheckpointFile


@dataclass(frozen=True)
class TaskResult:
    """What a node returns of a trial."""

    result: TrialResult
    weights: bytes | None  # of a final
    records: bytes | None  # archive of the records that the tracking server has not taken


Message: TypeAlias = EpochReport | TaskStarted | TaskCheckpoint


def run_task(spec: TaskSpec, queue: Any) -> TaskResult:
    """Train a job on the resources that Ray gave to this task.

    Args:
        spec: the job and how to train it.
        queue: handle of a MessageQueue, which receives the epoch reports.
    """
    queue.send.remote(TaskStarted(spec.job.number))
    os.environ.update(spec.environment)
    with _local_files(spec) as job:
        result = _run_trial(replace(spec, job=job), queue)
        has_weights = job.role == "final" and job.weights and job.weights.exists()
        weights = job.weights.read_bytes() if job.weights and has_weights else None
    return TaskResult(result, weights, None if job.timed else export_records(job.run.run_id))


def _run_trial(spec: TaskSpec, queue: Any) -> TrialResult:
    """Run the trial in a local executor, forwarding its reports to the driver and the driver's requests to it."""
    import ray

    number = spec.job.number
    executor = _local_executor(spec.trial_function, tuple(spec.preloaded))
    executor.use_slots([_assigned_slot(spec, ray.get_gpu_ids())])
    executor.start(spec.job, minutes=spec.minutes)
    sent: list[Any] = []
    kept = spec.checkpoint.name if spec.checkpoint else ""
    request = queue.receive.remote(number)
    try:
        while True:
            events = executor.events(POLL_SECONDS)
            # kept by the driver: the trial may go on elsewhere, or lose this node
            if newest := newest_file(spec.job.checkpoints, known=kept):
                kept = newest.name
                sent.append(queue.send.remote(TaskCheckpoint(number, newest)))
            for event in events:
                if isinstance(event, TrialResult):
                    # the driver must have the reports before the result
                    ray.get([*sent, queue.close.remote(number)])
                    return event
                sent.append(queue.send.remote(event))
            if ray.wait([request], timeout=0)[0]:
                _forward_request(executor, number, ray.get(request))
                request = queue.receive.remote(number)
    finally:
        # runs no loop unless Ray interrupts the task
        while not executor.free():
            executor.stop_all(now=True)
            executor.events(POLL_SECONDS)


def _forward_request(executor: LocalExecutor, number: int, request: str) -> None:
    if request == TrialOutcome.PRUNED:
        executor.prune(number)
    elif request == KILL:
        executor.stop_all(now=True)
    else:
        executor.stop(number)


@cache
def _local_executor(trial_function: TrialFunction, preloaded: tuple[str, ...]) -> LocalExecutor:
    """Return an executor that stays open while Ray keeps this process: its fork server takes seconds to start."""
    executor = LocalExecutor([], trial_function=trial_function, preloaded=preloaded).__enter__()
    atexit.register(executor.__exit__)
    return executor


def _assigned_slot(spec: TaskSpec, gpus: Sequence[object]) -> Slot:
    """Return the slot of the GPU, the share of a GPU or the CPUs that Ray gave to this task."""
    devices = find_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")) if gpus else []
    shares = spec.trials_per_gpu if devices else 1
    first, *_ = make_slots(devices, trials_per_gpu=shares, workers=1, cores=spec.cpus * shares)
    return replace(first, name=f"{socket.gethostname()} {first.name}")


@contextmanager
def _local_files(spec: TaskSpec) -> Iterator[TrialJob]:
    """Yield the job with files for weights and checkpoints on this node in place of the driver's."""
    job = spec.job
    if job.weights is None and job.checkpoints is None:
        yield job
        return
    with temporary_directory("tasks") as folder:
        weights = job.weights and folder / job.weights.name
        if weights and spec.weights is not None:
            weights.write_bytes(spec.weights)
        checkpoints = job.checkpoints and folder / "rungs"
        if checkpoints and spec.checkpoint is not None:
            store_file(checkpoints, spec.checkpoint)
        yield replace(job, weights=weights, checkpoints=checkpoints)


class MessageQueue:
    """A Ray actor that passes messages from the trials to the driver, and requests from the driver to each trial.

    Each trial has one call of `receive` pending for as long as it runs.
    """

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._not_empty = asyncio.Event()
        self._requests: dict[int, asyncio.Queue[str]] = {}

    async def send(self, message: Message) -> None:
        """Add a message for the driver."""
        self._messages.append(message)
        self._not_empty.set()

    async def wait(self) -> None:
        """Wait until there is a message for the driver."""
        await self._not_empty.wait()

    async def drain(self) -> list[Message]:
        """Remove and return all messages for the driver."""
        messages, self._messages = self._messages, []
        self._not_empty.clear()
        return messages

    async def request(self, number: int, what: str) -> None:
        """Add a request for a trial: PRUNED, STOPPED or KILL."""
        await self._trial_queue(number).put(what)

    async def receive(self, number: int) -> str:
        """Wait for the next request for a trial, and return it."""
        return await self._trial_queue(number).get()

    async def close(self, number: int) -> None:
        """End the pending `receive` of a trial that has ended: it would occupy its place in the actor for good."""
        if queue := self._requests.pop(number, None):
            queue.put_nowait(KILL)

    def _trial_queue(self, number: int) -> "asyncio.Queue[str]":
        return self._requests.setdefault(number, asyncio.Queue())
