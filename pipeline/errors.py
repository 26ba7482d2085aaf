"""The exceptions that are told in one line."""

from pipeline.printable import one_line


class UsageError(ValueError):
    """Input that cannot be used; its message is one line: the rule, then what came, then what would do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Diverged(RuntimeError):
    """Training whose loss is not a finite number any more; its message is one line and says at which step."""


class NothingToDo(Exception):
    """What was asked for is done already; its message is one line."""
