"""The tree of exceptions: its messages, its exit codes, and that the module's docstring draws it."""

import inspect
import pickle
import signal

import pytest

from pipeline.runtime import errors
from pipeline.runtime.errors import ClusterLost, NothingToDo, PipelineError, Rejected, Stopped, UsageError

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, PipelineError)]


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_pipeline_error_has_one_line_and_survives_pickling(kind):
    error = kind("depth must be\nmore")
    assert str(error) == r"depth must be\nmore"
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind and str(copy) == str(error)


@pytest.mark.parametrize(
    ("kind", "code"), [(PipelineError, 1), (UsageError, 2), (NothingToDo, 0), (ClusterLost, 1), (Rejected, 1)]
)
def test_pipeline_error_has_the_exit_code_of_its_kind(kind, code):
    assert kind.exit_code == code


def test_module_docstring_draws_the_tree():
    drawn = {}
    path = []
    for line in inspect.getdoc(errors).splitlines():
        name = line.split()[0] if line.startswith("    ") else ""
        if name[:1].isupper() and hasattr(errors, name):
            depth = (len(line) - len(line.lstrip())) // 2 - 2
            path = [*path[:depth], name]
            drawn[name] = path[-2] if len(path) > 1 else None
    real = {kind.__name__: kind.__bases__[0].__name__ for kind in TREE if kind is not PipelineError}
    assert drawn == {"PipelineError": None, "Stopped": None} | real


def test_stopped_says_the_signal_and_the_reason_and_passes_except_exception():
    assert str(Stopped(signal.SIGTERM)) == "SIGTERM"
    assert str(Stopped(signal.SIGTERM, "as its parent was gone")) == "SIGTERM, as its parent was gone"
    assert Stopped(signal.SIGINT).exit_code == 130
    assert not isinstance(Stopped(signal.SIGINT), Exception)
