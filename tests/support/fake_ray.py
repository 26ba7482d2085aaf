"""Stands in for Ray in one process: nodes as a test has them, tasks that end when it says so, actors at once."""

import asyncio
import socket

import pytest


def node(cpus=1, gpus=0, host=None):
    """A node that lives, as Ray lists it; on this machine unless another host is named."""
    resources = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
    address = {"NodeManagerHostname": host or socket.gethostname(), "NodeManagerAddress": host or "127.0.0.1"}
    return {"Alive": True, "Resources": resources, **address}


class MadeRay:
    """The functions of `ray` that a driver calls. `away` is raised by all of them once it is set."""

    def __init__(self, *nodes):
        self.exceptions = pytest.importorskip("ray").exceptions
        self.there = list(nodes or [node()])
        self.tasks, self.options, self.orders = [], [], []  # of each task: its future, how it was started, with what
        self.cancelled = []
        self.away = None
        self.ended = False
        self.loop = asyncio.new_event_loop()

    def remote(self, what):
        return _Remote(self, what)

    def nodes(self):
        self.answer()
        return self.there

    def wait(self, refs, *, num_returns, timeout):
        self.answer()
        return [ref for ref in refs if ref.done()], [ref for ref in refs if not ref.done()]

    def get(self, ref):
        self.answer()
        if isinstance(ref, list):
            return [self.get(one) for one in ref]
        if ref.cancelled():
            raise self.exceptions.TaskCancelledError
        return ref.result()

    def cancel(self, task, *, force=False):
        self.answer()
        self.cancelled.append("killed" if force else "cancelled")
        if not task.done():
            task.cancel()

    def shutdown(self):
        self.ended = True
        for pending in asyncio.all_tasks(self.loop):
            pending.cancel()
        self.turn()
        self.loop.close()

    def answer(self):
        if self.away:
            raise self.away

    def turn(self):
        """Let what the actors do go on as far as it does."""
        for _ in range(5):
            self.loop.run_until_complete(asyncio.sleep(0))


class _Remote:
    """A function or a class behind `ray.remote`."""

    def __init__(self, ray, what):
        self._ray, self._what, self._options = ray, what, {}

    def options(self, **options):
        self._options = options
        return self

    def remote(self, *given):
        self._ray.answer()
        if isinstance(self._what, type):
            return _Actor(self._ray, self._what())
        self._ray.tasks.append(self._ray.loop.create_future())
        self._ray.options.append(self._options)
        self._ray.orders.append(given[0])
        return self._ray.tasks[-1]


class _Actor:
    def __init__(self, ray, made):
        self._ray, self.made = ray, made

    def __getattr__(self, name):
        return _Method(self._ray, getattr(self.made, name))


class _Method:
    def __init__(self, ray, method):
        self._ray, self._method = ray, method

    def remote(self, *given):
        self._ray.answer()
        call = self._ray.loop.create_task(self._method(*given))
        self._ray.turn()
        return call
