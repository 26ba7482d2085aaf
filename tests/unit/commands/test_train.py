"""The command `train`: what it checks before it imports TensorFlow, and what it prints after a run."""

import subprocess
import sys
from types import SimpleNamespace

import mlflow
import pytest

from pipeline.commands import train
from pipeline.config.training import parse_training
from pipeline.runtime.console import Console
from pipeline.runtime.errors import UsageError
from pipeline.tracking.experiment_page import page_links
from tests.support.paths import ROOT


def finished_run(**changes):
    """Return what `next_steps` reads of a run."""
    values = {"experiment_id": "7", "id": "abc", "artifact_uri": "/store/7/abc/artifacts", "model_uri": None}
    values |= {"pending": None, "registration": None} | changes
    pending, registration = values.pop("pending"), values.pop("registration")
    outbox = SimpleNamespace(pending=lambda: pending)
    return SimpleNamespace(outbox=outbox, describe_registration=lambda: registration, **values)


@pytest.fixture
def tracking_uri(monkeypatch):
    """Set the tracking URI without opening a store there."""
    return lambda uri: monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: uri)


def test_next_steps_with_a_sqlite_store_start_a_server_and_name_its_page(tracking_uri):
    tracking_uri("sqlite:////my store/mlflow.db")
    plots, *links = train.next_steps(finished_run())
    assert plots == "plots     /store/7/abc/artifacts/plots"
    assert links == page_links("7", "abc")


def test_next_steps_with_a_server_name_its_page_and_no_artifacts_that_only_it_can_open(tracking_uri):
    tracking_uri("https://me:secret@host/")
    lines = train.next_steps(finished_run(artifact_uri="mlflow-artifacts:/7/abc/artifacts"))
    assert lines == page_links("7", "abc")


def test_next_steps_with_a_model_say_how_to_serve_it_without_the_password(tracking_uri):
    tracking_uri("postgresql://me:secret@host/db")
    lines = train.next_steps(finished_run(model_uri="models:/m-1", registration="models:/smoke/1 is the champion"))
    assert lines[-2] == "registry  models:/smoke/1 is the champion"
    assert lines[-1].startswith("serve     MLFLOW_TRACKING_URI='postgresql://me:***@host/db' ")
    assert lines[-1].endswith("mlflow models serve -m models:/m-1 --env-manager local")
    assert not any("secret" in line for line in lines)


def test_next_steps_with_pending_records_begin_with_them(tracking_uri):
    tracking_uri("http://host")
    assert train.next_steps(finished_run(pending="kept     3 records"))[0] == "kept     3 records"


def test_train_with_settings_that_do_not_suit_the_data_raises_usage_error():
    command = parse_training(["smoke", "--batch_size", "201"])
    with pytest.raises(UsageError, match="batch_size must not exceed the training images: 200 here"):
        train.train(command, Console())


def test_train_module_imports_neither_tensorflow_nor_mlflow():
    code = (
        "import sys, pipeline.commands.train; print({'tensorflow', 'keras', 'mlflow'} & sys.modules.keys() or 'none')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["none"]
