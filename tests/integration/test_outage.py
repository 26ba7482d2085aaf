"""Training while its tracking server is stopped, killed, unreachable at the end, slow or answering 500."""

import errno
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import PurePath

import mlflow
import pytest

from pipeline.commands import main
from pipeline.runtime.shell import project_command
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.models import MODEL
from pipeline.tracking.outbox import delivery, spool
from pipeline.tracking.outbox.records import LogModel
from pipeline.tracking.tags import Tag
from pipeline.training.checkpoint_manager import checkpoint_folder
from pipeline.training.progress import TrainingProgress
from tests.support.paths import ROOT
from tests.support.scripted import mlflow_store
from tests.support.servers import Proxy, server
from tests.support.stores import environment

# An epoch takes some tenths of a second
EPOCHS = 8
CURVES = {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_seconds", "images_per_second"}
ARTIFACTS = [
    *("config.yaml", "history.csv", "images", "model_card.md", "per_class.csv", "per_class.json", "plots"),
    *("test_predictions.csv", "test_predictions.json", "validation_per_class.csv"),
    *("validation_predictions.csv", "validation_predictions.json"),
]


@pytest.fixture(scope="module")
def tracking_server(tmp_path_factory):
    with server(tmp_path_factory.mktemp("server")) as tracking_server:
        yield tracking_server


@pytest.fixture
def served(tracking_server):
    """Return a tracking server that the test may stop and start; it runs, whatever the test before has left."""
    if not tracking_server.is_running:
        tracking_server.start()
    return tracking_server


@pytest.fixture
def proxy(served):
    """Start a proxy before the server."""
    proxy = Proxy(served.port)
    yield proxy
    proxy.close()


@contextmanager
def training(uri, **settings):
    """Start a training in a process of its own; kill it at the end if it has not ended."""
    options = {"epochs": EPOCHS, "train_examples": "none", "batch_size": 8} | settings
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
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
    """Wait for the line of an epoch."""
    assert any(re.match(rf"epoch +{epoch}/", line) for line in process.stdout), process.stderr.read()


def finish(process):
    """Wait for a process that must succeed, and return its output and errors."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return out, err


def latest_run(uri):
    """Return the run that was started last."""
    mlflow.set_tracking_uri(uri)
    return mlflow.search_runs(experiment_names=["outage"], output_format="list")[0]


def check_is_complete(uri, epochs=EPOCHS):
    """Assert that the latest run has all that a run leaves, and each point of a metric once; return it."""
    run = latest_run(uri)
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
    plots = {PurePath(item.path).stem for item in client.list_artifacts(run.info.run_id, "plots")}
    assert plots == {"confusion_matrix", "curves", "depthwise_kernels", "mistakes", "patch_embeddings"}
    model = TrackingClient().find_logged_model(run, MODEL)
    assert model.model_id in {output.model_id for output in run.outputs.model_outputs}
    assert mlflow.pyfunc.load_model(model.model_uri).metadata.run_id == run.info.run_id
    assert client.get_logged_model(model.model_id).metrics[0].run_id == run.info.run_id
    assert len(run.inputs.dataset_inputs) == 3
    assert not [folder for folder in spool.spool_folders() if folder.name == run.info.run_id]
    return run


@pytest.fixture(autouse=True)
def restore_tracking_uri():
    """Undo what a test sets as the tracking store of this process."""
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_server_restarted_during_training_loses_no_point(served, number):
    with training(served.uri, epochs=25) as process:
        after_epoch(1, process)
        served.end(number)
        after_epoch(3, process)
        served.start()
        out, err = finish(process)
    assert "the tracking server does not answer; training goes on" in err
    assert "pending  " not in out
    check_is_complete(served.uri, epochs=25)


@pytest.mark.slow
def test_run_that_ends_without_its_server_is_sent_and_registered_later(served):
    with training(served.uri, register_as="outage") as process:
        after_epoch(1, process)
        served.end(signal.SIGKILL)
        out, _ = finish(process)
    assert re.findall(r"test accuracy [\d.]+ %", out)
    (line,) = [line for line in out.splitlines() if line.startswith("pending  ")]
    assert project_command("doctor") in line
    assert "registry  not registered yet: it will be when the pending records have been sent" in out.splitlines()
    served.start()
    mlflow.set_tracking_uri(served.uri)
    assert latest_run(served.uri).info.status == "RUNNING"
    assert delivery.send_pending()[0].startswith("sent     ")
    run = check_is_complete(served.uri)
    assert not checkpoint_folder(run.info.run_id).exists()
    version = mlflow.MlflowClient().get_model_version_by_alias("outage", "champion")
    assert version.run_id == run.info.run_id
    assert mlflow.pyfunc.load_model("models:/outage@champion").metadata.run_id == run.info.run_id


@pytest.mark.slow
def test_resume_of_a_finished_run_sends_its_pending_records(served):
    with training(served.uri) as process:
        after_epoch(1, process)
        served.end(signal.SIGKILL)
        finish(process)
    served.start()
    run_id = latest_run(served.uri).info.run_id
    completed = subprocess.run(
        [sys.executable, "-m", "pipeline", "train", "--resume", run_id],
        cwd=ROOT,
        env=environment(served.uri, "outage"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert "sent     " in completed.stderr and "is finished: there is nothing to resume" in completed.stdout
    check_is_complete(served.uri)


@pytest.mark.slow
def test_sigterm_without_a_server_stops_training_within_ten_seconds_and_keeps_a_checkpoint(served):
    with training(served.uri, epochs=1000) as process:
        after_epoch(1, process)
        served.end(signal.SIGKILL)
        after_epoch(3, process)
        process.terminate()
        _, err = process.communicate(timeout=10)
        assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in err and "Traceback" not in err
    served.start()
    run = latest_run(served.uri)
    assert run.info.status == "RUNNING", "nobody could say otherwise"
    mlflow.set_tracking_uri(served.uri)
    delivery.send_pending()
    run = latest_run(served.uri)
    assert (run.info.status, run.data.tags[Tag.OUTCOME]) == ("KILLED", "stopped")
    steps = [point.step for point in mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")]
    assert len(steps) >= 3 and steps == list(range(1, len(steps) + 1))
    assert list(checkpoint_folder(run.info.run_id).glob("epoch-*.checkpoint"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "lost", 2])
def test_server_that_fails_loses_answers_or_is_slow_loses_no_point(proxy, fault):
    proxy.fault = lambda method, path: None
    with training(proxy.uri, epochs=30) as process:
        after_epoch(1, process)
        proxy.fault = lambda method, path: fault if method != "GET" or fault != "lost" else None
        after_epoch(20, process)
        proxy.fault = lambda method, path: None
        finish(process)
    check_is_complete(proxy.uri, epochs=30)


def test_artifact_store_that_refuses_the_model_leaves_a_run_that_can_be_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def refuse(self, client):
        raise PermissionError(errno.EACCES, "Permission denied", "/srv/artifacts")

    with mlflow_store(tmp_path):
        with monkeypatch.context() as refusing:
            refusing.setattr(LogModel, "_send", refuse)
            assert main.run(["train", "smoke", "--epochs", "1"]) == 1
        run = mlflow.search_runs(experiment_names=["mine"], output_format="list")[0]
        resume, error = capsys.readouterr().err.splitlines()[-2:]
        assert resume.startswith("resume ") and run.info.run_id in resume
        assert error.startswith("error: PermissionError: ") and "/srv/artifacts" in error
        assert run.info.status == "FAILED"
        assert main.run(["train", "smoke", "--resume", run.info.run_id]) == 0
        assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"


def test_cache_that_is_removed_in_mid_run_costs_nothing_but_checkpoints(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    add_epoch = TrainingProgress.add_epoch

    def remove_cache(self, metrics):
        add_epoch(self, metrics)
        shutil.rmtree(tmp_path / "cache" / "convmixer")

    monkeypatch.setattr(TrainingProgress, "add_epoch", remove_cache)
    with mlflow_store(tmp_path):
        assert main.run(["train", "smoke", "--epochs", "1"]) == 0
        run = mlflow.search_runs(experiment_names=["mine"], output_format="list")[0]
        assert run.info.status == "FINISHED" and "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_unreachable_server_at_the_start_is_one_error_line():
    completed = subprocess.run(
        [sys.executable, "-m", "pipeline", "train", "smoke"],
        cwd=ROOT,
        env=environment("http://127.0.0.1:1", "outage"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (completed.returncode, completed.stdout) == (2, "")
    (line,) = completed.stderr.splitlines()
    assert line.startswith("error: the tracking store must be there and writable: http://127.0.0.1:1")
