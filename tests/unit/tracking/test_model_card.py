"""The card of a run's model: what is read back from MLflow, and where the card is written."""

import json

import mlflow
import numpy as np
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from pipeline.evaluation.model_card import DataSplit
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.model_card import add_version, read_facts, write_model_card
from pipeline.tracking.tags import Tag
from tests.support.registered_model import CLASSES, NAME, RESIZE, register_model
from tests.support.runs import Store, make_run
from tests.support.stores import tracking_store

CORRECT = np.arange(90) % 10 > 0


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    registered = register_model(tmp_path_factory.mktemp("registered"))
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(registered.uri)
    yield registered
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with tracking_store(tmp_path_factory.mktemp("tracking"), "cards"):
        client = mlflow.MlflowClient()
        yield Store(client, client.get_experiment_by_name("cards").experiment_id)


def card_of(run_id):
    return mlflow.artifacts.load_text(f"runs:/{run_id}/model_card.md")


def facts_of(run_id):
    client = TrackingClient()
    return read_facts(client, client.get_run(run_id))


def log_split(run_id, context, profile):
    source = json.dumps({"tags": {"source": "scikit-learn load_digits"}})
    dataset = Dataset(f"digits {context}", f"digest-{context}-{run_id[:6]}", "code", source, profile=profile)
    given = DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)])
    mlflow.MlflowClient().log_inputs(run_id, datasets=[given])


def test_run_that_registers_ends_with_a_card_as_artifact_and_as_description_of_the_version(registered):
    card = card_of(registered.run_id)
    version = mlflow.MlflowClient().get_model_version(NAME, "1")
    assert version.description == card
    for known in (f"models:/{NAME}/1", "champion: there was no champion", "8×6×3", RESIZE, ", ".join(CLASSES)):
        assert known in card
    assert "| **recipe** | not known |" in card and "| **test** | not tested |" in card


def test_read_facts_of_a_model_are_what_was_logged_with_it(registered):
    facts = facts_of(registered.run_id)
    run = mlflow.get_run(registered.run_id)
    assert (facts.run_id, facts.run_name) == (registered.run_id, run.info.run_name)
    assert (tuple(facts.classes), facts.image_shape, facts.resize) == (CLASSES, (8, 6, 3), RESIZE)
    assert (facts.data_name, facts.data_source, facts.data_fingerprint, facts.duplicates) == ("", "", "", "")
    assert (facts.splits, facts.changes, facts.evaluations, facts.exports, facts.per_class) == ([], {}, {}, [], [])
    assert facts.metrics == run.data.metrics and facts.interval is None
    assert (facts.accesses, facts.is_registered, facts.registry, facts.temperature) == (0, False, {}, "")


def test_read_facts_of_a_training_are_those_that_it_has_logged(store):
    tags = {Tag.RECIPE_CHANGES: json.dumps({"depth": ["4", "8"]}), Tag.GIT_COMMIT: "c0ffee", Tag.GIT_DIRTY: "true"}
    tags |= {Tag.WEIGHTS_FROM: "models:/m-1", Tag.WEIGHTS_RUN: "b1", Tag.TEACHER: "models:/m-2"}
    tags |= {Tag.TEACHER_RUN: "b2", Tag.DEVICE: "CPU", Tag.PRECISION: "float32"}
    metrics = {"evaluation/digits-test/ece": 0.02, "evaluation/digits-test/nll": 0.3}
    run_id = make_run(
        store, "first", correct=CORRECT, settings={"depth": 4}, params={"recipe": "digits"}, tags=tags, metrics=metrics
    )
    log_split(run_id, "test", json.dumps({"images": 7, "class_sizes": {"cat": 3, "dog": 4}}))
    log_split(run_id, "train", None)
    facts = facts_of(run_id)
    assert facts.params["recipe"] == "digits" and facts.unusual["depth"] == "4" and "filters" not in facts.unusual
    assert facts.changes == {"depth": ("4", "8")}
    assert facts.lineage["weights_from"] == "models:/m-1, of run b1"
    assert facts.lineage["teacher"] == "models:/m-2, of run b2"
    assert facts.code["commit"] == "c0ffee, with changes that were not committed"
    assert facts.code["trained on"] == "CPU, float32" and facts.code["libraries"] == "not known"
    train, test = facts.splits
    assert (train.context, train.class_sizes) == ("train", {})
    assert test == DataSplit("test", f"digest-test-{run_id[:6]}", {"cat": 3, "dog": 4})
    assert facts.data_source == "scikit-learn load_digits"
    assert facts.evaluations == {"digits-test": {"ece": 0.02, "nll": 0.3}}
    assert facts.accesses == 1 and not facts.is_registered and facts.model_uri == f"runs:/{run_id}/model"


def test_read_facts_of_a_run_below_a_search_takes_the_data_of_the_search(store):
    search = make_run(store, "search", tags={Tag.DATA: "pets", Tag.DATA_FINGERPRINT: "f1", Tag.GIT_COMMIT: "5ea4c4"})
    log_split(search, "train", json.dumps({"images": 3, "class_sizes": {"cat": 3}}))
    run_id = make_run(store, "winner", tags={Tag.PARENT_RUN_ID: search, Tag.STUDY: "pets"})
    for tag in (Tag.DATA, Tag.DATA_FINGERPRINT):
        store.client.delete_tag(run_id, tag)
    facts = facts_of(run_id)
    assert (facts.data_name, facts.data_fingerprint) == ("pets", "f1")
    assert [split.class_sizes for split in facts.splits] == [{"cat": 3}]
    assert facts.lineage["search"] == "study pets" and facts.code["commit"] == "5ea4c4"


def test_read_facts_of_damaged_records_takes_them_for_unknown(store):
    run_id = make_run(store, "damaged", tags={Tag.RECIPE_CHANGES: "[1"})
    log_split(run_id, "train", "{")
    facts = facts_of(run_id)
    assert facts.changes == {} and facts.splits[0].class_sizes == {} and not facts.per_class


def test_write_model_card_of_a_run_without_a_version_writes_the_artifact_alone(store):
    run_id = make_run(store, "alone", correct=CORRECT)
    write_model_card(TrackingClient(), run_id)
    assert card_of(run_id).startswith("# Model card: alone\n")


def test_write_model_card_of_a_run_whose_version_was_deleted_writes_the_artifact(store):
    run_id = make_run(store, "orphan", tags={Tag.REGISTERED: "models:/nobody/7"})
    write_model_card(TrackingClient(), run_id)
    assert f"runs:/{run_id}/model" in card_of(run_id)


def test_add_version_has_what_the_registry_says_of_it(store):
    facts = facts_of(make_run(store, "versions"))
    run_tags = {Tag.REGISTERED_ALIAS: "champion", Tag.REGISTERED_CALIBRATED: "models:/pets/2"}

    def registry_of(aliases=(), **tags):
        version = ModelVersion("pets", "1", 0, aliases=list(aliases))
        version._tags = tags
        return add_version(facts, version, run_tags)

    first = registry_of(["champion", "best"], **{Tag.REASON: "better"})
    assert (first.model_uri, first.is_registered, first.temperature) == ("models:/pets/1", True, "")
    assert first.registry == {
        "version": "1 of pets",
        "aliases": "champion, best, when this was written",
        "registered as": "champion: better",
        "calibrated as": "models:/pets/2",
    }
    calibrated = registry_of(**{Tag.CALIBRATED_FROM: "version 1", Tag.TEMPERATURE: "1.4", Tag.REASON: "x"})
    assert calibrated.temperature == "1.4"
    assert calibrated.registry == {
        "version": "1 of pets",
        "aliases": "none, when this was written",
        "calibrated from": "version 1",
    }


def test_read_facts_says_what_the_weights_come_from(store):
    tags = {Tag.ENSEMBLE: "3 networks", Tag.REFIT: "on all", Tag.STUDY: "s1", Tag.WEIGHTS_DIGEST: "d1"}
    tags |= {Tag.WEIGHTS_FROM: "a.keras"}
    facts = facts_of(make_run(store, "lineage", settings={"folds": 2}, tags=tags))
    assert facts.lineage == {
        "weights_from": "a.keras, SHA-256 d1",
        "ensemble": "the mean of 3 networks",
        "folds": "the mean of the networks of 2 folds",
        "refit": "on all",
        "search": "study s1",
    }
    versions = {Tag.TENSORFLOW: "2.20", Tag.KERAS: "3.15", Tag.GIT_COMMIT: "c0ffee", Tag.GIT_DIRTY: "false"}
    facts = facts_of(make_run(store, "versions", tags=versions))
    assert facts.code == {"commit": "c0ffee", "libraries": "TensorFlow 2.20, Keras 3.15", "trained on": "not known"}
    assert facts.lineage == {"weights_from": "random initial weights"}


def test_read_facts_has_an_interval_of_another_metric_than_accuracy_alone(store):
    def interval(monitor, **more):
        return facts_of(make_run(store, monitor, correct=CORRECT, settings={"monitor": monitor}, **more)).interval

    assert interval("val_accuracy") is None
    assert interval("val_macro_f1") is None, "it was not measured"
    name, (low, high) = interval("val_macro_f1", metrics={"test_macro_f1": 0.9})
    assert name == "test_macro_f1" and 0.7 < low < 0.9 < high < 1
    assert interval("val_loss", metrics={"test_loss": 0.5}) is None, "its probabilities were not logged"


def test_read_facts_sorts_the_splits(store):
    run_id = make_run(store, "splits")
    for context in ("other", "test", "validation", "train"):
        log_split(run_id, context, None)
    assert [split.context for split in facts_of(run_id).splits] == ["train", "validation", "test", "other"]


def test_read_facts_of_a_training_are_its_data_its_exports_and_its_classes(store):
    tags = {Tag.DATA: "pets", Tag.DATA_FINGERPRINT: "f1", Tag.DATA_DUPLICATES: "2 images"}
    run_id = make_run(store, "whole", metrics={"loss": 0.5}, tags=tags)
    store.client.log_text(run_id, "class,images,recall,precision,f1\nnan,4,0.5,,0.25\n'=x,1,1,1,1\n", "per_class.csv")
    for name in ("model.onnx", "model.tflite", "about.json", "speed.csv"):
        store.client.log_text(run_id, name, f"exports/{name}")
    facts = facts_of(run_id)
    assert (facts.run_name, facts.data_name, facts.data_fingerprint, facts.duplicates) == (
        "whole",
        "pets",
        "f1",
        "2 images",
    )
    assert facts.metrics == mlflow.get_run(run_id).data.metrics
    assert sorted(facts.exports) == ["exports/model.onnx", "exports/model.tflite"]
    (first, second) = facts.per_class
    assert (first[0], first[1], first[2], first[4], second[0]) == ("nan", 4, 0.5, 0.25, "=x")
    assert np.isnan(first[3])
    assert (facts.classes, facts.image_shape, facts.resize) == ((), (), "")


def test_read_facts_without_tags_takes_the_settings_for_them(store):
    settings = {"weights_from": "models:/m-1", "teacher": "models:/m-2", "dataset": "fashion_mnist"}
    run_id = make_run(store, "settings", settings=settings)
    for tag in (Tag.DATA, Tag.DATA_FINGERPRINT):
        store.client.delete_tag(run_id, tag)
    facts = facts_of(run_id)
    assert facts.lineage == {"weights_from": "models:/m-1", "teacher": "models:/m-2"}
    assert (facts.data_name, facts.data_fingerprint) == ("fashion_mnist", "")
    assert facts.code == {"commit": "not known", "libraries": "not known", "trained on": "not known"}


def test_read_facts_of_settings_that_this_version_refuses_are_as_they_were_logged(store):
    run_id = make_run(store, "newer", params={"depth": "many"})
    store.client.log_text(run_id, "depth: many", "config.yaml")
    facts = facts_of(run_id)
    assert facts.params["depth"] == "many" and facts.unusual == {}


def test_read_facts_takes_the_source_of_the_data_from_where_they_lie(store):
    run_id = make_run(store, "local")
    dataset = Dataset("pets", f"digest-{run_id[:6]}", "local", json.dumps({"uri": "/data/pets"}), profile="[]")
    given = DatasetInput(dataset, [InputTag("other", "x"), InputTag(MLFLOW_DATASET_CONTEXT, "train")])
    store.client.log_inputs(run_id, datasets=[given])
    facts = facts_of(run_id)
    assert facts.data_source == "/data/pets"
    assert facts.splits == [DataSplit("train", f"digest-{run_id[:6]}", {})]


def test_read_facts_of_runs_above_each_other_in_a_circle_ends(store):
    first, second = make_run(store, "first of two"), make_run(store, "second of two")
    for run_id, above in ((first, second), (second, first)):
        store.client.set_tag(run_id, Tag.PARENT_RUN_ID, above)
        store.client.delete_tag(run_id, Tag.DATA_FINGERPRINT)
    assert facts_of(first).data_fingerprint == ""


def register_with_calibrated(store, name):
    """Return a run whose model is version 1 of a registered model, and the calibrated copy of it version 2."""
    tags = {Tag.REGISTERED: f"models:/{name}/1", Tag.REGISTERED_CALIBRATED: f"models:/{name}/2"}
    run_id = make_run(store, f"two versions of {name}", tags=tags)
    store.client.create_registered_model(name)
    for of_version in ({Tag.REASON: "first"}, {Tag.CALIBRATED_FROM: "version 1", Tag.TEMPERATURE: "1.4"}):
        store.client.create_model_version(name, f"runs:/{run_id}/model", run_id, tags=of_version)
    return run_id


def test_write_model_card_describes_the_calibrated_version_too(store):
    client, run_id = store.client, register_with_calibrated(store, "two")
    write_model_card(TrackingClient(), run_id)
    first, second = (client.get_model_version("two", number).description for number in "12")
    assert "models:/two/1" in first and "models:/two/2" in second and "1.4" in second
    assert card_of(run_id) == first


def test_write_model_card_shortens_the_description_to_what_the_registry_holds(store):
    metrics = {f"evaluation/digits-{number}-test/ece": 0.5 for number in range(200)}
    run_id = make_run(store, "long", tags={Tag.REGISTERED: "models:/long/1"}, metrics=metrics)
    store.client.create_registered_model("long")
    store.client.create_model_version("long", f"runs:/{run_id}/model", run_id)
    write_model_card(TrackingClient(), run_id)
    description = store.client.get_model_version("long", "1").description
    assert "Shortened; model_card.md among the artifacts" in description and len(description) <= 5000
    assert "Shortened" not in card_of(run_id) and "models:/long/1" in card_of(run_id)


def test_write_model_card_names_in_the_card_of_each_version_the_exports_of_its_own_model(store):
    client, run_id = store.client, register_with_calibrated(store, "ex")
    client.log_text(run_id, "", "exports/model.onnx")
    write_model_card(TrackingClient(), run_id)
    first, second = (client.get_model_version("ex", number).description for number in "12")
    assert "`exports/model.onnx`" in first and "Exported" not in second
    for name in ("model.tflite", "model.json"):
        client.log_text(run_id, "", f"exports-calibrated/{name}")
    write_model_card(TrackingClient(), run_id)
    again, second = (client.get_model_version("ex", number).description for number in "12")
    assert again == first == card_of(run_id)
    assert "artifacts of the run: `exports-calibrated/model.tflite`." in second
