"""Run the demo and some quick tests on the other supported Pythons of this machine, each in an environment of its own.

They are tested side by side, each in one process. Of each minor version the oldest patch level is taken, because that
is the one that may lack something. The Python that runs this script, on which `make test` runs the whole suite, is left
out.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

PROJECT = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).with_name("uv")
MINORS = ["3.11", "3.12", "3.13"]
# Their code stands on parts of Python that differ between versions: archives, processes, signals, argparse, types. What
# TensorFlow computes does not: the demo trains, and test_executor_contract.py searches.
TESTS = """
    tests/unit/config
    tests/unit/runtime
    tests/unit/data
    tests/unit/training/test_checkpoint.py
    tests/unit/tracking/outbox/test_delivery.py
    tests/unit/tracking/outbox/test_records.py
    tests/unit/tracking/outbox/test_spool.py
    tests/unit/tracking/test_run.py
    tests/unit/search/test_definition.py
    tests/unit/search/test_space.py
    tests/unit/search/executors/test_executor_contract.py
    tests/unit/search/executors/test_forkserver.py
    tests/unit/search/executors/test_worker_process.py
""".split()
LEFT_OUT = """
    --ignore=tests/unit/data/augmentation
    --ignore=tests/unit/data/test_batches.py
    --deselect=tests/unit/runtime/test_environment.py::test_libraries_are_imported_with_their_defaults_whatever_the_user_has_configured
    --deselect=tests/unit/runtime/test_imports.py::test_training_imports_at_its_start_what_it_needs_at_its_end_and_no_scikit_learn
""".split()


def main() -> None:
    """Install the environments in turn, and test each meanwhile; end with exit code 1 if a test failed."""
    tests = []
    with ThreadPoolExecutor(len(MINORS)) as pool:
        for minor in MINORS:
            interpreter = oldest_patch_level(minor)
            if interpreter is None:
                here = " but this one" if platform.python_version().startswith(f"{minor}.") else ""
                print(f"skipped  Python {minor}: this machine has none{here}", flush=True)
                continue
            version, path = interpreter
            print(f"testing  Python {version} in {path}", flush=True)
            # not side by side: each installation of the project writes to its folder
            tests.append(pool.submit(test, make_environment(version, path)))
    sys.exit(0 if all(each.result() for each in tests) else 1)


def test(environment: Path) -> bool:
    """Run the demo and the tests in an environment, print their output at the end, and return whether they passed."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        passed = run_demo(environment, output) and run_tests(environment, output)
        output.seek(0)
        print(f"{output.read()}{'passed' if passed else 'failed'}   {environment}", end="")
    print(f" in {time.monotonic() - started:.0f} s", flush=True)
    return passed


def oldest_patch_level(minor: str) -> tuple[str, str] | None:
    """Return the version and the path of the oldest interpreter of a minor version, or None if there is none."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    path = os.pathsep.join([os.environ["PATH"], *(str(folder / "bin") for folder in sorted(versions.glob("*")))])
    command = [UV, "python", "list", "--only-installed", "--output-format", "json", minor]
    completed = subprocess.run(
        command, env=os.environ | {"PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    candidates = [
        (each["version_parts"]["patch"], each["version"], each["path"])
        for each in json.loads(completed.stdout)
        if each["implementation"] == "cpython"
        and each["variant"] == "default"
        and each["version"] != platform.python_version()
        # pyenv's shims work for the version that is active alone
        and "shims" not in Path(each["path"]).parts
    ]
    return min(candidates)[1:] if candidates else None


def make_environment(version: str, path: str) -> Path:
    """Return an environment of the interpreter with what requirements.lock pins, made unless there is one already."""
    environment = PROJECT / f".venv-{version}"
    ready = environment / ".ready"
    sources = [PROJECT / "pyproject.toml", PROJECT / "requirements.lock"]
    if not ready.exists() or ready.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        # uv needs no ensurepip, which Debian has in a package of its own
        subprocess.run([UV, "--quiet", "venv", "--clear", "--python", path, environment], cwd=PROJECT, check=True)
        python = environment / "bin" / "python"
        install = ["pip", "install", "--python", python, "-c", "requirements.lock", "-e", ".[dev]"]
        subprocess.run([UV, "--quiet", "--system-certs", *install], cwd=PROJECT, check=True)
        ready.touch()
    return environment


def run_demo(environment: Path, output: IO[str]) -> bool:
    """Run `make demo` with one block for two epochs and a tracking store that is removed; return whether it passed."""
    with tempfile.TemporaryDirectory() as folder:
        variables = {
            "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        command = [environment / "bin" / "python", "-m", "mlflow", "run", PROJECT, "--env-manager", "local"]
        command += ["-P", "recipe=digits", "-P", "depth=1", "-P", "epochs=2"]
        return run(command, cwd=folder, variables=variables, output=output)


def run_tests(environment: Path, output: IO[str]) -> bool:
    """Run the tests in the environment and return whether they passed."""
    # the interpreters share the folder of the project, and their caches would overwrite each other
    command = [environment / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, *LEFT_OUT]
    return run(command, cwd=PROJECT, variables={}, output=output)


def run(command: list[str | Path], *, cwd: str | Path, variables: dict[str, str], output: IO[str]) -> bool:
    """Run a command with further variables, its output to a file, and return whether it succeeded."""
    # where it is set each process compiles the libraries anew, which takes 15 s of processor time for TensorFlow alone
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | variables
    return subprocess.run(command, cwd=cwd, env=env, stdout=output, stderr=output, check=False).returncode == 0


if __name__ == "__main__":
    main()
