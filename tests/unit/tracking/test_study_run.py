"""Tests of a study's run and the runs below it, in a real MLflow store."""

import json
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from functools import partial

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

from pipeline.runtime.errors import NotFound, Rejected, Stopped, Unavailable, UsageError
from pipeline.search.executors.base import TrialResult
from pipeline.tracking import ownership, study_run
from pipeline.tracking.experiment_page import VIEW
from pipeline.tracking.outbox import records
from pipeline.tracking.outbox.delivery import send_pending, tracking_address
from pipeline.tracking.outbox.spool import Spool
from pipeline.tracking.study_run import join_study_run, open_study_run
from pipeline.tracking.tags import Role, RunOutcome, Tag, TrialOutcome
from tests.support.sleepers import wait_for

OPENED = []  # by the test that runs


@pytest.fixture
def opens(store, monkeypatch, request):
    """Opens the run of the test's study, under a run of `mlflow run` where one is given."""

    def open_it(*, known=None, trials=0, given=None):
        if given:
            monkeypatch.setenv("MLFLOW_RUN_ID", given)
        OPENED.append(open_study_run(request.node.name, known=known, trials=trials))
        return OPENED[-1]

    yield open_it
    while OPENED:
        finish(OPENED.pop())


def opened_by_mlflow():
    return mlflow.MlflowClient().create_run(mlflow.get_experiment_by_name("mine").experiment_id).info.run_id


def found(run_id):
    """What MLflow holds of a run, when it has been told all."""
    for runs in OPENED:
        runs._outbox.flush()
        runs._outbox.raise_rejection()
    return mlflow.get_run(run_id)


def close(runs, run_id, ended):
    runs.end_trial(run_id, ended.outcome, reason=ended.reason, output_tail=ended.output_tail)


def how(outcome, reason="", tail="what it wrote"):
    return TrialResult(0, outcome, reason, False, {}, tail, "cpu", None)


def finish(runs):
    if not runs._outbox._is_closed:
        runs.close(RunOutcome.FINISHED, "")
    return runs.id


def files(run_id):
    found(run_id)
    return [file.path for file in mlflow.MlflowClient().list_artifacts(run_id)]


def test_open_study_run_claims_the_project_run(opens):
    given = opened_by_mlflow()
    runs = opens(given=given)
    assert runs.id == given
    assert "MLFLOW_RUN_ID" not in mlflow.tracking.fluent.os.environ
    assert runs.start_child("t000 d1", role=Role.TRIAL, tags={}).run_id != given
    finish(runs)
    assert Tag.PARENT_RUN_ID not in found(given).data.tags


def test_open_study_run_puts_a_second_project_run_below_the_study_s_run(opens, request):
    first = opened_by_mlflow()
    finish(opens(given=first))
    second = opened_by_mlflow()
    runs = opens(known=first, trials=7, given=second)
    assert runs.id == first
    assert found(first).info.status == "RUNNING"
    tags = found(second).data.tags
    assert (tags[Tag.PARENT_RUN_ID], tags[Tag.ROLE], found(second).info.run_name) == (
        first,
        "resume",
        "resumed after 7 trials",
    )
    assert tags[Tag.STUDY] == request.node.name
    assert runs.close_lost() == 0  # it lives
    finish(runs)
    assert found(first).info.status == "FINISHED"


def test_close_lost_closes_the_run_of_a_killed_resumption(opens):
    first = finish(opens())
    killed = opened_by_mlflow()
    finish(opens(known=first, given=killed))
    assert found(killed).info.status == "RUNNING"
    assert opens(known=first).close_lost() == 1
    assert found(killed).info.status == "FAILED"


def test_close_lost_leaves_a_report_below_the_search_alone(opens):
    runs = opens()
    report = mlflow.MlflowClient().create_run(
        runs.run.experiment_id, tags={Tag.PARENT_RUN_ID: runs.id, Tag.ROLE: Role.REPORT}
    )
    assert runs.close_lost() == 0
    assert found(report.info.run_id).info.status == "RUNNING"


def test_close_lost_finds_trials_of_a_study_with_any_name(store):
    def open_it(known=None):
        return open_study_run("""it's "x" ; %""", known=known, trials=0)

    lost = open_it()
    trial = lost.start_child("t000", role=Role.TRIAL, tags={}).run_id
    lost.close_outbox()
    OPENED.append(open_it(known=lost.id))
    assert OPENED[-1].close_lost() == 1
    assert found(trial).info.status == "FAILED"
    OPENED.pop().close(RunOutcome.FINISHED, "")


def test_open_study_run_with_its_own_run_again_sets_no_parent(opens):
    first = opened_by_mlflow()
    finish(opens(given=first))
    assert opens(known=first, given=first).id == first
    assert Tag.PARENT_RUN_ID not in found(first).data.tags


@pytest.mark.parametrize("lose", [lambda run_id: mlflow.delete_run(run_id), lambda run_id: None])
def test_open_study_run_replaces_a_run_that_is_deleted_or_unknown(opens, lose):
    known = finish(opens())
    lose(known)
    runs = opens(known=known if found(known).info.lifecycle_stage == "deleted" else "0" * 32)
    assert runs.id != known
    assert found(runs.id).info.lifecycle_stage == "active"


def test_start_child_sets_parent_study_role_and_state(opens, request):
    runs = opens()
    trial = runs.start_child("t007 k9 p2 d8", role=Role.TRIAL, tags={Tag.TRIAL_NUMBER: "7"})
    assert trial.tracking_uri == mlflow.get_tracking_uri()
    child, grandchild = (
        found(trial.run_id),
        found(runs.start_child("seed 0", role=Role.FINAL, tags={}, parent=trial.run_id).run_id),
    )
    expected = {
        Tag.PARENT_RUN_ID: runs.id,
        Tag.STUDY: request.node.name,
        Tag.ROLE: Role.TRIAL,
        Tag.TRIAL_NUMBER: "7",
        Tag.TRIAL_STATE: "running",
    }
    assert {**child.data.tags, **expected} == child.data.tags
    assert (child.info.run_name, child.info.status) == ("t007 k9 p2 d8", "RUNNING")
    assert (grandchild.data.tags[Tag.PARENT_RUN_ID], grandchild.data.tags[Tag.ROLE]) == (trial.run_id, "final")
    runs.close_lost()


@pytest.mark.parametrize(
    ("outcome", "status", "output"),
    [
        (TrialOutcome.FINISHED, "FINISHED", False),
        (TrialOutcome.PRUNED, "KILLED", False),
        (TrialOutcome.STOPPED, "KILLED", False),
        (TrialOutcome.TIMEOUT, "FAILED", True),
        (TrialOutcome.DIVERGED, "FAILED", True),
        (TrialOutcome.OOM, "FAILED", True),
        (TrialOutcome.RAISED, "FAILED", True),
        (TrialOutcome.CRASHED, "FAILED", True),
    ],
)
def test_end_trial_sets_status_and_reason_and_logs_output_of_failures(opens, outcome, status, output):
    runs = opens()
    run_id = runs.start_child("t000", role=Role.TRIAL, tags={}).run_id
    close(runs, run_id, how(outcome, "so it was"))
    tags = found(run_id).data.tags
    assert (found(run_id).info.status, tags[Tag.TRIAL_STATE], tags[Tag.OUTCOME_REASON]) == (
        status,
        outcome,
        "so it was",
    )
    assert tags.get(Tag.REASON) == (str(outcome) if output else None)
    assert files(run_id) == (["output.txt"] if output else [])


def test_end_trial_keeps_the_status_of_a_run_that_has_ended(opens):
    runs = opens()
    run_id = runs.start_child("t000", role=Role.TRIAL, tags={}).run_id
    mlflow.MlflowClient().set_terminated(run_id, "KILLED", end_time=1000)
    close(runs, run_id, how(TrialOutcome.PRUNED))
    assert (found(run_id).info.status, found(run_id).info.end_time) == ("KILLED", 1000)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(TrialOutcome.FINISHED, "FINISHED"), (TrialOutcome.RAISED, "FAILED"), (TrialOutcome.STOPPED, "KILLED")],
)
def test_end_child_ends_a_run_that_trained_nothing(opens, outcome, status):
    runs = opens()
    run_id = runs.start_child("final 1", role=Role.FINAL, tags={}).run_id
    runs.log_child_metrics(run_id, {"val_accuracy_mean": 0.5})
    runs.end_child(run_id, outcome)
    assert (found(run_id).info.status, found(run_id).data.tags[Tag.TRIAL_STATE]) == (status, outcome)
    assert found(run_id).data.metrics == {"val_accuracy_mean": 0.5}


def test_child_is_presented_under_another_name_with_a_description_tags_and_parameters(opens):
    runs = opens()
    child = runs.start_child("final t000 d1", role=Role.FINAL, tags={}).run_id
    runs.present_child(child, description="one")
    runs.log_child_params(child, {"depth": "1"})
    runs.run.outbox.flush()
    name, data = found(child).info.run_name, found(child).data
    assert (name, data.tags[Tag.DESCRIPTION], data.params) == ("final t000 d1", "one", {"depth": "1"})
    runs.present_child(child, description="two", name="winner t000 d1", tags={Tag.WINNER: child})
    runs.run.outbox.flush()
    run = found(child)
    assert run.info.run_name == "winner t000 d1"
    assert (run.data.tags[Tag.DESCRIPTION], run.data.tags[Tag.WINNER]) == ("two", child)


def test_close_lost_leaves_runs_of_another_study_of_the_same_name(opens):
    runs = opens()
    final = runs.start_child("final 1", role=Role.FINAL, tags={}).run_id
    done, *lost = (
        runs.start_child(name, role=Role.TRIAL, tags={}, parent=under).run_id
        for name, under in [("done", None), ("lost", None), ("seed", final)]
    )
    close(runs, done, how(TrialOutcome.FINISHED))
    runs.end_child(final, TrialOutcome.STOPPED)
    mine = {Tag.STUDY: found(lost[0]).data.tags[Tag.STUDY], Tag.PARENT_RUN_ID: "0" * 32}
    others = mlflow.MlflowClient().create_run(runs.run.experiment_id, tags=mine).info.run_id
    assert runs.close_lost() == 2
    for run_id in lost:
        tags = found(run_id).data.tags
        assert (found(run_id).info.status, tags[Tag.TRIAL_STATE], tags[Tag.OUTCOME]) == (
            "FAILED",
            TrialOutcome.LOST,
            "failed",
        )
        assert "driver was gone" in tags[Tag.OUTCOME_REASON]
    assert [found(run_id).info.status for run_id in (done, others, runs.id)] == ["FINISHED", "RUNNING", "RUNNING"]
    mlflow.MlflowClient().set_terminated(others)


def test_log_params_keeps_those_of_an_earlier_driver(opens):
    runs = opens()
    runs.run.log_params({"search": "smoke", "trials": "4"})
    first = finish(runs)
    runs = opens(known=first)
    runs.run.log_params({"search": "smoke", "trials": "8", "hours": "2"})
    assert found(first).data.params == {"search": "smoke", "trials": "4", "hours": "2"}


def test_study_run_logs_tables_texts_tags_and_metrics(opens):
    runs = opens()
    runs.run.set_name("search smoke")
    runs.run.set_tags({"long": "x" * 10_000})
    runs.run.log_metrics({"best_val_accuracy": 0.5}, step=3)
    runs.run.log_text("config.yaml", "depth: 1\n")
    runs.run.log_table("leaderboard.csv", pd.DataFrame({"number": [1]}))
    finish(runs)
    run = found(runs.id)
    assert (run.info.run_name, len(run.data.tags["long"])) == ("search smoke", 5000)
    assert run.data.metrics["best_val_accuracy"] == 0.5
    assert mlflow.artifacts.load_text(f"runs:/{runs.id}/leaderboard.csv") == "number\n1\n"
    assert sorted(files(runs.id)) == ["config.yaml", "leaderboard.csv"]


def test_close_sets_the_outcome_and_cuts_its_reason(opens):
    runs = opens()
    runs.close(RunOutcome.STOPPED, "by a signal" + "!" * 10_000)
    run = found(runs.id)
    assert (run.info.status, run.data.tags[Tag.OUTCOME], len(run.data.tags[Tag.OUTCOME_REASON])) == (
        "KILLED",
        "stopped",
        5000,
    )


def test_close_after_a_stop_does_not_wait_for_a_server_that_takes_a_request_and_does_not_answer(opens, monkeypatch):
    runs, answer = opens(), threading.Event()
    monkeypatch.setattr(study_run, "MAX_STOP_SECONDS", 0.2)
    monkeypatch.setattr("pipeline.tracking.run.END_SECONDS", 0.2)
    monkeypatch.setattr(records.Record, "send", lambda *arguments: answer.wait())
    began = time.monotonic()
    pending = runs.close(RunOutcome.STOPPED, "by a signal")
    assert time.monotonic() - began < 2
    assert pending.startswith("pending  ")
    monkeypatch.undo()
    answer.set()


def test_close_ends_the_run_while_the_artifact_store_is_away(opens, monkeypatch):
    runs = opens()

    def fail(*arguments):
        raise ConnectionError("nobody there")

    monkeypatch.setattr(records.LogFiles, "_send", fail)
    runs.run.log_text("leaderboard.csv", "")
    assert runs.close(RunOutcome.STOPPED, "by a signal").startswith("pending  2 records")
    assert mlflow.get_run(runs.id).info.status == "KILLED"
    monkeypatch.undo()
    assert send_pending([runs.id])[0].startswith("sent     2 records")


def test_close_says_which_files_the_artifact_store_has_refused(opens, monkeypatch):
    runs = opens()

    def fail(*arguments):
        raise PermissionError("not yours")

    monkeypatch.setattr(records.LogFiles, "_send", fail)
    runs.run.log_text("leaderboard.csv", "")
    line = runs.close(RunOutcome.FINISHED, "")
    assert line.startswith(f"aside    1 record of run {runs.id} cannot be sent (PermissionError: not yours)")
    assert mlflow.get_run(runs.id).info.status == "FINISHED"


def test_close_ends_the_run_though_the_server_goes_away_before_lost_runs_are_looked_for(opens, monkeypatch):
    runs = opens()

    def fail(*arguments):
        raise ConnectionError("nobody there")

    monkeypatch.setattr(runs, "_children", fail)
    assert runs.close(RunOutcome.FINISHED, "") is None
    assert found(runs.id).info.status == "FINISHED"


def test_give_up_records_the_end_of_the_driver_s_run(opens):
    runs = opens()
    runs.give_up(Stopped(15))
    run = found(runs.id)
    assert (run.info.status, run.data.tags[Tag.OUTCOME]) == ("KILLED", "stopped")
    assert run.data.tags[Tag.OUTCOME_REASON].startswith("by SIGTERM; its end took too long")


def test_no_test_of_this_file_deleted_a_run_but_one(store):
    with closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as database, database:
        (deleted,) = database.execute("select count(*) from runs where lifecycle_stage = 'deleted'").fetchone()
    assert deleted == 1  # by the test of a run that is gone


def test_close_lost_waits_for_pending_records_of_a_killed_driver(opens, monkeypatch):
    runs, send = opens(), records.Record.send
    child = runs.start_child("t000", role=Role.TRIAL, tags={}).run_id

    def away(*_):
        raise ConnectionError

    monkeypatch.setattr(records.Record, "send", away)
    close(runs, child, how(TrialOutcome.PRUNED))
    runs._life.close(), runs._outbox.close()  # as a kill does

    def slow(*arguments):
        time.sleep(0.5)
        send(*arguments)

    monkeypatch.setattr(records.Record, "send", slow)
    opens(known=runs.id).close_lost()
    assert found(child).data.tags[Tag.TRIAL_STATE] == "pruned"


@pytest.mark.parametrize("tags", [{Tag.ROLE: "run"}, {Tag.ROLE: "search"}])
def test_open_study_run_refuses_a_project_run_in_which_something_else_has_begun(opens, tags):
    given = opened_by_mlflow()
    for name, value in tags.items():
        mlflow.MlflowClient().set_tag(given, name, value)
    with pytest.raises(UsageError, match="^MLFLOW_RUN_ID must name a run in which nothing has begun"):
        opens(given=given)
    assert opens(known=given, given=given).id == given, "the study's own run may be named"


def test_join_study_run_gives_each_driver_a_run_below_the_study_s(store, request):
    name = request.node.name
    first = join_study_run(name, known=None, driver="1a")
    study_id = first.study_run.id
    second = join_study_run(name, known=study_id, driver="2b")
    assert second.study_run.id == study_id
    (own, other), tags = (
        (one._driver_run.id for one in (first, second)),
        mlflow.get_run(second._driver_run.id).data.tags,
    )
    expected = {Tag.PARENT_RUN_ID: study_id, Tag.ROLE: "driver", Tag.STUDY: name, Tag.DRIVER: "2b"}
    assert {**tags, **expected} == tags and mlflow.get_run(other).info.run_name == "driver 2b"
    trials = [one.study_run.start_child("t000", role=Role.TRIAL, tags={}).run_id for one in (first, second)]
    found_tags = [mlflow.get_run(run_id).data.tags for run_id in trials]
    assert [(tags[Tag.DRIVER], tags[Tag.STUDY]) for tags in found_tags] == [("1a", name), ("2b", name)]

    second.close_driver("1a")  # as if it were dead
    assert second.leave(RunOutcome.FINISHED, "") is None
    assert [mlflow.get_run(run_id).info.status for run_id in trials] == ["FAILED", "RUNNING"]
    assert mlflow.get_run(trials[0]).data.tags[Tag.TRIAL_STATE] == TrialOutcome.LOST
    assert [mlflow.get_run(run_id).info.status for run_id in (study_id, other)] == ["RUNNING", "FINISHED"]
    assert first.close(RunOutcome.STOPPED, "by a signal") is None
    assert [mlflow.get_run(run_id).info.status for run_id in (study_id, own, other)] == ["KILLED", "KILLED", "FINISHED"]
    assert mlflow.get_run(study_id).data.tags[Tag.OUTCOME_REASON] == "by a signal"


def test_join_study_run_takes_the_project_run_and_opens_an_ended_study_again(store, monkeypatch, request):
    study_id = opened_by_mlflow()
    mlflow.MlflowClient().set_terminated(study_id)
    given = opened_by_mlflow()
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    shared = join_study_run(request.node.name, known=study_id, driver="1a")
    assert (shared.study_run.id, shared._driver_run.id) == (study_id, given)
    assert mlflow.get_run(study_id).info.status == "RUNNING"
    own = mlflow.get_run(given)
    assert own.data.tags[Tag.PARENT_RUN_ID] == study_id
    assert ownership.is_owner(own), "killed now, it can be closed"
    shared.close(RunOutcome.FINISHED, "")


def test_claim_marks_the_run_as_the_search_s_and_names_its_study(opens, request):
    runs = opens()
    runs.claim()
    tags = found(runs.id).data.tags
    assert (tags[Tag.ROLE], tags[Tag.STUDY]) == ("search", request.node.name)
    assert Tag.PROCESS in tags and Tag.HEARTBEAT in tags
    shared = join_study_run(request.node.name, known=runs.id, driver="1a")
    shared.study_run.claim()
    assert mlflow.get_run(shared._driver_run.id).data.tags[Tag.ROLE] == "driver"
    assert found(runs.id).data.tags[Tag.ROLE] == "search"
    shared.leave(RunOutcome.FINISHED, "")


def test_claim_measures_the_energy_of_trials_on_this_machine_on_from_an_earlier_driver(opens, monkeypatch, request):
    measured = []

    @contextmanager
    def record(run, *, is_resumed):
        measured.append((run.id, is_resumed))
        yield

    monkeypatch.setattr(study_run, "log_energy", record)
    first = opens()
    first.claim()
    finish(first)
    second = opens(known=first.id)
    second.claim()
    finish(second)
    assert measured == [(first.id, False), (first.id, True)]
    OPENED.append(open_study_run(request.node.name, known=first.id, trials=0, measures_energy=False))
    OPENED[-1].claim()
    shared = join_study_run(request.node.name, known=first.id, driver="1a", measures_energy=False)
    shared.study_run.claim()
    shared.leave(RunOutcome.FINISHED, "")
    assert len(measured) == 2


def test_start_child_without_a_server_raises_unavailable(opens, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("refused")

    runs = opens()
    monkeypatch.setattr(runs._client.mlflow, "create_run", refuse)
    with pytest.raises(Unavailable, match="refused"):
        runs.start_child("t000", role=Role.TRIAL, tags={})


def test_long_parameters_and_reasons_of_a_child_are_cut(opens):
    runs = opens()
    child = runs.start_child("t000", role=Role.TRIAL, tags={}).run_id
    runs.log_child_params(child, {"space": "x" * 10_000})
    close(
        runs, child, how(TrialOutcome.RAISED, "https://me:secret@host " * 1000, tail="password=https://me:secret@host")
    )
    data = found(child).data
    assert (len(data.params["space"]), len(data.tags[Tag.OUTCOME_REASON])) == (6000, 5000)
    assert "secret" not in data.tags[Tag.OUTCOME_REASON]
    assert "secret" not in mlflow.artifacts.load_text(f"runs:/{child}/output.txt")
    runs.end_lost(child, "gone")
    assert found(child).data.tags[Tag.OUTCOME_REASON] == "gone"


def test_describe_registration_says_what_became_of_it(opens):
    runs = opens()
    child = runs.start_child("final 1", role=Role.FINAL, tags={}).run_id
    assert runs.describe_registration(child).startswith("not registered: ")
    tags = {Tag.REGISTERED: "models:/a/1", Tag.REGISTERED_ALIAS: "champion", Tag.REGISTERED_REASON: "first"}
    runs.present_child(child, description="", tags=tags)
    found(child)
    assert runs.describe_registration(child) == "models:/a/1 is the champion: first"
    assert runs.describe_registration("0" * 32).startswith("not registered: ")
    runs.end_child(child, TrialOutcome.FINISHED)


def test_claim_says_what_was_sent_and_unfolds_the_search_on_the_page_of_its_experiment(opens, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs = opens()
    other = opened_by_mlflow()
    Spool(other, destination=tracking_address()).put(records.LogBatch(other, tags={"left": "yes"}))
    assert runs.claim() == [f"sent     1 record of run {other} that were pending on this machine"]
    view = json.loads(mlflow.get_experiment(runs.run.experiment_id).tags[VIEW])
    assert view["runsExpanded"][runs.id] is True
    assert runs.run.is_claimed
    mlflow.MlflowClient().set_tag(runs.id, Tag.PROCESS, "1")
    finish(runs)
    assert mlflow.get_run(runs.id).info.status == "RUNNING", "it is another process's"
    mlflow.MlflowClient().set_terminated(runs.id)
    mlflow.MlflowClient().set_terminated(other)


def test_claim_sends_the_heartbeat_until_the_run_is_closed(opens, monkeypatch):
    monkeypatch.setattr(study_run, "heartbeat_run", partial(ownership.heartbeat_run, seconds=0.01))
    runs = opens()
    runs.claim()
    mlflow.MlflowClient().set_tag(runs.id, Tag.HEARTBEAT, "never")
    wait_for(lambda: mlflow.get_run(runs.id).data.tags[Tag.HEARTBEAT] != "never", seconds=20)
    runs.stop_heartbeat()
    mlflow.MlflowClient().set_tag(runs.id, Tag.HEARTBEAT, "never")
    threading.Event().wait(0.1)
    assert mlflow.get_run(runs.id).data.tags[Tag.HEARTBEAT] == "never"


def test_claim_without_a_server_is_refused(opens, monkeypatch):
    runs = opens()
    monkeypatch.setattr(study_run, "claim_run", raising(Unavailable("away")))
    with pytest.raises(UsageError, match="^the tracking store must be there .*away"):
        runs.claim()


def raising(error):
    """Return a function that raises an error."""

    def fail(*arguments, **options):
        raise error

    return fail


def test_start_child_after_a_refusal_raises_it(opens):
    runs = opens()
    runs.log_child_params("f" * 32, {"depth": "1"})
    runs._outbox.flush()
    with pytest.raises(NotFound, match="f" * 32):
        runs.start_child("t000", role=Role.TRIAL, tags={})
    runs.end_lost(runs.start_child("t000", role=Role.TRIAL, tags={}).run_id, "gone")


def test_start_child_that_mlflow_refuses_raises_the_refusal(opens, monkeypatch):
    runs = opens()
    with monkeypatch.context() as patch:
        patch.setattr(runs._client.mlflow, "create_run", raising(MlflowException("not yours", codes.BAD_REQUEST)))
        with pytest.raises(Rejected, match="not yours"):
            runs.start_child("t000", role=Role.TRIAL, tags={})


@pytest.mark.parametrize(("outcome", "becomes"), [(TrialOutcome.CRASHED, "FAILED"), (TrialOutcome.RAISED, "FINISHED")])
def test_end_trial_of_a_run_that_has_ended_changes_its_status_after_a_crash_alone(opens, outcome, becomes):
    runs = opens()
    run_id = runs.start_child("t000", role=Role.TRIAL, tags={}).run_id
    mlflow.MlflowClient().set_terminated(run_id)
    close(runs, run_id, how(outcome))
    assert found(run_id).info.status == becomes
    tags = found(run_id).data.tags
    assert tags[Tag.TRIAL_STATE] == outcome and Tag.OUTCOME_REASON not in tags and Tag.OUTCOME not in tags


def test_end_trial_without_output_logs_none_and_sends_what_its_process_has_left(opens):
    runs = opens()
    run_id = runs.start_child("t000", role=Role.TRIAL, tags={}).run_id
    Spool(run_id, destination=tracking_address()).put(records.LogBatch(run_id, tags={"left": "yes"}))
    close(runs, run_id, how(TrialOutcome.CRASHED, tail=""))
    assert files(run_id) == []
    assert found(run_id).data.tags["left"] == "yes"
    assert abs(found(run_id).info.end_time / 1000 - time.time()) < 60


def test_end_trial_logs_the_end_of_what_a_failed_trial_wrote(opens):
    runs = opens()
    run_id = runs.start_child("t000", role=Role.TRIAL, tags={}).run_id
    close(runs, run_id, how(TrialOutcome.RAISED, tail="what it wrote"))
    found(run_id)
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/output.txt") == "what it wrote"


def test_metrics_of_a_child_are_at_step_0(opens):
    runs = opens()
    run_id = runs.start_child("final 1", role=Role.FINAL, tags={}).run_id
    runs.log_child_metrics(run_id, {"val_accuracy_mean": 0.5})
    found(run_id)
    (point,) = mlflow.MlflowClient().get_metric_history(run_id, "val_accuracy_mean")
    assert (point.step, point.value) == (0, 0.5)
    runs.end_child(run_id, TrialOutcome.FINISHED)
    assert Tag.OUTCOME_REASON not in found(run_id).data.tags


@pytest.mark.parametrize("role", [Role.REPORT, Role.EVALUATE, Role.PREDICT, Role.EXPORT])
def test_close_lost_leaves_what_other_commands_have_opened_below_the_search(opens, role):
    runs = opens()
    tags = {Tag.PARENT_RUN_ID: runs.id, Tag.ROLE: role}
    other = mlflow.MlflowClient().create_run(runs.run.experiment_id, tags=tags).info.run_id
    assert runs.close_lost() == 0
    assert found(other).info.status == "RUNNING"
    mlflow.MlflowClient().set_terminated(other)


def test_close_lost_gives_the_reason_that_it_is_given(opens):
    runs = opens()
    lost = [runs.start_child(name, role=Role.TRIAL, tags={}).run_id for name in ("t000", "t001")]
    assert runs.close_lost("so it was") == 2
    assert [found(run_id).data.tags[Tag.OUTCOME_REASON] for run_id in lost] == ["so it was"] * 2
    assert runs.close_lost() == 0


def test_close_closes_a_trial_whose_start_the_server_did_not_answer(opens):
    runs = opens()
    lost = runs.start_child("t000", role=Role.TRIAL, tags={}).run_id
    runs.close(RunOutcome.FINISHED, "")
    run = mlflow.get_run(lost)
    assert run.info.status == "FAILED"
    assert run.data.tags[Tag.OUTCOME_REASON] == "the tracking server began it, and its answer was lost"


def test_give_up_of_a_driver_among_several_ends_its_own_run_alone(store, request):
    shared = join_study_run(request.node.name, known=None, driver="1a")
    shared.study_run.give_up(Stopped(15))
    assert shared.study_run.run.outbox.flush() == 0
    own, study = (mlflow.get_run(run_id) for run_id in (shared._driver_run.id, shared.study_run.id))
    assert (own.info.status, study.info.status) == ("KILLED", "RUNNING")
    assert own.data.tags[Tag.OUTCOME_REASON] == "by SIGTERM; its end took too long, and the same command goes on"
    shared.close(RunOutcome.FINISHED, "")


def test_close_driver_closes_the_open_runs_of_that_driver_alone(store, request):
    shared = join_study_run(request.node.name, known=None, driver="1a")
    done, lost = (shared.study_run.start_child(name, role=Role.TRIAL, tags={}).run_id for name in ("t000", "t001"))
    shared.study_run.end_child(done, TrialOutcome.PRUNED)
    shared.study_run.run.outbox.flush()
    shared.close_driver("2b")
    shared.study_run.run.outbox.flush()
    assert mlflow.get_run(lost).info.status == "RUNNING"
    shared.close_driver("1a")
    shared.study_run.run.outbox.flush()
    assert [mlflow.get_run(run_id).info.status for run_id in (done, lost)] == ["KILLED", "FAILED"]
    assert mlflow.get_run(lost).data.tags[Tag.OUTCOME_REASON] == "the search's driver was gone"
    shared.close(RunOutcome.FINISHED, "")


def test_join_study_run_refuses_a_project_run_in_which_something_has_begun(store, monkeypatch, request):
    given = opened_by_mlflow()
    mlflow.MlflowClient().set_tag(given, Tag.ROLE, "run")
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    with pytest.raises(UsageError, match="^MLFLOW_RUN_ID must name a run in which nothing has begun"):
        join_study_run(request.node.name, known=None, driver="1a")


def test_join_study_run_replaces_a_run_that_is_deleted(store, request):
    first = join_study_run(request.node.name, known=None, driver="1a")
    first.close(RunOutcome.FINISHED, "")
    shared = join_study_run(request.node.name, known="0" * 32, driver="2b")
    assert shared.study_run.id not in {first.study_run.id, "0" * 32}
    assert shared._driver_run.experiment_id == shared.study_run.run.experiment_id == first._driver_run.experiment_id
    shared.close(RunOutcome.FINISHED, "")


def test_open_and_join_study_run_without_a_server_are_refused(store, monkeypatch, request):
    monkeypatch.setattr(study_run, "begin_run", raising(Unavailable("away")))
    for open_it in (
        lambda: open_study_run("a", known=None, trials=0),
        lambda: join_study_run("a", known=None, driver=""),
    ):
        with pytest.raises(UsageError, match="^the tracking store must be there .*away"):
            open_it()


@pytest.mark.parametrize("outcome", [RunOutcome.FINISHED, RunOutcome.STOPPED])
def test_flush_at_end_of_a_stop_takes_little_time(opens, monkeypatch, outcome):
    asked = []
    runs = opens()
    with monkeypatch.context() as patch:
        patch.setattr(runs._outbox, "flush", lambda **how: asked.append(how) or 3)
        assert study_run.flush_at_end(runs._outbox, outcome) == 3
    # of the ten seconds that the process has
    stopped = {"unavailable_seconds": 2.0, "at_most": 8.0}
    assert asked == [stopped if outcome is RunOutcome.STOPPED else {}]


def test_join_study_run_logs_what_the_machine_does_in_the_driver_s_run(store, monkeypatch, request):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
    shared = join_study_run(request.node.name, known=None, driver="1a")
    own, study = shared._driver_run.id, shared.study_run.id
    wait_for(lambda: "system/cpu_utilization_percentage" in mlflow.get_run(own).data.metrics, seconds=20)
    shared.close(RunOutcome.FINISHED, "")
    assert not mlflow.get_run(study).data.metrics
