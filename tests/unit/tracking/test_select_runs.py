"""Runs that are selected by experiment, study, ids or filter."""

import pytest
from mlflow.tracking import fluent

from pipeline.runtime.errors import UsageError
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.select_runs import select_runs
from pipeline.tracking.tags import Role, Tag
from tests.support.runs import make_run


def ids(selection):
    return {run.id for run in selection.rows}


def test_select_runs_of_an_experiment_returns_its_trainings_of_all_pages(experiment, monkeypatch):
    store, name = experiment
    monkeypatch.setattr("pipeline.tracking.client.RUNS_PER_PAGE", 2)
    trained = {make_run(store, f"run {number}") for number in range(5)}
    for role in ("search", "report", "resume"):
        make_run(store, role, tags={Tag.ROLE: role})
    make_run(store, "of another program", tags={Tag.ROLE: ""})
    assert ids(select_runs(TrackingClient(), name)) == trained


def test_select_runs_of_a_study_returns_trials_and_final_trainings_with_the_data_of_their_search(experiment):
    store, _ = experiment
    study = {Tag.STUDY: "kernels-1a2b", Tag.DATA_FINGERPRINT: ""}
    search = make_run(
        store, "search", tags=study | {Tag.ROLE: Role.SEARCH, Tag.DATA_FINGERPRINT: "d7", Tag.DATA: "flowers"}
    )
    below = {Tag.PARENT_RUN_ID: search}
    trial = make_run(store, "t000", tags=study | below | {Tag.ROLE: Role.TRIAL})
    final = store.client.create_run(
        store.experiment_id, run_name="final 1", tags=study | below | {Tag.ROLE: Role.FINAL}
    ).info.run_id
    store.client.log_metric(final, "val_accuracy", 0.5)
    seed = make_run(store, "final 1 seed 0", tags=study | {Tag.ROLE: Role.FINAL, Tag.PARENT_RUN_ID: final})
    for text in ("kernels-1a2b", search):
        selection = select_runs(TrackingClient(), text)
        assert ids(selection) == {trial, seed} and selection.subject == search
        assert {(run.data, run.fingerprint) for run in selection.rows} == {("flowers", "d7")}
    alone = select_runs(TrackingClient(), trial)
    assert alone.rows[0].fingerprint == "d7" and alone.subject == trial, "its search was not among what was read"


def test_select_runs_by_id_takes_runs_of_any_experiment_once(experiment):
    store, _ = experiment
    other = store._replace(experiment_id=store.client.create_experiment("another one"))
    here, there = make_run(store, "a"), make_run(other, "b")
    selection = select_runs(TrackingClient(), f"{here}, {there},{here}")
    assert [run.id for run in selection.rows] == [here, there] and selection.subject == ""


def test_select_runs_leaves_out_folds_unless_they_are_named_by_id(experiment):
    store, name = experiment
    run = make_run(store, "folds=2", settings={"folds": 2})
    below = {Tag.ROLE: Role.FOLD, Tag.PARENT_RUN_ID: run, Tag.DATA_FINGERPRINT: ""}
    folds = [make_run(store, f"fold {number}", settings={"folds": 2}, tags=below) for number in (1, 2)]
    assert ids(select_runs(TrackingClient(), name)) == {run}
    selection = select_runs(TrackingClient(), ",".join(folds))
    assert ids(selection) == set(folds) and {row.fingerprint for row in selection.rows} == {"d0"}


def test_select_runs_by_filter_searches_the_present_experiment(experiment, monkeypatch):
    store, _ = experiment
    deep, shallow = make_run(store, "a", settings={"depth": 9}), make_run(store, "b", settings={"depth": 2})
    monkeypatch.setattr(fluent, "_active_experiment_id", store.experiment_id)
    assert ids(select_runs(TrackingClient(), "params.depth = '9'")) == {deep}
    assert ids(select_runs(TrackingClient(), "attributes.status = 'FINISHED'")) == {deep, shallow}
    with pytest.raises(UsageError, match="or an MLflow filter, got 'metric.x >> 1'"):
        select_runs(TrackingClient(), "metric.x >> 1")


def test_select_runs_lists_deleted_runs_as_left_out(experiment):
    store, name = experiment
    kept, gone = make_run(store, "a"), make_run(store, "b")
    store.client.delete_run(gone)
    assert ids(select_runs(TrackingClient(), name)) == {kept}
    selection = select_runs(TrackingClient(), f"{kept},{gone}")
    assert ids(selection) == {kept}
    assert selection.left_out == [f"deleted: {gone} (`mlflow runs restore --run-id ID` restores one)"]
    with pytest.raises(UsageError, match=f"got none of 1 run by id: deleted: {gone}"):
        select_runs(TrackingClient(), gone)


def test_select_runs_counts_runs_without_an_accuracy_by_state(experiment):
    store, name = experiment
    trained = make_run(store, "a")
    for state in ("RUNNING", "FAILED", "FAILED"):
        make_run(store, f"no {state}", curve=(), status=state)
    selection = select_runs(TrackingClient(), name)
    assert ids(selection) == {trained}
    (line,) = selection.left_out
    assert "2 failed" in line and "1 running" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0" * 32, f"runs must be in this tracking store, got {'0' * 32}, which is not"),
        ("no such thing", "runs must be an experiment, a study, run ids .*, got 'no such thing'"),
        ("anoter one", "did you mean another one"),
    ],
)
def test_select_runs_of_a_name_that_does_not_exist_is_refused(experiment, text, message):
    with pytest.raises(UsageError, match=message):
        select_runs(TrackingClient(), text)


def test_select_runs_of_an_empty_or_deleted_experiment_is_refused(experiment):
    store, name = experiment
    with pytest.raises(UsageError, match="it has no runs; train first"):
        select_runs(TrackingClient(), name)
    make_run(store, "a report", tags={Tag.ROLE: Role.REPORT})
    with pytest.raises(UsageError, match="1 that train nothing themselves"):
        select_runs(TrackingClient(), name)
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(UsageError, match="must not be deleted"):
        select_runs(TrackingClient(), name)


def test_select_runs_is_titled_by_what_was_named(experiment, monkeypatch):
    store, name = experiment
    run_id, other = (make_run(store, "a", tags={Tag.STUDY: "mine-1a2b"}) for _ in range(2))
    monkeypatch.setattr(fluent, "_active_experiment_id", store.experiment_id)
    titles = {
        name: f"experiment {name}",
        "mine-1a2b": "study mine-1a2b",
        run_id: "1 run by id",
        f"{run_id},{other}": "2 runs by id",
        "metrics.parameters > 1": f"runs of experiment {name} where metrics.parameters > 1",
        "params.dataset like 'dig%'": f"runs of experiment {name} where params.dataset like 'dig%'",
    }
    selections = {text: select_runs(TrackingClient(), text) for text in titles}
    assert {text: selection.title for text, selection in selections.items()} == titles
    assert [selection.by_id for selection in selections.values()] == [False, False, True, True, False, False]
    assert [len(selection.rows) for selection in selections.values()] == [2, 2, 1, 2, 2, 2]
    assert not any(selection.left_out for selection in selections.values())
    assert selections[run_id].subject == run_id and selections[name].subject == ""


@pytest.mark.parametrize("text", ["it's mine", 'so "called"'])
def test_select_runs_of_a_study_with_quotes_in_its_name_finds_it(experiment, text):
    run_id = make_run(experiment[0], "a", tags={Tag.STUDY: text})
    assert ids(select_runs(TrackingClient(), text)) == {run_id}


def test_select_runs_of_a_text_with_both_quotes_names_nothing(store):
    with pytest.raises(UsageError, match="^runs must be an experiment, a study, "):
        select_runs(TrackingClient(), """it's "mine" """)


def test_select_runs_without_an_accuracy_says_how_many_and_which(experiment):
    store, name = experiment
    for run, state in (("first", "FAILED"), ("second", "RUNNING"), ("third", "RUNNING")):
        make_run(store, run, curve=(), status=state)
    expected = f"^a report needs runs with an accuracy, got none of experiment .*{name[-5:-1]}.*: without an accuracy: "
    with pytest.raises(UsageError, match=expected) as refused:
        select_runs(TrackingClient(), name)
    assert "2 running, 1 failed (third, second, first)" in str(refused.value)
    assert str(refused.value).endswith("; train first, or name others")


@pytest.mark.parametrize("metric", ["test_accuracy", "best_val_accuracy", "val_accuracy"])
def test_select_runs_takes_a_run_with_any_accuracy(experiment, metric):
    store, name = experiment
    run_id = make_run(store, "a", curve=(), metrics={metric: 0.5})
    make_run(store, "b", curve=(), metrics={"val_loss": 0.5})
    assert ids(select_runs(TrackingClient(), name)) == {run_id}


def test_select_runs_of_two_searches_has_no_subject(experiment):
    store, name = experiment
    for study in ("one", "two"):
        make_run(store, f"search {study}", tags={Tag.STUDY: study, Tag.ROLE: Role.SEARCH})
        make_run(store, f"trial {study}", tags={Tag.STUDY: study, Tag.ROLE: Role.TRIAL})
    assert select_runs(TrackingClient(), name).subject == ""


def test_select_runs_of_a_search_beside_another_run_has_no_subject(experiment):
    store, name = experiment
    make_run(store, "search", tags={Tag.STUDY: "one", Tag.ROLE: Role.SEARCH})
    make_run(store, "a")
    assert select_runs(TrackingClient(), name).subject == ""


def test_select_runs_of_a_deleted_experiment_says_how_to_restore_it(experiment):
    store, name = experiment
    store.client.delete_experiment(store.experiment_id)
    restore = f"`mlflow experiments restore --experiment-id {store.experiment_id}` restores it; or name another$"
    with pytest.raises(UsageError, match=restore):
        select_runs(TrackingClient(), name)
