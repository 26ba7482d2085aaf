"""What a user of this machine can do to a Ray cluster of another one, on stdout as JSON.

`python ray_intruder.py UID`, as root, with the cluster as JSON on stdin: its address, its token, the folder of its
session, and the ids of its processes. The process becomes the user with this id first, who knows the token only if it
is in RAY_AUTH_TOKEN.
"""

import json
import os
import socket
import sys
from pathlib import Path

from ray._raylet import GcsClient


def main():
    user = int(sys.argv[1])
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    cluster = json.load(sys.stdin)
    session = Path(cluster["session"])
    report = {
        "connects": succeeds(lambda: GcsClient(address=cluster["address"]).internal_kv_keys(b"", None)),
        "reads the token": sees(cluster["token"], cluster["processes"]),
        "writes": succeeds((session / "logs" / "mine").touch),
        "reads": succeeds(lambda: list(session.iterdir())),
        "opens a socket": succeeds(
            lambda: socket.socket(socket.AF_UNIX).connect(str(session / "sockets" / "plasma_store"))
        ),
    }
    sys.stdout.write(json.dumps(report))


def sees(token, processes):
    """Return the files of /proc in which the token is readable."""
    found = []
    for process in processes:
        for name in ("cmdline", "environ"):
            try:
                text = Path(f"/proc/{process}/{name}").read_bytes()
            except OSError:
                continue
            if token.encode() in text:
                found.append(name)
    return sorted(set(found))


def succeeds(action):
    try:
        action()
    except Exception:  # noqa: BLE001 - Ray raises errors of many kinds
        return False
    return True


if __name__ == "__main__":
    main()
