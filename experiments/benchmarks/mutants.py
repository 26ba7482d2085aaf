"""Measure which faults the unit tests notice: `make mutants PACKAGE=pipeline/data SAMPLE=100 SEED=0`.

mutmut lists the mutants of a module or a package: copies of its source with one small fault each, such as an operator
swapped, a number one too large, an argument dropped. A random sample of them is written, one at a time, into a copy of
the project, where the unit tests that mirror the module run. A mutant that passes them survives, and is printed as a
diff.

mutmut's own runner does not fit this code: it wraps every function, and Keras refuses layers whose `__init__` is
wrapped. Here the source itself is changed, and tested in a fork of a process that has imported the libraries, but has
neither used them nor imported this project.
"""

import argparse
import difflib
import importlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import libcst
import pytest
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import Mutation, MutationVisitor
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

ROOT = Path(__file__).parent.parent.parent
# They take long to import.
LIBRARIES = (
    *("tensorflow", "keras", "optuna", "pandas", "scipy.stats", "sklearn.metrics", "matplotlib.figure", "hypothesis"),
    *("mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
)
# The tests of a mutant may take so many times as long as they take without a fault, and so much longer.
TIMEOUT_FACTOR, TIMEOUT_SECONDS = 4, 30
KILLED, TIMED_OUT, SURVIVED = "killed", "timed out", "survived"


class AllMutations(MutationVisitor):
    """Collect mutmut's mutations and their lines, in decorated functions too, which its runner cannot wrap."""

    def __init__(self) -> None:
        super().__init__(mutation_operators, IgnoredCode(set(), set(), set()))
        self.lines: list[int] = []

    def _skip_node_and_children(self, node: libcst.CSTNode) -> bool:
        return not isinstance(node, libcst.FunctionDef) and super()._skip_node_and_children(node)

    def _create_mutations(self, node: libcst.CSTNode) -> None:
        super()._create_mutations(node)
        line = self.get_metadata(PositionProvider, node).start.line
        self.lines += [line] * (len(self.mutations) - len(self.lines))


@dataclass(frozen=True, eq=False)
class Mutant:
    """A module of the project with one fault."""

    module: Path  # relative to the project
    line: int
    number: int  # among the mutants of the module
    tree: libcst.Module
    mutation: Mutation

    @property
    def name(self) -> str:
        return f"{self.module}:{self.line}#{self.number}"

    @property
    def source(self) -> str:
        return self.tree.deep_replace(self.mutation.original_node, self.mutation.mutated_node).code

    @property
    def diff(self) -> str:
        lines = difflib.unified_diff(self.tree.code.splitlines(), self.source.splitlines(), n=0, lineterm="")
        return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


def list_mutants(module: Path) -> list[Mutant]:
    """Return all mutants of a module."""
    visitor = AllMutations()
    tree = MetadataWrapper(libcst.parse_module((ROOT / module).read_text("utf-8"))).visit(visitor)
    return [
        Mutant(module, line, number, tree, mutation)
        for number, (mutation, line) in enumerate(zip(visitor.mutations, visitor.lines, strict=True))
    ]


def tests_of(module: Path) -> list[Path]:
    """Return the file of tests that mirrors a module, and the contracts that the modules of its folder share."""
    folder = Path("tests", "unit", *module.parent.parts[1:])
    contracts = sorted((ROOT / folder).glob("test_*_contract.py"))
    return [folder / f"test_{module.name}", *(contract.relative_to(ROOT) for contract in contracts)]


class Laboratory:
    """A copy of the project in which mutants are tested, by forks of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seconds: dict[Path, float] = {}
        for file in subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0"):
            if file and (ROOT / file).is_file():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / file, folder / file)
        os.chdir(folder)
        # The processes that tests start import the mutant too, and nobody reads what was compiled from the one before.
        os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        # Each fork would make the empty databases that tests copy
        os.environ["EMPTY_DATABASES"] = str(folder.with_suffix(".databases"))
        folder.with_suffix(".databases").mkdir()
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(folder))
        # It sets the environment that the libraries read.
        importlib.import_module("tests.conftest")
        for library in LIBRARIES:
            importlib.import_module(library)
        for name in [name for name in sys.modules if name.split(".")[0] in {"pipeline", "tests"}]:
            del sys.modules[name]

    def test(self, mutant: Mutant) -> str:
        """Return whether the tests of a mutant's module notice it: KILLED, TIMED_OUT or SURVIVED."""
        before = self._seconds.get(mutant.module) or self._measure(mutant.module)
        outcome = self._test(mutant, before)
        # Other load may have made the machine slower
        if outcome == TIMED_OUT and (now := self._measure(mutant.module)) > before:
            outcome = self._test(mutant, now)
        return outcome

    def _measure(self, module: Path) -> float:
        """Return how many seconds the tests of a module take without a fault."""
        # Other load may make a test fail that has a deadline
        for _ in range(2):
            started = time.monotonic()
            if self._run(tests_of(module), None) == SURVIVED:
                self._seconds[module] = time.monotonic() - started
                return self._seconds[module]
        raise SystemExit(f"{module}: tests must pass without a fault, and fail:\n{self._output.read_text()}")

    def _test(self, mutant: Mutant, seconds: float) -> str:
        file = self.folder / mutant.module
        file.write_text(mutant.source, "utf-8")
        try:
            return self._run(tests_of(mutant.module), TIMEOUT_FACTOR * seconds + TIMEOUT_SECONDS)
        finally:
            file.write_text(mutant.tree.code, "utf-8")

    @property
    def _output(self) -> Path:
        return self.folder.with_suffix(".output")

    @property
    def failed_test(self) -> str:
        """The test that has noticed the last mutant; empty if it could not be imported."""
        found = re.search(r"^(?:FAILED|ERROR) \S*?::(\S+)", self._output.read_text("utf-8", "replace"), re.MULTILINE)
        return found[1] if found else ""

    def _run(self, tests: Sequence[Path], timeout_seconds: float | None) -> str:
        pid = os.fork()
        if pid == 0:
            self._run_pytest(tests)
        until = time.monotonic() + (timeout_seconds or float("inf"))
        status = None
        while status is None and time.monotonic() < until:
            ended, code = os.waitpid(pid, os.WNOHANG)
            if ended:
                status = code
            else:
                time.sleep(0.05)
        # The tests' own processes, too
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        if status is None:
            os.waitpid(pid, 0)
            return TIMED_OUT
        return KILLED if status else SURVIVED

    def _run_pytest(self, tests: Sequence[Path]) -> None:
        """Run tests in this process, up to the first that fails, and exit with pytest's code."""
        code = 70  # EX_SOFTWARE
        try:
            os.setsid()
            output = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            # A plugin of pytest may be among what the libraries import.
            options = "-x -q -p no:cacheprovider -W ignore::pytest.PytestAssertRewriteWarning".split()
            code = pytest.main([*options, *map(str, tests)])
        except BaseException:  # noqa: BLE001 - the child of a fork must not return
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def main() -> None:
    """Test a sample of mutants; print the survivors and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", help="folder or module below pipeline/", type=Path)
    parser.add_argument("--sample", help="number of mutants; default: all", type=int)
    parser.add_argument("--seed", help="of the sample", type=int, default=0)
    options = parser.parse_args()
    path = (ROOT / options.package).resolve()
    modules = [path] if path.is_file() else sorted(path.rglob("*.py"))
    mutants = [mutant for module in modules for mutant in list_mutants(module.relative_to(ROOT))]
    if not mutants:
        parser.error(f"package must be a module or a folder with modules, got {options.package}; try pipeline/data")
    total = len(mutants)
    if options.sample:
        mutants = random.Random(options.seed).sample(mutants, min(options.sample, total))  # noqa: S311 - no secret
        mutants.sort(key=lambda mutant: (mutant.module, mutant.number))
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        laboratory = Laboratory(Path(folder) / "project")
        for mutant in mutants:
            outcome = laboratory.test(mutant)
            outcomes[outcome] += 1
            details = f" {laboratory.failed_test}" if outcome == KILLED else f"\n{mutant.diff}"
            print(f"{outcome:9} {mutant.name}{details}", flush=True)
    print(f"{options.package}: {dict(outcomes)} of {len(mutants)} of {total} mutants, seed {options.seed}")


if __name__ == "__main__":
    main()
