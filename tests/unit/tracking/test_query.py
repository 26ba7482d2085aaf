"""Training runs that are read back from a real store."""

import mlflow
import numpy as np
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from pipeline.config.training import TrainingConfig
from pipeline.evaluation.metrics import predictions_table
from pipeline.evaluation.report.groups import RunRecord
from pipeline.runtime.errors import UsageError
from pipeline.runtime.tables import to_csv
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.query import (
    fetch_configs,
    fetch_kernel_images,
    fetch_predictions,
    fetch_recalls,
    get_training_run,
    inherit_data,
    is_training,
    search_run_records,
    to_run_record,
)
from pipeline.tracking.tags import Role, Tag
from tests.support.runs import CLASSES, make_run


@pytest.fixture
def tracking(client):
    return TrackingClient()


def get_record(run_id):
    return to_run_record(mlflow.get_run(run_id))


def test_get_training_run_reads_the_settings_of_config_yaml_and_not_the_parameters(experiment, tracking):
    store, _ = experiment
    run_id = make_run(store, "typed", settings={"depth": 3}, params={"depth": "three"})
    training_run = get_training_run(tracking, run_id)
    assert (training_run.config.model.depth, training_run.fingerprint) == (3, "d0")
    assert training_run.run.info.run_id == run_id


def test_get_training_run_without_config_yaml_reads_the_parameters(experiment, tracking):
    store, _ = experiment
    run_id = store.client.create_run(store.experiment_id).info.run_id
    for name, value in {"depth": "3", "dataset": "digits", "study": "mine"}.items():
        store.client.log_param(run_id, name, value)
    assert get_training_run(tracking, run_id).config.model.depth == 3


def test_get_training_run_of_a_trial_has_the_data_of_its_search(experiment, tracking):
    store, _ = experiment
    search = make_run(store, "search", tags={Tag.DATA_FINGERPRINT: "d7"})
    given = DatasetInput(Dataset("digits", "aa", "code", "{}"), [InputTag(MLFLOW_DATASET_CONTEXT, "test")])
    store.client.log_inputs(search, datasets=[given])
    final = store.client.create_run(store.experiment_id, tags={Tag.PARENT_RUN_ID: search}).info.run_id
    trial = store.client.create_run(store.experiment_id, tags={Tag.PARENT_RUN_ID: final}).info.run_id
    store.client.log_param(trial, "dataset", "digits")
    found = get_training_run(tracking, trial)
    assert (found.fingerprint, found.splits, found.run.info.run_id) == ("d7", {"test": "aa"}, trial)


def test_get_training_run_that_does_not_exist_or_was_deleted_is_refused(experiment, tracking):
    store, _ = experiment
    with pytest.raises(UsageError, match="needs the run that trained it, .* which does not exist any more"):
        get_training_run(tracking, "0" * 32)
    run_id = make_run(store, "deleted")
    store.client.delete_run(run_id)
    with pytest.raises(UsageError, match=f"`mlflow runs restore --run-id {run_id}` restores it"):
        get_training_run(tracking, run_id)


def test_to_run_record_keeps_settings_and_the_metrics_of_reports(experiment):
    store, _ = experiment
    tags = {Tag.STUDY: "mine", Tag.PROJECT_ENTRY_POINT: "main", Tag.GIT_COMMIT: "abc"}
    record = get_record(
        make_run(store, "one", params={"optuna": "x"}, metrics={"test_accuracy": 0.5, "loss": 1.0}, tags=tags)
    )
    assert (record.name, record.role, record.study, record.commit) == ("one", "run", "mine", "abc")
    assert record.params_as_typed and "optuna" not in record.params and record.params["dataset"] == "digits"
    assert "loss" not in record.metrics and record.metrics["test_accuracy"] == 0.5
    assert (record.data, record.fingerprint, record.test_set_accesses) == ("digits", "d0", 1)
    assert record.seconds is not None


@pytest.mark.parametrize(
    ("status", "tags", "state"),
    [
        ("FINISHED", {}, "finished"),
        ("FAILED", {}, "failed"),
        ("RUNNING", {}, "running"),
        ("KILLED", {}, "stopped"),
        ("KILLED", {Tag.TRIAL_STATE: "pruned"}, "pruned"),
    ],
)
def test_to_run_record_names_the_state_of_a_run(experiment, status, tags, state):
    assert get_record(make_run(experiment[0], "one", status=status, tags=tags)).state == state


def test_search_run_records_yields_the_newest_first(experiment, tracking):
    store, _ = experiment
    run_ids = [make_run(store, name) for name in "abc"]
    found = [record.id for record in search_run_records(tracking, [store.experiment_id], "")]
    assert sorted(found) == sorted(run_ids)
    start_times = [mlflow.get_run(run_id).info.start_time for run_id in found]
    assert start_times == sorted(start_times, reverse=True)


def test_is_training_of_a_final_run_that_only_holds_several_seeds_is_false(experiment):
    store, _ = experiment
    records = {role: get_record(make_run(store, role, tags={Tag.ROLE: role})) for role in Role}
    trained = {Role.RUN, Role.TRIAL, Role.FINAL, Role.ENSEMBLE}
    assert {role for role, record in records.items() if is_training(record)} == trained
    assert not is_training(records[Role.FINAL]._replace(params={"depth": "3"}))


def test_inherit_data_asks_for_runs_above_that_are_not_known(experiment, tracking):
    store, _ = experiment
    search = make_run(store, "search", tags={Tag.DATA: "flowers", Tag.DATA_FINGERPRINT: "d7"})
    without = {Tag.DATA: "", Tag.DATA_FINGERPRINT: ""}
    trial = get_record(make_run(store, "trial", tags=without | {Tag.PARENT_RUN_ID: search}))
    orphan = get_record(make_run(store, "orphan", tags=without | {Tag.PARENT_RUN_ID: "0" * 32}))
    own = get_record(make_run(store, "own", tags={Tag.PARENT_RUN_ID: search}))
    records = inherit_data(tracking, [trial, orphan, own], [trial, orphan, own])
    assert [(record.data, record.fingerprint) for record in records] == [("flowers", "d7"), ("", ""), ("digits", "d0")]


def test_fetched_artifacts_are_by_run_id_and_missing_or_damaged_ones_are_left_out(experiment, tracking):
    store, _ = experiment
    correct = np.arange(30) % 2 == 0
    tested, untested = make_run(store, "tested", correct=correct), make_run(store, "untested")
    damaged = make_run(store, "damaged")
    store.client.log_text(damaged, "no table", "test_predictions.csv")
    store.client.log_text(damaged, "{", "config.yaml")
    records = [get_record(run_id) for run_id in (tested, untested, damaged)]
    predictions = fetch_predictions(tracking, records)
    assert predictions.keys() == {tested}
    table = predictions[tested]
    assert ((table["predicted"] == table["label"]) == correct).all()
    assert fetch_configs(tracking, records).keys() == {tested, untested}
    recalls = fetch_recalls(tracking, records)
    assert recalls.keys() == {tested} and list(recalls[tested].index) == CLASSES
    assert fetch_kernel_images(tracking, records)[tested].startswith(b"\x89PNG")


def test_fetch_predictions_keeps_names_and_confidence(experiment, tracking):
    store, _ = experiment
    run_id = make_run(store, "one")
    probabilities = np.array([[0.25, 0.75], [0.0, 1.0]])
    names = {"files": ["nan", "=a.png"], "classes": ["null", "+b"]}
    logged = predictions_table(probabilities, np.array([0, 1]), images=np.array([b"\1" * 16, b"\2" * 16]), **names)
    store.client.log_text(run_id, to_csv(logged), "test_predictions.csv")
    table = fetch_predictions(tracking, [get_record(run_id)])[run_id]
    for name in ("image", "label", "predicted", "file", "class", "predicted_class", "probability_of_predicted_class"):
        assert table[name].tolist() == logged[name].tolist(), name


def test_to_run_record_of_a_search_s_winner_is_that_of_the_run_which_the_tag_names(experiment):
    store, _ = experiment
    run_ids = [make_run(store, name) for name in ("winner", "former winner")]
    for run_id in run_ids:
        store.client.set_tag(run_id, Tag.WINNER, run_ids[0])
    assert [get_record(run_id).is_winner for run_id in run_ids] == [True, False]


def test_fetch_recalls_takes_a_class_named_nan_for_a_class(experiment, tracking):
    store, _ = experiment
    run_id = make_run(store, "one")
    store.client.log_text(run_id, "class,recall\nnan,0.5\nnull,\n'=1,\n", "per_class.csv")
    recalls = fetch_recalls(tracking, [get_record(run_id)])[run_id]
    assert list(recalls.index) == ["nan", "null", "=1"], "as they were called, not as CSV spells them"
    assert recalls["nan"] == 0.5 and np.isnan(recalls["null"])


@pytest.mark.parametrize(
    ("tags", "params", "models"),
    [
        ({}, {"weights_from": "none", "teacher": "none"}, ()),
        ({}, {"weights_from": "models:/m-1"}, ("weights from models:/m-1",)),
        (
            {Tag.WEIGHTS_FROM: "models:/m-1", Tag.WEIGHTS_RUN: "a" * 32},
            {},
            (f"weights from models:/m-1 of run {'a' * 12}",),
        ),
        (
            {Tag.WEIGHTS_FROM: "/m.keras", Tag.WEIGHTS_DIGEST: "b" * 64},
            {"teacher": "models:/m-2"},
            (f"weights from /m.keras, SHA-256 {'b' * 12}", "taught by models:/m-2"),
        ),
        (
            {Tag.TEACHER: "models:/m-2", Tag.TEACHER_RUN: "c" * 32},
            {"teacher": "m@champion"},
            (f"taught by models:/m-2 of run {'c' * 12}",),
        ),
    ],
)
def test_to_run_record_names_the_models_that_the_training_has_used(experiment, tags, params, models):
    assert get_record(make_run(experiment[0], "one", tags=tags, params=params)).models == models


def test_to_run_record_of_a_trial_has_all_that_a_report_reads(experiment):
    store, _ = experiment
    tags = {Tag.ROLE: Role.TRIAL, Tag.STUDY: "mine", Tag.PARENT_RUN_ID: "b" * 32, Tag.WINNER: "c" * 32}
    tags |= {Tag.GIT_COMMIT: "abc", Tag.TEACHER: "models:/m-2", f"{Tag.TEST_SET_ACCESS}.x": "now"}
    measured = {"best_epoch": 2.0, "latency_ms": 1.5, "seconds": 7.0, "odd": 1.0}
    run_id = make_run(store, "t000", params={"recipe": "digits"}, metrics=measured, tags=tags)
    run = mlflow.get_run(run_id)
    record = get_record(run_id)
    assert record._replace(params={}) == RunRecord(
        id=run_id,
        name="t000",
        experiment_id=store.experiment_id,
        artifact_uri=run.info.artifact_uri,
        state="finished",
        role="trial",
        study="mine",
        parent="b" * 32,
        params_as_typed=False,
        commit="abc",
        recipe="digits",
        params={},
        metrics={
            "parameters": 1000.0,
            "best_val_accuracy": 0.6,
            "val_accuracy": 0.6,
            "best_epoch": 2.0,
            "latency_ms": 1.5,
        },
        data="digits",
        fingerprint="d0",
        start_time=run.info.start_time,
        seconds=7.0,
        test_set_accesses=1,
        is_winner=False,
        models=("taught by models:/m-2",),
    )
    assert record.params.keys() == TrainingConfig.model_fields.keys()


def test_to_run_record_of_a_run_that_goes_on_and_has_no_tags(experiment):
    store, _ = experiment
    run_id = store.client.create_run(store.experiment_id).info.run_id
    store.client.log_param(run_id, "dataset", "flowers")
    record = get_record(run_id)
    assert (record.role, record.study, record.parent, record.commit, record.recipe) == ("", "", "", "", "")
    assert (record.data, record.fingerprint, record.seconds, record.state) == ("flowers", "", None, "running")
    assert (record.params_as_typed, record.is_winner, record.models, record.test_set_accesses) == (False, False, (), 0)


def test_to_run_record_of_a_run_without_its_seconds_has_those_between_start_and_end(experiment):
    store, _ = experiment
    run_id = store.client.create_run(store.experiment_id, start_time=1_000_000).info.run_id
    store.client.set_terminated(run_id, end_time=1_002_500)
    assert get_record(run_id).seconds == 2.5


@pytest.mark.parametrize(("settings", "has"), [({}, True), ({"folds": 2}, False), ({"refit": "true"}, False)])
def test_training_run_with_folds_or_on_all_images_has_no_validation(experiment, tracking, settings, has):
    run_id = make_run(experiment[0], "one", settings=settings)
    assert get_training_run(tracking, run_id).has_validation is has


def test_is_training_of_a_fold_holds_only_where_it_is_named(experiment):
    record = get_record(make_run(experiment[0], "fold", tags={Tag.ROLE: Role.FOLD}))
    assert is_training(record, by_id=True) and not is_training(record)
    assert not is_training(record._replace(role=Role.REPORT), by_id=True)


def test_get_training_run_without_a_fingerprint_has_an_empty_one(experiment, tracking):
    store, _ = experiment
    first, second = (make_run(store, name) for name in "ab")
    for run_id, above in ((first, second), (second, first)):
        store.client.set_tag(run_id, Tag.PARENT_RUN_ID, above)
        store.client.delete_tag(run_id, Tag.DATA_FINGERPRINT)
    assert get_training_run(tracking, first).fingerprint == ""
    store.client.delete_tag(first, Tag.PARENT_RUN_ID)
    assert get_training_run(tracking, first).fingerprint == ""


def test_inherit_data_of_runs_above_each_other_in_a_circle_ends(experiment, tracking):
    store, _ = experiment
    record = get_record(make_run(store, "one", tags={Tag.DATA_FINGERPRINT: ""}))
    one = record._replace(id="1", parent="2")
    two = record._replace(id="2", parent="1")
    assert inherit_data(tracking, [one], [one, two]) == [one]


def test_inherit_data_goes_two_levels_up_and_keeps_the_name_where_none_is_above(experiment, tracking):
    store, _ = experiment
    record = get_record(make_run(store, "one", tags={Tag.DATA_FINGERPRINT: ""}))
    search = record._replace(id="search", fingerprint="d7", data="")
    final = record._replace(id="final", parent="search")
    seed = record._replace(id="seed", parent="final")
    (found,) = inherit_data(tracking, [seed], [search, final, seed])
    assert found == seed._replace(fingerprint="d7", data="digits")


def test_fetched_artifacts_are_what_the_runs_have_logged(experiment, tracking):
    store, _ = experiment
    run_id = make_run(store, "one", correct=[True, False, True, True], settings={"depth": 5})
    record = get_record(run_id)
    assert fetch_configs(tracking, iter([record]))[run_id].model.depth == 5
    recalls = fetch_recalls(tracking, [record])[run_id]
    assert recalls.to_dict() == {"cat": 1.0, "dog": 0.0, "owl": 1.0}
    table = fetch_predictions(tracking, [record])[run_id]
    assert list(table.columns) == ["image", "label", "predicted"]
    assert table["image"].tolist()[1] == f"{1:016x}" and table["label"].tolist() == [0, 1, 2, 0]
