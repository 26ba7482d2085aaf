"""Lines of text, and below them a bar that moves while they come, where a person looks on."""

import sys
from types import TracebackType
from typing import Self

from tqdm import tqdm


class Console:
    """Standard output: lines for everyone, the bar for a terminal only."""

    def __enter__(self) -> Self:
        # disable=None: no bar in a file or a pipe
        self._bar = tqdm(
            total=1, file=sys.stdout, disable=None, leave=False, bar_format="{percentage:3.0f}% {bar} {desc}"
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def say(self, line: str) -> None:
        """Write a line at once, as logs are followed."""
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()

    def progress(self, done: float, of: int, more: str) -> None:
        """Move the bar to so much of so many, with words after it."""
        self._bar.total = of
        self._bar.n = min(done, of)
        self._bar.set_description_str(more)
