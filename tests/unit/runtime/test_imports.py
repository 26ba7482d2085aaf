"""Slow imports: what their C code writes to standard error, and signals meanwhile."""

import gc
import importlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.runtime.errors import Stopped
from pipeline.runtime.imports import slow_imports
from pipeline.runtime.signals import handle_signals
from tests.support.paths import ROOT


def test_slow_imports_hides_what_is_written_to_the_file_descriptor(capfd):
    with slow_imports():
        os.write(2, b"noise\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_slow_imports_shows_it_if_an_exception_is_raised(capfd):
    with pytest.raises(ImportError), slow_imports():
        os.write(2, b"the reason\n")
        raise ImportError
    assert capfd.readouterr().err == "the reason\n"


def test_slow_imports_collects_no_garbage_until_they_are_done():
    with slow_imports():
        assert not gc.isenabled()
        before, imported = gc.get_freeze_count(), [[]]
    assert gc.isenabled()
    assert gc.get_freeze_count() > before, "later collections pass over what was imported"
    assert not any(known is imported for known in gc.get_objects())


def test_slow_imports_lets_a_signal_wait_until_they_are_done(capfd):
    steps = []
    with pytest.raises(Stopped, match="^SIGTERM$"), handle_signals():
        with slow_imports():
            os.write(2, b"noise\n")
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append("imported")
        steps.append("went on")
    assert steps == ["imported"]
    assert capfd.readouterr().err == ""


def test_slow_imports_in_another_thread_leaves_the_handlers_alone():
    with ThreadPoolExecutor(1) as executor:
        executor.submit(import_nothing).result()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def import_nothing():
    with slow_imports():
        pass


def test_slow_imports_hides_scikit_learn_unless_it_is_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    with slow_imports(), pytest.raises(ModuleNotFoundError):
        importlib.import_module("sklearn")
    assert "sklearn" not in sys.modules
    monkeypatch.setitem(sys.modules, "sklearn", signal)
    with slow_imports():
        assert importlib.import_module("sklearn") is signal
    assert sys.modules["sklearn"] is signal


def test_training_imports_at_its_start_what_it_needs_at_its_end_and_no_scikit_learn():
    """A broken installation ends a run before its first epoch, not after the last."""
    late = ["matplotlib.backends.backend_agg", "mlflow.tensorflow", "mlflow.pyfunc.model", "tensorflow.keras"]
    code = """
import sys
from pipeline.runtime.imports import slow_imports
with slow_imports():
    import pipeline.training.run
print(*(name for name in sys.argv[1:] if name not in sys.modules), "sklearn" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, *late], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "False\n"
