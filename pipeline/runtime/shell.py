"""Commands that a person can paste into the shell in which the program that printed them was started."""

import shlex
import sys
from pathlib import Path


def project_command(*words: str) -> str:
    """Return a command of this project, such as `.venv/bin/convmixer train --resume latest`.

    It names the program beside this Python, as neither that nor `mlflow` need be on the PATH of the user's shell, and
    `mlflow run` would take whatever `python` comes first there.

    Args:
        words: The command and its arguments, not quoted.
    """
    script = _bin() / "convmixer"
    # an environment that `mlflow run` has made from conda.yaml holds the libraries alone
    program = [_short(script)] if script.exists() else [_short(Path(sys.executable)), "-m", "pipeline"]
    return shlex.join([*program, *words])


def mlflow_command(*words: str) -> str:
    """Return a command of the MLflow that is installed beside this Python; `words` are not quoted."""
    return shlex.join([_short(_bin() / "mlflow"), *words])


def install_command(*requirements: str) -> str:
    """Return a command with which pip installs packages beside this Python; `requirements` are not quoted."""
    return shlex.join([_short(Path(sys.executable)), "-m", "pip", "install", *requirements])


def install_extra_command(extra: str) -> str:
    """Return a command that installs an extra of this project, such as ray, in the versions of its lock."""
    return install_command("-c", "requirements.lock", "-e", f".[{extra}]")


def _bin() -> Path:
    # not resolved: the links of a virtual environment lead out of it
    return Path(sys.executable).parent


def _short(path: Path) -> str:
    """Return a path relative to the working folder, if it lies below that."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
