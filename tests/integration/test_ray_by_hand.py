"""The documented commands make a Ray cluster and search on it, in network and process namespaces of their own."""

import os
import re
import subprocess
import tempfile

import pytest

from tests.support.paths import ROOT
from tests.support.stores import environment, tracking_store

PAGE = (ROOT / "docs" / "distributed-search.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.slow
# `ray stop` ends all of Ray that it sees
OWN_NAMESPACES = ["unshare", "--net", "--pid", "--fork", "--mount-proc"]


def in_own_namespaces(script):
    """Return the command that runs a shell script to its first failure, with loopback as its only network."""
    return [
        *OWN_NAMESPACES,
        *([] if os.geteuid() == 0 else ["--map-root-user"]),
        "sh",
        "-ec",
        f"ip link set lo up\n{script}",
    ]


def documented_script():
    """Return the documented lines for all machines in one script, with a search that takes seconds."""
    (block,) = re.findall(r"```sh\n(\(umask 077; ray get-auth-token.*?)```", PAGE, flags=re.DOTALL)
    assert block.count("HEAD") == block.count("search=kernel-patch-depth") == block.count("\nray stop") == 1
    wrong_token = f"RAY_AUTH_TOKEN={'0' * 64} ray status 2>&1 | grep InvalidAuthToken\n"
    return (
        block.replace("HEAD", "127.0.0.1")
        .replace("search=kernel-patch-depth", "search=smoke -P trials=2")
        .replace("\nray stop", f"\n{wrong_token}ray stop")
    )


def test_documented_ray_commands_search_on_a_cluster_that_requires_its_token(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -c requirements.lock -e '.[ray]'")
    if subprocess.run(in_own_namespaces("true"), capture_output=True, check=False).returncode:
        pytest.skip("namespaces are not allowed here, and such a cluster listens on all addresses")
    # The path of a socket has at most 107 characters
    short = tempfile.TemporaryDirectory(dir="/tmp", prefix="ray-")
    with short as folder, tracking_store(tmp_path, "mine") as uri:
        variables = environment(uri, "mine") | {"HOME": str(tmp_path), "RAY_TMPDIR": folder}
        completed = subprocess.run(
            in_own_namespaces(documented_script()),
            env=variables,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert " on 2 nodes of Ray" in completed.stdout
    assert "its 2 trials are done" in completed.stdout
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
