"""The command `train`: what it checks before it imports TensorFlow, and what it prints after a run."""

import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import mlflow
import pytest

from pipeline.commands import train
from pipeline.commands.main import run
from pipeline.config.recipe import parse_training
from pipeline.runtime.console import Console
from pipeline.runtime.errors import UsageError
from pipeline.tracking.experiment_page import page_links
from pipeline.tracking.tags import Tag
from pipeline.training.initial_weights import InitialWeights
from pipeline.training.teacher import Teacher
from tests.support.image_files import image_folder
from tests.support.paths import ROOT
from tests.support.stores import tracking_store


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


@pytest.mark.parametrize("settings", [{"weights_from": "models:/m-1"}, {"teacher": "models:/m-1"}])
def test_device_is_chosen_before_a_model_is_loaded(settings, monkeypatch):
    """TensorFlow refuses to change the memory growth of a GPU that a loaded model is on already."""
    calls = []

    def load(kind):
        def record(origin):
            calls.append((kind, origin))
            raise UsageError("enough")

        return record

    monkeypatch.setattr(train, "select_device", lambda devices: calls.append(("device", devices)))
    monkeypatch.setattr(InitialWeights, "load", load("weights_from"))
    monkeypatch.setattr(Teacher, "load", load("teacher"))
    flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
    with pytest.raises(UsageError, match="enough"):
        train.train(parse_training(["smoke", "--devices", "all", *flags]), Console())
    assert calls == [("device", "all"), *settings.items()]


def test_folds_that_are_resumed_check_the_weights_that_they_begin_with(monkeypatch):
    def refuse(digest):
        raise UsageError(f"not {digest}")

    command = parse_training(["smoke", "--weights_from", "models:/m-1", "--folds", "2"])
    resume_point = SimpleNamespace(
        config=command.config, has_folds_to_begin=True, check_data=lambda dataset: None, check_weights=refuse
    )
    weights = SimpleNamespace(complete=lambda config: config, check=lambda *given: None, digest="f00d")
    monkeypatch.setattr(train, "_open_resume_point", lambda command: nullcontext(resume_point))
    monkeypatch.setattr(train, "select_device", lambda devices: None)
    monkeypatch.setattr(InitialWeights, "load", lambda origin: weights)
    with pytest.raises(UsageError, match="^not f00d$"):
        train.train(command, Console())


def test_run_whose_settings_break_a_rule_that_is_younger_than_it_can_be_resumed(monkeypatch):
    def go_on(*arguments, **options):
        raise UsageError("it goes on")

    command = parse_training(["smoke", "--class_weights", "balanced", "--sampling", "balanced"])
    monkeypatch.setattr("pipeline.training.run.run_training", go_on)
    with pytest.raises(UsageError, match="^class_weights must be none with sampling=balanced"):
        train.train(command, Console())
    checked = []
    resume_point = SimpleNamespace(config=command.config, has_folds_to_begin=False, check_data=checked.append)
    monkeypatch.setattr(train, "_open_resume_point", lambda command: nullcontext(resume_point))
    with pytest.raises(UsageError, match="^it goes on$"):
        train.train(command, Console())
    assert [dataset.name for dataset in checked] == ["digits"]


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    with tracking_store(tmp_path_factory.mktemp("tracking"), "transfer") as uri:
        mlflow.set_experiment("transfer")
        yield uri


@pytest.fixture(scope="module")
def source(uri):
    """The run of a trained model."""
    assert run(["train", "smoke", "--epochs", "1"]) == 0
    return newest_run()


def newest_run():
    found = mlflow.search_runs(experiment_names=["transfer"], output_format="list", max_results=1)[0]
    # A search leaves out the models that a run has started from
    return mlflow.MlflowClient().get_run(found.info.run_id)


def test_train_with_weights_and_a_teacher_logs_which_and_warns_of_images_that_they_know(source, capsys):
    """Both are one model, which MLflow gets as an input twice; with another seed it knows some of the test images."""
    run_id = source.info.run_id
    flags = ["--weights_from", run_id, "--teacher", run_id, "--teacher_weight", "0.25", "--seed", "1"]
    assert run(["train", "smoke", "--epochs", "1", *flags]) == 0
    model_id = source.outputs.model_outputs[0].model_id
    model, tuned = f"models:/{model_id}", newest_run()
    for setting, run_tag in ((Tag.WEIGHTS_FROM, Tag.WEIGHTS_RUN), (Tag.TEACHER, Tag.TEACHER_RUN)):
        assert tuned.data.tags[setting] == tuned.data.params[setting] == model
        assert tuned.data.tags[run_tag] == run_id
    assert {one.model_id for one in tuned.inputs.model_inputs} == {model_id}
    printed = capsys.readouterr()
    assert f"weights  {model}: all layers\n" in printed.out
    assert f"teacher  {model}: ConvMixer-8/1, 0.25 of each target\n" in printed.out
    flatter = f"warning: validation and test accuracy may flatter: {{}} {model} was trained on some of these images"
    assert all(flatter.format(setting) in printed.err for setting in ("weights_from", "teacher"))
    first, untrained = (one.data.metrics["loss"] for one in (tuned, source))
    assert first < untrained


def test_train_refuses_settings_that_do_not_suit_each_other_before_it_reads_or_downloads_images(
    source, capsys, monkeypatch
):
    monkeypatch.setattr(train, "load_dataset", None)
    assert run(["train", "fast", "--epochs", "1"]) == 2
    assert capsys.readouterr().err == "error: clean_epochs must be at most epochs: epochs=1, got clean_epochs=2\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--teacher", "model.keras"], "teacher must be a run's id, runs:/RUN_ID/model, "),
        (
            ["--teacher", "{run}", "--dataset", "{folder}", "--batch_size", "2"],
            "teacher must tell the data's classes apart, cat, dog: ",
        ),
        (["--weights_from", "nothing"], "weights_from must be a run's id"),
        (
            ["--weights_from", "{run}", "--kernel_size", "5"],
            "weights_from must fit the network: block1_depthwise is 3x3",
        ),
        (["--weights_from", "{run}", "--freeze_blocks", "9"], "freeze_blocks must be at most depth: depth="),
        (["--head_epochs", "9"], "head_epochs must be at most epochs: epochs="),
    ],
)
def test_train_with_a_model_that_does_not_fit_is_refused_before_a_run_begins(
    source, capsys, tmp_path, settings, message
):
    before = newest_run().info.run_id
    folder = image_folder(tmp_path, size=(8, 8))
    words = [word.format(run=source.info.run_id, folder=folder) for word in settings]
    assert run(["train", "smoke", "--epochs", "1", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert newest_run().info.run_id == before
