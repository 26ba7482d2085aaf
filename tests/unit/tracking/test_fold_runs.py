"""The runs of folds below that of a cross-validation."""

import mlflow
import pytest

from pipeline.runtime.errors import Rejected, Stopped, Unavailable
from pipeline.tracking import fold_runs, ownership
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.fold_runs import end_fold_run, find_fold_runs, open_fold_run
from pipeline.tracking.lifecycle import start_run
from pipeline.tracking.tags import Role, RunOutcome, Tag


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(ownership, "CLAIM_SECONDS", 0.0)
    monkeypatch.setattr(fold_runs, "PAUSES", (0.01,))


def test_open_fold_run_makes_a_run_below_its_parent_that_ends_by_itself(store):
    with start_run(role=Role.RUN) as parent:
        fold = open_fold_run(parent, 2, name="digits, fold 2 of 5")
        assert (fold.name, fold.experiment_id, fold.outbox) == (
            "digits, fold 2 of 5",
            parent.experiment_id,
            parent.outbox,
        )
        assert parent.fold_run_id == fold.id
        fold.log_results({"best_val_accuracy": 0.5})
        end_fold_run(parent, fold)
        assert parent.fold_run_id is None
        parent.outbox.flush()
        found = mlflow.get_run(fold.id)
        assert (found.info.status, found.data.tags[Tag.OUTCOME]) == ("FINISHED", RunOutcome.FINISHED)
    assert found.info.run_name == "digits, fold 2 of 5" and found.data.metrics == {"best_val_accuracy": 0.5}
    assert found.data.tags[Tag.PARENT_RUN_ID] == parent.id and found.data.tags[Tag.ROLE] == Role.FOLD
    assert list(find_fold_runs(TrackingClient(), parent.id, parent.experiment_id)) == [2]


@pytest.mark.parametrize(("error", "status"), [(Stopped(2), "KILLED"), (ZeroDivisionError(), "FAILED")])
def test_open_fold_ends_as_its_parent_does_and_is_opened_again(store, error, status):
    with pytest.raises(type(error)), start_run(role=Role.RUN) as parent:
        end_fold_run(parent, open_fold_run(parent, 1, name="one"))
        fold = open_fold_run(parent, 2, name="two")
        raise error
    first, second = find_fold_runs(TrackingClient(), parent.id, parent.experiment_id).values()
    assert (first.info.status, second.info.status) == ("FINISHED", status)
    found = mlflow.get_run(parent.id)
    assert second.data.tags[Tag.OUTCOME_REASON] == found.data.tags[Tag.OUTCOME_REASON]
    with start_run(role=Role.RUN, resume=found) as again:
        # a fold that has finished stays as it is
        assert open_fold_run(again, 1, name="one").id == first.info.run_id
        assert again.fold_run_id is None and mlflow.get_run(first.info.run_id).info.status == "FINISHED"
        reopened = open_fold_run(again, 2, name="two")
        assert (reopened.id, again.fold_run_id) == (fold.id, fold.id)
        running = mlflow.get_run(fold.id)
        assert running.info.status == "RUNNING" and Tag.OUTCOME not in running.data.tags
    assert mlflow.get_run(fold.id).info.status == "FINISHED"


def test_open_fold_run_waits_for_the_server_and_finds_a_run_whose_answer_was_lost(store, monkeypatch, caplog):
    create = TrackingClient.create_run
    answers = iter([Unavailable("away"), Unavailable("away")])

    def lose(self, *arguments, **options):
        run = create(self, *arguments, **options)
        for error in answers:
            raise error
        return run

    with start_run(role=Role.RUN) as parent:
        monkeypatch.setattr(TrackingClient, "create_run", lose)
        fold = open_fold_run(parent, 1, name="one")
        assert [run.info.run_id for run in find_fold_runs(TrackingClient(), parent.id, parent.experiment_id).values()]
        assert len(caplog.messages) == 1 and caplog.messages[0].startswith("one waits for the tracking server")
        end_fold_run(parent, fold)


def test_open_fold_run_that_the_server_refuses_raises(store, monkeypatch):
    def refuse(*arguments, **options):
        raise Rejected("no")

    with pytest.raises(Rejected), start_run(role=Role.RUN) as parent:
        monkeypatch.setattr(TrackingClient, "create_run", refuse)
        open_fold_run(parent, 1, name="one")


def test_end_fold_run_of_a_run_that_another_process_has_resumed_leaves_it_open(store):
    with start_run(role=Role.RUN) as parent:
        fold = open_fold_run(parent, 1, name="one")
        parent.is_superseded = True
        end_fold_run(parent, fold)
        parent.outbox.flush()
        assert mlflow.get_run(fold.id).info.status == "RUNNING"


def test_find_fold_runs_are_those_of_the_run_with_a_number(store):
    client, experiment_id = TrackingClient(), mlflow.get_experiment_by_name("mine").experiment_id
    parent = client.create_run(experiment_id).info.run_id
    below = {Tag.PARENT_RUN_ID: parent, Tag.ROLE: str(Role.FOLD)}
    made = {
        number: client.create_run(experiment_id, tags=below | {Tag.FOLD: number}).info.run_id
        for number in ("2", "10", "one")
    }
    client.create_run(experiment_id, tags=below)
    client.create_run(experiment_id, tags=below | {Tag.FOLD: "3", Tag.ROLE: str(Role.TRIAL)})
    client.create_run(experiment_id, tags=below | {Tag.FOLD: "4", Tag.PARENT_RUN_ID: "0" * 32})
    found = {number: run.info.run_id for number, run in find_fold_runs(client, parent, experiment_id).items()}
    assert found == {2: made["2"], 10: made["10"]}


def test_fold_run_that_another_process_has_claimed_is_left_open(store):
    with start_run(role=Role.RUN) as parent:
        fold = open_fold_run(parent, 1, name="one")
        mlflow.MlflowClient().set_tag(fold.id, Tag.PROCESS, "1")
        end_fold_run(parent, fold)
        parent.outbox.flush()
        assert mlflow.get_run(fold.id).info.status == "RUNNING"
