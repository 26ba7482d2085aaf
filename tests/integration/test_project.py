"""The project's files agree: MLproject, conda.yaml, pyproject.toml, the lock, the Makefile and experiments/."""

import ast
import hashlib
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

LOCK = "requirements.lock"
# Other interpreters differ in their patch levels, which no package of the lock asks for
PYTHONS = ["3.11", "3.12", "3.13"]
LINUX = {"sys_platform": "linux"}
ELSEWHERE = {"sys_platform": "darwin"}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def conda_lines() -> tuple[list[str], list[str]]:
    """Return the conda-level and the pip-level lines of conda.yaml."""
    *lines, last = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    return lines, last["pip"]


def conda_requirements() -> list[Requirement]:
    return [Requirement(line) for line in conda_lines()[1] if not line.startswith("-c ")]


def lock_lines() -> list[str]:
    return [line for line in (ROOT / LOCK).read_text().splitlines() if line and not line.lstrip().startswith("#")]


def pins(requirements: list[Requirement], environment: dict[str, str]) -> dict[str, str]:
    """Return name (with extras) -> version of the requirements that apply in an environment."""
    return {
        canonicalize_name(each.name) + "".join(f"[{extra}]" for extra in sorted(each.extras)): str(each.specifier)
        for each in requirements
        if each.marker is None or each.marker.evaluate(environment)
    }


def test_conda_yaml_has_the_dependencies_of_pyproject_with_gpu_tensorflow_on_linux():
    required = pins([Requirement(line) for line in project()["dependencies"]], {})
    assert pins(conda_requirements(), ELSEWHERE) == required
    gpu = {("tensorflow[and-cuda]" if name == "tensorflow" else name): version for name, version in required.items()}
    assert pins(conda_requirements(), LINUX) == gpu


def test_lock_lines_are_exact_versions():
    inexact = [line for line in lock_lines() if not re.fullmatch(r"[a-z0-9._-]+==[^\s*,]+( ; .+)?", line)]
    assert inexact == []


@pytest.mark.parametrize("python", [f"{version}.0" for version in PYTHONS])
@pytest.mark.parametrize("environment", [LINUX, ELSEWHERE], ids=["linux", "macos"])
def test_lock_has_every_direct_dependency_at_its_version(environment, python):
    extras = project()["optional-dependencies"]
    direct = [Requirement(line) for line in [*project()["dependencies"], *extras["dev"], *extras["gpu"]]]
    locked = pins([Requirement(line) for line in lock_lines()], environment | {"python_full_version": python})
    for name, version in pins(direct, environment).items():
        assert locked[name.split("[")[0]] == version, name


def test_files_name_the_same_versions_of_python():
    requires = SpecifierSet(project()["requires-python"])
    assert [f"3.{minor}" for minor in range(20) if f"3.{minor}.0" in requires] == PYTHONS
    classifiers = [f"Programming Language :: Python :: {version}" for version in PYTHONS]
    assert [line for line in project()["classifiers"] if ":: Python :: 3." in line] == classifiers
    # without the import of MLflow
    doctor = (ROOT / "pipeline" / "commands" / "doctor_checks.py").read_text()
    assert re.search(r"OLDEST_PYTHON, NEWEST_PYTHON = \(3, (\d+)\), \(3, (\d+)\)", doctor).groups() == ("11", "13")
    assert conda_lines()[0][0].removeprefix("python=") in PYTHONS
    lock = re.search(r"^lock:(?:.*\n)+?.*--python-version (\S+)", (ROOT / "Makefile").read_text(), re.M)
    assert lock[1] == PYTHONS[0]


@pytest.mark.parametrize(
    ("found", "taken"),
    [
        (["python3", "python3.11", "python3.12", "python3.13"], "python3.13"),
        (["python3", "python3.11", "python3.14"], "python3.11"),
        (["python3"], "python3"),
    ],
)
def test_make_takes_the_newest_supported_python(tmp_path, found, taken):
    """A bare `python3` is 3.12 here."""
    completed = make_environment(tmp_path, found)
    assert completed.stdout == f"{taken} -m venv --clear .venv\n"


def test_make_takes_the_python_that_is_named(tmp_path):
    completed = make_environment(tmp_path, ["python3.13", "my python3.11"], "PYTHON=my python3.11")
    assert completed.stdout == "my python3.11 -m venv --clear .venv\n"


@pytest.mark.parametrize(
    ("found", "variables", "what"),
    [
        (["python3.10", "python3.14"], [], "none of python3.13 python3.12 python3.11 python3"),
        (["python3.10", "python3.13"], ["PYTHON=python3.10"], "python3.10"),
    ],
)
def test_make_without_a_supported_python_says_what_to_install(tmp_path, found, variables, what):
    completed = make_environment(tmp_path, found, *variables)
    assert completed.returncode != 0 and completed.stdout == ""
    assert completed.stderr.startswith(f"Python must be 3.11, 3.12 or 3.13, with venv, got {what}; install it")


@pytest.mark.parametrize("home", ["", "/nonexistent", None], ids=["empty", "missing", "unset"])
def test_make_without_a_writable_home_keeps_caches_in_the_project(tmp_path, home):
    environment = {} if home is None else {"HOME": home}
    assert make_variable("XDG_CACHE_HOME", environment) == str(ROOT / ".cache")
    assert make_variable("HOME", environment) == (home or str(ROOT / ".cache"))
    assert make_variable("XDG_CACHE_HOME", environment | {"XDG_CACHE_HOME": str(tmp_path)}) == str(tmp_path)


def test_make_keeps_caches_in_a_home_folder(tmp_path):
    assert make_variable("XDG_CACHE_HOME", {"HOME": str(tmp_path)}) == ""
    (tmp_path / ".cache").mkdir()
    assert make_variable("XDG_CACHE_HOME", {"HOME": str(tmp_path)}) == ""


def test_make_names_a_user_whom_the_system_does_not_know(tmp_path):
    """Otherwise `mlflow run` ends with a traceback."""
    program = tmp_path / "id"
    program.write_text("#!/bin/sh\n[ $1 = -u ] && echo 12345\n")
    program.chmod(0o755)
    own_id = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    assert make_variable("LOGNAME", own_id) == "12345"
    assert make_variable("LOGNAME", own_id | {"LOGNAME": "me"}) == "me"
    assert make_variable("LOGNAME", own_id | {"USER": "me"}) == ""
    program.write_text("#!/bin/sh\necho me\n")
    assert make_variable("LOGNAME", own_id) == ""


def make_variable(name: str, environment: dict[str, str]) -> str:
    """Return the value of a variable of the Makefile in an environment."""
    command = ["make", "--no-print-directory", "--eval", f"show: ; @printenv {name} || true", "show"]
    env = {"PATH": os.environ["PATH"]} | environment
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout.strip()


def make_environment(folder: Path, found: list[str], *variables: str) -> subprocess.CompletedProcess[str]:
    """Run make's rule for the environment where these interpreters are found, which print how they are called."""
    programs = folder / "programs"
    programs.mkdir()
    for name in found:
        minor = name.partition("3.")[2] or "12"
        code = f"import sys; sys.version_info = (3, {minor}, 0)\n"
        stub = f"""#!/bin/sh
        [ "$1" != -c ] || exec '{sys.executable}' -c "{code}$2"
        echo "{name} $*"; exit 1
        """
        (programs / name).write_text(stub.replace("        ", ""))
        (programs / name).chmod(0o755)
    for name in ("sh", "id"):
        (programs / name).symlink_to(shutil.which(name))
    shutil.copy(ROOT / "Makefile", folder)
    command = [shutil.which("make"), "--no-print-directory", ".venv/bin/uv", *variables]
    return subprocess.run(command, cwd=folder, env={"PATH": str(programs)}, capture_output=True, text=True, check=False)


def test_other_pythons_are_the_oldest_patch_levels(monkeypatch, tmp_path):
    """Those of another implementation or version, pyenv's shims and the one that runs the script are left out."""
    other_pythons = runpy.run_path(str(ROOT / ".ci" / "other_pythons.py"))

    def interpreter(patch: int, path: str, **changes: str) -> dict:
        found = {"version": f"3.12.{patch}", "version_parts": {"patch": patch}, "path": path}
        return found | {"implementation": "cpython", "variant": "default"} | changes

    listed = [
        interpreter(9, "/nine"),
        interpreter(3, "/three"),
        interpreter(10, "/ten"),
        interpreter(1, "/running"),
        interpreter(2, "/pyenv/shims/python3.12"),
        interpreter(2, "/pypy", implementation="pypy"),
        interpreter(2, "/threaded", variant="freethreaded"),
    ]
    uv = tmp_path / "uv"
    uv.write_text(f"#!/bin/sh\necho '{json.dumps(listed)}'\n")
    uv.chmod(0o755)
    oldest_patch_level = other_pythons["oldest_patch_level"]
    monkeypatch.setitem(oldest_patch_level.__globals__, "UV", uv)
    monkeypatch.setattr(platform, "python_version", lambda: "3.12.1")
    assert oldest_patch_level("3.12") == ("3.12.3", "/three")
    uv.write_text("#!/bin/sh\necho '[]'\n")
    assert oldest_patch_level("3.12") is None


def test_lock_pins_cuda_on_linux_only():
    python = {"python_full_version": "3.11.9"}
    locked = [Requirement(line) for line in lock_lines()]
    assert "nvidia-cudnn-cu12" in pins(locked, LINUX | python)
    assert "nvidia-cudnn-cu12" not in pins(locked, ELSEWHERE | python)


def test_conda_yaml_has_the_digest_of_the_lock():
    """MLflow names an environment after the text of conda.yaml, so each lock has its own; `make lock` writes it."""
    digest = hashlib.sha256((ROOT / LOCK).read_bytes()).hexdigest()
    assert f"- -c {LOCK}  # sha256 {digest}\n" in (ROOT / "conda.yaml").read_text()


def test_conda_yaml_has_only_lines_that_mlflow_reads_without_conda():
    """`--env-manager uv` drops conda-level lines other than python= and pip, and prefers a uv.lock if there is one."""
    assert conda_lines()[0] == ["python=3.11", "pip"]
    assert not (ROOT / "uv.lock").exists()


def test_lock_has_no_index_url_or_local_path():
    text = (ROOT / LOCK).read_text()
    assert not re.search(r"https?://|file:|--(extra-)?index|--find-links|(^|\s)/\w", text)


def test_mlproject_declares_names_of_files_and_no_setting():
    """A default in MLproject would override the recipe's file."""
    mlproject = yaml.safe_load((ROOT / "MLproject").read_text())
    declared = {name: set(entry.get("parameters", {})) for name, entry in mlproject["entry_points"].items()}
    assert declared == {
        "main": {"recipe"},
        "search": {"search"},
        "report": {"runs"},
        "doctor": set(),
        "evaluate": {"model"},
        "predict": {"model", "images"},
        "export": {"model"},
    }
    assert mlproject["name"] == "convmixer"
    assert (ROOT / mlproject["conda_env"]).is_file()


def test_every_imported_package_is_a_direct_dependency():
    distributions = {"PIL": "pillow", "pynvml": "nvidia-ml-py", "sklearn": "scikit-learn", "yaml": "pyyaml"}
    required = {Requirement(line).name for line in project()["dependencies"]}
    third_party = {name for name in imported_names() if name not in sys.stdlib_module_names} - {"pipeline"}
    # imported only by a search on a cluster, by an export or where they are installed, and in MLflow's scoring server
    optional = {"ray", "ai-edge-litert", "onnx", "onnxruntime", "fastapi"}
    assert {distributions.get(name, name.replace("_", "-")) for name in third_party} - required == optional


def imported_names() -> Iterator[str]:
    for path in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield str(node.module).split(".")[0]


UNSAFE = {
    # modules
    *("pickle", "marshal", "shelve", "cloudpickle", "dill", "joblib"),
    # functions
    *("eval", "exec", "__import__", "system", "popen", "unsafe_load", "full_load"),
    *("enable_unsafe_deserialization", "read_pickle"),
    # before Python 3.11.4 they write wherever an archive says
    *("tarfile", "unpack_archive"),
}
UNSAFE_ARGUMENTS = {("shell", True), ("allow_pickle", True), ("safe_mode", False), ("weights_only", False)}
# Both ends are processes of one run, and the pipe between them has no name that others could open
ALLOWED = {("worker_pool.py", "pickle")}


def test_pipeline_calls_nothing_that_can_run_code_from_a_file():
    """It has no pickle, no eval and no shell, and loads arrays and models in their safe modes."""
    unsafe = set()
    for path in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=names):
                    used = {alias.name for alias in names}
                case ast.ImportFrom(module=module, names=names):
                    used = {module, *(alias.name for alias in names)}
                case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), keywords=keywords):
                    used = {name}
                    arguments = {
                        (each.arg, each.value.value) for each in keywords if isinstance(each.value, ast.Constant)
                    }
                    if name == "load" and ast.unparse(node.func) == "np.load":
                        assert ("allow_pickle", False) in arguments, path
                    assert ast.unparse(node.func) != "yaml.load", path
                    assert not arguments & UNSAFE_ARGUMENTS, path
                case _:
                    continue
            unsafe |= {(path.name, name) for name in used & UNSAFE}
    assert unsafe == ALLOWED


def test_train_command_imports_neither_tensorflow_mlflow_nor_matplotlib():
    program = "import sys, pipeline.commands.train; print(*sys.modules)"
    completed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"keras", "matplotlib", "mlflow", "optuna", "tensorflow"} & set(completed.stdout.split()) == set()


def test_make_without_target_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: (.+)$", makefile, re.M)[0].split())
    # without those of the make that runs this test
    outside = os.environ | {"MAKEFLAGS": ""}
    listed = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True, env=outside
    )
    assert {line.split()[0] for line in listed.stdout.splitlines() if len(line.split()) > 2} == targets


def test_recipe_names_are_lower_case_words_joined_by_hyphens():
    """They are typed after `-P recipe=`."""
    names = [path.name for path in (ROOT / "experiments" / "recipes").iterdir()]
    assert "baseline.yaml" in names
    assert [name for name in names if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*\.yaml", name)] == []


# uv's messages
UNREACHABLE = ("error sending request", "dns error", "Network connectivity is disabled")


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["x86_64-manylinux_2_28", "aarch64-apple-darwin"])
def test_conda_yaml_resolves_on_linux_and_on_a_mac(platform, tmp_path):
    shutil.copy(ROOT / LOCK, tmp_path)
    (tmp_path / "requirements.txt").write_text("\n".join(conda_lines()[1]))
    options = ["--python-version", "3.11", "--python-platform", platform, "--only-binary", ":all:", "--no-annotate"]
    uv = [sys.executable, "-m", "uv", "--system-certs", "pip", "compile", "--no-header", *options, "requirements.txt"]
    completed = subprocess.run(uv, cwd=tmp_path, capture_output=True, text=True)
    if any(words in completed.stderr for words in UNREACHABLE):
        pytest.skip(f"the package index cannot be reached: {completed.stderr.strip().splitlines()[-1]}")
    assert completed.returncode == 0, completed.stderr
    resolved = dict(line.split("==") for line in completed.stdout.splitlines())
    assert ("nvidia-cudnn-cu12" in resolved) == ("linux" in platform)
    applies = LINUX if "linux" in platform else ELSEWHERE
    locked = pins([Requirement(line) for line in lock_lines()], applies | {"python_full_version": "3.11.9"})
    assert {name: f"=={version}" for name, version in resolved.items()}.items() <= locked.items()


@pytest.mark.slow
def test_mlflow_run_creates_its_environment_with_uv(tmp_path):
    """It is the command of a user without conda, but without CUDA: 2 GB that a machine without a GPU does not use."""
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
    completed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    if any(words in completed.stderr for words in UNREACHABLE):
        pytest.skip("the package index cannot be reached")
    assert completed.returncode == 0, completed.stderr
    assert (tmp_path / "environments").is_dir()
    assert "accuracy" in completed.stdout


def needs_tests(module: Path) -> bool:
    """Whether a module of pipeline/ defines anything: a package's docstring alone needs no tests."""
    defines = any(
        isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(module.read_text(encoding="utf-8")).body
    )
    return module.name != "__init__.py" or defines


# One test that every executor passes stands beside their own tests.
CONTRACT_TESTS = {Path("search/executors/test_executor_contract.py")}


def test_unit_tests_mirror_the_modules_of_the_package():
    modules = [path for path in (ROOT / "pipeline").rglob("*.py") if needs_tests(path)]
    expected = {path.relative_to(ROOT / "pipeline").with_name(f"test_{path.name}") for path in modules}
    tests = {path.relative_to(ROOT / "tests" / "unit") for path in (ROOT / "tests" / "unit").rglob("test_*.py")}
    assert tests - CONTRACT_TESTS == expected


OWN_PACKAGES = {"pipeline", "tests", "experiments"}


def test_nothing_of_the_project_is_imported_under_another_name():
    for folder in OWN_PACKAGES:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    package = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                    renamed = [f"{package}{alias.name}" for alias in node.names if alias.asname]
                    assert not [name for name in renamed if name.split(".")[0] in OWN_PACKAGES], path
