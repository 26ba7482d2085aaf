"""Start the program: `python -m pipeline COMMAND ...`, or the console script `convmixer`.

Whatever Python is the first on the PATH gets to read this file, such as the system's in an `mlflow run --env-manager
local` without an activated environment. So it has no syntax that is newer than Python 3.6, and neither has what it
imports at its top.
"""

import sys

from pipeline.runtime import interrupt

OLDEST_PYTHON = (3, 11)
REMEDY = (
    "activate the project's environment (. .venv/bin/activate; `make demo` creates it), or run "
    "`mlflow run . --env-manager uv`, which creates its own"
)


def main() -> None:
    """Run the command that this process was started with, and end the process with its exit code."""
    # before anything else is imported, so that Ctrl-C at any moment ends the process in one line
    interrupt.exit_on_interrupt()
    if sys.version_info < OLDEST_PYTHON:
        version = ".".join(map(str, sys.version_info[:3]))
        _refuse(f"Python must be 3.11, 3.12 or 3.13, got {version} ({sys.executable})")
    from pipeline.runtime import streams

    streams.tolerate_errors()
    try:
        from pipeline.commands.main import exit_process, run

        exit_process(run(sys.argv[1:]))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not _is_missing(package):
            raise
        _refuse(f"Python must have the packages of this project, got {sys.executable} without {package}")


def _is_missing(package: str) -> bool:
    """Return whether a package that is not one of Python itself is not installed."""
    from importlib.util import find_spec

    return bool(package) and package not in sys.stdlib_module_names and find_spec(package) is None


def _refuse(message: str) -> None:
    """End the process in one line, as a command does whose input cannot be used."""
    sys.stderr.write(f"error: {message}; {REMEDY}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
