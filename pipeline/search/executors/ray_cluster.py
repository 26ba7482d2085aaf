"""The connection to a Ray cluster, which lets in nobody but the user: token, folder and network of a local one."""

import os
import secrets
import shlex
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pipeline
from pipeline.runtime.errors import UsageError
from pipeline.runtime.retry import retry
from pipeline.runtime.shell import install_extra_command
from pipeline.runtime.temporary_environment import temporary_environment
from pipeline.search.executors.ray_results import summary_line

# Ray takes the address that routes lead to for 127.0.0.1 unless clusters are disabled, as they are on Windows; what
# starts with 127.0.0.1 listens nowhere else
NETWORK_ENV = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# The path of a socket has at most 107 characters, and Ray appends to its folder:
SOCKET_PATH = 107
SOCKET = "/session_2026-11-29_15-11-01_103786_4194304/sockets/plasma_store"
# What Ray says when a process of its own is not up: the server that it forks for each client of ray://, which gRPC may
# crash (https://github.com/ray-project/ray/issues/63202), and on a busy machine a new node, for which it waits 30 s
# (https://github.com/ray-project/ray/issues/62883)
TRANSIENT = (
    "Starting Ray client server failed",
    "Proxy failed to Connect to backend",
    "The current node timed out during startup",
)
# For how long, and how often, a connection is tried again then
CONNECT_SECONDS = 300.0
PAUSE_SECONDS = 1.0
# For how long the killed processes of a failed start are waited for
KILL_SECONDS = 10.0


def check_token_private(cluster: str | None, environ: Mapping[str, str]) -> None:
    """Raise UsageError if other users may read the file from which Ray would take the token of an existing cluster.

    It is the rule of ssh for private keys: only the files of this user are checked.
    """
    if (
        cluster in (None, "local")
        or environ.get("RAY_AUTH_TOKEN")
        or environ.get("RAY_AUTH_MODE", "").lower() == "disabled"
    ):
        return
    file = Path(environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token"))
    try:
        status = file.stat()
    except OSError:
        # Ray itself says so if it needs one
        return
    if status.st_uid == os.geteuid() and status.st_mode & 0o077:
        raise UsageError(
            f"Ray's token must be readable by you alone, got {file} with mode {status.st_mode & 0o777:04o}; try "
            f"chmod 600 {shlex.quote(str(file))}, and a new token if others may have read this one"
        )


@contextmanager
def connect(address: str) -> Iterator[Any]:
    """Context manager: connect to a cluster, or start a local one, and yield Ray's module.

    Raises:
        UsageError: Ray is not installed, there is no such cluster, or others may read its token.
    """
    check_token_private(address, os.environ)
    # Ray would send usage statistics to its makers
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # of a cluster that starts here: Ray's default is 15
    os.environ.setdefault("RAY_worker_niceness", "0")
    # a task without a GPU sees the devices that its node sees
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with _private_cluster() if address == "local" else _existing_cluster() as options:
        # imported here, as it is an optional dependency, takes a second, and reads the environment
        try:
            import ray
        except ImportError:
            raise UsageError(f"cluster needs Ray: {install_extra_command('ray')} brings it") from None
        # that of an earlier cluster of this process
        ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
        _initialize(ray, address, options)
        try:
            yield ray
        finally:
            # ends the tasks, and with them their trials
            ray.shutdown()


@contextmanager
def _existing_cluster() -> Iterator[dict[str, Any]]:
    """Yield the options of `ray.init`: the nodes need this package's dependencies, but no checkout of it."""
    yield {"runtime_env": {"py_modules": [str(Path(pipeline.__path__[0]))]}}


@contextmanager
def _private_cluster() -> Iterator[dict[str, Any]]:
    """Yield the options of `ray.init` for a new cluster that no other user of this machine can enter.

    Ray by itself writes a token that all can read, listens on all networks, and lets all write to its files.
    """
    with (
        _private_folder() as folder,
        temporary_environment(
            # without a mode, Ray sets `token` here and in what it has read from the environment before
            {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_AUTH_MODE": None, NETWORK_ENV: "0"}
        ),
    ):
        yield {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "_temp_dir": str(folder)}


@contextmanager
def _private_folder() -> Iterator[Path]:
    """Yield the path of a folder for Ray, which opens it to all, within one for this user alone."""
    root = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    try:
        private = Path(tempfile.mkdtemp(dir=root, prefix="ray-"))
    except OSError as error:
        raise UsageError(f"RAY_TMPDIR must be a folder for Ray's files, got {root}: {error.strerror}") from None
    try:
        folder = private / "ray"
        if (excess := len(f"{folder}{SOCKET}") - SOCKET_PATH) > 0:
            raise UsageError(f"RAY_TMPDIR must have at most {len(root) - excess} characters, got {root}; try /tmp")
        yield folder
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _initialize(ray: Any, address: str, options: Mapping[str, Any]) -> None:
    """Connect to a cluster or start it, again if a part of Ray was not up in time.

    Raises:
        UsageError: there is no such cluster.
    """

    def initialize() -> None:
        with _kept_signal_handlers():
            try:
                ray.init(address=address, log_to_driver=False, logging_level="error", **options)
            except BaseException:
                ray.shutdown()
                if address == "local":
                    _kill_processes(options["_temp_dir"])
                raise

    try:
        retry(initialize, is_transient=_is_transient, seconds=CONNECT_SECONDS, pauses=[PAUSE_SECONDS])
    # Ray raises many kinds of errors; SystemExit if the head node has just been lost
    except (Exception, SystemExit) as error:  # noqa: BLE001
        raise UsageError(
            f"cluster must be auto (on a node of a running Ray cluster), ray://host:port or local, got {address}: "
            f"{type(error).__name__}: {summary_line(error)}"
        ) from None


def _kill_processes(folder: str) -> None:
    """Kill the processes of a local cluster that could not be started, which Ray would leave until this process ends.

    Args:
        folder: Ray's, which their command lines name.
    """
    import psutil

    killed = []
    for process in psutil.Process().children(recursive=True):
        # it may have ended meanwhile
        with suppress(psutil.Error):
            if any(folder in word for word in process.cmdline()):
                process.kill()
                killed.append(process)
    psutil.wait_procs(killed, timeout=KILL_SECONDS)


def _is_transient(error: Exception) -> bool:
    return any(message in str(error) for message in TRANSIENT)


@contextmanager
def _kept_signal_handlers() -> Iterator[None]:
    """Restore this process's signal handlers afterwards: Ray sets its own, but the driver counts interrupts."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
