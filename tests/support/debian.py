"""New Debians in folders, made with debootstrap, and commands that leave no mounts and processes behind."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

needs_debootstrap = [
    pytest.mark.skipif(shutil.which("debootstrap") is None, reason="debootstrap is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a Debian"),
]
SUITES = ["bookworm", "trixie"]
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
# How this machine reaches the package index
NETWORK = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL", "UV_DEFAULT_INDEX")
# debootstrap's messages
UNREACHABLE = ("Failed getting release file", "Couldn't download")


def make_debian(suite, root, *packages):
    """Make a minimal Debian in a new folder; skip the test where Debian's packages cannot be reached."""
    include = [f"--include={','.join(packages)}"] if packages else []
    made = isolated("debootstrap", "--variant=minbase", *include, suite, root)
    if made.returncode != 0 and any(words in made.stdout + made.stderr for words in UNREACHABLE):
        pytest.skip("Debian's packages cannot be reached")
    assert made.returncode == 0, made.stdout[-2000:]
    # as Docker and Kubernetes write it into containers
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    if Path("/etc/resolv.conf").exists():
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")


def remove(folder):
    """Remove a root; an environment has 60,000 files, for which shutil.rmtree takes minutes on a busy machine."""
    subprocess.run(["rm", "-rf", folder], check=True)


def isolated(*command, **options):
    """Run a command in namespaces of its own, so that neither its mounts nor its processes survive it."""
    return subprocess.run(unshared(*command), capture_output=True, text=True, check=False, **options)


def unshared(*command):
    """Return a command that runs another one in namespaces of its own, as the first of its processes."""
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", *command]


def network_settings():
    """Return the variables that lead to the package index."""
    return {name: os.environ[name] for name in os.environ if name.lower() in NETWORK or name in NETWORK}
