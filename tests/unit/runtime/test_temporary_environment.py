"""Variables that are changed for a while."""

import os

from pipeline.runtime.temporary_environment import temporary_environment


def test_temporary_environment_sets_and_removes_variables_and_restores_them_after_an_error(monkeypatch):
    monkeypatch.setenv("SET_BEFORE", "old")
    monkeypatch.setenv("REMOVED", "old")
    monkeypatch.delenv("NEW", raising=False)
    try:
        with temporary_environment({"SET_BEFORE": "new", "REMOVED": None, "NEW": "new"}):
            seen = {name: os.environ.get(name) for name in ("SET_BEFORE", "REMOVED", "NEW")}
            raise ValueError
    except ValueError:
        pass
    assert seen == {"SET_BEFORE": "new", "REMOVED": None, "NEW": "new"}
    assert {name: os.environ.get(name) for name in seen} == {"SET_BEFORE": "old", "REMOVED": "old", "NEW": None}
