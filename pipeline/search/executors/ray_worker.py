"""A trial on a node of a Ray cluster: it runs there as it would on its driver's machine."""

import asyncio
import atexit
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.runtime.files import private_folder
from pipeline.search.executors.base import EpochReport, TrialJob, TrialResult
from pipeline.search.executors.local import LocalExecutor
from pipeline.search.executors.slots import Slot, find_gpus, slots
from pipeline.search.executors.worker_process import Work
from pipeline.tracking.outbox.delivery import export_records
from pipeline.tracking.tags import TrialOutcome

POLL_SECONDS = 0.2  # until a trial hears what it was asked
KILL = "kill"  # beside the outcomes that a trial can be asked for: at once, in the middle of whatever it does


@dataclass(frozen=True)
class TaskSpec:
    """All that a node needs to train a job."""

    job: TrialJob
    minutes: float | None
    cpus: int  # for this trial
    trials_per_gpu: int
    environment: Mapping[str, str]  # how to reach the tracking server: a user, a password
    weights: bytes | None  # what a winner is measured with
    work: Work
    preloaded: Sequence[str]


@dataclass(frozen=True)
class TaskStarted:
    """A trial has found its node."""

    number: int


@dataclass(frozen=True)
class TaskResult:
    """What a node hands back of a trial."""

    ended: TrialResult
    weights: bytes | None  # of a final
    untold: bytes | None  # what the tracking server has not taken, as a parcel


def run_task(order: TaskSpec, mailbox: Any) -> TaskResult:
    """Train an order's job in this process's slot, and tell the mailbox of it.

    Args:
        mailbox: handle of a `pipeline.search.executors.ray_worker.MessageQueue`.
    """
    mailbox.tell.remote(TaskStarted(order.job.number))
    os.environ.update(order.environment)
    with _weights(order) as job:
        ended = _train(replace(order, job=job), mailbox)
        trained = job.role == "final" and job.weights and job.weights.exists()
        weights = job.weights.read_bytes() if job.weights and trained else None
    return TaskResult(ended, weights, None if job.timed else export_records(job.run.run_id))


def _train(order: TaskSpec, mailbox: Any) -> TrialResult:
    import ray

    number, local = order.job.number, _local(order.work, tuple(order.preloaded))
    slot = _slot(order, ray.get_gpu_ids())
    local.place([slot])
    local.start(order.job, minutes=order.minutes)
    told: list[Any] = []
    asked = mailbox.asked.remote(number)
    try:
        while True:
            for event in local.events(POLL_SECONDS):
                if isinstance(event, TrialResult):
                    ray.get([*told, mailbox.over.remote(number)])  # the driver must hear the reports first
                    return event
                told = [*told, mailbox.tell.remote(event)]
            if ray.wait([asked], timeout=0)[0]:
                _ask(local, number, ray.get(asked))
                asked = mailbox.asked.remote(number)
    finally:  # where Ray breaks off the task
        while not local.free():
            local.stop_all(now=True)
            local.events(POLL_SECONDS)


def _ask(local: LocalExecutor, number: int, what: str) -> None:
    if what == TrialOutcome.PRUNED:
        local.prune(number)
    elif what == KILL:
        local.stop_all(now=True)
    else:
        local.stop(number)


@cache
def _local(work: Work, preloaded: tuple[str, ...]) -> LocalExecutor:
    """One executor for as long as Ray keeps this process: its fork server takes seconds to start."""
    local = LocalExecutor([], work=work, preloaded=preloaded).__enter__()
    atexit.register(local.__exit__)
    return local


def _slot(order: TaskSpec, gpus: Sequence[object]) -> Slot:
    """The GPU, or share of one, that Ray gave this task, or its CPUs."""
    devices = find_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")) if gpus else []
    shares = order.trials_per_gpu if devices else 1
    first, *_ = slots(devices, trials_per_gpu=shares, workers=1, cores=order.cpus * shares)
    return replace(first, name=f"{socket.gethostname()} {first.name}")


@contextmanager
def _weights(order: TaskSpec) -> Iterator[TrialJob]:
    """The job with a file of this node's in place of the driver's."""
    if order.job.weights is None:
        yield order.job
        return
    with tempfile.TemporaryDirectory(dir=private_folder("finals")) as folder:
        file = Path(folder) / order.job.weights.name
        if order.weights is not None:
            file.write_bytes(order.weights)
        yield replace(order.job, weights=file)


class MessageQueue:
    """An actor of Ray's; each trial has one call of `asked` pending for as long as it runs."""

    def __init__(self) -> None:
        self._told: list[EpochReport | TaskStarted] = []
        self._stirred = asyncio.Event()
        self._asked: dict[int, asyncio.Queue[str]] = {}

    async def tell(self, what: EpochReport | TaskStarted) -> None:
        self._told.append(what)
        self._stirred.set()

    async def stirred(self) -> None:
        """Wait until there is something to take."""
        await self._stirred.wait()

    async def take(self) -> list[EpochReport | TaskStarted]:
        taken, self._told = self._told, []
        self._stirred.clear()
        return taken

    async def ask(self, number: int, what: str) -> None:
        await self._queue(number).put(what)

    async def asked(self, number: int) -> str:
        """Wait until something is asked of a trial."""
        return await self._queue(number).get()

    async def over(self, number: int) -> None:
        """End what waits for a trial that has ended: such a call, left pending, would keep its place for good."""
        if queue := self._asked.pop(number, None):
            queue.put_nowait(KILL)

    def _queue(self, number: int) -> "asyncio.Queue[str]":
        return self._asked.setdefault(number, asyncio.Queue())
