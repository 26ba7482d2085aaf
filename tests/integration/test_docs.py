"""The README's commands are commands, its files are files, and what it says of settings is so."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.training import parse_training
from pipeline.search import space
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
]


def program_of(words):
    """The module of pipeline/ that a command of the README starts, if it starts one."""
    if "-m" in words and words[words.index("-m") + 1].startswith("pipeline."):
        return words[words.index("-m") + 1].removeprefix("pipeline.")
    if words[:2] == ["mlflow", "run"]:
        return words[words.index("-e") + 1] if "-e" in words else "train"
    return None


TRAINING = [words for words in COMMANDS if program_of(words) == "train"]
SEARCHING = [words for words in COMMANDS if program_of(words) == "search"]
OTHERS = [words for words in COMMANDS if program_of(words) not in {"train", "search", None}]


def settings_of(words):
    """The arguments of the program that a command of the README starts."""
    if "-m" in words:
        return words[words.index("-m") + 2 :]
    given = dict(words[place + 1].split("=", 1) for place, word in enumerate(words) if word == "-P")
    declared = {"train": ["recipe", "baseline"], "search": ["search"], "report": ["runs"]}
    declared |= {"evaluate": ["model"], "predict": ["model"]}
    first = declared.get(program_of(words))  # as MLproject has it
    return [
        *([given.pop(*first)] if first else []),
        *(word for name, value in given.items() for word in (f"--{name}", value)),
    ]


@pytest.mark.parametrize("words", [words for words in TRAINING if "--help" not in words], ids=" ".join)
def test_every_training_command_holds_recipes_and_settings_that_exist(words):
    typed = parse_training(settings_of(words), program="train", description="")
    assert typed.resume or (ROOT / "experiments" / "recipes" / f"{typed.recipe}.yaml").is_file()
    assert typed.config.dataset


@pytest.mark.parametrize("words", [words for words in SEARCHING if "--help" not in words], ids=" ".join)
def test_every_searching_command_holds_searches_and_settings_that_exist(words):
    search = space.parse_search(settings_of(words), program="search", description="")
    assert (ROOT / "experiments" / "searches" / f"{search.name}.yaml").is_file()


@pytest.mark.parametrize("words", [words for words in OTHERS if "--help" not in words], ids=" ".join)
def test_every_other_command_holds_settings_that_its_help_names(words):
    command = [sys.executable, "-m", f"pipeline.{program_of(words)}", "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {word for word in settings_of(words) if word.startswith("--")} <= set(re.findall(r"--[a-z_]+", told))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z-]+)`?", README)) - {"alone"}))
def test_every_make_target_exists(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_file_of_the_tree_is_there():
    (tree,) = re.findall(r"## The tree\n\n```\n(.*?)```", README, flags=re.DOTALL)
    folder = Path()
    for line in tree.splitlines():
        name = line.split()[0]
        path = (folder if line.startswith("  ") else Path()) / name
        assert (ROOT / path).exists(), path
        if not line.startswith("  "):
            folder = Path(name) if name.endswith("/") else Path()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [words for words in TRAINING if {"recipe=digits", "digits"} & set(words)], ids=" ".join
)
def test_the_digits_commands_run_as_written(words, tmp_path):
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert float(re.findall(r"test accuracy ([\d.]+)%", done.stdout)[0]) >= 95
