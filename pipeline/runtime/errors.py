"""The exceptions that are told in one line."""

import signal

from pipeline.runtime.text import one_line


class UsageError(ValueError):
    """Input that cannot be used; its message is one line: the rule, then what came, then what would do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Diverged(RuntimeError):
    """Training whose loss is not a finite number any more; its message is one line and says at which step."""


class NothingToDo(Exception):
    """What was asked for is done already; its message is one line."""


class CorruptCheckpoint(Exception):
    """A file that is no whole checkpoint; its message is one line."""


class WorkerDied(RuntimeError):
    """A process ended in the midst of a call (killed for memory, or a crash in native code)."""


class Stopped(BaseException):
    """Somebody asked the process to stop; not an Exception, so that no `except Exception` swallows it."""

    def __init__(self, number: int, reason: str = "") -> None:
        """`number` is the signal's; `reason` says why the process stopped itself, if it did."""
        super().__init__(f"{signal.Signals(number).name}{reason and f', {reason}'}")
        self.signal = number


class SearchFailed(RuntimeError):
    """A search comes to no result: trial after trial failed for the same reason, say."""


class TrackingError(Exception):
    """MLflow did not do what it was asked to; its message is one line."""

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))


class NotFound(TrackingError):
    """MLflow holds no run, experiment, model or artifact of this name."""


class Deleted(NotFound):
    """A run or an experiment has been deleted; its message says how to restore it."""


class Rejected(TrackingError):
    """MLflow refused a request, and would refuse it again."""


class Unavailable(TrackingError):
    """MLflow gave no answer, or one that may differ when it is asked again."""


class ClusterLost(UsageError):
    """The head node of the cluster is gone, and with it all that ran there."""
