"""MLproject, conda.yaml, pyproject.toml, the lock, the Makefile and the names in experiments/ agree with each other."""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

LOCK = "requirements.lock"
LINUX = {"sys_platform": "linux"}
ELSEWHERE = {"sys_platform": "darwin"}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def conda_lines() -> tuple[list[str], list[str]]:
    """The conda-level and the pip-level lines of conda.yaml."""
    *lines, last = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    return lines, last["pip"]


def conda_requirements() -> list[Requirement]:
    return [Requirement(line) for line in conda_lines()[1] if not line.startswith("-c ")]


def lock_lines() -> list[str]:
    return [line for line in (ROOT / LOCK).read_text().splitlines() if line and not line.lstrip().startswith("#")]


def pins(requirements: list[Requirement], environment: dict[str, str]) -> dict[str, str]:
    """Name (with extras) -> version of what applies in an environment."""
    return {
        canonicalize_name(each.name) + "".join(f"[{extra}]" for extra in sorted(each.extras)): str(each.specifier)
        for each in requirements
        if each.marker is None or each.marker.evaluate(environment)
    }


def test_conda_yaml_installs_what_pyproject_asks_for_with_gpu_tensorflow_on_linux():
    asked = pins([Requirement(line) for line in project()["dependencies"]], {})
    assert pins(conda_requirements(), ELSEWHERE) == asked
    gpu = {("tensorflow[and-cuda]" if name == "tensorflow" else name): version for name, version in asked.items()}
    assert pins(conda_requirements(), LINUX) == gpu


def test_every_line_of_the_lock_is_one_exact_version():
    inexact = [line for line in lock_lines() if not re.fullmatch(r"[a-z0-9._-]+==[^\s*,]+( ; .+)?", line)]
    assert inexact == []


@pytest.mark.parametrize("environment", [LINUX, ELSEWHERE], ids=["linux", "macos"])
def test_the_lock_has_every_direct_dependency_at_its_version(environment):
    extras = project()["optional-dependencies"]
    direct = [Requirement(line) for line in [*project()["dependencies"], *extras["dev"], *extras["gpu"]]]
    locked = pins([Requirement(line) for line in lock_lines()], environment | {"python_full_version": "3.11.9"})
    for name, version in pins(direct, environment).items():
        assert locked[name.split("[")[0]] == version, name


def test_the_lock_pins_cuda_on_linux_only():
    python = {"python_full_version": "3.11.9"}
    locked = [Requirement(line) for line in lock_lines()]
    assert "nvidia-cudnn-cu12" in pins(locked, LINUX | python)
    assert "nvidia-cudnn-cu12" not in pins(locked, ELSEWHERE | python)


def test_a_new_lock_gives_mlflow_a_new_conda_environment():
    """MLflow names it after conda.yaml's text, so the text carries the lock's digest; `make lock` writes it."""
    digest = hashlib.sha256((ROOT / LOCK).read_bytes()).hexdigest()
    assert f"- -c {LOCK}  # sha256 {digest}\n" in (ROOT / "conda.yaml").read_text()


def test_conda_yaml_keeps_to_what_mlflow_reads_without_conda():
    """`--env-manager uv` drops conda-level lines other than python= and pip, and prefers a uv.lock if there is one."""
    assert conda_lines()[0] == ["python=3.11", "pip"]
    assert not (ROOT / "uv.lock").exists()


def test_nothing_names_the_machine_that_made_the_lock():
    text = (ROOT / LOCK).read_text()
    assert not re.search(r"https?://|file:|--(extra-)?index|--find-links|(^|\s)/\w", text)


def test_mlproject_declares_the_name_of_a_file_and_no_setting():
    """A default declared in MLproject would overrule what the recipe's file says."""
    mlproject = yaml.safe_load((ROOT / "MLproject").read_text())
    declared = {name: set(entry.get("parameters", {})) for name, entry in mlproject["entry_points"].items()}
    assert declared == {
        "main": {"recipe"},
        "search": {"search"},
        "report": {"runs"},
        "doctor": set(),
        "evaluate": {"model"},
        "predict": {"model", "images"},
    }
    assert mlproject["name"] == "convmixer"
    assert (ROOT / mlproject["conda_env"]).is_file()


def test_every_package_that_pipeline_imports_is_asked_for_by_name():
    distributions = {"PIL": "pillow", "pynvml": "nvidia-ml-py", "sklearn": "scikit-learn", "yaml": "pyyaml"}
    asked = {Requirement(line).name for line in project()["dependencies"]}
    foreign = {name for name in imported_names() if name not in sys.stdlib_module_names} - {"pipeline"}
    optional = {"ray"}  # imported where a search is told to use it
    assert {distributions.get(name, name.replace("_", "-")) for name in foreign} - asked == optional


def imported_names() -> Iterator[str]:
    for path in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield str(node.module).split(".")[0]


UNSAFE = {
    *("pickle", "marshal", "shelve", "cloudpickle", "dill", "joblib"),  # modules
    *("eval", "exec", "__import__", "system", "popen", "unsafe_load", "full_load"),
    *("enable_unsafe_deserialization", "read_pickle"),
}
UNSAFE_ARGUMENTS = {("shell", True), ("allow_pickle", True), ("safe_mode", False), ("weights_only", False)}
# Both ends are processes of one run, and the pipe between them has no name that others could open.
ALLOWED = {("worker_pool.py", "pickle")}


def test_nothing_that_is_read_can_run_code():
    """No pickle, no eval, no shell; arrays and models are loaded in their safe modes."""
    found = set()
    for path in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=names):
                    used = {alias.name for alias in names}
                case ast.ImportFrom(module=module, names=names):
                    used = {module, *(alias.name for alias in names)}
                case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), keywords=keywords):
                    used = {name}
                    given = {(each.arg, each.value.value) for each in keywords if isinstance(each.value, ast.Constant)}
                    if name == "load" and ast.unparse(node.func) == "np.load":
                        assert ("allow_pickle", False) in given, path
                    assert ast.unparse(node.func) != "yaml.load", path
                    assert not given & UNSAFE_ARGUMENTS, path
                case _:
                    continue
            found |= {(path.name, name) for name in used & UNSAFE}
    assert found == ALLOWED


def test_settings_and_data_are_read_without_importing_tensorflow_mlflow_or_matplotlib():
    program = "import sys, pipeline.commands.train; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"keras", "matplotlib", "mlflow", "optuna", "tensorflow"} & set(done.stdout.split()) == set()


def test_make_alone_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: (.+)$", makefile, re.M)[0].split())
    outside = os.environ | {"MAKEFLAGS": ""}  # not of the make that runs this test
    listed = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True, env=outside
    )
    assert {line.split()[0] for line in listed.stdout.splitlines() if len(line.split()) > 2} == targets


def test_recipes_have_plain_names():
    """They are typed after `-P recipe=`: lower case, words joined by hyphens."""
    names = [path.name for path in (ROOT / "experiments" / "recipes").iterdir()]
    assert "baseline.yaml" in names
    assert [name for name in names if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*\.yaml", name)] == []


UNREACHABLE = ("error sending request", "dns error", "Network connectivity is disabled")  # uv's words


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["x86_64-manylinux_2_28", "aarch64-apple-darwin"])
def test_conda_yaml_resolves_on_linux_and_on_a_mac(platform, tmp_path):
    shutil.copy(ROOT / LOCK, tmp_path)
    (tmp_path / "requirements.txt").write_text("\n".join(conda_lines()[1]))
    options = ["--python-version", "3.11", "--python-platform", platform, "--only-binary", ":all:", "--no-annotate"]
    uv = [sys.executable, "-m", "uv", "--system-certs", "pip", "compile", "--no-header", *options, "requirements.txt"]
    done = subprocess.run(uv, cwd=tmp_path, capture_output=True, text=True)
    if any(words in done.stderr for words in UNREACHABLE):
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    resolved = dict(line.split("==") for line in done.stdout.splitlines())
    assert ("nvidia-cudnn-cu12" in resolved) == ("linux" in platform)
    applies = LINUX if "linux" in platform else ELSEWHERE
    locked = pins([Requirement(line) for line in lock_lines()], applies | {"python_full_version": "3.11.9"})
    assert {name: f"=={version}" for name, version in resolved.items()}.items() <= locked.items()


@pytest.mark.slow
def test_mlflow_run_makes_its_own_environment_with_uv(tmp_path):
    """As a person without conda runs it, but for CUDA: 2 GB that a machine without a GPU has no use for."""
    copy = tmp_path / "project"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "mlflow.db*", "mlruns")
    )
    conda = copy / "conda.yaml"
    conda.write_text(conda.read_text().replace("tensorflow[and-cuda]", "tensorflow"))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # uv
        "MLFLOW_ENV_ROOT": str(tmp_path / "environments"),
        "UV_SYSTEM_CERTS": "true",
    }
    command = [sys.executable, "-m", "mlflow", "run", str(copy), "--env-manager", "uv", "-P", "recipe=smoke"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    if any(words in done.stderr for words in UNREACHABLE):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "environments").is_dir()
    assert "accuracy" in done.stdout
