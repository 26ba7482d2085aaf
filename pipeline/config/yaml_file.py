"""A YAML file of settings, by its name in a folder of experiments/ or by its path."""

import math
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import nearest, shown

MOST_BYTES = 16_384  # PyYAML takes up to a second for these, and minutes for a thousand times as many
MOST_VALUES = 10_000
LIBYAML = getattr(yaml, "CSafeLoader", None)  # which knows none of these limits
PLAIN = re.compile(rb"([a-z_]+:( [\w./ -]+|(\n- \d+)+)\n)+")  # lines in which hardly anything can be amiss
DEEPEST = 20  # brackets within brackets, each of which PyYAML looks through again for the next one


def find(name: str, *, folder: Path, kind: str) -> Path:
    """The file that `name` stands for.

    Args:
        kind: what such a file is, as a word for the message: recipe, search.

    Raises:
        UsageError: there is none.
    """
    path = Path(os.path.expanduser(name)) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if os.path.isfile(path):  # which, unlike Path's own, is False for a name that no file can have
        return path
    if name.endswith((".yaml", ".yml")):
        raise UsageError(f"{kind} must be one of {listing(folder)}: there is no {path.absolute()}")
    raise UsageError(f"{kind} must be one of {listing(folder)}, got {shown(name)}{nearest(name, names(folder))}")


def read_file(path: Path, *, kind: str) -> dict[str, Any]:
    """What a file says, by setting; nothing of it checked but that it is such lines, and none of them twice.

    Raises:
        UsageError: it is anything else, or longer than such a file can sensibly be.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"a {kind} must be readable: {path.absolute()}: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise UsageError(f"a {kind} must have at most {MOST_BYTES:,} bytes, got more in {path.absolute()}")
    try:
        said = _Loader(content).get_single_data()
    except yaml.YAMLError as error:
        raise UsageError(f"{path.absolute()} is not YAML: {_fault(error)}") from None
    except RecursionError:
        raise UsageError(f"{path.absolute()} is not YAML for settings: it is nested too deeply") from None
    if said is None:
        return {}
    if not isinstance(said, dict) or not all(isinstance(key, str) for key in said):
        raise UsageError(f"a {kind} must be 'setting: value' lines, got {type(said).__name__} in {path.absolute()}")
    return said


def read_plain(path: Path) -> dict[str, Any] | None:
    """What a file of plain lines says, as `config.to_yaml` writes them, in a tenth of the time; None of any other.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if LIBYAML and len(content) <= MOST_BYTES and PLAIN.fullmatch(content):
        with suppress(ValueError):  # a date that is none
            return dict(LIBYAML(content).get_single_data())
    return None


def names(folder: Path) -> list[str]:
    """What the files of a folder are called by."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def listing(folder: Path) -> str:
    """What may be named, as the end of a phrase."""
    return f"{', '.join(names(folder))}, or the path of a .yaml file"


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses what PyYAML takes without a word, and says what is wrong with what it trips over."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level >= DEEPEST:
            problem = f"brackets nested more than {DEEPEST} deep"
            raise yaml.scanner.ScannerError(problem=problem, problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def get_single_node(self) -> yaml.Node | None:
        """Refuse a file that grows: a few lines of aliases can stand for more values than memory holds."""
        node = super().get_single_node()
        if node is not None and _count(node, {}) > MOST_VALUES:
            problem = f"more than {MOST_VALUES:,} values, those behind an alias counted wherever it stands"
            raise yaml.composer.ComposerError(problem=problem, problem_mark=node.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A scalar that is not what it looks like (`2001-99-99`) leads PyYAML into errors of many kinds."""
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception:  # noqa: BLE001 - as said
            problem = f"this is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key which stands twice, where PyYAML would forget the first."""
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _fault(error: yaml.YAMLError) -> str:
    """What is wrong and where, on one line; not the excerpt that PyYAML gives, in which a password may stand."""
    mark = getattr(error, "problem_mark", None)
    if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
        return " ".join(str(error).split())
    said = " ".join(part for part in (error.context, error.problem) if part)
    return f"{said}, in line {mark.line + 1}, column {mark.column + 1}"


def _count(node: yaml.Node, known: dict[int, float]) -> float:
    """Values in a node and below; without end where it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for entry in below for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]
