"""A trial on a node of a Ray cluster: it runs there as it would on its driver's machine."""

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

from pipeline.cache import private_folder
from pipeline.outbox.parcel import packed
from pipeline.trials import Local
from pipeline.workers.child import Work
from pipeline.workers.jobs import Ended, Job, Outcome
from pipeline.workers.slots import Slot, find_gpus, slots

POLL_SECONDS = 0.2  # until a trial hears what it was asked
KILL = "kill"  # beside the outcomes that a trial can be asked for: at once, in the middle of whatever it does


@dataclass(frozen=True)
class Order:
    """All that a node needs to train a job."""

    job: Job
    minutes: float | None
    cpus: int  # for this trial
    trials_per_gpu: int
    environment: Mapping[str, str]  # how to reach the tracking server: a user, a password
    weights: bytes | None  # what a winner is measured with
    work: Work
    preloaded: Sequence[str]


@dataclass(frozen=True)
class Placed:
    """A trial has found its node."""

    number: int


@dataclass(frozen=True)
class Done:
    """What a node hands back of a trial."""

    ended: Ended
    weights: bytes | None  # of a final
    untold: bytes | None  # what the tracking server has not taken, as a parcel


def carry_out(order: Order, mailbox: Any) -> Done:
    """Train an order's job in this process's slot, and tell the mailbox of it.

    Args:
        mailbox: handle of a `pipeline.mailbox.Mailbox`.
    """
    mailbox.tell.remote(Placed(order.job.number))
    os.environ.update(order.environment)
    with _weights(order) as job:
        ended = _train(replace(order, job=job), mailbox)
        trained = job.role == "final" and job.weights and job.weights.exists()
        weights = job.weights.read_bytes() if job.weights and trained else None
    return Done(ended, weights, None if job.timed else packed(job.run.run_id))


def _train(order: Order, mailbox: Any) -> Ended:
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
                if isinstance(event, Ended):
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


def _ask(local: Local, number: int, what: str) -> None:
    if what == Outcome.PRUNED:
        local.prune(number)
    elif what == KILL:
        local.stop_all(now=True)
    else:
        local.stop(number)


@cache
def _local(work: Work, preloaded: tuple[str, ...]) -> Local:
    """One executor for as long as Ray keeps this process: its fork server takes seconds to start."""
    local = Local([], work=work, preloaded=preloaded).__enter__()
    atexit.register(local.__exit__)
    return local


def _slot(order: Order, gpus: Sequence[object]) -> Slot:
    """The GPU, or share of one, that Ray gave this task, or its CPUs."""
    devices = find_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")) if gpus else []
    shares = order.trials_per_gpu if devices else 1
    first, *_ = slots(devices, trials_per_gpu=shares, workers=1, cores=order.cpus * shares)
    return replace(first, name=f"{socket.gethostname()} {first.name}")


@contextmanager
def _weights(order: Order) -> Iterator[Job]:
    """The job with a file of this node's in place of the driver's."""
    if order.job.weights is None:
        yield order.job
        return
    with tempfile.TemporaryDirectory(dir=private_folder("finals")) as folder:
        file = Path(folder) / order.job.weights.name
        if order.weights is not None:
            file.write_bytes(order.weights)
        yield replace(order.job, weights=file)
