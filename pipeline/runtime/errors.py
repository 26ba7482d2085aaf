"""The exceptions of this program, each told in one line, and the exit code that a command ends with.

    PipelineError                        exit code 1
      UsageError (also a ValueError)               2
      NothingToDo                                  0
      Diverged                                     1
      NotEqual                                     1
      OutOfMemory                                  1
      SearchFailed                                 1
      ClusterLost                                  1
      LimitExceeded                                1
      CorruptCheckpoint                            1
      WorkerDied                                   1
      TrackingError                                1
        NotFound
          Deleted
        Rejected
        Unavailable
    Stopped (a BaseException)           128 + signal

Any other exception is a fault of the program: it passes with its traceback.
"""

import signal
from typing import ClassVar

from pipeline.runtime.text import one_line


class PipelineError(Exception):
    """An end of a command that needs no traceback; its message is one line."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))


class UsageError(PipelineError, ValueError):
    """Input that cannot be used; its message says the rule, then the value given, then what would do."""

    exit_code = 2


class NothingToDo(PipelineError):
    """What was requested has been done already."""

    exit_code = 0


class Diverged(PipelineError):
    """The loss of a training became NaN or infinite; its message says at which step."""


class NotEqual(PipelineError):
    """An exported model does not answer as the model that it was made of."""


class OutOfMemory(PipelineError):
    """The memory of the host or of the device does not suffice; its message says what takes less."""


class SearchFailed(PipelineError):
    """A search comes to no result: for example, several trials in a row failed with the same cause."""


class ClusterLost(PipelineError):
    """The head node of a Ray cluster is gone, and with it all trials that ran there."""


class LimitExceeded(PipelineError):
    """A configuration costs more than a search allows."""


class CorruptCheckpoint(PipelineError):
    """A file is not a complete checkpoint."""


class WorkerDied(PipelineError):
    """A worker process ended during a call: it was killed for memory, or native code crashed."""


class TrackingError(PipelineError):
    """MLflow did not do what it was asked to do."""


class NotFound(TrackingError):
    """MLflow holds no run, experiment, model or artifact of this name."""


class Deleted(NotFound):
    """A run or an experiment has been deleted; its message says how to restore it."""


class Rejected(TrackingError):
    """MLflow refused a request, and would refuse it again."""


class Unavailable(TrackingError):
    """MLflow gave no answer, or one that may differ when it is asked again."""


class Stopped(BaseException):
    """The process was asked to stop; no Exception, so that `except Exception` does not swallow it.

    Args:
        number: the signal that asked.
        reason: why the process stopped itself, if it did.
    """

    def __init__(self, number: int, reason: str = "") -> None:
        name = signal.Signals(number).name
        super().__init__(f"{name}, {reason}" if reason else name)
        self.signal = number

    @property
    def exit_code(self) -> int:
        """Return 128 plus the signal's number, as shells report a process that a signal ended."""
        return 128 + self.signal
