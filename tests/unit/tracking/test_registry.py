"""Which alias a version of a registered model gets, and that a run is registered once."""

import errno
from typing import NamedTuple

import mlflow
import numpy as np
import pandas as pd
import pytest

from pipeline.tracking.client import NotFound, TrackingClient
from pipeline.tracking.models import CALIBRATED, SERVED
from pipeline.tracking.query import PREDICTIONS_FILE
from pipeline.tracking.registry import (
    compare_predictions,
    describe,
    find_version,
    pin_version,
    register_calibrated,
    register_version,
)
from pipeline.tracking.tags import Tag
from tests.support.stores import tracking_store

IMAGES = 200
FIRST_HALF = np.arange(IMAGES) < 100


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory):
    with tracking_store(tmp_path_factory.mktemp("tracking"), "registering") as uri:
        yield uri


class Registration(NamedTuple):
    run_id: str
    name: str
    tags: dict[str, str]


def predictions(correct, *, first=0):
    """Predictions of which `correct` (n,) are right, for images numbered from `first`."""
    labels = np.zeros(len(correct), int)
    images = [f"{first + number:016x}" for number in range(len(correct))]
    return pd.DataFrame({"image": images, "label": labels, "predicted": np.where(correct, labels, labels + 1)})


def register(name, table, *, classes=("a", "b"), monitor="val_accuracy"):
    """Register the model of a new run, which has no files, under a name; the run has logged `table`."""
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("registering").experiment_id
    run_id = client.create_run(experiment).info.run_id
    if monitor:
        client.log_param(run_id, "monitor", monitor)
    model = client.create_logged_model(experiment, name=SERVED, source_run_id=run_id)
    client.finalize_logged_model(model.model_id, "READY")
    if table is not None:
        client.log_text(run_id, table.to_csv(index=False), PREDICTIONS_FILE)
    tags = {
        Tag.DATA_FINGERPRINT: "d0",
        "test_accuracy": "0.5",
        "latency_ms": "1.5",
        Tag.CLASSES_DIGEST: " ".join(classes),
    }
    register_version(TrackingClient(), run_id, name=name, tags=tags)
    return Registration(run_id, name, tags)


def aliases(name):
    return {alias: int(number) for alias, number in mlflow.MlflowClient().get_registered_model(name).aliases.items()}


def reason(name, number):
    return mlflow.MlflowClient().get_model_version(name, str(number)).tags["reason"]


def run_tags(run_id):
    return mlflow.MlflowClient().get_run(run_id).data.tags


def test_register_version_first_of_its_name_becomes_champion_with_the_tags_of_its_run():
    run_id, _, _ = register("first", predictions(FIRST_HALF))
    version = mlflow.MlflowClient().get_model_version_by_alias("first", "champion")
    assert (int(version.version), version.run_id) == (1, run_id)
    expected = {Tag.VERSION_RUN: run_id, Tag.DATA_FINGERPRINT: "d0", "test_accuracy": "0.5", "latency_ms": "1.5"}
    assert expected.items() <= version.tags.items()
    assert describe(run_tags(run_id)) == "models:/first/1 is the champion: there was no champion"


def test_register_version_becomes_champion_if_significantly_better_else_challenger():
    register("better", predictions(FIRST_HALF))
    within_noise = FIRST_HALF.copy()
    within_noise[100:105] = True  # five more: p = 0.0625
    register("better", predictions(within_noise))
    assert aliases("better") == {"champion": 1, "challenger": 2}
    assert reason("better", 2).startswith("within noise of version 1, the champion: ")
    significant = FIRST_HALF.copy()
    significant[100:106] = True  # six more: p = 0.03125
    register("better", predictions(significant))
    assert aliases("better") == {"champion": 3, "challenger": 2}
    assert reason("better", 3) == (
        "better than version 1, the champion: of 200 test images that both predicted (of its 200), it alone is right "
        "on 6, the champion alone on 0 (McNemar's exact test, p = 0.031)"
    )
    register("better", predictions(FIRST_HALF))
    assert aliases("better") == {"champion": 3, "challenger": 4}
    assert reason("better", 4).startswith("worse than version 3")


def unequal(common_correct, rare_correct):
    """Return predictions of 180 images of a class, and of 20 of another, of which so many are right."""
    table = predictions(np.concatenate([np.arange(180) < common_correct, np.arange(20) < rare_correct]))
    rare = np.arange(200) >= 180
    is_correct = table["label"] == table["predicted"]
    label = np.where(rare, 1, 0)
    probability = np.where(is_correct, 0.9, 0.2)
    return table.assign(label=label, predicted=np.where(is_correct, label, 1 - label), probability_of_class=probability)


def test_register_version_that_monitors_another_metric_becomes_champion_by_the_bootstrap():
    register("unequal", unequal(170, 4))
    register("unequal", unequal(160, 16), monitor="val_balanced_accuracy")
    assert aliases("unequal") == {"champion": 2}
    assert reason("unequal", 2).startswith(
        "better than version 1, the champion: on 200 test images that both predicted (of its 200), it has a test "
        "balanced accuracy of 84.44 %, the champion one of 57.22 % (paired bootstrap: a difference of "
    )
    register("unequal", unequal(162, 16), monitor="val_balanced_accuracy")
    assert reason("unequal", 3).startswith("within noise of version 2, the champion: on 200 test images")
    register("unequal", unequal(150, 2), monitor="val_loss")
    assert reason("unequal", 4).startswith("worse than version 2, the champion: on 200 test images")
    assert "it has a test loss of 0.4663, the champion one of 0.2858" in reason("unequal", 4)
    assert aliases("unequal") == {"champion": 2, "challenger": 4}
    register("unequal", predictions(FIRST_HALF).assign(label=unequal(0, 0)["label"]), monitor="val_loss")
    assert reason("unequal", 5).endswith("the champion: a run has logged no probabilities")


@pytest.mark.parametrize(
    ("table", "classes", "expected"),
    [
        (predictions(FIRST_HALF, first=IMAGES), ("a", "b"), "they have no test images in common"),
        (predictions(np.ones(IMAGES, bool)), ("a", "c"), "it has other classes"),
        (None, ("a", "b"), "a run has no test_predictions.csv, or does not exist any more"),
    ],
)
def test_register_version_not_comparable_becomes_challenger_with_the_reason(table, classes, expected):
    name = f"incomparable-{len(expected)}"
    register(name, predictions(~FIRST_HALF))
    register(name, table, classes=classes)
    assert aliases(name) == {"champion": 1, "challenger": 2}
    assert reason(name, 2) == f"not comparable with version 1, the champion: {expected}"


def test_register_version_keeps_a_champion_whose_run_was_deleted_permanently():
    champion = register("orphaned", predictions(FIRST_HALF))
    store = mlflow.tracking._tracking_service.utils._get_store()
    store.delete_run(champion.run_id)
    store._hard_delete_run(champion.run_id)  # as `mlflow gc` does
    register("orphaned", predictions(np.ones(IMAGES, bool)))
    assert aliases("orphaned") == {"champion": 1, "challenger": 2}
    assert reason("orphaned", 2).endswith("a run has no test_predictions.csv, or does not exist any more")


def test_compare_predictions_counts_each_common_image_once():
    new, champion = predictions(np.ones(20, bool)), predictions(np.zeros(20, bool), first=10)
    decision = compare_predictions(new, champion, champion_name="it", monitor="val_accuracy")
    assert "of 10 test images that both predicted (of its 20)" in decision.reason
    assert compare_predictions(pd.concat([new, new]), champion, champion_name="it", monitor="val_accuracy") == decision


def test_register_version_called_again_creates_no_second_version():
    run_id, name, tags = register("again", predictions(FIRST_HALF))
    mlflow.MlflowClient().set_tag(run_id, Tag.REGISTERED_REASON, "lost")
    register_version(TrackingClient(), run_id, name=name, tags=tags)
    assert len(mlflow.MlflowClient().search_model_versions("name = 'again'")) == 1
    assert describe(run_tags(run_id)) == "models:/again/1 is the champion: there was no champion"


def test_register_version_under_another_name_creates_a_version_of_that_too():
    run_id, _, tags = register("one name", predictions(FIRST_HALF))
    register_version(TrackingClient(), run_id, name="another name", tags=tags)
    version = mlflow.MlflowClient().get_model_version_by_alias("another name", "champion")
    assert (int(version.version), version.run_id) == (1, run_id)


@pytest.mark.parametrize("has_begun", [False, True])
def test_register_version_without_the_files_of_a_served_model_is_refused_permanently(has_begun):
    run_id = mlflow.MlflowClient().create_run("1").info.run_id
    if has_begun:
        mlflow.MlflowClient().create_logged_model("1", name="served", source_run_id=run_id)
    with pytest.raises(FileNotFoundError, match=f"run {run_id} has stored no model served to register") as raised:
        register_version(TrackingClient(), run_id, name="none", tags={})
    assert raised.value.errno == errno.ENOENT


def test_describe_of_a_run_without_a_version_is_none():
    assert describe({"role": "run"}) is None


def log_calibrated(run_id):
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("registering").experiment_id
    model = client.create_logged_model(experiment, name=CALIBRATED, source_run_id=run_id)
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id


def test_register_calibrated_makes_a_version_that_takes_over_the_aliases_and_says_what_it_is_from():
    run_id, name, tags = register("calibrated", predictions(FIRST_HALF))
    model_id = log_calibrated(run_id)
    client = TrackingClient()
    for _ in range(2):  # the second time finds the version
        register_calibrated(client, run_id, name=name, version="1", temperature="1.4, fitted on 9 images")
    assert aliases(name) == {"champion": 2}
    assert len(mlflow.MlflowClient().search_model_versions(f"name = '{name}'")) == 2
    version = client.get_model_version(name, "2")
    assert version.source == f"models:/{model_id}" and version.run_id == run_id
    expected = {Tag.TEMPERATURE: "1.4, fitted on 9 images", Tag.CALIBRATED_FROM: "version 1", "test_accuracy": "0.5"}
    assert expected.items() <= version.tags.items()
    assert version.tags["reason"] == "version 1 with calibrated probabilities"
    assert run_tags(run_id)[Tag.REGISTERED_CALIBRATED] == f"models:/{name}/2"
    # what was registered first is still found as that, when its registration is repeated
    register_version(client, run_id, name=name, tags=tags)
    assert run_tags(run_id)[Tag.REGISTERED] == f"models:/{name}/1"
    assert len(mlflow.MlflowClient().search_model_versions(f"name = '{name}'")) == 2


def test_register_calibrated_of_a_version_without_an_alias_gets_none():
    run_id, name, _ = register("no-alias", predictions(FIRST_HALF))
    register(name, predictions(np.ones(IMAGES, bool)))
    log_calibrated(run_id)
    register_calibrated(TrackingClient(), run_id, name=name, version="1", temperature="1.4")
    assert aliases(name) == {"champion": 2}


@pytest.mark.parametrize("has_begun", [False, True])
def test_register_calibrated_without_the_files_of_a_calibrated_model_is_refused_permanently(has_begun):
    run_id, name, _ = register(f"not-calibrated-{has_begun}", predictions(FIRST_HALF))
    if has_begun:
        experiment_id = mlflow.get_run(run_id).info.experiment_id
        mlflow.MlflowClient().create_logged_model(experiment_id, name="calibrated", source_run_id=run_id)
    with pytest.raises(FileNotFoundError, match=f"run {run_id} has stored no model calibrated to register") as raised:
        register_calibrated(TrackingClient(), run_id, name=name, version="1", temperature="1.4")
    assert raised.value.errno == errno.ENOENT


def test_register_calibrated_of_another_runs_version_is_refused_and_takes_over_no_alias():
    run_id, name, _ = register("of-another-run", predictions(FIRST_HALF))
    other = register(name, predictions(np.ones(IMAGES, bool)))
    log_calibrated(run_id)
    with pytest.raises(ValueError, match=f"version 2 of {name} must be of run {run_id}, got one of run {other.run_id}"):
        register_calibrated(TrackingClient(), run_id, name=name, version="2", temperature="1.4")
    assert aliases(name) == {"champion": 2}
    assert len(mlflow.MlflowClient().search_model_versions(f"name = '{name}'")) == 2


def test_register_calibrated_copies_the_tags_of_the_accuracy_and_not_of_the_loss():
    run_id, name, _ = register("raw-loss", predictions(FIRST_HALF))
    mlflow.MlflowClient().set_model_version_tag(name, "1", "test_loss", "0.4")
    log_calibrated(run_id)
    register_calibrated(TrackingClient(), run_id, name=name, version="1", temperature="1.4")
    tags = mlflow.MlflowClient().get_model_version(name, "2").tags
    assert tags["test_accuracy"] == "0.5" and "test_loss" not in tags


def test_register_version_replaces_a_calibrated_champion_by_accuracy_and_not_by_loss():
    run_id, name, _ = register("calibrated-champion", unequal(150, 2), monitor="val_loss")
    log_calibrated(run_id)
    register_calibrated(TrackingClient(), run_id, name=name, version="1", temperature="1.4")
    register(name, unequal(175, 18), monitor="val_loss")
    assert aliases(name) == {"champion": 2, "challenger": 3}
    assert reason(name, 3) == (
        "not comparable with version 2, the champion, by loss: its probabilities are calibrated, and those that its "
        "run has logged are not"
    )
    register(name, unequal(175, 18))
    assert aliases(name) == {"champion": 4, "challenger": 3}


def test_pin_version_has_the_number_of_what_an_alias_or_latest_names_now():
    register("pinned", predictions(FIRST_HALF))
    register("pinned", predictions(FIRST_HALF))
    client = TrackingClient()
    assert pin_version(client, "models:/pinned@champion") == "models:/pinned/1"
    assert pin_version(client, "models:/pinned/latest") == "models:/pinned/2"
    of_no_version = ("models:/pinned@nothing", "models:/pinned/9", "models:/it's/latest", f"models:/m-{'0' * 32}")
    for uri in (*of_no_version, "models:/pinned/2", f"runs:/{'0' * 32}/model"):
        assert pin_version(client, uri) == uri


def test_find_version_takes_the_version_that_is_named_before_that_of_the_run():
    register("found", predictions(FIRST_HALF))
    register("found", predictions(FIRST_HALF))
    client, of_run = TrackingClient(), "models:/found/2"
    for uri, number in (
        ("models:/found/1", "1"),
        ("models:/found@champion", "1"),
        (f"runs:/{'0' * 32}/model", "2"),
        (f"models:/m-{'0' * 32}", "2"),
    ):
        version = find_version(client, uri, of_run)
        assert version is not None and str(version.version) == number
    assert find_version(client, f"runs:/{'0' * 32}/model", None) is None
    mlflow.MlflowClient().delete_model_version("found", "2")
    assert find_version(client, f"runs:/{'0' * 32}/model", of_run) is None, "it has been deleted since"
    with pytest.raises(NotFound):
        find_version(client, of_run, None)


def test_register_version_of_a_run_that_names_no_monitor_compares_accuracies():
    register("no-monitor", predictions(FIRST_HALF))
    register("no-monitor", predictions(np.ones(IMAGES, bool)), monitor=None)
    assert aliases("no-monitor") == {"champion": 2}
    assert "(McNemar's exact test, p = " in reason("no-monitor", 2)


def test_register_version_sets_the_tags_of_a_challenger_on_its_run():
    register("challenged", predictions(FIRST_HALF))
    run_id, _, _ = register("challenged", predictions(FIRST_HALF))
    tags = run_tags(run_id)
    assert (tags[Tag.REGISTERED], tags[Tag.REGISTERED_ALIAS]) == ("models:/challenged/2", "challenger")
    assert tags[Tag.REGISTERED_REASON] == reason("challenged", 2)
    assert describe(tags) == f"models:/challenged/2 is the challenger: {reason('challenged', 2)}"


def test_register_version_called_again_for_a_challenger_decides_anew():
    register("anew", predictions(FIRST_HALF))
    run_id, name, tags = register("anew", predictions(FIRST_HALF))
    mlflow.MlflowClient().delete_registered_model_alias("anew", "champion")
    register_version(TrackingClient(), run_id, name=name, tags=tags)
    assert aliases("anew")["champion"] == 2 and reason("anew", 2) == "there was no champion"


def test_compare_predictions_by_the_bootstrap_says_what_was_measured_on_the_common_images():
    new, champion = unequal(160, 16).iloc[:190], unequal(170, 4)
    decision = compare_predictions(new, champion, champion_name="it", monitor="val_balanced_accuracy")
    assert decision.reason.startswith("better than it: on 190 test images that both predicted (of its 190), it has a ")
    assert decision.alias == "champion" and decision.reason.endswith(" at 95 %)")
    worse = compare_predictions(champion, new, champion_name="it", monitor="val_balanced_accuracy")
    assert worse.alias == "challenger" and worse.reason.startswith("worse than it: on 190 test images that both ")
    assert "(of its 200)" in worse.reason
    for table, other in ((new, champion), (champion, new)):
        without = other.drop(columns="probability_of_class")
        decision = compare_predictions(table, without, champion_name="it", monitor="val_loss")
        assert decision == ("challenger", "not comparable with it: a run has logged no probabilities")


def test_compare_predictions_of_a_loss_prefers_the_smaller_one():
    decision = compare_predictions(unequal(175, 18), unequal(90, 4), champion_name="it", monitor="val_loss")
    assert decision.alias == "champion" and decision.reason.startswith("better than it: on 200 test images")
    assert "it has a test loss of " in decision.reason and "the champion one of " in decision.reason


def test_compare_predictions_of_an_image_with_another_label_leaves_it_out():
    new, champion = predictions(np.ones(20, bool)), predictions(np.ones(20, bool))
    champion.loc[3, "label"] = 1
    decision = compare_predictions(new, champion, champion_name="it", monitor="val_accuracy")
    assert decision.reason == (
        "within noise of it: of 19 test images that both predicted (of its 20), it alone is right on 0, the champion "
        "alone on 0 (McNemar's exact test, p = 1)"
    )
