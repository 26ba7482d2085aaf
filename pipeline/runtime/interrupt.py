"""Ctrl-C while the program starts, and the end of a process that a signal stops at once.

This module is imported before any other, and imports nothing that takes time: of `signal`, its part in C.
"""

import _signal  # type: ignore[import-not-found]
import os

NAMES = {_signal.SIGHUP: "SIGHUP", _signal.SIGINT: "SIGINT", _signal.SIGTERM: "SIGTERM"}

stderr_descriptor = 2  # of standard error, also while file descriptor 2 is captured


def exit_on_interrupt() -> None:
    """End the process at a Ctrl-C in one line with exit code 130, until a command handles signals itself.

    At once, and not by an exception: a library that is being imported might catch it, or be left half imported.
    """
    # a shell has a command in its background ignore it
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, lambda number, frame: exit_stopped(number))


def exit_stopped(number: int) -> None:
    """End the process that a signal asks to stop, whatever it is in the middle of, with one line and its exit code."""
    try:
        os.write(stderr_descriptor, f"stopped by {NAMES[number]}\n".encode())
    finally:
        os._exit(128 + number)
