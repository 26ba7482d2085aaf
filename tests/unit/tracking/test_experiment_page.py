"""The page of an experiment in MLflow: description, shared view, addresses."""

import json
import re
import uuid

import mlflow
import pytest

from pipeline.tracking.client import TrackingClient
from pipeline.tracking.experiment_page import VIEW, page_links, prepare_experiment_page
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
