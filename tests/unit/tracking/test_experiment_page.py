"""The page of an experiment in MLflow: description, shared view, addresses."""

import json
import re
import uuid

import mlflow
import pytest

from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import Rejected
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.experiment_page import (
    VIEW,
    link_to_run,
    page_links,
    prepare_experiment_page,
    run_url,
    ui_command,
)
from pipeline.tracking.query import METRICS
from pipeline.tracking.tags import Tag
from tests.support.paths import ROOT


@pytest.fixture
def experiment(store):
    """Return a client and the id of a new experiment."""
    client = TrackingClient()
    return client, client.create_experiment(uuid.uuid4().hex)


def view(client, experiment_id):
    return json.loads(client.get_experiment(experiment_id).tags[VIEW])


def test_prepare_experiment_page_describes_a_new_experiment_and_selects_columns(experiment):
    client, experiment_id = experiment
    prepare_experiment_page(client, experiment_id)
    assert "`best_val_accuracy`" in client.get_experiment(experiment_id).tags[Tag.DESCRIPTION]
    assert {"metrics.`test_accuracy`", "params.`depth`"} <= set(view(*experiment)["selectedColumns"])
    assert view(*experiment)["runsExpanded"] == {}


def test_prepare_experiment_page_has_a_card_for_each_image_of_a_training(experiment):
    prepare_experiment_page(*experiment)
    cards = [card for card in view(*experiment)["compareRunCharts"] if card["type"] == "IMAGE"]
    logged = set(
        re.findall(r'(?:key=|log_image\()"(\w+)"', (ROOT / "pipeline" / "training" / "results.py").read_text())
    )
    assert {key for card in cards for key in card["imageKeys"]} == logged
    # else the page adds cards of its own
    assert {card["imageKeys"][0] for card in cards if len(card["imageKeys"]) == 1} == logged
    assert len({card["uuid"] for card in cards}) == len(cards)


def test_prepare_experiment_page_shows_each_card_in_a_section_of_the_view(experiment):
    prepare_experiment_page(*experiment)
    page = view(*experiment)
    cards, sections = page["compareRunCharts"], page["compareRunSections"]
    assert {card["metricSectionId"] for card in cards} == {section["uuid"] for section in sections}
    assert [section["name"] for section in sections] == ["Figures", "Model metrics"]
    assert all(section["display"] is True for section in sections)
    assert page["isAccordionReordered"] is True
    assert not any(shown["deleted"] or shown["isGenerated"] for shown in cards + sections)
    images = [card for card in cards if card["type"] == "IMAGE"]
    # there is no image of block or epoch 0
    assert {card["imageKeys"][0] for card in images if card["step"] == 1} == {
        "depthwise_kernels_by_block",
        "depthwise_kernels_by_epoch",
    }
    assert all(card["showRunParams"] is False for card in images)
    curves = {card["metricKey"] for card in cards if card["type"] == "LINE"}
    assert curves == {"val_accuracy", "accuracy", "val_loss", "loss", "learning_rate"}


def test_prepare_experiment_page_unfolds_each_search_once(experiment):
    for run_id in ("a", "b", "a"):
        prepare_experiment_page(*experiment, unfold=run_id)
    assert view(*experiment)["runsExpanded"] == {"a": True, "b": True}


def test_prepare_experiment_page_keeps_what_a_person_has_changed(experiment):
    client, experiment_id = experiment
    mine = {"selectedColumns": [], "orderByKey": "metrics.`loss`", "runsExpanded": {"a": False}}
    client.set_experiment_tag(experiment_id, Tag.DESCRIPTION, "mine")
    client.set_experiment_tag(experiment_id, VIEW, json.dumps(mine))
    prepare_experiment_page(client, experiment_id, unfold="a")
    assert client.get_experiment(experiment_id).tags[Tag.DESCRIPTION] == "mine"
    assert view(*experiment) == mine


@pytest.mark.parametrize("text", ["deflate;xyz", "[]", "{}", '{"runsExpanded": 1}'])
def test_prepare_experiment_page_leaves_a_view_of_another_form(experiment, text):
    client, experiment_id = experiment
    client.set_experiment_tag(experiment_id, VIEW, text)
    prepare_experiment_page(client, experiment_id, unfold="a")
    assert client.get_experiment(experiment_id).tags[VIEW] == text


def test_page_links_with_a_server_open_its_training_pages_without_the_password(monkeypatch):
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "https://me:secret@host/mlflow/")
    page, compare = page_links("7", "abc")
    address = "https://host/mlflow/#/experiments/7/runs"
    assert page == f"page      {address}/abc?workflowType=machine_learning"
    assert compare == f"compare   {address}?workflowType=machine_learning&viewStateShareKey=convmixer"


def test_page_links_with_a_database_begin_with_the_command_that_serves_it(monkeypatch):
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "sqlite:////my store/mlflow.db")
    ui, page, _ = page_links("7", "abc")
    assert re.fullmatch(r"ui        \S+mlflow ui --backend-store-uri 'sqlite:////my store/mlflow.db'", ui)
    assert page.startswith("page      http://127.0.0.1:5000/#/experiments/7/runs/abc?")


def test_prepare_experiment_page_shows_columns_that_trainings_log(experiment):
    prepare_experiment_page(*experiment)
    columns = view(*experiment)["selectedColumns"]
    assert columns[0] == "attributes.`Duration`" and len(set(columns)) == len(columns)
    logged = {"metrics": METRICS, "params": {"recipe", *TrainingConfig.model_fields}, "tags": {Tag.DATA}}
    for column in columns[1:]:
        kind, name = re.fullmatch(r"([a-z]+)\.`([a-z_]+)`", column).groups()
        assert name in logged[kind], column
    described = experiment[0].get_experiment(experiment[1]).tags[Tag.DESCRIPTION]
    assert described.startswith("Image classifiers of the ConvMixer family.") and described.endswith("local`\n")


def test_prepare_experiment_page_makes_cards_with_the_fields_that_mlflow_reads(experiment):
    prepare_experiment_page(*experiment)
    page = view(*experiment)
    cards = {card["uuid"]: card for card in page["compareRunCharts"]}
    assert cards["metrics-val_loss"] == {
        "uuid": "metrics-val_loss",
        "type": "LINE",
        "metricSectionId": "metrics",
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": False,
        "metricKey": "val_loss",
    }
    assert cards["figures-mistakes"].keys() - cards["metrics-val_loss"].keys() == {"imageKeys", "step", "showRunParams"}
    assert all(re.fullmatch("(figures|metrics)-[a-z_ ]+", uuid) for uuid in cards)
    assert page["compareRunSections"][0] == {
        "uuid": "figures",
        "name": "Figures",
        "display": True,
        "isReordered": False,
        "deleted": False,
        "isGenerated": False,
    }
    together = next(card["imageKeys"] for card in cards.values() if len(card.get("imageKeys", ())) > 1)
    assert together == ["curves", "depthwise_kernels", "patch_embeddings", "confusion_matrix"]


def test_prepare_experiment_page_that_this_user_may_not_change_stays_as_it_is(experiment, monkeypatch):
    def refuse(*arguments):
        raise Rejected("not yours")

    monkeypatch.setattr(TrackingClient, "set_experiment_tag", refuse)
    prepare_experiment_page(*experiment, unfold="a")
    assert VIEW not in experiment[0].get_experiment(experiment[1]).tags


def test_ui_command_is_empty_with_a_server_and_hides_the_password_of_a_database(monkeypatch):
    for uri, ending in (
        ("HTTP://host", ""),
        ("https://host", ""),
        ("postgresql://me:secret@host/db", "ui --backend-store-uri 'postgresql://me:***@host/db'"),
    ):
        monkeypatch.setattr(mlflow, "get_tracking_uri", lambda uri=uri: uri)
        assert ui_command().endswith(ending) and bool(ui_command()) == bool(ending)


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("http://host:5000", "http://host:5000"),
        ("http://me@host:5000/a/", "http://host:5000/a"),
        ("databricks", "http://127.0.0.1:5000"),
    ],
)
def test_run_url_is_on_the_server_or_where_the_ui_listens(monkeypatch, uri, address):
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: uri)
    assert run_url("7", "abc") == f"{address}/#/experiments/7/runs/abc?workflowType=machine_learning"


def test_link_to_run_is_relative_to_the_server_and_without_a_run_the_text_alone():
    assert link_to_run("7", "abc", "the winner") == "[the winner](#/experiments/7/runs/abc)"
    assert link_to_run("7", "", "the winner") == "the winner"
