"""YAML files of settings: found by name or path, and read with what YAML allows and settings do not need refused.

Every value is read as text, as if it had been given as a flag, and `Config` gives it its type. YAML 1.1 would read 010
as 8, 1:30 as 90 and `no` as false, whatever the setting.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import nearest, shown

MAX_BYTES = 16_384  # the longest recipe has a tenth of them
MAX_DEPTH = 20  # of lists and mappings within each other


def find(name: str, *, folder: Path, kind: str) -> Path:
    """Return the file that a name stands for: `folder/name.yaml`, or any path that ends in .yaml or .yml.

    Args:
        name: as the user gives it.
        folder: where the files that come with the project are.
        kind: what such a file is called in messages: recipe or search.

    Raises:
        UsageError: there is no such file.
    """
    is_path = name.endswith((".yaml", ".yml"))
    path = Path(os.path.expanduser(name)) if is_path else folder / f"{name}.yaml"
    # unlike Path.is_file, this is False for a name that no file can have
    if os.path.isfile(path):
        return path
    if not is_path and not folder.is_dir():
        raise UsageError(
            f"the {kind} files come with the repository and not with the installed package: there is no {folder}; "
            f"run in a checkout (`pip install -e .`), or give the path of a .yaml file, got {shown(name)}"
        )
    if is_path:
        raise UsageError(f"{kind} must be one of {choices(folder)}: there is no {path.absolute()}")
    raise UsageError(f"{kind} must be one of {choices(folder)}, got {shown(name)}{nearest(name, names(folder))}")


def names(folder: Path) -> list[str]:
    """Return the names of the YAML files in a folder, without their suffix; none if there is no such folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def choices(folder: Path) -> str:
    """Return what may be named, as the end of a phrase: `a, b, or the path of a .yaml file`."""
    return ", or ".join(filter(None, [", ".join(names(folder)), "the path of a .yaml file"]))


def read_file(path: Path, *, kind: str) -> dict[str, Any]:
    """Return the content of a file of `setting: value` lines, whose names and values are not checked.

    A value is text, or a list or a mapping of such values.

    Raises:
        UsageError: it is anything else, has an alias, a tag or a key twice, or is too long or too deep.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"a {kind} must be readable: {path.absolute()}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise UsageError(f"a {kind} must have at most {MAX_BYTES:,} bytes, got more in {path.absolute()}")
    try:
        _check_events(yaml.parse(content, Loader=yaml.CBaseLoader))
        settings = _Loader(content).get_single_data()
    except yaml.YAMLError as error:
        raise UsageError(f"{path.absolute()} is not YAML for settings: {_message(error)}") from None
    if settings is None or settings == "":
        return {}
    if not isinstance(settings, dict):
        raise UsageError(f"a {kind} must be 'setting: value' lines, got {type(settings).__name__} in {path.absolute()}")
    return settings


def _check_events(events: Iterator[yaml.Event]) -> None:
    """Raise MarkedYAMLError for what could make a short file grow, or Python's stack overflow, when it is built."""
    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise _refusal(f"aliases are not read: *{event.anchor}", event.start_mark)
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise _refusal(f"tags are not read: {event.tag}", event.start_mark)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _refusal(f"nested more than {MAX_DEPTH} deep", event.start_mark)


class _Loader(yaml.CBaseLoader):
    """Loader of text, lists and mappings that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # PyYAML would keep the last value without a word
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise _refusal(f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _refusal(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _message(error: yaml.YAMLError) -> str:
    """Return what is wrong and where, on one line, without PyYAML's excerpt, which may hold a password."""
    mark = getattr(error, "problem_mark", None)
    if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
        return " ".join(str(error).split())
    problem = " ".join(part for part in (error.context, error.problem) if part)
    return f"{problem}, in line {mark.line + 1}, column {mark.column + 1}"
