"""A training outlives its tracking server, as people meet it: stopped, killed, away at the end, slow, answering 500."""

import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import mlflow
import pytest

from pipeline.tracking.client import TrackingClient
from pipeline.tracking.models import MODEL
from pipeline.tracking.outbox import delivery, spool
from pipeline.tracking.tags import Tag
from pipeline.training.checkpoint_manager import checkpoint_folder
from tests.support.paths import ROOT
from tests.support.servers import Proxy, server
from tests.support.stores import environment

EPOCHS = 8  # of some tenths of a second
CURVES = {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_seconds", "images_per_second"}
ARTIFACTS = ["config.yaml", "history.csv", "per_class.csv", "plots", "test_predictions.csv"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with server(tmp_path_factory.mktemp("server")) as one:
        yield one


@pytest.fixture(scope="module")
def proxy(served):
    proxy = Proxy(served.port)
    yield proxy
    proxy.close()


@contextmanager
def training(uri, **settings):
    """A training's process; killed at the end if it has not ended."""
    given = {"epochs": EPOCHS, "train_examples": "none", "batch_size": 8} | settings
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", "smoke", *words],
        cwd=ROOT,
        env=environment(uri, "outage"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def after_epoch(epoch, process):
    assert any(re.match(rf"epoch +{epoch}/", line) for line in process.stdout), process.stderr.read()


def finish(process):
    out, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    return out, said


def last_run(uri):
    mlflow.set_tracking_uri(uri)
    return mlflow.search_runs(experiment_names=["outage"], output_format="list")[0]


def is_whole(uri, epochs=EPOCHS):
    """All that a run leaves is there, every point once."""
    run = last_run(uri)
    client = mlflow.MlflowClient(uri)
    assert (run.info.status, run.data.tags[Tag.OUTCOME]) == ("FINISHED", "finished")
    assert run.data.metrics.keys() >= CURVES
    for name in run.data.metrics:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
        assert steps == sorted(set(steps)), name
        if name in CURVES:
            assert steps == list(range(1, epochs + 1)), name
    assert {"test_accuracy", "best_epoch", "parameters"} <= run.data.metrics.keys()
    assert sorted(item.path for item in client.list_artifacts(run.info.run_id)) == ARTIFACTS
    assert len(client.list_artifacts(run.info.run_id, "plots")) == 6
    model = TrackingClient().find_logged_model(run, MODEL)
    assert model.model_id in {output.model_id for output in run.outputs.model_outputs}
    assert mlflow.pyfunc.load_model(model.model_uri).metadata.run_id == run.info.run_id
    assert client.get_logged_model(model.model_id).metrics[0].run_id == run.info.run_id
    assert len(run.inputs.dataset_inputs) == 3
    assert not [folder for folder in spool.spool_folders() if folder.name == run.info.run_id]
    return run


@pytest.fixture(autouse=True)
def own_store():
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_is_killed_or_stopped_and_started_again_costs_no_point(served, number):
    with training(served.uri, epochs=25) as process:
        after_epoch(1, process)
        served.end(number)
        after_epoch(3, process)
        served.start()
        out, said = finish(process)
    assert "the tracking server does not answer; training goes on" in said
    assert "pending  " not in out
    is_whole(served.uri, epochs=25)


@pytest.mark.slow
def test_what_a_server_that_stays_away_missed_is_delivered_and_registered_later(served):
    with training(served.uri, register_as="outage") as process:
        after_epoch(1, process)
        served.end(signal.SIGKILL)
        out, _ = finish(process)
    assert re.findall(r"test accuracy [\d.]+%", out)
    (line,) = [line for line in out.splitlines() if line.startswith("pending  ")]
    assert "-e doctor" in line
    assert "registry not registered yet: it will be when the pending records have been sent" in out.splitlines()
    served.start()
    mlflow.set_tracking_uri(served.uri)
    assert last_run(served.uri).info.status == "RUNNING"
    assert delivery.send_pending()[0].startswith("sent     ")
    run = is_whole(served.uri)
    assert not checkpoint_folder(run.info.run_id).exists()
    version = mlflow.MlflowClient().get_model_version_by_alias("outage", "champion")
    assert version.run_id == run.info.run_id
    assert mlflow.pyfunc.load_model("models:/outage@champion").metadata.run_id == run.info.run_id


@pytest.mark.slow
def test_resuming_delivers_what_a_finished_run_could_not_tell(served):
    with training(served.uri) as process:
        after_epoch(1, process)
        served.end(signal.SIGKILL)
        finish(process)
    served.start()
    run_id = last_run(served.uri).info.run_id
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "train", "--resume", run_id],
        cwd=ROOT,
        env=environment(served.uri, "outage"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "sent     " in done.stderr and "is finished: there is nothing to resume" in done.stdout
    is_whole(served.uri)


@pytest.mark.slow
def test_a_run_is_stopped_within_ten_seconds_though_the_server_is_away_and_goes_on_later(served):
    with training(served.uri, epochs=1000) as process:
        after_epoch(1, process)
        served.end(signal.SIGKILL)
        after_epoch(3, process)
        process.terminate()
        _, said = process.communicate(timeout=10)
        assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in said and "Traceback" not in said
    served.start()
    run = last_run(served.uri)
    assert run.info.status == "RUNNING", "nobody could say otherwise"
    mlflow.set_tracking_uri(served.uri)
    delivery.send_pending()
    run = last_run(served.uri)
    assert (run.info.status, run.data.tags[Tag.OUTCOME]) == ("KILLED", "stopped")
    steps = [point.step for point in mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")]
    assert len(steps) >= 3 and steps == list(range(1, len(steps) + 1))
    assert list(checkpoint_folder(run.info.run_id).glob("epoch-*.checkpoint"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "lost", 2])
def test_a_server_that_answers_500_loses_answers_or_is_slow_costs_no_point(proxy, fault):
    proxy.fault = lambda method, path: None
    with training(proxy.uri, epochs=30) as process:
        after_epoch(1, process)
        proxy.fault = lambda method, path: fault if method != "GET" or fault != "lost" else None
        after_epoch(20, process)
        proxy.fault = lambda method, path: None
        finish(process)
    is_whole(proxy.uri, epochs=30)


@pytest.mark.slow
def test_a_server_that_is_away_at_the_start_is_told_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "train", "smoke"],
        cwd=ROOT,
        env=environment("http://127.0.0.1:1", "outage"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the tracking store must be there and writable: http://127.0.0.1:1")
