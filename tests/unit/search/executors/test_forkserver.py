"""Processes of the fork server: what they inherit from it."""

import os
import signal
import sys

import pytest

from pipeline.search.executors import forkserver

# a module that nothing else here imports
PRELOADED = "colorsys"


def send_state(connection):
    """Send what this process has inherited from the fork server."""
    environment = {name: os.environ.get(name) for name in ("ADDED", "REMOVED")}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    connection.send((environment, PRELOADED in sys.modules, blocked >= forkserver.BLOCKED_SIGNALS))


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The state of a process of a new fork server, and the server's log."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with pytest.MonkeyPatch.context() as patch:
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


def test_log_receives_the_error_output_of_imports(tmp_path, monkeypatch):
    (tmp_path / "noisy_module.py").write_text("import sys; sys.stderr.write('imported')", encoding="ascii")
    monkeypatch.syspath_prepend(tmp_path)
    log = tmp_path / "log.txt"
    forkserver.start(["noisy_module"], {}, log)
    process = forkserver.context.Process(target=os.getpid)
    try:
        process.start()
        process.join()
    finally:
        forkserver.stop()
    assert log.read_text(encoding="ascii") == "imported"
