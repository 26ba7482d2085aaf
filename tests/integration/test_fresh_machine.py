"""The two commands of the README on a Debian that has nothing but python3-venv, git and make, as its ordinary user."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.debian import (
    CERTIFICATES,
    SUITES,
    isolated,
    make_debian,
    needs_debootstrap,
    network_settings,
    remove,
)
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, *needs_debootstrap]

# Ends with its processes and its mounts; the arguments are the root and a command
IN_ROOT = """
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mount -t tmpfs tmpfs "$1/dev/shm"
root=$1; shift
exec chroot --userspec=user:user "$root" "$@"
"""


@pytest.fixture(scope="module", params=SUITES)
def debian(request, tmp_path_factory):
    """Return the root of a new Debian with a user, in whose home is a clone of this project."""
    root = tmp_path_factory.mktemp(request.param) / "root"
    make_debian(request.param, root, "ca-certificates", "python3-venv", "git", "make")
    if Path("/", CERTIFICATES).exists():
        shutil.copy(Path("/", CERTIFICATES), root / CERTIFICATES)
    subprocess.run(["chroot", root, "useradd", "--create-home", "user"], check=True)
    subprocess.run(["git", "clone", "--quiet", ROOT, root / "home/user/my project"], check=True)
    subprocess.run(["chroot", root, "chown", "-R", "user:user", "/home/user"], check=True)
    yield root
    remove(root)


def as_user(root, *command, **variables):
    """Run a command in the project's folder on the machine, with nothing of this one's environment."""
    settings = network_settings() | {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/home/user",
        "PIP_CERT": f"/{CERTIFICATES}",
    }
    assignments = [f"{name}={value}" for name, value in (settings | variables).items()]
    env = ["env", "-i", "-C", "/home/user/my project", *assignments]
    return isolated("sh", "-euc", IN_ROOT, "sh", root, *env, *command)


# A login without a home folder, and a program that goes on when the terminal is closed; neither has a git identity
ROUGH = {"HOME": "", "LANG": "C", "TZ": "Pacific/Apia"}


def test_make_demo_on_a_fresh_debian_trains(debian):
    check_demo(debian, as_user(debian, "make", "demo"))


def test_make_demo_with_nohup_and_without_a_home_trains(debian):
    check_demo(debian, as_user(debian, "nohup", "make", "demo", **ROUGH))


def check_demo(debian, completed):
    assert completed.returncode == 0, completed.stdout[-2000:] + completed.stderr[-2000:]
    assert "\ntest accuracy " in completed.stdout
    assert as_user(debian, "git", "status", "--porcelain").stdout == ""


def test_make_test_with_nohup_and_without_a_home_passes(debian):
    completed = as_user(debian, "nohup", "make", "test", **ROUGH)
    assert completed.returncode == 0, completed.stdout[-5000:] + completed.stderr[-2000:]
    assert as_user(debian, "git", "status", "--porcelain").stdout == ""
