"""Tests of the tags' names and values."""

import re

import pytest
from mlflow.utils import mlflow_tags

from pipeline.runtime.code_version import CodeVersion
from pipeline.tracking import tags
from pipeline.tracking.tags import (
    RUNNING,
    Role,
    RunOutcome,
    Tag,
    TrialOutcome,
    code_version_tags,
    is_untouched,
    run_outcome_tags,
    trial_outcome_tags,
)


def test_tag_names_are_distinct():
    names = [value for name, value in vars(Tag).items() if name.isupper()]
    assert len(names) == len(set(names)) > 30
    # one case, as MLflow's filters tell "Study" from "study"; its own tags have capitals within words
    of_mlflow = r"mlflow(\.[a-z]+)*\.[a-z]+[A-Za-z]*"
    assert [name for name in names if not re.fullmatch(rf"{of_mlflow}|[a-z0-9_]+(\.[a-z0-9_]+)*", name)] == []


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(RunOutcome.FINISHED, "FINISHED"), (RunOutcome.FAILED, "FAILED"), (RunOutcome.STOPPED, "KILLED")],
)
def test_run_outcome_has_a_status_of_mlflow(outcome, status):
    assert outcome.status == status


def test_trial_outcome_status_is_failed_only_for_failures():
    statuses = {outcome: outcome.status for outcome in TrialOutcome if not outcome.is_failure}
    assert statuses == {"finished": "FINISHED", "pruned": "KILLED", "stopped": "KILLED", "infeasible": "KILLED"}
    assert {outcome.status for outcome in TrialOutcome if outcome.is_failure} == {"FAILED"}


def test_trial_outcome_tags_name_a_reason_only_for_failures():
    assert trial_outcome_tags(TrialOutcome.PRUNED) == {Tag.TRIAL_STATE: "pruned"}
    assert trial_outcome_tags(TrialOutcome.LOST) == {Tag.TRIAL_STATE: "node lost", "reason": "node lost"}


def test_run_outcome_tags_without_a_reason_omit_it():
    assert run_outcome_tags(RunOutcome.FINISHED, "") == {"run.outcome": "finished"}
    assert run_outcome_tags(RunOutcome.STOPPED, "by SIGTERM") == {
        "run.outcome": "stopped",
        "run.outcome_reason": "by SIGTERM",
    }


def test_code_version_tags_use_the_name_of_mlflow(monkeypatch):
    monkeypatch.setattr(tags, "code_version", lambda: CodeVersion("a" * 40, is_dirty=True))
    assert code_version_tags() == {"mlflow.source.git.commit": "a" * 40, Tag.GIT_DIRTY: "true"}


def test_code_version_tags_outside_a_checkout_are_empty(monkeypatch):
    monkeypatch.setattr(tags, "code_version", lambda: None)
    assert code_version_tags() == {}


def test_is_untouched_holds_for_a_project_run_without_a_role():
    opened = {Tag.PROJECT_ENTRY_POINT: "main"}
    assert is_untouched(opened)
    assert not is_untouched(opened | {Tag.ROLE: Role.RUN})
    assert not is_untouched({})


def test_tags_that_mlflow_reads_have_its_names():
    assert (Tag.PARENT_RUN_ID, Tag.RUN_NAME) == (mlflow_tags.MLFLOW_PARENT_RUN_ID, mlflow_tags.MLFLOW_RUN_NAME)
    assert (Tag.DESCRIPTION, Tag.LOGGED_IMAGES) == (mlflow_tags.MLFLOW_RUN_NOTE, mlflow_tags.MLFLOW_LOGGED_IMAGES)
    assert Tag.LOGGED_ARTIFACTS == mlflow_tags.MLFLOW_LOGGED_ARTIFACTS
    assert Tag.PROJECT_ENTRY_POINT == mlflow_tags.MLFLOW_PROJECT_ENTRY_POINT
    assert Tag.GIT_COMMIT == mlflow_tags.MLFLOW_GIT_COMMIT


def test_values_of_tags_are_what_filters_and_runs_of_earlier_versions_name():
    assert [role.value for role in Role] == [role.name.lower() for role in Role]
    assert [outcome.value for outcome in RunOutcome] == ["finished", "failed", "stopped"]
    others = [outcome for outcome in TrialOutcome if outcome is not TrialOutcome.LOST]
    assert [outcome.value for outcome in others] == [outcome.name.lower() for outcome in others]
    assert RUNNING == "running"
    assert (Tag.ROLE, Tag.STUDY, Tag.OUTCOME, Tag.HEARTBEAT) == (
        "role",
        "study",
        "run.outcome",
        "convmixer.heartbeat",
    )
