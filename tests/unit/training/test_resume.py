"""Which run goes on, and what is refused in one line, without TensorFlow."""

import os
import subprocess
import sys
from dataclasses import replace

import mlflow
import numpy as np
import pytest

from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import NothingToDo, UsageError
from pipeline.runtime.process import this_process
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.tags import Role, RunOutcome, Tag
from pipeline.training import checkpoint, resume
from pipeline.training.checkpoint import Checkpoint, TrainingState
from pipeline.training.checkpoint_manager import checkpoint_folder
from tests.support.paths import ROOT

CONFIG = TrainingConfig(dataset="/data/flowers", depth=6, epochs=10, precision="float32", jit_compile=False)


@pytest.fixture
def client(store, monkeypatch):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return mlflow.MlflowClient()


@pytest.fixture
def experiment(client, request, tmp_path, monkeypatch):
    made = client.create_experiment(request.node.name, artifact_location=str(tmp_path / "artifacts"))
    monkeypatch.setattr(TrackingClient, "experiment_id", lambda self: made)
    return made


@pytest.fixture
def made(client, experiment):
    """A run that ended so, with a checkpoint of so many epochs, or none."""

    def make(*, status="FAILED", epoch=3, **tags):
        run_id = client.create_run(experiment, tags={Tag.ROLE: Role.RUN} | tags).info.run_id
        if status != "RUNNING":
            client.set_terminated(run_id, status)
        if epoch:
            kept(run_id, epoch)
        return run_id

    return make


def kept(run_id, epoch, folder=None):
    state = TrainingState(epoch, {"loss": [1.0] * epoch}, [np.arange(3.0)], [])
    one = Checkpoint(run_id, CONFIG.model_dump(mode="json"), "f00d", state)
    return checkpoint.write_checkpoint(folder or checkpoint_folder(run_id), one)


def refusal(client, asked, **given):
    with pytest.raises(UsageError) as refused:
        resume.find_resume_point(TrackingClient(), asked, given)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_run_goes_on_with_its_own_settings_from_its_last_epoch(client, made):
    found = resume.find_resume_point(TrackingClient(), made(), {})
    assert found.config == CONFIG
    assert found.checkpoint.state.epoch == 3
    assert found.name == "resumed at epoch 4"


def test_a_run_that_was_interrupted_after_its_last_epoch_has_the_rest_to_do(client, made):
    assert resume.find_resume_point(TrackingClient(), made(epoch=10), {}).name == "resumed after the last epoch"


def test_settings_that_are_equal_or_change_no_result_may_be_given(client, made, monkeypatch):
    monkeypatch.chdir("/")
    given = {"depth": "6", "precision": "auto", "dataset": "data/flowers", "learning_rate": "1e-3"}
    found = resume.find_resume_point(
        TrackingClient(), made(), given | {"checkpoint_minutes": "none", "register_as": "flowers"}
    )
    assert found.config == CONFIG.model_copy(update={"checkpoint_minutes": None, "register_as": "flowers"})


def test_settings_that_would_change_the_result_are_all_refused_in_one_line(client, made):
    said = refusal(client, made(), depth="8", epochs="20", flip="false")
    assert said == (
        "a resumed run keeps its own settings: depth=6 there, got '8'; epochs=10 there, got '20'; "
        "leave out what differs"
    )


def test_latest_is_the_newest_that_can_go_on(client, made):
    wanted = made(status="KILLED")
    made(status="FINISHED", **{Tag.OUTCOME: RunOutcome.FINISHED})
    made(epoch=0)
    made(status="RUNNING", **this_process().tags())
    for role in ("resume", "trial", "search", "final", "report", "predict"):
        made(role=role)
    assert resume.find_resume_point(TrackingClient(), "latest", {}).run_id == wanted


def test_latest_says_so_where_there_is_none(client, made, experiment):
    made(status="FINISHED", **{Tag.OUTCOME: RunOutcome.FINISHED})
    said = refusal(client, "latest")
    assert said.startswith("resume=latest must find a run that can be resumed: experiment test_latest_says_so")


def test_a_finished_run_leaves_nothing_to_do_and_the_second_command_s_run_below_it(client, made, monkeypatch):
    finished, second = made(status="FINISHED", **{Tag.OUTCOME: RunOutcome.FINISHED}), made(epoch=0)
    monkeypatch.setenv("MLFLOW_RUN_ID", second)
    with pytest.raises(NothingToDo, match="is finished: there is nothing to resume$"):
        resume.find_resume_point(TrackingClient(), finished, {})
    assert mlflow.get_run(second).data.tags[Tag.PARENT_RUN_ID] == finished
    assert not checkpoint_folder(finished).exists()


@pytest.mark.parametrize("asked", ["0" * 32, "nothing", "../../etc", "", "x" * 100_000])
def test_a_run_that_is_not_there_is_refused(client, experiment, asked):
    said = refusal(client, asked)
    assert said.startswith("resume must be the id of a run in this tracking store, got")
    assert len(said) < 250


def test_a_deleted_run_is_refused_with_how_to_bring_it_back(client, made):
    run_id = made()
    client.delete_run(run_id)
    assert f"has been deleted: `mlflow runs restore --run-id {run_id}` restores it" in refusal(client, run_id)


@pytest.mark.parametrize(
    ("role", "reason"),
    [
        ("search", "it is a search; start the same search again to continue it"),
        ("trial", "it is a trial; start its search again to continue that"),
        ("final", "it is a final training of a search"),
        ("report", "it is a report; the same command makes another one"),
        ("resume", "resumed another run: resume abc"),
    ],
)
def test_runs_of_other_roles_are_refused_with_what_goes_on_with_them(client, made, role, reason):
    assert reason in refusal(client, made(role=role, **{Tag.PARENT_RUN_ID: "abc"}))


def test_a_run_without_a_checkpoint_is_refused(client, made):
    assert "has no checkpoint to resume from" in refusal(client, made(epoch=0))


def test_a_run_that_is_under_way_is_refused(client, made):
    me = this_process()
    assert f"is running as process {me.id} on {me.host}" in refusal(client, made(status="RUNNING", **me.tags()))
    other = replace(me, host="another")
    beat = {Tag.HEARTBEAT: "2999-01-01T00:00:00+00:00"}
    assert "on another, which sent a heartbeat 0 s ago" in refusal(
        client, made(status="RUNNING", **other.tags(), **beat)
    )


def test_a_run_of_another_host_that_has_long_been_silent_may_go_on_here(client, made):
    beat = {Tag.HEARTBEAT: "2020-01-01T00:00:00+00:00"}
    run_id = made(status="RUNNING", **replace(this_process(), host="another").tags(), **beat)
    assert resume.find_resume_point(TrackingClient(), run_id, {}).run_id == run_id


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(client, made):
    run_id = made()
    newest = kept(run_id, 4)
    newest.write_bytes(newest.read_bytes()[:-1])
    assert resume.find_resume_point(TrackingClient(), run_id, {}).checkpoint.state.epoch == 3
    for path in checkpoint.checkpoint_files(checkpoint_folder(run_id)):
        path.write_bytes(b"")
    assert "is damaged" in refusal(client, run_id)


def test_a_checkpoint_of_another_run_is_refused(client, made):
    run_id = made(epoch=0)
    kept("another", 3, checkpoint_folder(run_id))
    assert "belongs to another run, 'another'" in refusal(client, run_id)


def test_the_later_of_what_lies_here_and_among_the_artifacts_is_taken(client, made, tmp_path):
    run_id = made()
    client.log_artifact(run_id, str(kept(run_id, 5, tmp_path)), "checkpoint")
    assert resume.find_resume_point(TrackingClient(), run_id, {}).checkpoint.state.epoch == 5
    client.log_artifact(run_id, str(kept(run_id, 2, tmp_path)), "checkpoint")
    assert resume.find_resume_point(TrackingClient(), run_id, {}).checkpoint.state.epoch == 5


def test_images_that_have_changed_are_refused(client, made):
    found = resume.find_resume_point(TrackingClient(), made(), {})
    found.check_data("f00d")
    with pytest.raises(UsageError, match="/data/flowers has changed since, its fingerprint from f00d to beef"):
        found.check_data("beef")


def test_a_run_that_mlflow_run_has_just_opened_is_a_new_one(client, experiment, monkeypatch):
    fresh = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", fresh)
    assert resume.find_resume_point(TrackingClient(), None, {"depth": "3"}) is None


def test_the_run_that_mlflow_run_was_given_goes_on(client, made, monkeypatch):
    run_id = made()
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert resume.find_resume_point(TrackingClient(), None, {}).run_id == run_id
    with resume.open_resume_point(None, {}) as found:
        assert found.run_id == run_id
    assert mlflow.get_run(run_id).info.status == "FAILED", "it is opened later"


def test_a_refusal_needs_no_tensorflow(store):
    code = (
        "import sys; from pipeline.commands.main import run; print(run(['train', 'baseline', '--resume', 'nothing']));"
        "print({'tensorflow', 'keras', 'matplotlib'} & sys.modules.keys() or 'none')"
    )
    environment = os.environ | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "none"]
    (line,) = done.stderr.splitlines()
    assert line == "error: resume must be the id of a run in this tracking store, got 'nothing'"


def test_a_store_that_cannot_be_asked_is_told_in_one_line_without_its_password(client, monkeypatch):
    def away(*arguments):
        raise ConnectionError("https://me:secret@host: nobody\nanswers")

    monkeypatch.setattr(resume, "_latest_run", away)
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "https://me:secret@host")
    with pytest.raises(UsageError) as refused, resume.open_resume_point("latest", {}):
        pass
    assert str(refused.value).endswith("ConnectionError: https://me:***@host: nobody answers")
    assert "secret" not in str(refused.value)
