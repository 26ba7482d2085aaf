"""Tests of closing stale runs and reporting unresponsive ones, in a real MLflow store."""

import getpass
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import mlflow
import pytest

from pipeline.runtime.process import process_of, this_process
from pipeline.runtime.shell import project_command
from pipeline.tracking import project_launcher, stale_runs
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.tags import Role, Tag, TrialOutcome

ELSEWHERE = replace(this_process(), host="another")


@pytest.fixture(scope="module")
def gone():
    """A process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        return process_of(process.pid)


@pytest.fixture
def experiment(client, request, tmp_path):
    return client.create_experiment(request.node.name, artifact_location=str(tmp_path))


@pytest.fixture
def opened(client, experiment):
    """Opens a run of some process, which gave its last sign so many minutes ago."""

    def open_it(process=None, *, minutes=1.0, **tags):
        heard = time.time() - 60 * minutes
        named = {Tag.HEARTBEAT: datetime.fromtimestamp(heard, UTC).isoformat(), **process.tags()} if process else {}
        run = client.create_run(experiment, start_time=int(1000 * heard), tags=named | {Tag.ROLE: Role.RUN} | tags)
        return run.info.run_id

    return open_it


def status(run_id):
    return mlflow.get_run(run_id).info.status


def test_close_stale_runs_closes_a_dead_run_with_the_reason_and_a_remedy(client, experiment, opened, gone):
    run_id = opened(gone)
    (line,) = stale_runs.close_stale_runs(TrackingClient(), experiment)
    found = mlflow.get_run(run_id)
    assert (found.info.status, found.data.tags[Tag.OUTCOME]) == ("FAILED", "failed")
    assert f"process {gone.id} on {gone.host} was gone" in found.data.tags[Tag.OUTCOME_REASON]
    assert f"`{project_command('train', '--resume', run_id)}` resumes it" in found.data.tags[Tag.OUTCOME_REASON]
    assert run_id in line and found.data.tags[Tag.OUTCOME_REASON] in line
    assert abs(found.info.end_time / 1000 - (time.time() - 60)) < 30, "when it was last heard of"
    assert stale_runs.close_stale_runs(TrackingClient(), experiment) == []


def test_close_stale_runs_closes_a_fold_with_its_run_and_says_which_to_resume(client, experiment, opened, gone):
    parent = opened(gone)
    fold = opened(gone, **{Tag.ROLE: Role.FOLD, Tag.PARENT_RUN_ID: parent})
    (line,) = stale_runs.close_stale_runs(TrackingClient(), experiment)
    assert f"closed stale run {parent}" in line and status(fold) == "FAILED"
    remedy = f"`{project_command('train', '--resume', parent)}` resumes the run above it"
    assert mlflow.get_run(fold).data.tags[Tag.OUTCOME_REASON].endswith(remedy)


def test_close_stale_runs_does_not_report_a_fold_whose_heartbeat_is_its_runs(client, experiment, opened):
    parent = opened(ELSEWHERE, minutes=1)
    opened(ELSEWHERE, minutes=12, **{Tag.ROLE: Role.FOLD, Tag.PARENT_RUN_ID: parent})
    assert stale_runs.close_stale_runs(TrackingClient(), experiment) == []


def test_close_stale_runs_leaves_a_live_run_open(client, experiment, opened):
    run_id = opened(this_process(), minutes=100)
    assert stale_runs.close_stale_runs(TrackingClient(), experiment) == []
    assert status(run_id) == "RUNNING"


def test_close_stale_runs_reports_an_unresponsive_run_of_another_host(client, experiment, opened):
    silent, _ = opened(ELSEWHERE, minutes=12), opened(ELSEWHERE, minutes=4)
    (line,) = stale_runs.close_stale_runs(TrackingClient(), experiment)
    assert (
        line.startswith(f"run {silent} (")
        and "has sent no heartbeat for 12 min" in line
        and "on another is dead" in line
    )
    assert line.endswith(f"is dead, `{project_command('doctor', '--close', silent)}` closes it")
    assert status(silent) == "RUNNING"


def test_close_stale_runs_reports_an_untouched_project_run(client, experiment, opened):
    stray = {Tag.PROJECT_ENTRY_POINT: "main", "mlflow.source.type": "PROJECT"}
    run = client.create_run(experiment, start_time=int(1000 * (time.time() - 600)), tags=stray)
    (line,) = stale_runs.close_stale_runs(TrackingClient(), experiment)
    assert (
        f"run {run.info.run_id}" in line
        and "no heartbeat for 10 min: if the process that was to begin it is dead" in line
    )


def test_close_stale_runs_closes_a_project_run_that_never_began_once_mlflow_run_is_gone(
    client, experiment, own_children
):
    tags = {
        Tag.PROJECT_ENTRY_POINT: "main",
        project_launcher.BACKEND: "local",
        project_launcher.USER: getpass.getuser(),
    }
    run_id = client.create_run(experiment, tags=tags).info.run_id
    words = [sys.executable, "-c", "input()", "mlflow", "run", "."]
    with subprocess.Popen(words, stdin=subprocess.PIPE):
        assert stale_runs.close_stale_runs(TrackingClient(), experiment) == []
    (line,) = stale_runs.close_stale_runs(TrackingClient(), experiment)
    assert line.startswith(f"closed stale run {run_id} (") and "`mlflow run` was gone before the program began" in line
    found = mlflow.get_run(run_id)
    assert (found.info.status, found.info.run_name) == ("FAILED", "not begun")
    assert "its environment failed" in found.data.tags[Tag.DESCRIPTION]


def test_silent_runs_are_those_whose_heartbeat_does_not_change_while_they_are_watched(client, opened, monkeypatch):
    monkeypatch.setattr(stale_runs, "SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(stale_runs, "WATCH_PAUSE_SECONDS", 0.05)
    silent, alive = (stale_runs.inspect_run(mlflow.get_run(opened(ELSEWHERE))) for _ in range(2))
    client.set_tag(alive.run.info.run_id, Tag.HEARTBEAT, datetime.now(UTC).isoformat())
    assert stale_runs.silent_runs(TrackingClient(), [silent, alive]) == [silent]


def test_close_stale_runs_ignores_runs_of_other_programs(client, experiment):
    run = client.create_run(experiment, start_time=0)
    assert stale_runs.close_stale_runs(TrackingClient(), experiment) == []
    assert status(run.info.run_id) == "RUNNING"


def test_close_stale_runs_closes_children_with_their_parent_in_one_line(client, experiment, opened, gone):
    parent = opened(gone)
    child = opened(gone, role="resume", **{Tag.PARENT_RUN_ID: parent})
    assert len(stale_runs.close_stale_runs(TrackingClient(), experiment)) == 1
    assert status(child) == "FAILED"


def test_close_stale_runs_closes_the_open_trials_of_a_dead_search(client, experiment, opened, gone):
    search = opened(gone, role="search")
    trial = opened(role="trial", **{Tag.PARENT_RUN_ID: search})
    done = opened(role="trial", **{Tag.PARENT_RUN_ID: search, Tag.TRIAL_STATE: "finished"})
    client.set_terminated(done)
    (line,) = stale_runs.close_stale_runs(TrackingClient(), experiment)
    assert "the same search resumes it" in line
    assert (status(trial), mlflow.get_run(trial).data.tags[Tag.TRIAL_STATE]) == ("FAILED", TrialOutcome.LOST)
    assert (status(done), mlflow.get_run(done).data.tags[Tag.TRIAL_STATE]) == ("FINISHED", "finished")


def test_close_stale_runs_leaves_trials_of_a_live_search_open(client, experiment, opened):
    search = opened(this_process(), role="search")
    trial = opened(role="trial", **{Tag.PARENT_RUN_ID: search})
    assert stale_runs.close_stale_runs(TrackingClient(), experiment) == []
    assert status(trial) == "RUNNING"


def test_close_stale_runs_closes_a_search_and_its_trials_with_the_last_of_its_drivers(client, experiment, opened, gone):
    search = opened(role=Role.SEARCH)
    first, last = (opened(gone, role=Role.DRIVER, **{Tag.PARENT_RUN_ID: search}) for _ in range(2))
    trial = opened(role=Role.TRIAL, **{Tag.PARENT_RUN_ID: search})
    lines = stale_runs.close_stale_runs(TrackingClient(), experiment)
    assert len(lines) == 2 and all("the same search resumes it" in line for line in lines)
    assert {status(run_id) for run_id in (search, first, last, trial)} == {"FAILED"}
    reason = mlflow.get_run(search).data.tags[Tag.OUTCOME_REASON]
    assert reason == "all of its drivers were gone; the same search resumes it"
    assert mlflow.get_run(trial).data.tags[Tag.TRIAL_STATE] == TrialOutcome.LOST


def test_close_stale_runs_leaves_a_search_open_while_another_driver_is(client, experiment, opened, gone):
    search = opened(role=Role.SEARCH)
    dead, live = (
        opened(process, role=Role.DRIVER, **{Tag.PARENT_RUN_ID: search}) for process in (gone, this_process())
    )
    stale_runs.close_stale_runs(TrackingClient(), experiment)
    assert [status(run_id) for run_id in (dead, live, search)] == ["FAILED", "RUNNING", "RUNNING"]


def test_close_stale_runs_leaves_a_search_open_that_a_live_process_goes_on_with(client, experiment, opened, gone):
    """One that has taken over from shared drivers, the end of whose runs is on its way."""
    search = opened(this_process(), role=Role.SEARCH)
    dead = opened(gone, role=Role.DRIVER, **{Tag.PARENT_RUN_ID: search})
    stale_runs.close_stale_runs(TrackingClient(), experiment)
    assert (status(dead), status(search)) == ("FAILED", "RUNNING")


def test_close_run_leaves_a_live_report_below_a_dead_search_open(client, experiment, opened, gone):
    search = opened(gone, role=Role.SEARCH)
    report, dead = (opened(of, role=Role.REPORT, **{Tag.PARENT_RUN_ID: search}) for of in (this_process(), gone))
    stale_runs.close_stale_runs(TrackingClient(), experiment)
    assert [status(run_id) for run_id in (search, report, dead)] == ["FAILED", "RUNNING", "FAILED"]
    assert Tag.OUTCOME_REASON not in mlflow.get_run(report).data.tags


@pytest.mark.parametrize(("ended", "becomes"), [("finished", "FINISHED"), ("stopped", "KILLED")])
def test_close_stale_runs_keeps_an_outcome_that_the_run_has_named(client, experiment, opened, gone, ended, becomes):
    run_id = opened(gone, **{Tag.OUTCOME: ended, Tag.OUTCOME_REASON: "by SIGTERM"})
    stale_runs.close_stale_runs(TrackingClient(), experiment)
    found = mlflow.get_run(run_id)
    assert (found.info.status, found.data.tags[Tag.OUTCOME]) == (becomes, ended)
    assert found.data.tags[Tag.OUTCOME_REASON] == "by SIGTERM"


def test_close_run_with_a_reason_closes_a_run_of_another_host(client, opened):
    run_id = opened(ELSEWHERE, minutes=12)
    stale_runs.close_run(TrackingClient(), stale_runs.inspect_run(mlflow.get_run(run_id)), "closed by hand")
    assert status(run_id) == "FAILED"
    assert (
        mlflow.get_run(run_id)
        .data.tags[Tag.OUTCOME_REASON]
        .startswith(f"closed by hand; `{project_command('train', '--resume')} ")
    )


def test_inspect_run_with_an_unreadable_heartbeat_counts_from_the_start(client, opened):
    run_id = opened(ELSEWHERE, minutes=7, heartbeat="yesterday")
    assert 6 * 60 < stale_runs.inspect_run(mlflow.get_run(run_id)).last_seen_age() < 9 * 60


def test_inspect_run_says_whose_it_is_and_whether_that_lives(client, opened, gone):
    for process, liveness in ((gone, "dead"), (this_process(), "alive"), (ELSEWHERE, "unknown"), (None, "unknown")):
        run = mlflow.get_run(opened(process, minutes=3))
        one = stale_runs.inspect_run(run)
        assert (one.run, one.process, one.liveness) == (run, process, liveness)
        assert 170 < one.last_seen_age() < 240
        assert str(one) == f"run {run.info.run_id} ({run.info.run_name})"
    assert replace(one, last_seen=time.time() + 60).last_seen_age() == 0.0


@pytest.mark.parametrize(
    ("role", "remedy"),
    [
        (Role.RUN, "`{train}` resumes it"),
        (Role.SEARCH, "the same search resumes it"),
        (Role.DRIVER, "the same search resumes it"),
        (Role.REPORT, "start it again"),
        (Role.EVALUATE, "start it again"),
    ],
)
def test_close_run_says_how_its_work_goes_on_by_its_role(client, opened, gone, role, remedy):
    run_id = opened(gone, **{Tag.ROLE: role})
    reason = stale_runs.close_run(TrackingClient(), stale_runs.inspect_run(mlflow.get_run(run_id)))
    assert reason == mlflow.get_run(run_id).data.tags[Tag.OUTCOME_REASON]
    words = remedy.format(train=project_command("train", "--resume", run_id))
    assert reason == f"{gone} was gone, after a kill, a crash or a restart; {words}"


def test_close_run_without_a_process_says_so_and_when_it_was_last_heard_of(client, opened):
    run_id = opened(None, minutes=7)
    stale_runs.close_run(TrackingClient(), stale_runs.inspect_run(mlflow.get_run(run_id)))
    run = mlflow.get_run(run_id)
    assert run.data.tags[Tag.OUTCOME_REASON].startswith("its process was gone, after a kill")
    assert abs(run.info.end_time - run.info.start_time) <= 1


def test_close_run_with_an_outcome_without_a_reason_returns_the_outcome(client, opened, gone):
    run_id = opened(gone, **{Tag.OUTCOME: "finished"})
    assert stale_runs.close_run(TrackingClient(), stale_runs.inspect_run(mlflow.get_run(run_id))) == "finished"
    assert Tag.OUTCOME_REASON not in mlflow.get_run(run_id).data.tags


def test_close_run_replaces_an_outcome_of_another_version(client, opened, gone):
    run_id = opened(gone, **{Tag.OUTCOME: "odd", Tag.OUTCOME_REASON: "odd"})
    stale_runs.close_run(TrackingClient(), stale_runs.inspect_run(mlflow.get_run(run_id)))
    run = mlflow.get_run(run_id)
    assert (run.info.status, run.data.tags[Tag.OUTCOME]) == ("FAILED", "failed")
    assert str(gone) in run.data.tags[Tag.OUTCOME_REASON]


def test_close_run_closes_what_is_open_below_it_with_its_reason(client, opened):
    search = opened(ELSEWHERE, **{Tag.ROLE: Role.SEARCH})
    below = {
        role: opened(None, **{Tag.ROLE: role, Tag.PARENT_RUN_ID: search})
        for role in (Role.TRIAL, Role.FINAL, Role.ENSEMBLE, Role.DRIVER)
    }
    seed = opened(None, **{Tag.ROLE: Role.FINAL, Tag.PARENT_RUN_ID: below[Role.FINAL]})
    stale_runs.close_run(TrackingClient(), stale_runs.inspect_run(mlflow.get_run(search)), "closed by hand")
    for role, run_id in [*below.items(), (Role.FINAL, seed)]:
        run = mlflow.get_run(run_id)
        remedy = "the same search resumes it" if role is Role.DRIVER else "start it again"
        assert run.info.status == "FAILED" and run.data.tags[Tag.OUTCOME_REASON] == f"closed by hand; {remedy}"
        assert run.data.tags.get(Tag.TRIAL_STATE) == (None if role is Role.DRIVER else "node lost")


def test_close_run_that_never_began_names_it_so_and_ends_it_when_it_was_opened(client, experiment):
    tags = {Tag.PROJECT_ENTRY_POINT: "main"}
    run = client.create_run(experiment, start_time=1_000_000, tags=tags)
    reason = stale_runs.close_run(TrackingClient(), stale_runs.inspect_run(run), "closed by hand")
    assert reason == "closed by hand; start it again"
    found = mlflow.get_run(run.info.run_id)
    assert (found.info.status, found.info.run_name, found.info.end_time) == ("FAILED", "not begun", 1_000_000)
    assert found.data.tags[Tag.OUTCOME_REASON] == reason


def test_close_stale_runs_leaves_a_project_run_that_has_begun_since_it_was_seen(
    client, experiment, own_children, monkeypatch
):
    tags = {
        Tag.PROJECT_ENTRY_POINT: "main",
        project_launcher.BACKEND: "local",
        project_launcher.USER: getpass.getuser(),
    }
    begun, ended = (client.create_run(experiment, tags=tags).info.run_id for _ in range(2))
    look = stale_runs._open_runs

    def begin_after_the_look(*arguments):
        seen = look(*arguments)
        for name, value in this_process().tags().items():
            client.set_tag(begun, name, value)
        client.set_terminated(ended)
        return seen

    monkeypatch.setattr(stale_runs, "_open_runs", begin_after_the_look)
    assert stale_runs.close_stale_runs(TrackingClient(), experiment) == []
    assert (status(begun), status(ended)) == ("RUNNING", "FINISHED")


def test_close_stale_runs_reports_what_has_been_silent_for_five_minutes(client, experiment, opened):
    opened(ELSEWHERE, minutes=4)
    silent = opened(ELSEWHERE, minutes=5.01)
    opened(ELSEWHERE, minutes=9, **{Tag.ROLE: Role.RESUME})
    (line,) = stale_runs.close_stale_runs(TrackingClient(), experiment)
    assert f"run {silent} (" in line and "no heartbeat for 5 min: if process " in line


def test_silent_runs_are_watched_for_three_heartbeats_with_pauses(client, opened, monkeypatch):
    now, pauses = [0.0], []

    def sleep(seconds):
        pauses.append(seconds)
        now[0] += seconds

    one = stale_runs.inspect_run(mlflow.get_run(opened(ELSEWHERE)))
    monkeypatch.setattr(stale_runs, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    assert stale_runs.silent_runs(TrackingClient(), []) == [] and pauses == []
    assert stale_runs.silent_runs(TrackingClient(), [one]) == [one]
    assert set(pauses) == {5.0} and sum(pauses) == 180.0
