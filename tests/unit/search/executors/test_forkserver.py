"""Processes of the fork server: what they inherit from it."""

import os
import signal
import sys
import time

import psutil
import pytest

from pipeline.search.executors import forkserver

PRELOADED = "noisy_module"


def send_state(connection):
    """Send what this process has inherited from the fork server."""
    environment = {name: os.environ.get(name) for name in ("ADDED", "REMOVED")}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    connection.send((environment, PRELOADED in sys.modules, blocked >= forkserver.BLOCKED_SIGNALS))


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The state of a process of a new fork server, and the server's log."""
    folder = tmp_path_factory.mktemp("server")
    (folder / f"{PRELOADED}.py").write_text("import sys; print('imported', file=sys.stderr)", encoding="ascii")
    log = folder / "log.txt"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("REMOVED", "by the server")
        forkserver.start([PRELOADED], {"ADDED": "to the server", "REMOVED": None}, log)
        environment = {name: os.environ.get(name) for name in ("ADDED", "REMOVED")}
    try:
        receiver, sender = forkserver.context.Pipe()
        process = forkserver.context.Process(target=send_state, args=(sender,))
        process.start()
        assert receiver.poll(60)
        state = receiver.recv()
        process.join()
        yield state, environment, log
    finally:
        forkserver.stop()


def test_process_sees_the_environment_of_the_server(started):
    (environment, _, _), _, _ = started
    assert environment == {"ADDED": "to the server", "REMOVED": None}


def test_start_leaves_the_environment_of_the_driver_as_it_was(started):
    _, environment, _ = started
    assert environment == {"ADDED": None, "REMOVED": "by the server"}


def test_process_has_the_preloaded_modules(started):
    (_, preloaded, _), _, _ = started
    assert preloaded


def test_process_starts_with_signals_blocked_and_the_driver_without(started):
    (_, _, blocked), _, _ = started
    assert blocked
    assert not forkserver.BLOCKED_SIGNALS & signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_log_receives_the_error_output_of_imports(started):
    _, _, log = started
    assert log.read_text(encoding="ascii") == "imported\n"


def test_stop_does_not_wait_for_imports(tmp_path):
    began = time.monotonic()
    forkserver.start(["tests.support.slow_import"], {}, tmp_path / "log.txt")
    server = forkserver.forkserver._forkserver._forkserver_pid
    forkserver.stop()
    assert time.monotonic() - began < 10
    assert not psutil.pid_exists(server)
