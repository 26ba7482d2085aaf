"""Whether all is well: `mlflow run . -e doctor`, or `python -m pipeline.doctor`; a line each, with what would cure it.

It looks at Python and its packages, the tracking store, the cache and the disks, and what TensorFlow computes on, and
sends what runs could not tell while the tracking server was away, and closes the runs that have lost their process on
this host. The exit code is 1 where something is broken.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence

from pydantic import Field

from pipeline import command_line
from pipeline.door import exit_code, leave
from pipeline.health.finding import Finding
from pipeline.settings import Settings

PROGRAM = "python -m pipeline.doctor"


class Visit(Settings):
    """What the doctor is asked to do besides."""

    close: tuple[str, ...] | None = Field(
        None, description="ids of open runs that have died on other hosts, to be closed as FAILED"
    )


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code: 0, 1 where something is broken, 2 for input that cannot be used."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    return exit_code(lambda: _visit(arguments))


def _visit(arguments: Sequence[str]) -> int:
    visit = Visit.build(
        command_line.parse(
            arguments, program=PROGRAM, description=str(__doc__), settings=Visit.build({}), of="by default"
        )
    )
    broken = False
    for finding in _findings(visit):
        print(finding, flush=True)
        broken |= finding.state == "broken"
    return int(broken)


def _findings(visit: Visit) -> Iterator[Finding]:
    """From what is quickly told to what takes long; MLflow takes seconds to import."""
    from pipeline.health import computing, disk, installation, store

    if visit.close:
        yield from store.close(visit.close)
    checks: list[Callable[[], Iterator[Finding]]] = [
        installation.python,
        installation.packages,
        disk.cache,
        store.store,
        store.outbox,
        store.open_runs,
        computing.computing,
    ]
    for check in checks:
        yield from check()


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
