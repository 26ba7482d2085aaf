"""The console: what a command writes to the terminal, with colour and a progress bar where a person watches."""

import logging
import os
import sys
from types import TracebackType
from typing import Any, ClassVar, Self, TextIO

from pipeline.runtime.text import printable
from pipeline.runtime.urls import mask_password

YELLOW, RED = 33, 31  # SGR codes, ECMA-48 section 8.3.117


class Console:
    """Lines, warnings, errors and a progress bar; a file or a pipe gets the lines alone.

    The streams are looked up at each call, so that a test or a caller may replace `sys.stdout` and `sys.stderr`.
    As a context manager it removes the bar at the end; a Console that shows no bar needs no closing.
    """

    # A terminal has room for one bar: lines of any Console, and of the log, have to be written above it.
    _bar: ClassVar[Any] = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_terminal(self) -> bool:
        """Return True if standard output is a terminal, where a bar may move."""
        return sys.stdout.isatty()

    def print(self, *lines: str) -> None:
        """Write each line to standard output at once, as logs are followed."""
        self._write(sys.stdout, *map(presentable, lines or ("",)))

    def note(self, *lines: str) -> None:
        """Write each line to standard error: what is not part of a command's result."""
        self._write(sys.stderr, *map(presentable, lines))

    def warn(self, message: str) -> None:
        """Write `warning: message` to standard error."""
        self._write(sys.stderr, f"{_coloured('warning:', YELLOW, sys.stderr)} {presentable(message)}")

    def error(self, message: str) -> None:
        """Write `error: message` to standard error."""
        self._write(sys.stderr, f"{_coloured('error:', RED, sys.stderr)} {presentable(message)}")

    def progress(self, done: float, total: float, text: str) -> None:
        """Move the bar below the lines to `done` of `total`, followed by `text`; a terminal only has one."""
        if not self.is_terminal:
            return
        if Console._bar is None:
            # Imported here, as most commands show no bar and `--help` has to be fast.
            from tqdm import tqdm

            Console._bar = tqdm(total=total, file=sys.stdout, leave=False, bar_format="{percentage:3.0f}% {bar} {desc}")
        bar = Console._bar
        bar.total = total
        bar.n = min(done, total)
        bar.set_description_str(presentable(text))

    def close(self) -> None:
        """Remove the bar, if there is one."""
        if Console._bar is not None:
            Console._bar.close()
            Console._bar = None

    def _write(self, stream: TextIO, *lines: str) -> None:
        text = "".join(f"{line}\n" for line in lines)
        if Console._bar is None:
            stream.write(text)
        else:
            Console._bar.write(text, file=stream, end="")
        stream.flush()


def presentable(line: str) -> str:
    r"""Return a line as a terminal may get it: secrets masked, control characters and the like written as in `\\x1b`.

    Names come from a tracking server, which others can write to, and messages from libraries, which quote URLs.
    """
    return printable(mask_password(line))


class ConsoleHandler(logging.Handler):
    """Show log records on the console: errors and warnings with their label, all else as it is."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # on one line, as the messages of this program are, and without a traceback
            message = " ".join(record.getMessage().splitlines())
            if record.levelno >= logging.ERROR:
                self._console.error(message)
            elif record.levelno >= logging.WARNING:
                self._console.warn(message)
            else:
                self._console.note(message)
        except Exception:  # noqa: BLE001 - as every handler: a record that cannot be shown must not end the program
            self.handleError(record)


def configure_logging(console: Console) -> None:
    """Show warnings of all libraries, and notices (`log.info`) of this program, unless a handler is set up already.

    A module says `log.warning("...")` for what the user should act on and `log.info("...")` for what they should know;
    neither writes the label itself.
    """
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(ConsoleHandler(console))
        root.setLevel(logging.WARNING)
        logging.getLogger("pipeline").setLevel(logging.INFO)
    # urllib3 reports each attempt to reach a server; the command reports what became of them, once.
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write the traceback of an exception that nothing has caught, a fault of the program; for `sys.excepthook`."""
    # imported here, as `--help` has to be fast
    import traceback

    Console().note(*"".join(traceback.format_exception(kind, error, trace)).splitlines())


def _coloured(text: str, code: int, stream: TextIO) -> str:
    """Return `text` in colour if `stream` is a terminal that wants it (https://no-color.org)."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{code}m{text}\x1b[0m"
