"""A stand-in for Ray in one process: given nodes, tasks that the test ends, actors that run at once."""

import asyncio
import socket
from contextlib import contextmanager

import pytest


def make_node(cpus=1, gpus=0, host=None):
    """Return a live node as Ray lists it, on this host by default."""
    resources = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
    address = {"NodeManagerHostname": host or socket.gethostname(), "NodeManagerAddress": host or "127.0.0.1"}
    return {"Alive": True, "Resources": resources, **address}


class FakeRay:
    """The functions of the module `ray` that a driver calls.

    Attributes:
        node_list: the nodes of the cluster.
        tasks, options, specs: of each task its future, the options of its start, and its TaskSpec.
        cancelled: "cancelled" or "killed" for each call of `cancel`.
        error: raised by all functions once it is set.
        is_shut_down: whether `shutdown` was called.
    """

    def __init__(self, *nodes):
        self.exceptions = pytest.importorskip("ray").exceptions
        self.node_list = list(nodes or [make_node()])
        self.tasks, self.options, self.specs = [], [], []
        self.cancelled = []
        self.error = None
        self.is_shut_down = False
        self.loop = asyncio.new_event_loop()

    @contextmanager
    def connect(self, address):
        """Stand in for `pipeline.search.executors.ray_cluster.connect`."""
        try:
            yield self
        finally:
            self.shutdown()

    def remote(self, function_or_class):
        return _Remote(self, function_or_class)

    def nodes(self):
        self.raise_error()
        return self.node_list

    def wait(self, refs, *, num_returns=1, timeout):
        self.raise_error()
        return [ref for ref in refs if ref.done()], [ref for ref in refs if not ref.done()]

    def get(self, ref):
        self.raise_error()
        if isinstance(ref, list):
            return [self.get(one) for one in ref]
        if ref.cancelled():
            raise self.exceptions.TaskCancelledError
        return ref.result()

    def cancel(self, task, *, force=False):
        self.raise_error()
        self.cancelled.append("killed" if force else "cancelled")
        if not task.done():
            task.cancel()

    def shutdown(self):
        self.is_shut_down = True
        for pending in asyncio.all_tasks(self.loop):
            pending.cancel()
        self.run_actors()
        self.loop.close()

    def raise_error(self):
        if self.error:
            raise self.error

    def run_actors(self):
        """Run the actors' pending calls until they wait."""
        for _ in range(5):
            self.loop.run_until_complete(asyncio.sleep(0))


class _Remote:
    """A function or a class behind `ray.remote`."""

    def __init__(self, ray, function_or_class):
        self._ray, self._function_or_class, self._options = ray, function_or_class, {}

    def options(self, **options):
        self._options = options
        return self

    def remote(self, *arguments):
        self._ray.raise_error()
        if isinstance(self._function_or_class, type):
            return _Actor(self._ray, self._function_or_class())
        self._ray.tasks.append(self._ray.loop.create_future())
        self._ray.options.append(self._options)
        self._ray.specs.append(arguments[0])
        return self._ray.tasks[-1]


class _Actor:
    def __init__(self, ray, instance):
        self._ray, self.instance = ray, instance

    def __getattr__(self, name):
        return _Method(self._ray, getattr(self.instance, name))


class _Method:
    def __init__(self, ray, method):
        self._ray, self._method = ray, method

    def remote(self, *arguments):
        self._ray.raise_error()
        call = self._ray.loop.create_task(self._method(*arguments))
        self._ray.run_actors()
        return call
