"""What every command does around its work: passwords out of sight, faults in one line, an exit code."""

import errno
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from pipeline.errors import Diverged, NothingToDo, UsageError
from pipeline.lifetime.ancestors import OPENED
from pipeline.lifetime.interrupt import Stopped
from pipeline.printable import one_line
from pipeline.store_urls import bound_waiting, hide_credentials

FAILED, REFUSED, STOPPED = 1, 2, 128  # exit codes; to the last the signal is added


def exit_code(work: Callable[[], int | None]) -> int:
    """Do the work of a command.

    Returns:
        What the work returns, or 0; 1 for training that diverged or a full disk, 2 for input that cannot be used, and
        128 and the signal where one stopped it.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # each try to reach a server; what comes of them is said once
    try:
        hide_credentials(os.environ)
        bound_waiting(os.environ)
        return work() or 0
    except NothingToDo as done:
        print(done)
        return 0
    except UsageError as error:
        return _refused(error)
    except Diverged as error:
        return _failed(str(error))
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        return _failed(f"the disk is full: {one_line(error)}")
    except Stopped as stopped:
        print(f"stopped by {stopped}", file=sys.stderr)
        return STOPPED + stopped.signal


def leave(code: int) -> NoReturn:
    """End the process with this code; after a signal at once: Python's own way out waits for TensorFlow's threads.

    That took 2 s on busy cores, of the ten in which a stopped process has to be gone.
    """
    if code <= STOPPED:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a terminal that was closed
            stream.flush()
    os._exit(code)


def _failed(why: str) -> int:
    print(f"error: {why}", file=sys.stderr)
    return FAILED


def _refused(error: UsageError) -> int:
    """Say why, in the run that `mlflow run` opened too."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    if OPENED in os.environ:
        from pipeline.lifetime.ownership import refused

        refused(str(error))
    return REFUSED
