"""Read Dockerfiles: instructions, stages and variables, as far as those of deploy/docker use them.

What is not understood raises `ValueError`, so that no line is skipped unnoticed.
"""

import json
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

KNOWN = {
    *("ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"),
    # refused by the rules of test_containers.py
    *("ADD", "SHELL", "LABEL", "MAINTAINER", "ONBUILD", "STOPSIGNAL"),
}
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


@dataclass(frozen=True)
class Instruction:
    """An instruction with its flags, as `COPY --from=build a b` has one."""

    name: str
    flags: tuple[tuple[str, str], ...]
    text: str  # without flags and comments, lines joined
    line: int  # of the file, from 1

    @property
    def words(self) -> list[str]:
        """Return the JSON array of an exec form, or else the words that spaces separate."""
        return json.loads(self.text) if self.is_exec_form else self.text.split()

    @property
    def is_exec_form(self) -> bool:
        return self.text.startswith("[")

    def flag(self, name: str) -> str | None:
        return dict(self.flags).get(name)


@dataclass
class Stage:
    """A FROM and what follows it."""

    base: str  # an image, or the name of an earlier stage
    name: str | None
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, name: str) -> Instruction | None:
        """Return the last instruction of a name, which is the one that counts."""
        found = [each for each in self.instructions if each.name == name]
        return found[-1] if found else None


@dataclass
class Dockerfile:
    """The stages of a file; the last one is the image."""

    arguments: dict[str, str]  # of ARG before the first FROM
    stages: list[Stage]


def read_dockerfile(path: Path) -> Dockerfile:
    """Return the stages of a Dockerfile."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for instruction in read_instructions(path.read_text(encoding="utf-8")):
        if instruction.name == "FROM":
            base, *rest = instruction.words
            if rest and (len(rest) != 2 or rest[0].upper() != "AS"):
                raise ValueError(f"{path.name}:{instruction.line}: FROM must be IMAGE [AS NAME]")
            stages.append(Stage(expand(base, arguments), rest[1] if rest else None))
        elif stages:
            stages[-1].instructions.append(instruction)
        elif instruction.name == "ARG":
            arguments |= assignments(instruction.text)
        else:
            raise ValueError(f"{path.name}:{instruction.line}: {instruction.name} before FROM")
    return Dockerfile(arguments, stages)


def read_instructions(text: str) -> list[Instruction]:
    """Return all instructions of a Dockerfile's text; a comment may stand between the lines of one."""
    found = []
    parts: list[str] = []
    start = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not line.strip():
            continue
        start = start if parts else number
        parts.append(line.strip().removesuffix("\\").strip())
        if not line.rstrip().endswith("\\"):
            found.append(_instruction(" ".join(parts), start))
            parts = []
    if parts:
        raise ValueError(f"line {start}: the last line goes on")
    return found


def _instruction(text: str, line: int) -> Instruction:
    name, _, rest = text.partition(" ")
    if name not in KNOWN:
        raise ValueError(f"line {line}: {name} is no instruction that is understood")
    flags = []
    while name != "HEALTHCHECK" and (found := re.match(r"--([\w-]+)(?:=(\S+))?\s+", rest)):
        flags.append((found[1], found[2] or ""))
        rest = rest[found.end() :]
    if name == "HEALTHCHECK":
        options, command, rest = rest.partition("CMD ")
        if not command:
            raise ValueError(f"line {line}: HEALTHCHECK must have a CMD")
        flags = re.findall(r"--([\w-]+)=(\S+)", options)
    return Instruction(name, tuple(flags), rest.strip(), line)


def assignments(text: str) -> dict[str, str]:
    """Return the variables of `NAME=value ...`, as ARG and ENV set them; an ARG without a value is left out."""
    return {name: value.strip('"') for name, value in re.findall(r'(\w+)=("[^"]*"|\S*)', text)}


def expand(text: str, variables: dict[str, str]) -> str:
    """Replace $NAME and ${NAME}; an unknown one is an error, where Docker would put nothing."""

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in variables:
            raise ValueError(f"${name} is not set")
        return variables[name]

    return VARIABLE.sub(value, text)


def read_ignored(folder: Path) -> "Ignored":
    """Return the rules of a context's .dockerignore."""
    lines = (folder / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return Ignored([line.strip() for line in lines if line.strip() and not line.startswith("#")])


@dataclass(frozen=True)
class Ignored:
    """What a context leaves out: the last pattern that fits a path, or a folder above it, decides."""

    patterns: list[str]

    def __call__(self, path: str) -> bool:
        """Whether a path, relative to the context, is left out."""
        ignored = False
        folders = [str(each) for each in [PurePosixPath(path), *PurePosixPath(path).parents][:-1]]
        for pattern in self.patterns:
            rule = pattern.removeprefix("!")
            names = [part for folder in folders for part in (folder, *_below_any_folder(rule, folder))]
            if any(fnmatchcase(name, rule.removeprefix("**/")) and _depth_fits(name, rule) for name in names):
                ignored = not pattern.startswith("!")
        return ignored


def _below_any_folder(rule: str, path: str) -> list[str]:
    """Return the ends of a path for a rule that begins with `**/`."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(1, len(parts))] if rule.startswith("**/") else []


def _depth_fits(path: str, rule: str) -> bool:
    # `*` stands for no slash in .dockerignore, but for any in fnmatch.
    return path.count("/") == rule.removeprefix("**/").count("/")
