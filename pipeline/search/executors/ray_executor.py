"""Trials on a Ray cluster: one task per trial, on any node with enough free resources, and the loss of nodes."""

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, Self, TypeVar

from pipeline.runtime.errors import ClusterLost, UsageError
from pipeline.runtime.files import write_atomic
from pipeline.runtime.text import join_names
from pipeline.runtime.urls import mask_password, on_one_machine
from pipeline.search.executors.base import EpochReport, Executor, TrialJob, TrialResult
from pipeline.search.executors.ray_cluster import connect
from pipeline.search.executors.ray_resources import ClusterResources
from pipeline.search.executors.ray_results import failed_result, result_from_ray_error, summary_line
from pipeline.search.executors.ray_worker import KILL, MessageQueue, TaskCheckpoint, TaskResult, TaskSpec, run_task
from pipeline.search.executors.rung_checkpoints import newest_file, store_file
from pipeline.search.executors.trial import PRELOADED_MODULES, train_on_node
from pipeline.search.executors.worker_process import TrialFunction
from pipeline.tracking.outbox.delivery import import_records
from pipeline.tracking.tags import TrialOutcome

# Interval at which the nodes of the cluster are listed
REFRESH_SECONDS = 1.0
# Time that a node has to kill a trial: it does not respond while its fork server imports TensorFlow
UNRESPONSIVE_SECONDS = 5.0
# Calls to the message queue that may be pending at once: one for each trial that runs
MAX_PENDING_CALLS = 10_000
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
# A resource that Ray gives to the head node alone
HEAD_NODE_RESOURCE = "node:__internal_head__"

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(eq=False)
class _RunningTask:
    """A trial's Ray task as its driver sees it."""

    job: TrialJob
    result_ref: Any = None
    # whether it runs on a node, instead of waiting for resources
    started: bool = False
    # time.monotonic() at which Ray has to kill it, with the process that should have killed its trial
    kill_at: float | None = None


class RayExecutor(Executor):
    """An executor on a Ray cluster; at any moment it has as many slots as there are GPUs, or shares of CPUs.

    A trial whose node is lost ends as LOST. So do all trials when the head node is lost, without which none can start:
    from then on the methods raise ClusterLost. Leaving the context kills the trials that still run.

    Args:
        address: `auto` for the cluster that this machine belongs to, `ray://host:port`, or `local` for a new cluster on
            this machine.
        fingerprint: of the driver's data, which every node must have; None: not checked.
        trials_per_gpu: how many trials share a GPU.
        trials: upper bound on the trials at a time if there is no GPU; None: as many as the cores can feed.
        tracking_uri: where the runs of the trials are logged.
        trial_function: what a trial does, a function at the top level of a module that the nodes can import.
        preloaded: names of the modules that each node imports once.

    Raises:
        UsageError: Ray is not installed, there is no such cluster, or some of its nodes cannot reach `tracking_uri`.
    """

    def __init__(
        self,
        address: str,
        *,
        fingerprint: str | None,
        trials_per_gpu: int,
        trials: int | None,
        tracking_uri: str = "",
        trial_function: TrialFunction = train_on_node,
        preloaded: Sequence[str] = PRELOADED_MODULES,
    ) -> None:
        self._address = address
        self._fingerprint = fingerprint
        self._trials_per_gpu = trials_per_gpu
        self._max_cpu_trials = trials
        self._tracking_uri = tracking_uri
        self._trial_function = trial_function
        self._preloaded = preloaded
        self._tasks: dict[int, _RunningTask] = {}
        self._resources = ClusterResources(trials_per_gpu, gpu_only=trials_per_gpu > 1)
        self._refreshed_at = -REFRESH_SECONDS
        self._on_first_gpu: Callable[[], None] | None = None
        # keeps tasks on this host if its nodes alone reach the runs
        self._host_resource: dict[str, float] = {}
        self._warned_of_host = False
        # the error by which the head node was found to be lost
        self._head_error: str | None = None
        self._connection = ExitStack()
        # Ray's module, and handles of what runs in the cluster; set when the context is entered
        self._ray: Any = None
        self._queue: Any = None
        self._queue_not_empty: Any = None
        self._remote_run_task: Any = None

    def restore(self, *, used_gpus: bool, on_first_gpu: Callable[[], None]) -> None:
        """Wait for GPUs if an earlier driver of the same search had some."""
        if used_gpus:
            self._resources = replace(self._resources, gpu_only=True)
        else:
            self._on_first_gpu = on_first_gpu

    def __enter__(self) -> Self:
        with ExitStack() as connection:
            self._ray = connection.enter_context(connect(self._address))
            self._check_nodes_reach_runs()
            self._connection = connection.pop_all()
        queue_class = self._ray.remote(MessageQueue).options(
            num_cpus=0, resources={HEAD_NODE_RESOURCE: 0.001}, max_concurrency=MAX_PENDING_CALLS
        )
        self._queue = queue_class.remote()
        self._queue_not_empty = self._queue.wait.remote()
        self._remote_run_task = self._ray.remote(run_task)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop_all(now=True)
        self._tasks.clear()
        try:
            # ends the tasks, and with them their trials
            self._connection.close()
        except Exception:
            # a lost head node does not answer any more
            if self._head_error is None:
                raise

    def describe(self) -> str:
        slots = (self._call(self._count_free_slots) or 0) + len(self._tasks)
        resources = self._call(self._refresh_resources)
        nodes = len(resources.nodes) if resources else 0
        return f"{slots} at a time on {nodes} node{'' if nodes == 1 else 's'} of Ray"

    def free(self) -> int:
        """Return the number of slots that wait for a job.

        Raises:
            ClusterLost: the head node is lost.
        """
        slots = self._call(self._count_free_slots) or 0
        self._check_head_node()
        return slots

    def start(self, job: TrialJob, *, minutes: float | None) -> None:
        self._tasks[job.number] = _RunningTask(job)
        self._call(self._submit, self._tasks[job.number], minutes)

    def events(self, timeout: float) -> list[EpochReport | TrialResult]:
        """Return what has happened, as soon as something has; an empty list after `timeout` seconds.

        Raises:
            ClusterLost: the head node is lost, and the results of all trials that ran have been returned.
        """
        events = self._call(self._poll, timeout) or []
        if self._head_error and self._tasks:
            reason = f"the cluster's head node was lost: {self._head_error}"
            events = [failed_result(task.job, TrialOutcome.LOST, reason) for task in self._tasks.values()]
            self._tasks.clear()
            return events
        self._check_head_node()
        return events

    def prune(self, number: int) -> None:
        self._request(number, TrialOutcome.PRUNED)

    def stop(self, number: int) -> None:
        self._request(number, TrialOutcome.STOPPED)

    def stop_all(self, *, now: bool) -> None:
        for number, task in self._tasks.items():
            self._request(number, KILL if now else TrialOutcome.STOPPED)
            if now and task.kill_at is None:
                task.kill_at = time.monotonic() + UNRESPONSIVE_SECONDS
            # it might wait for resources for ever
            if not task.started:
                self._cancel(task, force=False)

    # The head node

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call a function that talks to the cluster; return None if the head node is lost, before or meanwhile."""
        if self._head_error is None:
            try:
                return function(*args, **kwargs)
            # over ray:// a lost head node is a ConnectionError
            except (self._ray.exceptions.RayError, ConnectionError) as error:
                self._head_error = f"{type(error).__name__}: {summary_line(error)}"
        return None

    def _check_head_node(self) -> None:
        if self._head_error and not self._tasks:
            raise ClusterLost(
                f"cluster must keep its head node, and has lost it ({self._head_error}): start the cluster again, then "
                "the same search, which goes on where it was"
            )

    # Nodes and their resources

    def _count_free_slots(self) -> int:
        resources = self._refresh_resources()
        slots = resources.slots
        if self._max_cpu_trials is not None and not resources.gpu_only:
            slots = min(slots, self._max_cpu_trials)
        return max(0, slots - len(self._tasks))

    def _refresh_resources(self) -> ClusterResources:
        """Return the cluster's resources, listed again if the last list is older than REFRESH_SECONDS."""
        if time.monotonic() - self._refreshed_at > REFRESH_SECONDS:
            waited = self._resources.waits_for_gpus
            self._resources = self._resources.with_nodes([node["Resources"] for node in self._usable_nodes()])
            self._refreshed_at = time.monotonic()
            if self._on_first_gpu and self._resources.has_gpus:
                self._on_first_gpu()
                self._on_first_gpu = None
            if self._resources.waits_for_gpus and not waited:
                log.warning("waiting for a node with a GPU, as the cluster has none now: trials do not go to its CPUs")
        return self._resources

    def _usable_nodes(self) -> list[dict[str, Any]]:
        """Return the nodes that can train trials and log them; a node that joins later may be unable to log."""
        nodes = self._worker_nodes()
        if not on_one_machine(self._tracking_uri):
            return nodes
        here = [node for node in nodes if _is_this_host(node)]
        elsewhere = [node for node in nodes if not _is_this_host(node)]
        if here:
            # a resource of each node at this address
            self._host_resource = {f"node:{here[-1]['NodeManagerAddress']}": 0.001}
        if elsewhere and not self._warned_of_host:
            self._warned_of_host = True
            host = _host_name(elsewhere[0])
            log.warning("a node on another host (%s) is not used, as it does not reach the runs", host)
        return here

    def _worker_nodes(self) -> list[dict[str, Any]]:
        """Return the nodes that are alive and have CPUs; a head node may have none."""
        alive = [node for node in self._ray.nodes() if node["Alive"]]
        return [node for node in alive if node["Resources"].get("CPU")]

    def _check_nodes_reach_runs(self) -> None:
        """Raise UsageError if there are nodes that could train whole trials and then be unable to log them."""
        others = sorted({_host_name(node) for node in self._worker_nodes() if not _is_this_host(node)})
        if others and on_one_machine(self._tracking_uri):
            raise UsageError(
                "MLFLOW_TRACKING_URI must be a server, or a database that all nodes reach, where a cluster has nodes "
                f"on other hosts ({join_names(others)}): got {mask_password(self._tracking_uri) or 'none'}"
            )

    # Tasks

    def _submit(self, task: _RunningTask, minutes: float | None) -> None:
        job, resources = task.job, self._refresh_resources()
        spec = TaskSpec(
            job=replace(job, fingerprint=self._fingerprint),
            minutes=minutes,
            cpus=resources.cpus_per_trial,
            trials_per_gpu=self._trials_per_gpu,
            environment={name: os.environ[name] for name in CREDENTIALS if name in os.environ},
            weights=job.weights.read_bytes() if job.role in ("ensemble", "winner") and job.weights else None,
            checkpoint=newest_file(job.checkpoints) if job.resume else None,
            trial_function=self._trial_function,
            preloaded=self._preloaded,
        )
        options = self._remote_run_task.options(
            num_cpus=resources.cpus_per_trial,
            num_gpus=1 / self._trials_per_gpu if resources.gpu_only else 0,
            resources=self._host_resource,
            max_retries=0,
        )
        task.result_ref = options.remote(spec, self._queue)

    def _poll(self, timeout: float) -> list[EpochReport | TrialResult]:
        """Wait until a message arrives or a task ends, and return the events."""
        self._kill_unresponsive_workers()
        pending = [self._queue_not_empty, *(task.result_ref for task in self._tasks.values())]
        ready, _ = self._ray.wait(pending, num_returns=1, timeout=timeout)
        if not ready:
            return []
        ready, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0)
        # what a task sent before it ended is in the queue by now
        reports = self._drain_queue()
        if self._queue_not_empty in ready:
            self._queue_not_empty = self._queue.wait.remote()
        ended = [task for task in self._tasks.values() if task.result_ref in ready]
        # All of them or none: if fetching one fails with the head node, all are still known as running, and are lost.
        results = [self._fetch_result(task) for task in ended]
        for result in results:
            del self._tasks[result.number]
        return [*reports, *results]

    def _drain_queue(self) -> list[EpochReport]:
        """Return the epoch reports in the queue, store the checkpoints, and note which tasks have started."""
        reports = []
        for message in self._ray.get(self._queue.drain.remote()):
            if message.number not in self._tasks:
                # from a node that was declared dead and continued
                continue
            if isinstance(message, EpochReport):
                reports.append(message)
            elif isinstance(message, TaskCheckpoint):
                if folder := self._tasks[message.number].job.checkpoints:
                    store_file(folder, message.file)
            else:
                self._tasks[message.number].started = True
        return reports

    def _fetch_result(self, task: _RunningTask) -> TrialResult:
        """Return the result of a trial whose task has ended, and store what its node returned."""
        job = task.job
        # a lost node cannot do so itself
        self._queue.close.remote(job.number)
        try:
            task_result: TaskResult = self._ray.get(task.result_ref)
        except self._ray.exceptions.RayError as error:
            if task.kill_at is not None:
                return failed_result(job, TrialOutcome.STOPPED, "by the driver, with all of its process")
            return result_from_ray_error(job, error, self._ray.exceptions)
        _store_files(job, task_result)
        return task_result.result

    def _request(self, number: int, what: str) -> None:
        # a trial that is not there has ended in the meantime
        if number in self._tasks:
            self._call(self._queue.request.remote, number, what)

    def _kill_unresponsive_workers(self) -> None:
        """Kill the processes on nodes that should have killed their trial by now, and the trials with them."""
        for task in self._tasks.values():
            if task.kill_at is not None and time.monotonic() >= task.kill_at:
                self._cancel(task, force=True)

    def _cancel(self, task: _RunningTask, *, force: bool) -> None:
        self._call(self._ray.cancel, task.result_ref, force=force)


def _store_files(job: TrialJob, task_result: TaskResult) -> None:
    """Store what a node returned where a trial on this machine would have left it."""
    if task_result.weights is not None and job.weights:
        write_atomic(job.weights, task_result.weights)
    if task_result.records is not None:
        try:
            import_records(job.run.run_id, task_result.records)
        except OSError as error:
            # a full disk, for example; the trial itself has succeeded
            log.warning("records of run %s from its node are lost: %s", job.run.run_id, error)


def _is_this_host(node: Mapping[str, Any]) -> bool:
    return _host_name(node) == socket.gethostname()


def _host_name(node: Mapping[str, Any]) -> str:
    return str(node["NodeManagerHostname"])
