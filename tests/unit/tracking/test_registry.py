"""Facts about what becomes of a version in the registry: champion by proof alone, and each run once."""

from typing import NamedTuple

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import RunTag

from pipeline.tracking.models import SERVED
from pipeline.tracking.registry import PREDICTIONS, compared, describe, register_version
from pipeline.tracking.tags import Tag
from tests.support.stores import tracking_store

IMAGES = 200
EASY = np.arange(IMAGES) < 100


class Registration(NamedTuple):
    """The arguments of a registration."""

    run_id: str
    name: str
    tags: dict[str, str]


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory):
    with tracking_store(tmp_path_factory.mktemp("tracking"), "registering") as uri:
        yield uri


def table(right, *, first=0, labels=None):
    """Predictions of which `right` (n,) were, for images counted from `first`."""
    labels = np.zeros(len(right), int) if labels is None else labels
    images = [f"{first + number:016x}" for number in range(len(right))]
    return pd.DataFrame({"image": images, "label": labels, "predicted": np.where(right, labels, labels + 1)})


def version(name, predictions, *, classes=("a", "b")):
    """The record of a run's registration, whose model has no files; register it, and return it with its client."""
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("registering").experiment_id
    run_id = client.create_run(experiment).info.run_id
    model = client.create_logged_model(experiment, name=SERVED, source_run_id=run_id)
    client.finalize_logged_model(model.model_id, "READY")
    if predictions is not None:
        client.log_text(run_id, predictions.to_csv(index=False), PREDICTIONS)
    tags = {
        Tag.DATA_FINGERPRINT: "d0",
        "test_accuracy": "0.5",
        "latency_ms": "1.5",
        Tag.CLASSES_DIGEST: " ".join(classes),
    }
    register_version(client, run_id, name=name, tags=tags)
    return Registration(run_id, name, tags)


def aliases(name):
    return {alias: int(at) for alias, at in mlflow.MlflowClient().get_registered_model(name).aliases.items()}


def reason(name, number):
    return mlflow.MlflowClient().get_model_version(name, str(number)).tags[Tag.REASON]


def test_the_first_version_is_the_champion_and_bears_what_its_run_knows():
    record = version("first", table(EASY))
    found = mlflow.MlflowClient().get_model_version_by_alias("first", "champion")
    assert (found.version, found.run_id) in {(1, record.run_id), ("1", record.run_id)}
    assert {
        "run": record.run_id,
        Tag.DATA_FINGERPRINT: "d0",
        "test_accuracy": "0.5",
        "latency_ms": "1.5",
    }.items() <= found.tags.items()
    tags = mlflow.MlflowClient().get_run(record.run_id).data.tags
    assert describe(tags) == "models:/first/1 is the champion: there was no champion"


def test_a_better_one_becomes_the_champion_and_one_within_noise_or_worse_the_challenger():
    version("better", table(EASY))
    within = EASY.copy()
    within[100:105] = True  # five more: p = 0.0625
    version("better", table(within))
    assert aliases("better") == {"champion": 1, "challenger": 2}
    assert reason("better", 2).startswith("within noise of version 1, the champion: ")
    beyond = EASY.copy()
    beyond[100:106] = True  # six more: p = 0.03125
    version("better", table(beyond))
    assert aliases("better") == {"champion": 3, "challenger": 2}
    assert reason("better", 3) == (
        "better than version 1, the champion: of the 200 of its 200 test images that both were tested on it alone "
        "recognizes 6, the champion alone 0 (McNemar's exact test, p = 0.031)"
    )
    version("better", table(EASY))
    assert aliases("better") == {"champion": 3, "challenger": 4}
    assert reason("better", 4).startswith("worse than version 3")


@pytest.mark.parametrize(
    ("predictions", "classes", "because"),
    [
        (table(EASY, first=IMAGES), ("a", "b"), "they have no test images in common"),
        (table(np.ones(IMAGES, bool)), ("a", "c"), "it has other classes"),
        (None, ("a", "b"), "a run has left no test_predictions.csv, or is gone"),
    ],
)
def test_what_cannot_be_compared_becomes_the_challenger_and_says_why(predictions, classes, because):
    name = f"incomparable-{len(because)}"
    version(name, table(~EASY))
    version(name, predictions, classes=classes)
    assert aliases(name) == {"champion": 1, "challenger": 2}
    assert reason(name, 2) == f"not comparable with version 1, the champion: {because}"


def test_a_champion_whose_run_is_gone_for_good_stays_until_a_person_says_otherwise():
    champion = version("orphaned", table(EASY))
    store = mlflow.tracking._tracking_service.utils._get_store()
    store.delete_run(champion.run_id)
    store._hard_delete_run(champion.run_id)  # as `mlflow gc` does
    version("orphaned", table(np.ones(IMAGES, bool)))
    assert aliases("orphaned") == {"champion": 1, "challenger": 2}
    assert reason("orphaned", 2).endswith("a run has left no test_predictions.csv, or is gone")


def test_only_images_that_both_were_tested_on_are_compared_and_each_once():
    mine, theirs = table(np.ones(20, bool)), table(np.zeros(20, bool), first=10)
    assert "of the 10 of its 20 test images" in compared(mine, theirs, than="it").reason
    twice = pd.concat([mine, mine])
    assert compared(twice, theirs, than="it") == compared(mine, theirs, than="it")


def test_a_record_that_is_sent_again_makes_no_second_version():
    record = version("again", table(EASY))
    client = mlflow.MlflowClient()
    client.log_batch(record.run_id, tags=[RunTag(Tag.REGISTERED_REASON, "lost")])
    register_version(client, record.run_id, name=record.name, tags=record.tags)
    assert len(client.search_model_versions("name = 'again'")) == 1
    assert describe(client.get_run(record.run_id).data.tags) == "models:/again/1 is the champion: there was no champion"


def test_a_run_without_a_served_model_is_refused_for_good():
    run_id = mlflow.MlflowClient().create_run("1").info.run_id
    with pytest.raises(FileNotFoundError, match="has no model to register"):
        register_version(mlflow.MlflowClient(), run_id, name="none", tags={})
