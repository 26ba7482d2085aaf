"""README and docs agree with the program: links, commands, settings, files and names."""

import ast
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from pipeline.config.arguments import NOTIFY_FLAGS, take_experiment
from pipeline.config.commands import DoctorConfig, EvaluateConfig, ExportConfig, PredictConfig, ReportConfig
from pipeline.config.recipe import parse_training
from pipeline.config.search import SearchConfig
from pipeline.config.training import TrainingConfig
from pipeline.search.space import parse_search
from tests.support.paths import ROOT

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "deploy" / "README.md"])
}
MEASURED = ROOT / "experiments" / "README.md"
# A change log names what is gone.
CURRENT = {name: text for name, text in PAGES.items() if name != "CHANGELOG.md"}
CONFIGS = {
    "train": TrainingConfig,
    "search": SearchConfig,
    "report": ReportConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "export": ExportConfig,
    "doctor": DoctorConfig,
}
# The positional argument of each command, as MLproject declares it.
POSITIONAL = {
    "train": "recipe",
    "search": "search",
    "report": "runs",
    "evaluate": "model",
    "predict": "model",
    "export": "model",
}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def commands():
    """Yield the words of each command line in the pages' shell blocks."""
    for name, text in CURRENT.items():
        for language, block in FENCED.findall(text):
            for line in block.splitlines() if language == "sh" else ():
                line = line.split("  #")[0].strip()
                if "mlflow run" in line or "-m pipeline" in line:
                    yield pytest.param(shlex.split(line, comments=True), id=f"{name}: {line}")


COMMANDS = list(commands())


def without_prefix(words):
    """Drop what stands before the command itself, as `srun --overlap ...` does."""
    return words[words.index("mlflow") :] if "mlflow" in words else words[words.index("python") :]


def parsed(words):
    """Return the name of the command that a command line starts, and the arguments that the program receives."""
    words = without_prefix(words)
    if "-m" in words:
        start = words.index("-m")
        assert words[start + 1] == "pipeline"
        return words[start + 2], words[start + 3 :]
    command = words[words.index("-e") + 1] if "-e" in words else "train"
    values = dict(words[place + 1].split("=", 1) for place, word in enumerate(words) if word == "-P")
    first = POSITIONAL.get(command)
    arguments = [values.pop(first, "baseline")] if first else []
    return command, [*arguments, *(word for name, value in values.items() for word in (f"--{name}", value))]


@pytest.mark.parametrize("words", COMMANDS)
def test_documented_command_names_recipes_searches_and_settings_that_exist(words):
    command, arguments = parsed(words)
    arguments, _ = take_experiment(arguments)
    if "--help" in arguments:
        arguments.remove("--help")
    if command == "train":
        result = parse_training(arguments)
        assert result.resume or (ROOT / "experiments" / "recipes" / f"{result.recipe}.yaml").is_file()
    elif command == "search":
        search = parse_search(arguments)
        assert (ROOT / "experiments" / "searches" / f"{search.name}.yaml").is_file()
    else:
        flags = {word.removeprefix("--") for word in arguments if word.startswith("--")}
        assert flags <= CONFIGS[command].model_fields.keys() | {"images"}


def headings(path):
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, "experiments/README.md"])
def test_links_lead_to_files_and_headings_that_exist(page):
    text = FENCED.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in headings(path), target


def test_every_page_is_linked_from_the_readme_or_from_a_page_that_is():
    linked, left = set(), ["README.md"]
    while left:
        page = left.pop()
        if page in linked or not page.endswith(".md"):
            continue
        linked.add(page)
        text = FENCED.sub("", (ROOT / page).read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s#]+)", text):
            path = ((ROOT / page).parent / target).resolve()
            pages = path.glob("*.md") if path.is_dir() else [path]
            left += [str(one.relative_to(ROOT)) for one in pages if one.is_relative_to(ROOT)]
    assert set(PAGES) <= linked


@pytest.mark.parametrize("page", CURRENT)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^\s*make ([a-z-]+)|`make ([a-z-]+)", CURRENT[page], flags=re.MULTILINE))
    for target in {one or other for one, other in targets}:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def inline_code(text):
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", text))


@pytest.mark.parametrize("page", CURRENT)
def test_files_that_a_page_names_exist(page):
    top = "pipeline|experiments|tests|docs|deploy|requirements.lock|pyproject.toml|conda.yaml|MLproject|Makefile"
    for code in inline_code(CURRENT[page]):
        if re.match(rf"({top})\b", code) and not re.search(r"[\s<>*=(]", code) and "/" in code:
            assert (ROOT / code).exists() or code.startswith(("reports/", "predictions/")), code


@cache
def source():
    """Return the text of all modules of pipeline/."""
    return "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("pipeline/**/*.py"))


@cache
def names_of(module):
    """Return the names that a module of pipeline/ defines at its top, or None if there is no such module."""
    path = ROOT / "pipeline" / module.replace(".", "/")
    file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    if not file.exists():
        return None
    tree = ast.parse(file.read_text(encoding="utf-8"))
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return {getattr(node, "name", None) for node in tree.body} | {getattr(target, "id", None) for target in targets}


def is_dotted_name(code):
    packages = {path.name for path in (ROOT / "pipeline").iterdir() if path.is_dir()}
    return re.fullmatch(r"[a-z_]+(\.\w+)+", code) and code.split(".")[0] in packages


def exists(code):
    """Whether `package.module` or `package.module.name` (or a method behind it) is in pipeline/."""
    parts = code.split(".")
    for end in range(len(parts), 0, -1):
        names = names_of(".".join(parts[:end]))
        if names is not None:
            return end == len(parts) or parts[end] in names
    return (ROOT / "pipeline" / Path(*parts)).is_dir()


CONFIG_ATTRIBUTES = {
    f"config.{name}" for name in ("data", "augmentation", "model", "optimization", "training", "runtime")
}


@pytest.mark.parametrize("page", CURRENT)
def test_modules_and_names_that_a_page_names_exist(page):
    for code in inline_code(CURRENT[page]):
        # `data.fingerprint` and its like are tags, which the program writes as text.
        if is_dotted_name(code) and code not in CONFIG_ATTRIBUTES and f'"{code}"' not in source():
            assert exists(code), code


@cache
def vocabulary():
    """Return all words of the program, its configuration and its tests: what a page may put in code font."""
    files = [*ROOT.glob("pipeline/**/*"), *ROOT.glob("experiments/**/*.y*ml"), *ROOT.glob("deploy/*")]
    files += [ROOT / name for name in ("Makefile", "pyproject.toml", "MLproject", "conda.yaml")]
    files += ROOT.glob("tests/**/*.py")
    text = "\n".join(path.read_text(encoding="utf-8") for path in files if path.suffix != ".pyc" and path.is_file())
    return set(re.findall(r"\w+", text))


@pytest.mark.parametrize("page", CURRENT)
def test_settings_and_names_in_code_font_are_words_of_the_program(page):
    for code in inline_code(CURRENT[page]):
        if re.fullmatch(r"[a-z]+(_[a-z0-9]+)+(=\S*)?", code):
            assert code.split("=")[0] in vocabulary(), code
        elif found := re.fullmatch(r"-P ([a-z_]+)=\S*", code):
            known = {*POSITIONAL.values(), *NOTIFY_FLAGS, "images", "resume", "name"}
            known |= {name for config in CONFIGS.values() for name in config.model_fields}
            assert found[1] in known, code


# What a page says of a limit, the file that sets it, the constant's name, and its value.
LIMITS = [
    ("SECURITY.md", "at most 16 KiB", "config/yaml_file.py", "MAX_BYTES", 16 * 1024),
    ("SECURITY.md", "89 million pixels and 65,535 pixels a side", "data/decode.py", "MAX_SIDE", 65_535),
    ("SECURITY.md", "more than 256 images or 256 million pixels", "serving/pyfunc_model.py", "MAX_IMAGES", 256),
    ("SECURITY.md", "more than 256 images or 256 million pixels", "serving/pyfunc_model.py", "MAX_PIXELS", 256_000_000),
    ("docs/architecture.md", "two generations", "training/checkpoint.py", "GENERATIONS", 2),
    ("docs/architecture.md", "after 8 s it is forced to", "runtime/signals.py", "GRACE_SECONDS", 8),
    ("docs/architecture.md", "stands still for two minutes", "search/coordination.py", "SILENCE_SECONDS", 120),
    ("docs/architecture.md", "renewed once a minute", "runtime/heartbeat.py", "BEAT_SECONDS", 60),
    ("docs/search.md", "retried up to twice", "search/executors/base.py", "MAX_ATTEMPTS", 1 + 2),
    ("docs/search.md", "up to five minutes for a PostgreSQL", "search/storage.py", "PATIENCE_SECONDS", 300),
    ("docs/tracking-outages.md", "the run waits 20 s", "tracking/outbox/outbox.py", "PATIENCE_SECONDS", 20),
    (
        "docs/tracking-outages.md",
        "three times with a time-out of",
        "runtime/urls.py",
        "HTTP_TIMEOUTS",
        ("2", "30"),
    ),
    (
        "docs/tracking-outages.md",
        "no heartbeat for five minutes",
        "tracking/stale_runs.py",
        "UNRESPONSIVE_SECONDS",
        300,
    ),
]


@pytest.mark.parametrize(("page", "words", "module", "name", "value"), LIMITS, ids=str)
def test_limits_that_a_page_states_are_the_programs(page, words, module, name, value):
    assert words in " ".join(CURRENT[page].split())
    tree = ast.parse((ROOT / "pipeline" / module).read_text(encoding="utf-8"))
    (expression,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and name in [getattr(target, "id", None) for target in node.targets]
    ]
    found = ast.literal_eval(expression)
    if isinstance(found, dict):  # of variables of MLflow's client
        found = found["MLFLOW_HTTP_REQUEST_MAX_RETRIES"], found["MLFLOW_HTTP_REQUEST_TIMEOUT"]
    assert found == value


def test_readme_has_at_most_200_lines():
    assert len(PAGES["README.md"].splitlines()) <= 200


@pytest.mark.slow
@pytest.mark.parametrize("words", [one for one in COMMANDS if {"recipe=digits", "digits"} & set(one.values[0])])
def test_documented_digits_command_trains(words, tmp_path):
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert float(re.findall(r"test accuracy ([\d.]+) %", done.stdout)[0]) >= 95


@pytest.mark.slow
def test_documented_python_api_runs_as_written(tmp_path):
    blocks = [block for language, block in FENCED.findall(PAGES["docs/python-api.md"]) if language == "python"]
    script = tmp_path / "notebook.py"
    body = "\n".join(blocks)
    script.write_text("def main():\n" + "".join(f"    {line}\n" for line in body.splitlines()) + "\n\n"
                      'if __name__ == "__main__":\n    main()\n')  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "OPTUNA_STORAGE": f"sqlite:///{tmp_path}/optuna.db",
    }
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stdout and "'test_accuracy'" in done.stdout
