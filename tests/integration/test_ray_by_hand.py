"""A Ray cluster made by the documented commands, as they stand, in a network and with processes of its own."""

import os
import re
import subprocess
import tempfile

import pytest

from tests.support.paths import ROOT
from tests.support.stores import environment, tracking_store

PAGE = (ROOT / "docs" / "distributed-search.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.slow
ALONE = ["unshare", "--net", "--pid", "--fork", "--mount-proc"]  # `ray stop` ends all of Ray that it sees


def alone(script):
    """A shell script, up to its first failure, with the loopback device as its network."""
    return [*ALONE, *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-ec", f"ip link set lo up\n{script}"]


def by_hand():
    """Return the documented lines for all machines in one script, with a search that takes seconds."""
    (block,) = re.findall(r"```sh\n(\(umask 077; ray get-auth-token.*?)```", PAGE, flags=re.DOTALL)
    assert block.count("HEAD") == block.count("search=kernel-patch-depth") == block.count("\nray stop") == 1
    stranger = f"RAY_AUTH_TOKEN={'0' * 64} ray status 2>&1 | grep InvalidAuthToken\n"
    return (
        block.replace("HEAD", "127.0.0.1")
        .replace("search=kernel-patch-depth", "search=smoke -P trials=2")
        .replace("\nray stop", f"\n{stranger}ray stop")
    )


def test_documented_ray_commands_make_a_cluster_that_requires_its_token_and_search_on_it(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -c requirements.lock -e '.[ray]'")
    if subprocess.run(alone("true"), capture_output=True, check=False).returncode:
        pytest.skip("namespaces are not allowed here, and such a cluster listens on all addresses")
    short = tempfile.TemporaryDirectory(dir="/tmp", prefix="ray-")  # a socket's path has at most 107 letters
    with short as folder, tracking_store(tmp_path, "mine") as uri:
        variables = environment(uri, "mine") | {"HOME": str(tmp_path), "RAY_TMPDIR": folder}
        done = subprocess.run(
            alone(by_hand()), env=variables, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " on 2 nodes of Ray" in done.stdout
    assert "its 2 trials are done" in done.stdout
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
