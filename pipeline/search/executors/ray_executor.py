"""Trials on a Ray cluster: a task a trial, on whichever node has room for it; what becomes of a node that is lost."""

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import dropwhile
from pathlib import Path
from typing import Any, Self, TypeVar

import pipeline
from pipeline.runtime.errors import ClusterLost, UsageError
from pipeline.runtime.files import write_atomic
from pipeline.runtime.text import join_names, one_line
from pipeline.runtime.urls import mask_password, on_one_machine
from pipeline.search.executors.base import EpochReport, Executor, TrialJob, TrialResult
from pipeline.search.executors.ray_worker import KILL, MessageQueue, TaskResult, TaskSpec, run_task
from pipeline.search.executors.slots import CORES_A_TRIAL
from pipeline.search.executors.trial import PRELOADED, train_on_node
from pipeline.search.executors.worker_process import Work
from pipeline.tracking.outbox.delivery import import_records
from pipeline.tracking.tags import TrialOutcome

NODE_LOST = ("NodeDiedError", "WorkerCrashedError", "LocalRayletDiedError", "ObjectLostError", "RayActorError")
HEADING = "Failed to set up runtime environment."  # the reason follows it
CHARACTERS = 500


def result_from_ray_error(job: TrialJob, error: Exception, errors: Any) -> TrialResult:
    """The end of a trial of which nothing is known but what Ray raised for it.

    Args:
        errors: Ray's module of exceptions.
    """
    kind = type(error).__name__
    told = f"{kind}: {telling_line(error)}"
    if isinstance(error, errors.TaskCancelledError):
        return failed_result(job, TrialOutcome.STOPPED, "by the driver")
    if isinstance(error, tuple(getattr(errors, name) for name in NODE_LOST)):
        return failed_result(job, TrialOutcome.LOST, f"its node was lost: {kind}")
    if isinstance(error, errors.OutOfMemoryError):
        return failed_result(job, TrialOutcome.OOM, told)
    own = isinstance(error, errors.RayTaskError)  # what the task itself raised, and would again
    return failed_result(
        job, TrialOutcome.RAISED, telling_line(error) if own else told, tail=str(error), retryable=not own
    )


def failed_result(
    job: TrialJob, outcome: TrialOutcome, reason: str, *, tail: str = "", retryable: bool = False
) -> TrialResult:
    """An end with no figures; what is lost may succeed another time."""
    return TrialResult(job.number, outcome, reason, retryable or outcome is TrialOutcome.LOST, {}, tail, "Ray", None)


def telling_line(error: BaseException) -> str:
    """The exception's line of the last traceback that an error quotes, else the first line after its heading."""
    lines = [line for line in str(error).splitlines() if line.strip() and line != HEADING]
    frames = [index for index, line in enumerate(lines) if line.startswith("  File ")]
    said = dropwhile(lambda line: line.startswith(" "), lines[max(frames, default=0) :])
    return one_line(next(said, ""), most=CHARACTERS)


LOOK_SECONDS = 1.0  # between two looks at which nodes there are
DEAF_SECONDS = 5.0  # which a node is given to kill a trial: it is deaf while its fork server imports TensorFlow
CALLS = 10_000  # of the mailbox's that may be pending: one for each trial that runs
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
HEAD = "node:__internal_head__"  # a resource that Ray gives to the head node alone

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(eq=False)
class _RunningTask:
    """A trial's task as its driver sees it."""

    job: TrialJob
    task: Any = None  # reference to its result
    placed: bool = False
    kill_at: float | None = None  # on time.monotonic(), with the process that should have killed it


class RayExecutor(Executor):
    """An executor on a Ray cluster, as many trials at a time as it has GPUs (or shares of CPUs) at that moment.

    A trial that loses its node ends as LOST, and so do all with the head node, without which nothing can begin: what is
    asked after that raises ClusterLost. Leaving the context kills what still runs.

    Args:
        address: `auto` for the cluster that this machine belongs to, `ray://host:port`, or `local` for one of its own.
        fingerprint: of the driver's data, which every node must have; None: not checked.
        trials_per_gpu: a task asks for the inverse of it.
        trials: at most so many at a time, where there is no GPU; None: as many as the cores can feed.
        tracking_uri: where the trials' runs are.
        work: what a trial does, as a function of a module that the nodes can import.
        preloaded: modules that a node imports once.

    Raises:
        UsageError: Ray is not installed, there is no such cluster, or some of its nodes do not reach the runs.
    """

    def __init__(
        self,
        address: str,
        *,
        fingerprint: str | None,
        trials_per_gpu: int,
        trials: int | None,
        tracking_uri: str = "",
        work: Work = train_on_node,
        preloaded: Sequence[str] = PRELOADED,
    ) -> None:
        self._address, self._fingerprint, self._tracking_uri = address, fingerprint, tracking_uri
        self._trials_per_gpu, self._most = trials_per_gpu, trials
        self._work, self._preloaded = work, preloaded
        self._running: dict[int, _RunningTask] = {}
        self._looked = -LOOK_SECONDS
        self._lost: str | None = None  # how the head node was found to be gone
        self._gpus = trials_per_gpu > 1  # whether trials are trained on GPUs: they were asked for, or have been there
        self._there = True  # GPUs, at the last look
        self._found_gpus: Callable[[], None] = lambda: None
        self._share = 1  # of the CPUs, for a trial on a GPU
        self._only: dict[str, float] = {}  # what keeps tasks to this host, where the runs are seen from it alone
        self._warned = False  # of a node on another one

    def restore(self, *, used_gpus: bool, on_first_gpu: Callable[[], None]) -> None:
        """Wait for GPUs if an earlier driver of the same search had some."""
        self._gpus |= used_gpus
        if not used_gpus:
            self._found_gpus = on_first_gpu

    def __enter__(self) -> Self:
        self._ray = _connect(self._address)
        try:
            self._refuse_hosts_without_runs()
        except BaseException:
            self._ray.shutdown()
            raise
        mailbox = self._ray.remote(MessageQueue).options(num_cpus=0, resources={HEAD: 0.001}, max_concurrency=CALLS)
        self._mailbox = mailbox.remote()
        self._stirred = self._mailbox.stirred.remote()
        self._task = self._ray.remote(run_task)
        return self

    def _refuse_hosts_without_runs(self) -> None:
        """Refuse nodes that could train whole trials and then tell nobody."""
        others = sorted({_host(node) for node in self._trainers() if not _is_here(node)})
        if others and on_one_machine(self._tracking_uri):
            raise UsageError(
                "MLFLOW_TRACKING_URI must be a server, or a database that all nodes reach, where a cluster has nodes "
                f"on other hosts ({join_names(others)}): got {mask_password(self._tracking_uri) or 'none'}"
            )

    def __exit__(self, *error: object) -> None:
        self.stop_all(now=True)
        self._running.clear()
        with suppress(Exception) if self._lost else nullcontext():  # then there is nobody to take leave of
            self._ray.shutdown()  # which ends the tasks, and with them their trials

    def describe(self) -> str:
        nodes = self._reach(lambda: len(self._nodes()), 0)
        places = self._reach(self._free, 0) + len(self._running)
        return f"{places} at a time on {nodes} node{'s' * (nodes != 1)} of Ray"

    def free(self) -> int:
        """As Executor's.

        Raises:
            ClusterLost: the head node is gone.
        """
        places = self._reach(self._free, 0)
        self._refuse_if_lost()
        return places

    def _free(self) -> int:
        places = sum(min(self._places(node).values()) for node in self._nodes())  # first, as it looks for GPUs
        most = places if self._gpus or self._most is None else min(places, self._most)
        return max(0, most - len(self._running))

    def _reach(self, ask: Callable[[], T], otherwise: T) -> T:
        """What the cluster is asked; `otherwise`, from then on too, where it turns out that the head node is gone."""
        if self._lost is None:
            try:
                return ask()
            except (self._ray.exceptions.RayError, ConnectionError) as error:  # the latter over ray://
                self._lost = f"{type(error).__name__}: {telling_line(error)}"
        return otherwise

    def _refuse_if_lost(self) -> None:
        if self._lost and not self._running:
            raise ClusterLost(
                f"cluster must keep its head node, and has lost it ({self._lost}): start the cluster again, then the "
                "same search, which goes on where it was"
            )

    def start(self, job: TrialJob, *, minutes: float | None) -> None:
        self._running[job.number] = _RunningTask(job)
        self._reach(lambda: self._start(self._running[job.number], minutes), None)

    def _start(self, running: _RunningTask, minutes: float | None) -> None:
        job, cpus = running.job, self._cpus()
        credentials = {name: os.environ[name] for name in CREDENTIALS if name in os.environ}
        weights = job.weights.read_bytes() if job.role == "winner" and job.weights else None
        order = TaskSpec(
            replace(job, fingerprint=self._fingerprint),
            minutes,
            cpus,
            self._trials_per_gpu,
            credentials,
            weights,
            self._work,
            self._preloaded,
        )
        gpus = 1 / self._trials_per_gpu if self._gpus else 0
        task = self._task.options(num_cpus=cpus, num_gpus=gpus, resources=self._only, max_retries=0)
        running.task = task.remote(order, self._mailbox)

    def events(self, timeout: float) -> list[EpochReport | TrialResult]:
        """As Executor's.

        Raises:
            ClusterLost: the head node is gone, and all trials that ran have ended.
        """
        nothing: list[EpochReport | TrialResult] = []
        happened = self._reach(lambda: self._events(timeout), nothing)
        if self._lost and self._running:
            return self._lose_all(f"the cluster's head node was lost: {self._lost}")
        self._refuse_if_lost()
        return happened

    def _lose_all(self, why: str) -> list[EpochReport | TrialResult]:
        lost = [failed_result(running.job, TrialOutcome.LOST, why) for running in self._running.values()]
        self._running.clear()
        return [*lost]

    def _events(self, timeout: float) -> list[EpochReport | TrialResult]:
        self._kill_the_deaf()
        waited = [self._stirred, *(running.task for running in self._running.values())]
        ready, _ = self._ray.wait(waited, num_returns=1, timeout=timeout)
        ready, _ = self._ray.wait(waited, num_returns=len(waited), timeout=0) if ready else ([], [])
        found: list[EpochReport | TrialResult] = []
        if ready:  # what was told before a task ended is in the mailbox by now
            for told in self._ray.get(self._mailbox.take.remote()):
                if told.number not in self._running:  # of a node that was taken for dead, and went on
                    continue
                if isinstance(told, EpochReport):
                    found.append(told)
                else:
                    self._running[told.number].placed = True
        if self._stirred in ready:
            self._stirred = self._mailbox.stirred.remote()
        ended = [running for running in self._running.values() if running.task in ready]
        ends = [self._end(running) for running in ended]
        for end in ends:  # all of them, or none: what is not told now is told as lost with the head node
            del self._running[end.number]
        return [*found, *ends]

    def prune(self, number: int) -> None:
        self._ask(number, TrialOutcome.PRUNED)

    def stop(self, number: int) -> None:
        self._ask(number, TrialOutcome.STOPPED)

    def stop_all(self, *, now: bool) -> None:
        for number, running in self._running.items():
            self._ask(number, KILL if now else TrialOutcome.STOPPED)
            if now and running.kill_at is None:
                running.kill_at = time.monotonic() + DEAF_SECONDS
            if not running.placed:  # it may wait for a place for ever
                self._cancel(running, force=False)

    def _kill_the_deaf(self) -> None:
        """End the processes of nodes that should have killed their trial by now, and the trial with them."""
        for running in self._running.values():
            if running.kill_at is not None and time.monotonic() >= running.kill_at:
                self._cancel(running, force=True)

    def _cancel(self, running: _RunningTask, *, force: bool) -> None:
        self._reach(lambda: self._ray.cancel(running.task, force=force), None)

    def _ask(self, number: int, what: str) -> None:
        if number in self._running:  # else it has ended meanwhile
            self._reach(lambda: self._mailbox.ask.remote(number, what), None)

    def _end(self, running: _RunningTask) -> TrialResult:
        """Take leave of a trial whose task is over."""
        job = running.job
        self._mailbox.over.remote(job.number)  # a node that is lost cannot say so
        try:
            done: TaskResult = self._ray.get(running.task)
        except self._ray.exceptions.RayError as error:
            if running.kill_at is not None:
                return failed_result(job, TrialOutcome.STOPPED, "by the driver, with all of its process")
            return result_from_ray_error(job, error, self._ray.exceptions)
        _write_tail(job, done)
        return done.ended

    def _nodes(self) -> list[dict[str, float]]:
        """The resources of each node that lives."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._alive = [node["Resources"] for node in self._trainers() if self._reaches_runs(node)]
            self._looked = time.monotonic()
            self._look_for_gpus()
        return self._alive

    def _trainers(self) -> list[dict[str, Any]]:
        """Nodes that live and have CPUs: a head may be there to lead only."""
        alive = [node for node in self._ray.nodes() if node["Alive"]]
        return [node for node in alive if node["Resources"].get("CPU")]

    def _reaches_runs(self, node: Mapping[str, Any]) -> bool:
        """Whether a node can tell what it trains; one that joins later and cannot is not used."""
        if not on_one_machine(self._tracking_uri):
            return True
        if _is_here(node):
            self._only = {f"node:{node['NodeManagerAddress']}": 0.001}  # a resource of each node at this address
        elif not self._warned:
            self._warned = True
            log.warning("a node on another host (%s) is not used, as it does not reach the runs", _host(node))
        return _is_here(node)

    def _look_for_gpus(self) -> None:
        """Keep to GPUs once there are some: when all are taken away, what is left is a head that would take weeks."""
        there = any(node.get("GPU") for node in self._alive)
        if there:
            self._found_gpus()
            self._found_gpus = lambda: None
        self._gpus |= there
        if self._gpus and not there and self._there:
            log.warning("waiting for a node with a GPU, as the cluster has none now: trials do not go to its CPUs")
        self._there = there

    def _cpus(self) -> int:
        """CPUs for each trial: as many as the node that is poorest in them has for each of its places."""
        nodes = self._nodes()
        if not self._gpus:
            return int(min([CORES_A_TRIAL, *(node["CPU"] for node in nodes)]))
        each = [node["CPU"] // (node["GPU"] * self._trials_per_gpu) for node in nodes if node.get("GPU")]
        self._share = int(max(1, min(each, default=self._share)))
        return self._share

    def _places(self, node: dict[str, float]) -> dict[str, int]:
        """How many trials each resource of a node is enough for."""
        places = {"CPU": int(node["CPU"] // self._cpus())}
        return places | ({"GPU": int(node.get("GPU", 0) * self._trials_per_gpu)} if self._gpus else {})


def _connect(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would call home
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster that starts here: Ray would say 15
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without a GPU sees what its node sees
    try:
        import ray
    except ImportError:
        raise UsageError("cluster needs Ray: pip install -c requirements.lock -e '.[ray]' brings it") from None
    own: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    code = {"py_modules": [str(Path(pipeline.__path__[0]))]}  # the nodes need its packages, but no checkout
    try:
        with _handlers_kept():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level="error",
                **(own if address == "local" else {"runtime_env": code}),
            )
    except (Exception, SystemExit) as error:  # noqa: BLE001 - Ray raises many kinds, the latter of a head that is gone
        raise UsageError(
            f"cluster must be auto (on a node of a running Ray cluster), ray://host:port or local, got {address}: "
            f"{type(error).__name__}: {telling_line(error)}"
        ) from None
    return ray


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Within it Ray may set handlers of signals, which a driver counts."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_here(node: Mapping[str, Any]) -> bool:
    return _host(node) == socket.gethostname()


def _host(node: Mapping[str, Any]) -> str:
    return str(node["NodeManagerHostname"])


def _write_tail(job: TrialJob, done: TaskResult) -> None:
    """Lay what a node hands back where a trial of this machine would have left it."""
    if done.weights is not None and job.weights:
        write_atomic(job.weights, done.weights)
    if done.untold is not None:
        try:
            import_records(job.run.run_id, done.untold)
        except OSError as error:  # a full disk, say: the trial itself is well
            log.warning("records of run %s from its node are lost: %s", job.run.run_id, error)
