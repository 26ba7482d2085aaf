"""Connections to Ray clusters: refused tokens, retries, and what a local cluster leaves."""

import functools
import os
import signal
import sys
import threading
from contextlib import suppress
from types import SimpleNamespace

import psutil
import pytest

from pipeline.runtime.errors import UsageError
from pipeline.search.executors import ray_cluster
from pipeline.search.executors.ray_cluster import check_token_private, connect


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home folder without a token, and an environment without Ray's variables."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def token_file(home):
    """The default file of the token."""
    (home / ".ray").mkdir()
    file = home / ".ray" / "auth_token"
    file.write_text("0" * 64)
    file.chmod(0o600)
    return file


@pytest.mark.parametrize("cluster", ["auto", "ray://host:10001"])
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_check_token_private_refuses_a_file_that_others_can_read(token_file, cluster, mode):
    token_file.chmod(mode)
    with pytest.raises(
        UsageError, match=f"^Ray's token must be .* got {token_file} with mode {mode:04o}; try"
    ) as refused:
        check_token_private(cluster, {})
    assert f"chmod 600 {token_file}" in str(refused.value) and "\n" not in str(refused.value)


def test_check_token_private_looks_at_the_file_that_ray_is_told_to_read(token_file, tmp_path):
    other = tmp_path / "other token"
    other.write_text("0" * 64)
    other.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600 '.*/other token'"):
        check_token_private("auto", {"RAY_AUTH_TOKEN_PATH": str(other)})
    token_file.chmod(0o644)
    other.chmod(0o600)
    check_token_private("auto", {"RAY_AUTH_TOKEN_PATH": str(other)})


@pytest.mark.parametrize(
    ("cluster", "environ"),
    [
        (None, {}),
        ("local", {}),
        ("auto", {"RAY_AUTH_TOKEN": "1" * 64}),
        ("auto", {"RAY_AUTH_MODE": "disabled"}),
        ("auto", {"RAY_AUTH_TOKEN_PATH": "/nowhere"}),
    ],
)
def test_check_token_private_accepts_what_reads_no_such_file(token_file, cluster, environ):
    token_file.chmod(0o644)
    check_token_private(cluster, environ)


def test_check_token_private_accepts_a_private_file(token_file):
    check_token_private("auto", {})


def test_connect_refuses_a_token_that_others_can_read(token_file):
    token_file.chmod(0o644)
    with pytest.raises(UsageError, match="^Ray's token"), connect("auto"):
        pass


def test_missing_cluster_raises_usage_error_of_one_line(home, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_TMPDIR", str(home))
    # Ray would also join a cluster that another test has started
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", functools.cache(set))
    with pytest.raises(UsageError, match=r"^cluster must be auto .* got auto: ") as refused, connect("auto"):
        pass
    assert "\n" not in str(refused.value)


def test_missing_ray_raises_usage_error_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"cluster needs Ray: .* -m pip install .*\.\[ray\]"), connect("local"):
        pass


class FailingRay:
    """A stand-in for the module `ray` that cannot connect a number of times.

    Attributes:
        options: of each call of `init`.
        environment: of the last one: the variables whose names begin with RAY_.
        shutdowns: how often `shutdown` was called.
    """

    def __init__(self, *errors):
        self.errors = list(errors)
        self.options, self.environment, self.shutdowns = [], {}, 0
        loader = SimpleNamespace(reset_cache=lambda: None)
        self._raylet = SimpleNamespace(AuthenticationTokenLoader=SimpleNamespace(instance=lambda: loader))

    def init(self, **options):
        self.options.append(options)
        self.environment = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
        if self.errors:
            raise self.errors.pop(0)

    def shutdown(self):
        self.shutdowns += 1


@pytest.fixture
def failing_ray(monkeypatch):
    """Return a function that makes a FailingRay the module `ray`."""
    monkeypatch.setattr(ray_cluster, "PAUSE_SECONDS", 0)

    def install(*errors):
        ray = FailingRay(*errors)
        monkeypatch.setitem(sys.modules, "ray", ray)
        return ray

    return install


@pytest.mark.parametrize("message", ray_cluster.TRANSIENT)
def test_connect_tries_again_where_a_part_of_ray_was_not_up_in_time(failing_ray, message):
    ray = failing_ray(
        ConnectionAbortedError(f"Initialization failure from server:\n{message}. See"), Exception(message)
    )
    with connect("ray://host:10001") as connected:
        assert connected is ray and len(ray.options) == 3
        assert ray.shutdowns == 2, "what had started of each try"
    assert ray.shutdowns == 3


def test_connect_does_not_try_again_after_another_error(failing_ray):
    ray = failing_ray(ConnectionError("ray client connection timeout"))
    with (
        pytest.raises(UsageError, match="got ray://host:10001: ConnectionError: ray client"),
        connect("ray://host:10001"),
    ):
        pass
    assert len(ray.options) == 1 and ray.shutdowns == 1


def test_connect_gives_up_when_the_time_is_over(failing_ray, monkeypatch):
    monkeypatch.setattr(ray_cluster, "CONNECT_SECONDS", 0)
    monkeypatch.setattr(ray_cluster, "PAUSE_SECONDS", 1)
    failing_ray(*[Exception("The current node timed out during startup")] * 2)
    with pytest.raises(UsageError, match="got local: Exception: The current node timed out"), connect("local"):
        pass


def test_local_cluster_has_a_token_of_its_own_a_private_folder_and_loopback_only(failing_ray, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the user's")
    ray = failing_ray()
    tokens = set()
    for _ in range(2):
        with connect("local"):
            folder = os.path.dirname(ray.options[-1]["_temp_dir"])
            assert os.stat(folder).st_mode & 0o777 == 0o700
        assert not os.path.exists(folder)
        assert ray.options[-1]["_node_ip_address"] == "127.0.0.1"
        assert ray.environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
        assert "RAY_AUTH_MODE" not in ray.environment, "Ray sets it"
        tokens.add(ray.environment["RAY_AUTH_TOKEN"])
    assert len(tokens) == 2 and all(len(token) == 64 for token in tokens)
    assert (os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]) == ("disabled", "the user's")
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ


def test_existing_cluster_is_joined_with_the_users_own_environment(failing_ray, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the user's")
    ray = failing_ray()
    with connect("auto"):
        pass
    assert (ray.environment["RAY_AUTH_MODE"], ray.environment["RAY_AUTH_TOKEN"]) == ("token", "the user's")
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in ray.environment
    assert set(ray.options[0]["runtime_env"]) == {"py_modules"}


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("missing", "RAY_TMPDIR must be a folder for Ray's files, got .*/missing: No such file or directory"),
        ("long" * 20, "RAY_TMPDIR must have at most 26 characters, got .*; try /tmp"),
    ],
)
def test_folder_in_which_ray_cannot_start_is_refused(failing_ray, monkeypatch, tmp_path, folder, message):
    ray = failing_ray()
    (tmp_path / ("long" * 20)).mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / folder))
    with pytest.raises(UsageError, match=f"^{message}$"), connect("local"):
        pass
    assert not ray.options and not list((tmp_path / ("long" * 20)).iterdir())


@pytest.mark.parametrize("fails", [False, True])
def test_connect_keeps_the_signal_handlers_of_the_driver(failing_ray, fails):
    def handler(number, frame):
        pass

    ray = failing_ray()

    def take_signals(**options):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if fails:
            raise ConnectionError("no cluster")

    ray.init = take_signals
    before = signal.signal(signal.SIGTERM, handler)
    try:
        try:
            with connect("auto"):
                pass
        except UsageError:
            assert fails
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


# Ray forgets the processes of a start that failed
@pytest.mark.filterwarnings("ignore:.*Popen.__del__:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_local_cluster_is_started_again_where_its_node_was_not_up_in_time():
    """Ray waits 30 s for a node."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -c requirements.lock -e '.[ray]'")
    driver, stopped = psutil.Process(), []

    def raylets():
        return [process for process in driver.children(recursive=True) if process.name() == "raylet"]

    def stop_the_first():
        while not stopped:
            with suppress(psutil.Error):
                stopped.extend(raylets()[:1])
        stopped[0].suspend()

    thread = threading.Thread(target=stop_the_first, daemon=True)
    thread.start()
    with connect("local") as ray:
        assert ray.get(ray.remote(lambda: "done").remote()) == "done"
        assert len(raylets()) == 1 and not stopped[0].is_running()
    thread.join()
    assert not raylets()
