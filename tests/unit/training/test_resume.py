"""Finding the run to resume, and refusals in one line."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import mlflow
import numpy as np
import pytest
from mlflow.entities import DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from pipeline.config.training import DataConfig, TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.runtime.errors import NothingToDo, UsageError
from pipeline.runtime.process import this_process
from pipeline.tracking import stale_runs
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.outbox.delivery import send_pending
from pipeline.tracking.outbox.records import LogBatch
from pipeline.tracking.outbox.spool import Spool
from pipeline.tracking.tags import Role, RunOutcome, Tag
from pipeline.training import checkpoint, resume
from pipeline.training.checkpoint import Checkpoint, TrainingState
from pipeline.training.checkpoint_manager import checkpoint_folder
from pipeline.training.description import Change
from pipeline.training.run_metadata import log_fold_start, log_splits
from tests.support.paths import ROOT
from tests.support.training_runs import FakeRun, small_dataset

CONFIG = TrainingConfig(dataset="/data/flowers", depth=6, epochs=10, precision="float32", jit_compile=False)


@pytest.fixture
def client(store, monkeypatch):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return mlflow.MlflowClient()


@pytest.fixture
def experiment(client, request, tmp_path, monkeypatch):
    experiment_id = client.create_experiment(request.node.name, artifact_location=str(tmp_path / "artifacts"))
    monkeypatch.setattr(TrackingClient, "experiment_id", lambda self: experiment_id)
    return experiment_id


@pytest.fixture
def make_run(client, experiment):
    """Return a function that makes a run with a status, tags and a checkpoint of an epoch, or none."""

    def make(*, status="FAILED", epoch=3, **tags):
        run_id = client.create_run(experiment, tags={Tag.ROLE: Role.RUN} | tags).info.run_id
        if status != "RUNNING":
            client.set_terminated(run_id, status)
        if epoch:
            save_checkpoint(run_id, epoch)
        return run_id

    return make


def save_checkpoint(run_id, epoch, folder=None):
    state = TrainingState(epoch, {"loss": [1.0] * epoch, "val_accuracy": [0.5] * epoch}, [np.arange(3.0)], [])
    one = Checkpoint(run_id, CONFIG.model_dump(mode="json"), "f00d", state)
    return checkpoint.write_checkpoint(folder or checkpoint_folder(run_id), one)


@pytest.fixture(autouse=True)
def short_watch(monkeypatch):
    monkeypatch.setattr(stale_runs, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(stale_runs, "WATCH_PAUSE_SECONDS", 0.05)


def find(run, overrides):
    """Find the run to resume, and free its lock."""
    with ExitStack() as locks:
        return resume.find_resume_point(TrackingClient(), run, overrides, locks=locks)


def refusal(client, run, **overrides):
    with pytest.raises(UsageError) as error:
        find(run, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_find_resume_point_returns_the_runs_settings_and_last_epoch(client, make_run):
    resume_point = find(make_run(), {})
    assert resume_point.config == CONFIG
    assert resume_point.checkpoint.state.epoch == 3
    assert resume_point.name == "resumed at epoch 4"
    assert str(resume_point) == f"run {resume_point.run_id} resumes after epoch 3 of 10"
    assert (resume_point.recipe, resume_point.changes, resume_point.folds) == ("", {}, {})


def test_resume_point_has_the_recipe_and_the_checkpoint_of_each_fold_that_has_begun(client, make_run):
    run_id = make_run(epoch=None)
    for name, value in (("recipe", "mine.yaml"), ("folds", "3")):
        client.log_param(run_id, name, value)
    for number, epoch in ((1, 10), (2, 3), (3, None)):
        make_run(epoch=epoch, **{Tag.ROLE: Role.FOLD, Tag.PARENT_RUN_ID: run_id, Tag.FOLD: str(number)})
    client.set_tag(run_id, Tag.RECIPE_CHANGES, json.dumps({"depth": ["6", "8"]}))
    resume_point = find(run_id, {})
    assert resume_point.recipe == "mine.yaml"
    assert resume_point.changes == {"depth": Change("6", "8")}
    assert {number: one.state.epoch for number, one in resume_point.folds.items()} == {1: 10, 2: 3}
    assert resume_point.checkpoint.state.epoch == 3
    assert find("latest", {}).run_id == run_id, "those of a fold are its own"


def resume_point_with(epochs, folds=None):
    """Return a resume point with the checkpoint of each fold after so many epochs of 1 s, 2 s and so on."""
    checkpoints = {}
    for number, epoch in enumerate(epochs, start=1):
        history = {"epoch_seconds": [float(second) for second in range(1, epoch + 1)]}
        checkpoints[number] = Checkpoint("abc", {}, "f00d", TrainingState(epoch, history, [], []))
    config = CONFIG.model_copy(update={"folds": folds})
    by_fold = checkpoints if folds else {}
    return resume.ResumePoint(None, "mine", config, checkpoints[len(epochs)], {}, by_fold)


def test_resume_point_has_been_trained_for_the_seconds_of_its_epochs_in_all_folds():
    assert resume_point_with([3]).seconds == 6
    assert resume_point_with([4, 3], folds=5).seconds == 16


def test_resume_point_is_named_after_its_last_fold_and_knows_whether_folds_begin():
    begun = resume_point_with([10, 3], folds=3)
    assert begun.name == "resumed at epoch 4 of fold 2 of 3" and begun.has_folds_to_begin
    assert resume_point_with([10, 10], folds=2).name == "resumed after the last epoch of fold 2 of 2"
    assert not resume_point_with([10, 10], folds=2).has_folds_to_begin
    assert not resume_point_with([3]).has_folds_to_begin


def test_resume_point_after_the_last_epoch_is_named_so(client, make_run):
    assert find(make_run(epoch=10), {}).name == "resumed after the last epoch"


def test_overrides_that_are_equal_or_change_no_result_are_accepted(client, make_run, monkeypatch):
    monkeypatch.chdir("/")
    overrides = {"depth": "6", "precision": "auto", "dataset": "data/flowers", "learning_rate": "1e-3"}
    resume_point = find(make_run(), overrides | {"checkpoint_minutes": "none", "register_as": "flowers"})
    assert resume_point.config == CONFIG.model_copy(update={"checkpoint_minutes": None, "register_as": "flowers"})


def test_dataset_may_be_given_from_the_home_folder(client, make_run, monkeypatch):
    monkeypatch.setenv("HOME", "/data")
    assert find(make_run(), {"dataset": "~/flowers"}).config == CONFIG
    assert "dataset=/data/flowers there, got '~/trees'" in refusal(client, make_run(), dataset="~/trees")


def test_overrides_that_change_the_result_are_refused_in_one_line(client, make_run):
    message = refusal(client, make_run(), depth="8", epochs="20", flip="false")
    assert message == (
        "a resumed run keeps its own settings: depth=6 there, got '8'; epochs=10 there, got '20'; "
        "leave out what differs"
    )


def test_override_must_suit_the_runs_settings_which_may_break_rules_themselves():
    """A rule may be younger than the run."""
    older = CONFIG.model_copy(update={"class_weights": "balanced", "sampling": "balanced"})
    assert resume.merge_overrides(older, {"sampling": "balanced"}) == older
    folded = CONFIG.model_copy(update={"folds": 3})
    with pytest.raises(UsageError, match="^filter_steps must be 0 with folds"):
        resume.merge_overrides(folded, {"filter_steps": "5"})


def test_latest_is_the_newest_run_that_can_be_resumed(client, make_run, monkeypatch):
    expected = make_run(status="KILLED")
    make_run(status="FINISHED", **{Tag.OUTCOME: RunOutcome.FINISHED})
    make_run(epoch=0)
    make_run(status="RUNNING", **this_process().tags())
    for role in ("resume", "fold", "trial", "search", "final", "report", "predict"):
        make_run(role=role)
    pages, search_runs = [], TrackingClient.search_runs

    def search(*arguments, **options):
        pages.append(options.get("page_size"))
        return search_runs(*arguments, **options)

    monkeypatch.setattr(TrackingClient, "search_runs", search)
    assert find("latest", {}).run_id == expected
    assert pages == [100], "the newest are enough"


def test_latest_may_have_its_checkpoint_among_its_artifacts(client, make_run, tmp_path):
    run_id = make_run(epoch=0)
    client.log_artifact(run_id, str(save_checkpoint(run_id, 5, tmp_path)), "checkpoint")
    assert find("latest", {}).checkpoint.state.epoch == 5


def test_latest_that_has_finished_meanwhile_is_passed_over(client, make_run, monkeypatch):
    older, newer = make_run(), make_run()
    lock_run = resume.ownership.lock_run

    def finish_and_lock(run_id):
        if run_id == newer:
            client.set_tag(newer, Tag.OUTCOME, RunOutcome.FINISHED)
        return lock_run(run_id)

    monkeypatch.setattr(resume.ownership, "lock_run", finish_and_lock)
    assert find("latest", {}).run_id == older


def test_latest_without_a_resumable_run_is_refused(client, make_run, experiment):
    make_run(status="FINISHED", **{Tag.OUTCOME: RunOutcome.FINISHED})
    assert refusal(client, "latest") == (
        "resume=latest must find a run that can be resumed: experiment "
        "test_latest_without_a_resumable_run_is_refused has none"
    )


@pytest.mark.parametrize("epoch", [0, 3], ids=["all removed", "killed before it removed its checkpoint"])
def test_finished_run_raises_nothing_to_do_and_becomes_parent_of_the_project_run(
    client, experiment, make_run, monkeypatch, epoch
):
    finished = make_run(status="FINISHED", epoch=epoch, **{Tag.OUTCOME: RunOutcome.FINISHED})
    second = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", second)
    with pytest.raises(NothingToDo, match="is finished: there is nothing to resume$"):
        find(finished, {})
    below = mlflow.get_run(second)
    assert below.data.tags[Tag.PARENT_RUN_ID] == finished and below.data.tags[Tag.ROLE] == Role.RESUME
    assert below.info.run_name == "nothing to resume"
    assert not checkpoint_folder(finished).exists()


def test_finished_run_that_mlflow_run_opens_again_becomes_no_child_of_its_own(client, make_run, monkeypatch):
    finished = make_run(status="FINISHED", **{Tag.OUTCOME: RunOutcome.FINISHED})
    monkeypatch.setenv("MLFLOW_RUN_ID", finished)
    monkeypatch.setattr(resume, "is_resumed_by_mlflow", lambda: True)
    with pytest.raises(NothingToDo):
        find(None, {})
    tags = mlflow.get_run(finished).data.tags
    assert Tag.PARENT_RUN_ID not in tags and tags[Tag.ROLE] == Role.RUN


def test_finished_run_is_no_parent_of_a_project_run_in_which_something_has_begun(client, make_run, monkeypatch):
    finished = make_run(status="FINISHED", **{Tag.OUTCOME: RunOutcome.FINISHED})
    begun = make_run()
    monkeypatch.setenv("MLFLOW_RUN_ID", begun)
    with pytest.raises(UsageError, match="^MLFLOW_RUN_ID must name a run in which nothing has begun"):
        find(finished, {})
    assert Tag.PARENT_RUN_ID not in mlflow.get_run(begun).data.tags


@pytest.mark.parametrize("run", ["0" * 32, "nothing", "../../etc", "", "x" * 100_000])
def test_run_id_that_does_not_exist_is_refused(client, experiment, run):
    message = refusal(client, run)
    assert message.startswith("resume must be the id of a run in this tracking store, got")
    assert len(message) < 250


def test_deleted_run_is_refused_with_the_command_to_restore_it(client, make_run):
    run_id = make_run()
    client.delete_run(run_id)
    assert f"has been deleted: `mlflow runs restore --run-id {run_id}` restores it" in refusal(client, run_id)


@pytest.mark.parametrize(
    ("role", "reason"),
    [
        ("search", " cannot be resumed: it is a search; start the same search again to continue it"),
        ("trial", " cannot be resumed: it is a trial; start its search again to continue that"),
        ("final", " cannot be resumed: it is a final training of a search; start that search again to continue it"),
        ("ensemble", " cannot be resumed: it is the ensemble of a search; start that search again to continue it"),
        ("report", " cannot be resumed: it is a report; the same command makes another one"),
        ("evaluate", " cannot be resumed: it is an evaluation; the same command makes another one"),
        ("predict", " cannot be resumed: it is a prediction; the same command makes another one"),
        ("export", " cannot be resumed: it is an export; the same command makes another one"),
        ("resume", " resumed another run: resume abc"),
        ("fold", " is one fold of a cross-validation: resume abc, which goes on with its folds"),
        ("another", " has no checkpoint to resume from: no training has begun in it"),
    ],
)
def test_runs_of_other_roles_are_refused_with_a_remedy(client, make_run, role, reason):
    run_id = make_run(role=role, **{Tag.PARENT_RUN_ID: "abc"})
    assert refusal(client, run_id) == f"run {run_id} ({mlflow.get_run(run_id).info.run_name}){reason}"


def test_run_that_is_none_of_this_program_is_refused(client, experiment):
    run_id = client.create_run(experiment, run_name="theirs").info.run_id
    reason = "has no checkpoint to resume from: no training has begun in it"
    assert refusal(client, run_id) == f"run {run_id} (theirs) {reason}"


@pytest.mark.parametrize(
    ("status", "tags", "is_gone"),
    [
        ("FAILED", {}, True),
        ("RUNNING", {}, False),
        ("RUNNING", replace(this_process(), started=1).tags(), True),
        ("RUNNING", replace(this_process(), host="another").tags(), False),
        ("RUNNING", replace(this_process(), host="another").tags() | {Tag.OUTCOME: RunOutcome.FAILED}, True),
        # a process that has ended the run may still be alive
        ("FAILED", this_process().tags(), True),
    ],
    ids=["ended", "no process", "dead process", "process that cannot be seen", "named outcome", "live process"],
)
def test_check_resumable_knows_whether_the_process_is_gone(client, make_run, status, tags, is_gone):
    run_id = make_run(status=status, epoch=0, **tags)
    assert resume.check_resumable(TrackingClient().get_run(run_id)) is is_gone


def test_run_without_a_checkpoint_is_refused(client, make_run):
    reason = "has no checkpoint to resume from: start it again with its recipe and settings"
    assert refusal(client, make_run(epoch=0)).endswith(reason)


def test_running_run_is_refused(client, make_run):
    process = this_process()
    run_id = make_run(status="RUNNING", **process.tags())
    assert f"is running as process {process.id} on {process.host}" in refusal(client, run_id)


@contextmanager
def heartbeats(client, run_id):
    """Send heartbeats of a process on another host."""
    over = threading.Event()

    def send():
        for number in itertools.count():
            client.set_tag(run_id, Tag.HEARTBEAT, f"2020-01-01T00:00:{number % 60:02}+00:00")
            if over.wait(0.05):
                return

    thread = threading.Thread(target=send)
    thread.start()
    yield
    over.set()
    thread.join()


def test_open_run_that_this_host_cannot_see_is_running_while_its_heartbeat_changes(client, make_run):
    other = replace(this_process(), host="another")
    run_id = make_run(status="RUNNING", **other.tags(), **{Tag.HEARTBEAT: "2020-01-01T00:00:00+00:00"})
    with heartbeats(client, run_id):
        assert refusal(client, run_id).endswith(f"is running as {other}, which sends heartbeats: stop it first")
        assert "has none" in refusal(client, "latest")


@pytest.mark.parametrize("heartbeat", ["2020-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"])
def test_open_run_that_this_host_cannot_see_can_be_resumed_when_it_is_silent_whatever_the_clocks(
    client, make_run, heartbeat, caplog
):
    make_run()
    other = replace(this_process(), host="another")
    run_id = make_run(status="RUNNING", **other.tags(), **{Tag.HEARTBEAT: heartbeat})
    with caplog.at_level("INFO", logger="pipeline"):
        assert find(run_id, {}).run_id == run_id
    name = mlflow.get_run(run_id).info.run_name
    assert caplog.messages[0] == (
        f"run {run_id} ({name}) is open, and this machine cannot see {other}: watching for its heartbeat, for up to 0 s"
    )
    assert find("latest", {}).run_id == run_id, "the newest one"


def test_open_run_without_a_process_is_watched(client, make_run, caplog):
    run_id = make_run(status="RUNNING")
    with caplog.at_level("INFO", logger="pipeline"):
        assert find(run_id, {}).run_id == run_id
    assert "this machine cannot see its process: watching" in caplog.text


def test_run_that_its_last_process_has_ended_is_not_watched(client, make_run, monkeypatch):
    monkeypatch.setattr(stale_runs, "SILENCE_SECONDS", 1000)
    ended = replace(this_process(), host="another").tags() | {Tag.OUTCOME: RunOutcome.STOPPED}
    assert find(make_run(status="RUNNING", **ended), {})


HOLDER = """
import sys
from pipeline.tracking.ownership import lock_run
with lock_run(sys.argv[1]) as is_mine:
    print(is_mine, flush=True)
    sys.stdin.read()
"""


def test_run_that_another_process_resumes_is_refused_and_not_the_latest(client, make_run):
    older, run_id = make_run(), make_run()
    command = [sys.executable, "-c", HOLDER, run_id]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "True\n"
        assert refusal(client, run_id).endswith("is being resumed by another process: wait for it, or stop it first")
        assert find("latest", {}).run_id == older
        holder.kill()
    assert find("latest", {}).run_id == run_id


def test_resume_point_holds_the_lock_of_its_run_until_its_end(client, make_run):
    run_id = make_run()
    with (
        resume.open_resume_point(run_id, {}),
        pytest.raises(UsageError, match="is being resumed by another process"),
        resume.open_resume_point(run_id, {}),
    ):
        pass
    with resume.open_resume_point(run_id, {}) as resume_point:
        assert resume_point.run_id == run_id


def test_run_that_another_process_claims_between_the_look_and_the_lock_is_refused(client, make_run, monkeypatch):
    run_id, lock_run = make_run(), resume.ownership.lock_run

    def claim_and_lock(run_id):
        client.set_tag(run_id, Tag.HEARTBEAT, "new")
        return lock_run(run_id)

    monkeypatch.setattr(resume.ownership, "lock_run", claim_and_lock)
    assert "is being resumed by another process" in refusal(client, run_id)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def write_anything(path):
    content = b"no archive"
    path.write_bytes(hashlib.sha256(content).hexdigest().encode() + content)


def write_of_another_run(path):
    save_checkpoint("another", 4, path.parent)


def write_settings_of_another_version(path):
    state = TrainingState(4, {"loss": [0.5] * 4}, [np.arange(3.0)], [])
    checkpoint.write_checkpoint(path.parent, Checkpoint(path.parent.name, {"unheard": 1}, "f00d", state))


def write_without_loss(path):
    state = TrainingState(4, {"val_accuracy": [0.5] * 4}, [np.arange(3.0)], [])
    checkpoint.write_checkpoint(path.parent, Checkpoint(path.parent.name, CONFIG.model_dump(mode="json"), "f", state))


def replace_by_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "is damaged"),
        (write_anything, "is not a checkpoint"),
        (write_of_another_run, "belongs to another run, 'another'"),
        (write_settings_of_another_version, "has settings that this version cannot use: unknown setting 'unheard'"),
        (write_without_loss, "is not a checkpoint: it lacks loss"),
        (replace_by_a_folder, "Is a directory"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damaged_checkpoint_is_skipped_for_the_one_before_with_a_warning(client, make_run, caplog, damage, reason):
    run_id = make_run()
    damage(save_checkpoint(run_id, 4))
    checkpoint_found = find(run_id, {}).checkpoint
    assert checkpoint_found.state.epoch == 3
    (warning,) = caplog.messages
    assert reason in warning and warning.endswith("; the run resumes from epoch 3") and "\n" not in warning
    left = {path.name[:12] + path.suffix for path in checkpoint_folder(run_id).iterdir()}
    is_unreadable = damage is replace_by_a_folder
    assert left == {"epoch-000003.checkpoint", f"epoch-000004.{'checkpoint' if is_unreadable else 'damaged'}"}


def test_damaged_checkpoint_does_not_count_as_the_newest_of_the_resumed_run(client, make_run):
    run_id = make_run()
    truncate(save_checkpoint(run_id, 9))
    find(run_id, {})
    save_checkpoint(run_id, 4)
    assert [path.name[:12] for path in checkpoint.checkpoint_files(checkpoint_folder(run_id))] == [
        "epoch-000004",
        "epoch-000003",
    ]


def test_run_with_damaged_checkpoints_only_is_refused(client, make_run):
    run_id = make_run()
    for path in checkpoint.checkpoint_files(checkpoint_folder(run_id)):
        path.write_bytes(b"")
    assert "is damaged" in refusal(client, run_id)


def test_damaged_checkpoint_is_replaced_by_its_uploaded_copy(client, make_run, tmp_path):
    run_id = make_run()
    client.log_artifact(run_id, str(save_checkpoint(run_id, 4, tmp_path)), "checkpoint")
    truncate(save_checkpoint(run_id, 4))
    assert find(run_id, {}).checkpoint.state.epoch == 4


@pytest.mark.parametrize(("refit", "needs"), [(False, "val_accuracy"), (True, "")])
def test_checkpoint_needs_the_monitored_metric_except_with_refit(client, make_run, refit, needs):
    run_id = make_run(epoch=0)
    settings = CONFIG.model_copy(update={"refit": refit}).model_dump(mode="json")
    state = TrainingState(4, {"loss": [0.5] * 4}, [np.arange(3.0)], [])
    checkpoint.write_checkpoint(checkpoint_folder(run_id), Checkpoint(run_id, settings, "f00d", state))
    if needs:
        assert refusal(client, run_id).endswith(f"is not a checkpoint: it lacks {needs}")
    else:
        assert find(run_id, {}).checkpoint.state.epoch == 4


def test_artifact_store_that_fails_is_named_where_this_machine_has_no_checkpoint(client, make_run, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("of a library\nbelow")

    monkeypatch.setattr(resume, "uploaded_checkpoints", fail)
    assert refusal(client, make_run(epoch=0)).endswith(
        "has no checkpoint to resume from: its artifacts cannot be listed: RuntimeError: of a library\\nbelow"
    )


def test_checkpoint_of_this_machine_is_not_downloaded(client, make_run, tmp_path, monkeypatch):
    run_id = make_run()
    client.log_artifact(run_id, str(save_checkpoint(run_id, 3, tmp_path)), "checkpoint")
    monkeypatch.setattr(resume, "download_checkpoint", lambda *arguments: pytest.fail("it is here"))
    assert find(run_id, {}).checkpoint.state.epoch == 3


@pytest.mark.parametrize("call", ["uploaded_checkpoints", "download_checkpoint"])
def test_artifact_store_that_fails_leaves_the_checkpoints_of_this_machine(
    client, make_run, tmp_path, monkeypatch, caplog, call
):
    run_id = make_run()
    client.log_artifact(run_id, str(save_checkpoint(run_id, 5, tmp_path)), "checkpoint")

    def fail(*arguments):
        raise RuntimeError("of a library\nbelow")

    monkeypatch.setattr(resume, call, fail)
    assert find(run_id, {}).checkpoint.state.epoch == 3
    (warning,) = caplog.messages
    assert "of a library" in warning and "\n" not in warning


def test_newest_checkpoint_is_taken_from_this_machine_or_the_artifacts(client, make_run, tmp_path):
    run_id = make_run()
    client.log_artifact(run_id, str(save_checkpoint(run_id, 5, tmp_path)), "checkpoint")
    assert find(run_id, {}).checkpoint.state.epoch == 5
    client.log_artifact(run_id, str(save_checkpoint(run_id, 2, tmp_path)), "checkpoint")
    assert find(run_id, {}).checkpoint.state.epoch == 5


def test_check_data_with_another_fingerprint_raises_usage_error(client, make_run):
    resume_point, dataset = find(make_run(), {}), small_dataset()
    resume_point.check_data(dataset)
    dataset.fingerprint = "beef"
    with pytest.raises(UsageError, match="/data/flowers has changed since, its fingerprint from f00d to beef"):
        resume_point.check_data(dataset)


def load_digits(seed=0, **settings):
    """Return a data set with the fingerprint of the checkpoints, which another seed splits otherwise."""
    config = DataConfig(dataset="digits", train_examples=100, **settings)
    return replace(load_dataset(config, seed=seed), fingerprint="f00d")


def log_inputs(client, run_id, log):
    """Log to a run in the store the data sets that a function logs."""
    fake = FakeRun()
    log(fake)
    for method, _, named in fake.calls:
        if method == "log_dataset":
            one = mlflow.entities.Dataset(named["name"], named["digest"], "code", "{}")
            tag = InputTag(MLFLOW_DATASET_CONTEXT, named["context"])
            client.log_inputs(run_id, datasets=[DatasetInput(one, [tag])])


@pytest.mark.parametrize("settings", [{}, {"refit": True}, {"folds": 2}])
def test_check_data_with_other_splits_of_the_same_images_raises_usage_error(client, make_run, settings):
    """As when a version of this program makes them otherwise."""
    run_id, begun, other = make_run(), load_digits(**settings), load_digits(seed=1, **settings)
    find(run_id, {}).check_data(other)
    log_inputs(client, run_id, lambda run: log_splits(run, begun))
    resume_point = find(run_id, {})
    resume_point.check_data(begun)
    with pytest.raises(UsageError) as error:
        resume_point.check_data(other)
    assert str(error.value) == (
        "a resumed run needs the splits that it began with: the train split of /data/flowers has changed since, its "
        f"digest from {begun.out_of_fold.digest if begun.folds else begun.train.digest} to "
        f"{other.out_of_fold.digest if other.folds else other.train.digest}; resume it with the version of this "
        "program that began it, or start a new run"
    )


@pytest.mark.parametrize("split", ["validation", "test"])
def test_check_data_compares_the_images_that_judge_the_run_too(client, make_run, split):
    run_id, begun = make_run(), load_digits()
    log_inputs(client, run_id, lambda run: log_splits(run, begun))
    with pytest.raises(UsageError, match=f"the {split} split of /data/flowers has changed since"):
        find(run_id, {}).check_data(replace(begun, **{split: begun.train}))


def test_check_data_with_other_folds_of_the_same_images_raises_usage_error(client, make_run):
    """Training images of a fold that has been trained would validate another one, or the other way round."""
    run_id, begun = make_run(epoch=None), load_digits(folds=3)
    client.log_param(run_id, "folds", "3")
    log_inputs(client, run_id, lambda run: log_splits(run, begun))
    fold_id = make_run(**{Tag.ROLE: Role.FOLD, Tag.PARENT_RUN_ID: run_id, Tag.FOLD: "2"})
    log_inputs(client, fold_id, lambda run: log_fold_start("mine", CONFIG, run, begun.fold(2), None))
    resume_point = find(run_id, {})
    resume_point.check_data(begun)
    first, *others = begun.folds
    with pytest.raises(UsageError, match="the train split of fold 2 of /data/flowers has changed since"):
        resume_point.check_data(replace(begun, folds=(*others, first)))


def test_check_weights_of_a_file_that_has_changed_raises_usage_error(client, make_run):
    run_id = make_run()
    find(run_id, {}).check_weights("")
    client.set_tag(run_id, Tag.WEIGHTS_DIGEST, "a" * 64)
    find(run_id, {}).check_weights("a" * 64)
    with pytest.raises(
        UsageError, match="has changed since, its SHA-256 from aaaaaaaaaaaa to bbbbbbbbbbbb; start a new"
    ):
        find(run_id, {}).check_weights("b" * 64)


def test_project_run_that_does_not_exist_is_refused_by_its_variable(client, experiment, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    reason = f"must be the id of a run in this tracking store, got '{'0' * 32}'"
    assert refusal(client, None) == f"MLFLOW_RUN_ID {reason}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert refusal(client, "0" * 32) == f"resume {reason}"
    assert refusal(client, None).startswith("a sqlite path in MLFLOW_TRACKING_URI must be absolute")


@pytest.mark.parametrize(("named", "sent"), [("a run", ["a run"]), ("latest", None), (None, ["the project's"])])
def test_open_resume_point_sends_what_is_pending_of_the_run_that_is_named(
    client, make_run, experiment, monkeypatch, caplog, named, sent
):
    ids = {"a run": make_run(), "the project's": client.create_run(experiment).info.run_id, "latest": "latest"}
    calls = []
    monkeypatch.setattr(resume, "send_pending", lambda runs: calls.append(runs) or ["100 % of it is sent"])
    monkeypatch.setenv("MLFLOW_RUN_ID", ids["the project's"])
    with caplog.at_level("INFO", logger="pipeline"), resume.open_resume_point(ids.get(named), {}) as resume_point:
        assert (resume_point and resume_point.run_id) == (ids["a run"] if named else None)
    assert calls == [sent and [ids[one] for one in sent]]
    assert caplog.messages == ["100 % of it is sent"]


def test_project_run_is_closed_if_nothing_begins_in_it(client, make_run, experiment, monkeypatch):
    run_id, second = make_run(), client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", second)
    with pytest.raises(UsageError), resume.open_resume_point(run_id, {}):
        raise UsageError("something is wrong")
    closed = mlflow.get_run(second)
    assert closed.info.status == "FAILED" and closed.data.tags[Tag.OUTCOME_REASON] == "something is wrong"


def test_new_project_run_is_not_resumed(client, experiment, monkeypatch):
    fresh = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", fresh)
    assert find(None, {"depth": "3"}) is None


@pytest.mark.parametrize("outcome", [RunOutcome.FINISHED, RunOutcome.FAILED])
def test_inherited_run_of_an_earlier_training_is_refused_and_left_as_it_is(client, make_run, monkeypatch, outcome):
    """A program that exports its run's id may start several trainings in it."""
    run_id = make_run(status=outcome.status, **{Tag.OUTCOME: outcome})
    before = mlflow.get_run(run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    for run in (None, make_run()):
        opening = resume.open_resume_point(run, {})
        with pytest.raises(UsageError, match=f"^MLFLOW_RUN_ID must name a run in which nothing .*{run_id}.*: unset"):
            opening.__enter__()
    assert mlflow.get_run(run_id).to_dictionary() == before.to_dictionary()
    assert checkpoint_folder(run_id).exists()


def test_project_run_of_an_earlier_training_is_resumed_by_mlflow_run_with_its_id(client, make_run, monkeypatch):
    run_id = make_run()
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    monkeypatch.setattr(resume, "is_resumed_by_mlflow", lambda: True)
    assert find(None, {}).run_id == run_id
    with resume.open_resume_point(None, {}) as resume_point:
        assert resume_point.run_id == run_id
    assert mlflow.get_run(run_id).info.status == "FAILED", "it is opened later"


def test_pending_records_of_other_runs_are_left_to_the_start_of_a_new_project_run(
    client, experiment, monkeypatch, caplog, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh = client.create_run(experiment).info.run_id
    spool = Spool("0" * 32, destination="https://another.server")
    spool.put(LogBatch("0" * 32, tags={"some": "tag"}))
    monkeypatch.setenv("MLFLOW_RUN_ID", fresh)
    with caplog.at_level("INFO", logger="pipeline"), resume.open_resume_point(None, {}) as resume_point:
        assert resume_point is None
    assert not caplog.records
    assert "another.server" in send_pending()[0]


def test_refusal_does_not_import_tensorflow(store):
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


def test_unavailable_store_is_refused_in_one_line_without_its_password(client, monkeypatch):
    def raise_connection_error(*arguments):
        raise ConnectionError("https://me:secret@host: nobody\nanswers")

    monkeypatch.setattr(resume, "_lock_latest_run", raise_connection_error)
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "https://me:secret@host")
    with pytest.raises(UsageError) as error, resume.open_resume_point("latest", {}):
        pass
    assert str(error.value).endswith("ConnectionError: https://me:***@host: nobody answers")
    assert "secret" not in str(error.value)
