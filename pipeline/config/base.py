"""The base class of all settings: frozen values whose bounds are also their help and their error messages."""

from collections.abc import Iterable, Mapping
from inspect import get_annotations
from types import UnionType
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import nearest, shown

Section = TypeVar("Section", bound="Config")


class Config(BaseModel):
    """Named values with bounds, to be subclassed with fields; read alike from flags, `-P` and YAML."""

    # a validator is built when it is first needed: most commands need one of them, and --help has to be fast
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value: object, info: ValidationInfo) -> object:
        """Read text as flags and files hold it: `none`, lists with commas; and refuse true and false as numbers."""
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, str):
            value = value.strip()
            if type(None) in kinds and value.lower() in {"none", "null", "~"}:
                return None
        for kind in kinds:
            if get_origin(kind) is tuple:
                return _read_list(value) if _any_length(kind) else _read_pair(value)
        if isinstance(value, bool) and bool not in kinds:
            raise ValueError("neither true nor false")
        return value

    @classmethod
    def build(cls, values: Mapping[str, object]) -> Self:
        """Return an instance with these values, after checking them.

        Raises:
            UsageError: an unknown name, or values that break the rules of their settings, all of them in one line.
        """
        if not values:
            # pydantic checks no defaults either, but builds a validator first, which `--help` has no time for
            return cls.model_construct()
        cls.check_names(values)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            names = dict.fromkeys(str(fault["loc"][0]) for fault in error.errors())
            message = "; ".join(
                f"{name} must be {cls.rule(name)}, got {shown(values[name])}{cls._nearest(name, values[name])}"
                for name in names
            )
            raise UsageError(message) from None

    @classmethod
    def check_names(cls, names: Iterable[str]) -> None:
        """Raise UsageError for the first name that is no setting, with the most similar one that is."""
        for name in names:
            if name not in cls.model_fields:
                raise UsageError(f"unknown setting {shown(name)}{nearest(name, cls.model_fields)}; --help lists all")

    @classmethod
    def _nearest(cls, name: str, value: object) -> str:
        """Return which of a setting's named values may be meant, or nothing."""
        known = _named_values(cls.model_fields[name].annotation)
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
        wrong = next((part.strip() for part in parts if isinstance(part, str) and part.strip() not in known), "")
        return nearest(wrong, known) if wrong else ""

    @classmethod
    def rule(cls, name: str) -> str:
        """Return what a setting's value must be, as a phrase: `a whole number from 1 to 256`."""
        field = cls.model_fields[name]
        *most, last = [choice for kind in _kinds(field.annotation) for choice in _choices(kind, field)]
        return f"{', '.join(most)} or {last}" if most else last

    @classmethod
    def sections(cls) -> dict[str, list[str]]:
        """Return the names of the settings, grouped under the title of the class that defines them."""
        titles = {
            name: base.model_config.get("title") or "settings"
            for base in reversed(cls.__mro__)
            if issubclass(base, BaseModel)
            for name in get_annotations(base)
        }
        sections: dict[str, list[str]] = {}
        for name in cls.model_fields:
            sections.setdefault(titles[name], []).append(name)
        return sections

    def section(self, kind: type[Section]) -> Section:
        """Return the part of the settings that `kind`, a base class, defines."""
        return kind.model_construct(**{name: getattr(self, name) for name in kind.model_fields})

    def text(self, name: str) -> str:
        """Return a setting's value as the user would type it: `none`, `true`, `0.001`, `24,32`."""
        return _as_text(getattr(self, name))


def metavar(field: FieldInfo) -> str:
    """Return the kind of a setting's value, as a help line shows it: `INT`, `NAME,...`."""
    kind = next(kind for kind in _kinds(field.annotation) if kind is not type(None))
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        return "NAME,..." if _any_length(kind) else "H,W"
    return "NAME" if get_origin(kind) is Literal else {bool: "BOOL", int: "INT", float: "FLOAT", str: "TEXT"}[kind]


def _read_pair(value: object) -> object:
    """Return `24,32` as [24, 32], and `32` as [32, 32]."""
    parts = value.strip("[]").split(",") if isinstance(value, str) else value
    if isinstance(parts, int) and not isinstance(parts, bool):
        parts = [parts]
    return parts * 2 if isinstance(parts, list) and len(parts) == 1 else parts


def _read_list(value: object) -> object:
    """Return `a,b` as [a, b], and `a` as [a]; raise ValueError if a part is given twice."""
    parts = [part.strip() for part in value.strip("[]").split(",")] if isinstance(value, str) else value
    if isinstance(parts, list) and any(part in parts[:position] for position, part in enumerate(parts)):
        raise ValueError("a part is given twice")
    return parts


def _named_values(annotation: Any) -> list[str]:
    """Return the names that a setting may have as its value, or as parts of it."""
    kinds = [get_args(kind)[0] if get_origin(kind) is tuple else kind for kind in _kinds(annotation)]
    return [str(name) for kind in kinds if get_origin(kind) is Literal for name in get_args(kind)]


def _any_length(kind: Any) -> bool:
    """Return whether the annotation of a tuple leaves its length open."""
    return get_args(kind)[-1] is Ellipsis


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation itself."""
    return get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)


def _choices(kind: Any, field: FieldInfo) -> list[str]:
    """Return phrases that say what a value of this kind may be."""
    if get_origin(kind) is Annotated:
        # a member of a union with bounds of its own
        own = FieldInfo.from_annotation(kind)
        return _choices(own.annotation, own)
    if get_origin(kind) is tuple and _any_length(kind) and get_args(kind)[0] is str:
        return ["one or more with commas between, each once"]
    if get_origin(kind) is tuple and _any_length(kind):
        names = ", ".join(_choices(get_args(kind)[0], field))
        most = "".join(
            f"up to {bound.max_length} " for bound in field.metadata if isinstance(bound, annotated_types.MaxLen)
        )
        return [f"{most or 'some '}of {names}, each once, with commas between"]
    if get_origin(kind) is tuple:
        side = FieldInfo.from_annotation(get_args(kind)[0])
        return [f"height,width (each {_choices(side.annotation, side)[0]})", "one number for both"]
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    plain = {type(None): ["none"], bool: ["true", "false"]}
    numbers = {int: "a whole number", float: "a number"}
    if kind is str:
        return [field.title or f"UTF-8 text{_lengths(field)}"]
    return plain[kind] if kind in plain else [numbers[kind] + _bounds(field)]


def _bounds(field: FieldInfo) -> str:
    """Return the bounds of a number: ` from 1 to 256`."""
    low = high = ""
    for bound in field.metadata:
        if isinstance(bound, annotated_types.Ge):
            low = f" from {_as_text(bound.ge)}"
        elif isinstance(bound, annotated_types.Gt):
            low = f" above {_as_text(bound.gt)}"
        elif isinstance(bound, annotated_types.Le):
            high = f" to {_as_text(bound.le)}"
        elif isinstance(bound, annotated_types.Lt):
            high = f" to below {_as_text(bound.lt)}"
    return low + high


def _lengths(field: FieldInfo) -> str:
    """Return the bounds of a text's length: ` of 1 to 200 characters`."""
    least = [bound.min_length for bound in field.metadata if isinstance(bound, annotated_types.MinLen)]
    most = [bound.max_length for bound in field.metadata if isinstance(bound, annotated_types.MaxLen)]
    if not least and not most:
        return ""
    upper = f"to {most[0]}" if most else "or more"
    return f" of {least[0] if least else 0} {upper} characters"


def _as_text(value: object) -> str:
    """Return a value as the user would type it."""
    if isinstance(value, tuple):
        return ",".join(_as_text(part) for part in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    # of a float this is the shortest text that reads back to it
    return str(value)
