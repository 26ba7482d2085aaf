"""A TCP port of this machine that is free."""

import socket


def free_port():
    """Return a port of 127.0.0.1 that no process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
