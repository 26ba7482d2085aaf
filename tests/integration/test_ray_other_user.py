"""A local Ray cluster, and what another user of the machine can do to it: nothing."""

import json
import os
import subprocess
import sys

import psutil
import pytest

from tests.support.paths import ROOT

NOBODY, ROOT_USER = 65534, 0
# Starts a cluster, says where it is, and ends it when its input is closed
CLUSTER = """
import json, os, sys
from pipeline.search.executors.ray_cluster import connect

with connect("local") as ray:
    ray.get(ray.remote(lambda: None).remote())
    session = ray._private.worker.global_worker.node.get_session_dir_path()
    address = ray.get_runtime_context().gcs_address
    print(json.dumps({"address": address, "session": session, "token": os.environ["RAY_AUTH_TOKEN"]}), flush=True)
    sys.stdin.read()
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A running cluster: its address, its token, the folder of its session, and its processes' ids; its user's home."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -c requirements.lock -e '.[ray]'")
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment | {"HOME": str(home)},
    ) as process:
        try:
            said = json.loads(process.stdout.readline())
            driver = psutil.Process(process.pid)
            said["processes"] = [one.pid for one in (driver, *driver.children(recursive=True))]
            yield said, home
            process.stdin.close()
            assert process.wait(60) == 0
            assert not os.path.exists(said["session"])
        finally:
            process.kill()


def attempts(cluster, user, token=""):
    """Return what a user succeeds in who has this token."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    completed = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "ray_intruder.py"), str(user)],
        env=environment | {"RAY_AUTH_MODE": "token" if token else "disabled", "RAY_AUTH_TOKEN": token},
        input=json.dumps(cluster),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout)


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_another_user_can_neither_connect_nor_read_the_token_nor_write_files(cluster, token):
    said, _ = cluster
    failed = {"connects": False, "reads": False, "writes": False, "opens a socket": False, "reads the token": []}
    assert attempts(said, NOBODY, token) == failed


def test_the_same_attempts_succeed_for_the_clusters_own_user(cluster):
    said, _ = cluster
    done = {"connects": True, "reads": True, "writes": True, "opens a socket": True, "reads the token": ["environ"]}
    assert attempts(said, ROOT_USER, said["token"]) == done


def test_token_is_in_no_file_of_the_users_home(cluster):
    said, home = cluster
    assert not [
        file for file in home.rglob("*") if file.is_file() and said["token"] in file.read_text(errors="replace")
    ]
    assert not (home / ".ray").exists()


def test_cluster_listens_on_loopback_only(cluster):
    said, _ = cluster
    listening = {
        connection.laddr.ip
        for process in said["processes"]
        if psutil.pid_exists(process)
        for connection in psutil.Process(process).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening and listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
