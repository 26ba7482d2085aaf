"""Run the demo and some quick tests on the other supported Pythons of this machine, each in an environment of its own.

Of each minor version the oldest patch level is taken, because that is the one that may lack something. The Python that
runs this script, on which `make test` runs the whole suite, is left out.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).with_name("uv")
MINORS = ["3.11", "3.12", "3.13"]
# Their code stands on parts of Python that differ between versions: archives, processes, signals, argparse, types
TESTS = """
    tests/unit/config
    tests/unit/runtime
    tests/unit/data
    tests/unit/training/test_callbacks.py
    tests/unit/training/test_checkpoint.py
    tests/unit/training/test_checkpoint_manager.py
    tests/unit/tracking/outbox/test_delivery.py
    tests/unit/tracking/outbox/test_records.py
    tests/unit/tracking/outbox/test_spool.py
    tests/unit/tracking/test_run.py
    tests/unit/search/test_definition.py
    tests/unit/search/test_loop.py
    tests/unit/search/test_space.py
    tests/unit/search/executors/test_forkserver.py
    tests/unit/search/executors/test_worker_process.py
""".split()


def main() -> None:
    """Test each interpreter in turn; end with exit code 1 at the first failure."""
    found = {minor: oldest_patch_level(minor) for minor in MINORS}
    for minor, interpreter in found.items():
        if interpreter is None:
            here = " but this one" if platform.python_version().startswith(f"{minor}.") else ""
            print(f"skipped  Python {minor}: this machine has none{here}", flush=True)
            continue
        version, path = interpreter
        print(f"testing  Python {version} in {path}", flush=True)
        started = time.monotonic()
        environment = make_environment(version, path)
        installed = time.monotonic()
        if not (run_demo(environment) and run_tests(environment)):
            sys.exit(f"failed   Python {version}; its environment is {environment}")
        seconds = [installed - started, time.monotonic() - installed]
        print(f"passed   Python {version}: installed in {seconds[0]:.0f} s, tested in {seconds[1]:.0f} s", flush=True)


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
        run([UV, "--quiet", "venv", "--clear", "--python", path, environment])
        python = environment / "bin" / "python"
        install = ["pip", "install", "--python", python, "-c", "requirements.lock", "-e", ".[dev]"]
        run([UV, "--quiet", "--system-certs", *install])
        ready.touch()
    return environment


def run_demo(environment: Path) -> bool:
    """Run `make demo`'s command in the environment, with a tracking store that is removed; return whether it passed."""
    with tempfile.TemporaryDirectory() as folder:
        variables = {
            "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        command = [environment / "bin" / "python", "-m", "mlflow", "run", PROJECT, "--env-manager", "local"]
        return run([*command, "-P", "recipe=digits"], cwd=folder, env=os.environ | variables, check=False)


def run_tests(environment: Path) -> bool:
    """Run the tests in the environment, two files at a time; return whether they passed."""
    workers = ["--numprocesses", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--max-worker-restart", "0"]
    return run([environment / "bin" / "python", "-m", "pytest", "-q", *workers, *TESTS], check=False)


def run(
    command: list[str | Path], *, cwd: str | Path = PROJECT, env: dict[str, str] | None = None, check: bool = True
) -> bool:
    """Run a command and return whether it succeeded."""
    return subprocess.run(command, cwd=cwd, env=env, check=check).returncode == 0


if __name__ == "__main__":
    main()
