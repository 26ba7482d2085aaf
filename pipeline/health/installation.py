"""Whether Python and the packages are those that this project is tested with."""

import platform
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.health.finding import Finding

ROOT = Path(__file__).parents[2]
PYTHON = (3, 11)  # what requirements.lock was resolved for
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", re.MULTILINE)
CURE = "`mlflow run` with an environment manager or `make demo` makes an environment that is"


def python() -> Iterator[Finding]:
    """The interpreter."""
    wanted = ".".join(map(str, PYTHON))
    if sys.version_info[:2] == PYTHON:
        yield Finding("ok", f"Python {platform.python_version()} in {sys.prefix}")
    else:
        yield Finding("broken", f"Python {platform.python_version()} in {sys.prefix} is not {wanted}: {CURE}")


def packages(root: Path = ROOT) -> Iterator[Finding]:
    """What is installed against what is pinned; `root` is the project's folder.

    The lock names what any platform and any extra needs, so that only what is asked for by name must be there.
    """
    try:
        pinned = PIN.findall((root / "requirements.lock").read_text(encoding="utf-8"))
        asked = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    except OSError as error:
        yield Finding("look", f"versions could not be looked up: {error.filename}: {error.strerror}")
        return
    allowed: dict[str, set[str]] = {}  # by name: a platform may have a version of its own
    for name, number in pinned:
        allowed.setdefault(name, set()).add(number)
    here = {name: _installed(name) for name in allowed}
    missing = [name for name, _ in PIN.findall("\n".join(asked)) if here.get(name) is None]
    others = [
        f"{name} {number} (pinned: {' or '.join(sorted(allowed[name]))})"
        for name, number in here.items()
        if number is not None and number not in allowed[name]
    ]
    if missing:
        yield Finding("broken", f"not installed: {', '.join(missing)}; {CURE} whole")
    if others:
        yield Finding("look", f"not as requirements.lock has it: {_few(others)}; {CURE}")
    if not missing and not others:
        yield Finding("ok", f"{sum(map(bool, here.values()))} packages, each as requirements.lock has it")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _few(texts: list[str], most: int = 5) -> str:
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
