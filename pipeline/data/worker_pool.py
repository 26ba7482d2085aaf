"""A pool of worker processes, neither forked from a process with threads nor in need of a guarded `__main__`."""

import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pipeline.runtime.errors import WorkerDied

Call = Callable[..., Any]


@contextmanager
def worker_pool(count: int) -> Iterator[Call]:
    """Yield `call(function, *arguments)`, which runs in one of `count` processes and may be called from many threads.

    Function, arguments and result must pickle. Errors of the function are raised by `call`.

    Raises:
        WorkerDied: By `call`, if the process ended before it answered.
    """
    # A process takes 0.2 s to start; one would be no faster than this one.
    if count == 1:
        yield lambda function, *arguments: function(*arguments)
        return
    idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def call(function: Call, *arguments: Any) -> Any:
        worker = idle.get()
        try:
            return _call(worker, (function, arguments))
        finally:
            idle.put(worker)

    with ExitStack() as stack:
        for _ in range(count):
            idle.put(stack.enter_context(_worker_process()))
        yield call


@contextmanager
def _worker_process() -> Iterator[subprocess.Popen[bytes]]:
    """Start a worker; end it on exit."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import _serve; _serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        # Ctrl-C goes to this process alone, which then ends its workers.
        process_group=0,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _call(worker: subprocess.Popen[bytes], request: tuple[Call, tuple[Any, ...]]) -> Any:
    assert worker.stdin and worker.stdout
    try:
        pickle.dump(request, worker.stdin)
        worker.stdin.flush()
        failed, result = pickle.load(worker.stdout)
    except (EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise WorkerDied(f"a worker process ended early (exit status {worker.poll()})") from error
    if failed:
        raise result
    return result


def _serve() -> None:
    """Answer requests from standard input until it is closed, as it is when the parent process ends."""
    answers = os.fdopen(os.dup(1), "wb")
    # What a library prints must not mix with the answers.
    os.dup2(2, 1)
    while True:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = (False, function(*arguments))
        except Exception as error:  # noqa: BLE001 - sent to the caller, who raises it
            answer = (True, error)
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()
