"""Python and the packages against what is pinned."""

import sys

import numpy as np
import pytest

from pipeline.health import installation


@pytest.fixture
def project(tmp_path):
    """A project that asks for packages; returns its folder."""

    def made(asked, lock):
        (tmp_path / "pyproject.toml").write_text(f"[project]\ndependencies = {asked}\n")
        (tmp_path / "requirements.lock").write_text(lock)
        return tmp_path

    return made


def found(folder):
    return [(finding.state, finding.text) for finding in installation.packages(folder)]


def test_this_python_is_the_one_that_the_lock_is_for(monkeypatch):
    assert [finding.state for finding in installation.python()] == ["ok"]
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    (finding,) = installation.python()
    assert finding.state == "broken" and "is not 3.11: " in finding.text


def test_packages_as_pinned_are_well(project):
    lock = f"numpy=={np.__version__}\n    # via what not\nno-such-package==1 ; sys_platform == 'win32'\n"
    assert found(project(["numpy==0"], lock)) == [("ok", "1 packages, each as requirements.lock has it")]


def test_another_version_than_the_pinned_is_looked_at(project):
    ((state, text),) = found(project([], "numpy==0.1\n"))
    assert (state, f"numpy {np.__version__} (pinned: 0.1)" in text) == ("look", True)


def test_a_platform_may_have_a_version_of_its_own(project):
    lock = f"numpy==0.1 ; sys_platform == 'win32'\nnumpy=={np.__version__} ; sys_platform != 'win32'\n"
    assert [state for state, _ in found(project([], lock))] == ["ok"]


def test_a_package_that_is_asked_for_and_missing_is_broken(project):
    asked = ["no-such-package[extra]==1; sys_platform == 'linux'"]
    ((state, text),) = found(project(asked, "no-such-package==1\n"))
    assert state == "broken" and text.startswith("not installed: no-such-package; ")


def test_of_many_the_first_are_named(project):
    lock = "".join(f"{name}==0.0.1\n" for name in "numpy pandas keras mlflow optuna pydantic tyro".split())
    ((_, text),) = found(project([], lock))
    assert "optuna" in text and "pydantic" not in text and " and 2 more; " in text


def test_without_a_lock_it_is_said_that_nothing_was_looked_up(tmp_path):
    ((state, text),) = found(tmp_path)
    assert state == "look" and "requirements.lock: No such file" in text
