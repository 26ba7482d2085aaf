"""A YAML file of settings, by its name in a folder of experiments/ or by its path."""

from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UsageError
from pipeline.settings import nearest, shown


def find(name: str, *, folder: Path, kind: str) -> Path:
    """The file that `name` stands for.

    Args:
        kind: what such a file is, as a word for the message: recipe, search.

    Raises:
        UsageError: there is none.
    """
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if path.is_file():
        return path
    raise UsageError(f"{kind} must be one of {listing(folder)}, got {shown(name)}{nearest(name, names(folder))}")


def read(path: Path, *, kind: str) -> dict[str, Any]:
    """What a file says, by setting; nothing of it checked but that it is such lines, and none of them twice.

    Raises:
        UsageError: it is anything else.
    """
    try:
        said = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.absolute()} is not YAML: {' '.join(str(error).split())}") from None
    if said is None:
        return {}
    if not isinstance(said, dict) or not all(isinstance(key, str) for key in said):
        raise UsageError(f"a {kind} must be 'setting: value' lines, got {type(said).__name__} in {path.absolute()}")
    return said


def names(folder: Path) -> list[str]:
    """What the files of a folder are called by."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def listing(folder: Path) -> str:
    """What may be named, as the end of a phrase."""
    return f"{', '.join(names(folder))}, or the path of a .yaml file"


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key which stands twice, where PyYAML would forget the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)
