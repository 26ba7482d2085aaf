"""The client through which the program asks MLflow, on a real store."""

import functools
import gc
import time

import mlflow
import pytest
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.tracking import fluent

from pipeline.tracking.client import Deleted, NotFound, Rejected, TrackingClient, Unavailable
from pipeline.tracking.tags import Role, Tag
from tests.support.ports import free_port


@pytest.fixture
def tracking(store):
    return TrackingClient()


@pytest.fixture
def experiment_id(tracking, request):
    return tracking.create_experiment(request.node.name)


def test_client_without_a_server_raises_unavailable(tracking, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"http://127.0.0.1:{free_port()}")
    try:
        with pytest.raises(Unavailable, match="refused"):
            TrackingClient().get_run("0" * 32)
        assert not TrackingClient().is_available()
    finally:
        mlflow.set_tracking_uri(before)


def test_experiment_id_is_that_of_the_present_experiment(tracking, experiment_id, monkeypatch):
    monkeypatch.setattr(fluent, "_active_experiment_id", experiment_id)
    assert tracking.experiment_id() == experiment_id
    monkeypatch.setattr(fluent, "_active_experiment_id", None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "made on demand")
    assert tracking.experiment_name(tracking.experiment_id()) == "made on demand"


def test_find_experiment_returns_none_or_says_how_to_restore_a_deleted_one(tracking, client, experiment_id):
    name = tracking.experiment_name(experiment_id)
    assert tracking.find_experiment(name).experiment_id == experiment_id
    assert tracking.find_experiment("nothing") is None
    client.delete_experiment(experiment_id)
    with pytest.raises(Deleted, match=f"`mlflow experiments restore --experiment-id {experiment_id}` restores it"):
        tracking.find_experiment(name)
    assert experiment_id not in {each.experiment_id for each in tracking.search_experiments()}


@pytest.mark.parametrize("run_id", ["0" * 32, "no id", "../x"])
def test_get_run_of_an_unknown_or_malformed_id_raises_not_found(tracking, run_id):
    with pytest.raises(NotFound):
        tracking.get_run(run_id)


def test_get_active_run_says_how_to_restore_a_deleted_one(tracking, experiment_id):
    run_id = tracking.create_run(experiment_id).info.run_id
    assert tracking.get_active_run(run_id).info.run_id == run_id
    tracking.delete_run(run_id)
    assert tracking.get_run(run_id).info.lifecycle_stage == "deleted"
    with pytest.raises(Deleted, match=f"`mlflow runs restore --run-id {run_id}` restores it"):
        tracking.get_active_run(run_id)


def test_search_runs_yields_each_run_of_all_pages_once_while_others_begin(tracking, experiment_id, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.client.RUNS_PER_PAGE", 2)
    earlier = [tracking.create_run(experiment_id).info.run_id for _ in range(5)]
    found = []
    for run in tracking.search_runs([experiment_id]):
        found.append(run.info.run_id)
        if len(found) == 2:
            tracking.create_run(experiment_id)  # moves a run that was on the first page to the second
    assert sorted(found) == sorted(earlier)


def test_search_experiments_yields_the_experiments_of_all_pages(tracking, monkeypatch):
    ids = {tracking.create_experiment(f"page {number}") for number in range(3)}
    search = tracking.mlflow.search_experiments
    monkeypatch.setattr(tracking.mlflow, "search_experiments", functools.partial(search, max_results=2))
    assert ids <= {experiment.experiment_id for experiment in tracking.search_experiments()}


def test_search_runs_applies_the_filter_and_rejects_one_that_cannot_be_parsed(tracking, experiment_id):
    wanted = tracking.create_run(experiment_id, name="a", tags={Tag.ROLE: Role.RUN}).info.run_id
    tracking.create_run(experiment_id, name="b")
    assert [run.info.run_id for run in tracking.search_runs([experiment_id], f"tags.{Tag.ROLE} = '{Role.RUN}'")] == [
        wanted
    ]
    with pytest.raises(Rejected):
        list(tracking.search_runs([experiment_id], "role >> 1"))


def test_search_runs_restores_the_thresholds_of_the_garbage_collector(tracking, experiment_id):
    usual = gc.get_threshold()
    next(tracking.search_runs([experiment_id]), None)
    assert gc.get_threshold() == usual


def test_unique_run_name_numbers_a_name_that_is_taken(tracking, experiment_id):
    assert tracking.unique_run_name(experiment_id, "it's 5_%") == "it's 5_%"
    tracking.create_run(experiment_id, name="it is 5 x")
    tracking.create_run(experiment_id, name="it's 5_%")
    assert tracking.unique_run_name(experiment_id, "it's 5_%") == "it's 5_% #2"
    for number in (2, 4):
        tracking.create_run(experiment_id, name=f"it's 5_% #{number}")
    assert tracking.unique_run_name(experiment_id, "it's 5_%") == "it's 5_% #3"
    assert tracking.unique_run_name(experiment_id, "it") == "it"


def test_temporary_experiment_tag_is_deleted_again(tracking, experiment_id):
    with pytest.raises(KeyError), tracking.temporary_experiment_tag(experiment_id, "doctor", "1"):
        assert tracking.get_experiment(experiment_id).tags["doctor"] == "1"
        raise KeyError
    assert "doctor" not in tracking.get_experiment(experiment_id).tags


def test_try_artifact_store_leaves_nothing_and_raises_where_it_cannot_write(tracking, tmp_path):
    (tmp_path / "store").mkdir()
    tracking.try_artifact_store((tmp_path / "store").as_uri(), "a.txt", "a")
    assert list((tmp_path / "store").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        tracking.try_artifact_store((tmp_path / "file").as_uri(), "a.txt", "a")


def test_log_batch_logs_metrics_params_and_tags_in_one_call(tracking, experiment_id):
    run_id = tracking.create_run(experiment_id).info.run_id
    tracking.log_batch(run_id, metrics=[Metric("loss", 0.5, 1, 3)], params={"depth": "8"}, tags={Tag.ROLE: Role.RUN})
    run = tracking.get_run(run_id)
    assert (run.data.params, run.data.tags[Tag.ROLE]) == ({"depth": "8"}, "run")
    assert [(point.step, point.value) for point in tracking.get_metric_history(run_id, "loss")] == [(3, 0.5)]


def test_set_tags_cuts_what_mlflow_would_refuse(tracking, experiment_id):
    run_id = tracking.create_run(experiment_id).info.run_id
    tracking.set_tags(run_id, {"note": "x" * 20_000})
    assert len(tracking.get_run(run_id).data.tags["note"]) == 5000
    tracking.delete_tag(run_id, "note")
    assert "note" not in tracking.get_run(run_id).data.tags


def test_terminate_run_sets_status_and_time_and_set_run_status_opens_it_again(tracking, experiment_id):
    run_id = tracking.create_run(experiment_id).info.run_id
    tracking.terminate_run(run_id, "KILLED", end_time=1_700_000_000_000)
    assert (tracking.get_run(run_id).info.status, tracking.get_run(run_id).info.end_time) == (
        "KILLED",
        1_700_000_000_000,
    )
    tracking.set_run_status(run_id, "RUNNING")
    assert tracking.get_run(run_id).info.status == "RUNNING"


def test_artifacts_are_uploaded_listed_downloaded_and_deleted(tracking, experiment_id, tmp_path):
    run = tracking.create_run(experiment_id)
    run_id = run.info.run_id
    (tmp_path / "a.txt").write_text("a")
    tracking.upload_artifact(run_id, tmp_path / "a.txt", "some")
    tracking.upload_text(run_id, "b", "some/b.txt")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.txt").write_text("c")
    tracking.upload_artifacts(run_id, tmp_path / "more")
    assert sorted(tracking.list_artifacts(run_id)) == ["c.txt", "some"]
    assert sorted(tracking.list_artifacts(run_id, "some")) == ["some/a.txt", "some/b.txt"]
    (tmp_path / "here").mkdir()
    downloaded = tracking.download_artifact(run_id, "some/a.txt", tmp_path / "here")
    assert downloaded.read_text() == "a" and downloaded.is_relative_to(tmp_path / "here")
    fetched = tracking.download(f"{run.info.artifact_uri}/c.txt", tmp_path / "here")
    assert fetched.read_text() == "c" and fetched.is_relative_to(tmp_path / "here")
    tracking.delete_artifacts(run_id, ["some/a.txt", "some"])
    assert tracking.list_artifacts(run_id) == ["c.txt"]
    tracking.upload_artifact(run_id, tmp_path / "a.txt")
    assert sorted(tracking.list_artifacts(run_id)) == ["a.txt", "c.txt"]


def test_logged_models_are_found_by_run_and_by_newest(tracking, client, experiment_id):
    first, second, third = (tracking.create_run(experiment_id) for _ in range(3))
    assert tracking.find_logged_model(first, "model") is None
    assert tracking.latest_logged_model(experiment_id, "model", tag="digests") is None
    made = [
        client.create_logged_model(experiment_id, "model", run.info.run_id, tags={"digests": "{}"})
        for run in (first, second, third)
    ]
    for model in made[:2]:
        client.finalize_logged_model(model.model_id, "READY")
    assert tracking.find_logged_model(third, "model").model_id == made[2].model_id
    assert tracking.find_logged_model(first, "served") is None
    latest = functools.partial(tracking.latest_logged_model, experiment_id, "model")
    assert latest(tag="digests").model_id == made[1].model_id, "the third is incomplete"
    assert latest(tag="others") is None
    client.delete_run(second.info.run_id)
    assert latest(tag="digests").model_id == made[0].model_id
    client.restore_run(second.info.run_id)
    assert tracking.get_logged_model(made[0].model_id).source_run_id == first.info.run_id
    with pytest.raises(NotFound):
        tracking.get_logged_model("m-" + "0" * 32)


def test_model_versions_are_numbered_and_found_by_number_latest_and_alias(tracking, client, experiment_id):
    run = tracking.create_run(experiment_id)
    for _ in range(2):
        tracking.create_registered_model("colours")
        model = client.create_logged_model(experiment_id, name="served", source_run_id=run.info.run_id)
        client.finalize_logged_model(model.model_id, "READY")
        tracking.create_model_version("colours", model, run.info.run_id, tags={"by": "hand"})
    tracking.set_model_version_tag("colours", "1", "reason", "first")
    tracking.set_alias("colours", "champion", "1")
    champion = tracking.get_model_version_by_alias("colours", "champion")
    assert champion.tags == {"by": "hand", "reason": "first"}
    assert (champion.run_id, champion.status) == (run.info.run_id, "READY")
    latest = tracking.get_model_version("colours", "latest")
    assert latest.source == f"models:/{model.model_id}" != champion.source
    tracking.describe_model_version("colours", "1", "# first")
    assert tracking.get_model_version("colours", "1").description == "# first"
    assert int(tracking.get_model_version("colours", "latest").version) == 2
    assert int(tracking.get_model_version("colours", "1").version) == 1
    assert [int(each.version) for each in tracking.search_model_versions("name = 'colours'")] == [2, 1]
    assert [int(each.version) for each in tracking.search_model_versions("name = 'colours'", at_most=1)] == [2]


@pytest.mark.parametrize("version", ["99", "latest"])
def test_model_version_that_does_not_exist_raises_not_found(tracking, version):
    with pytest.raises(NotFound):
        tracking.get_model_version("nothing", version)


def test_alias_that_does_not_exist_raises_not_found(tracking, client):
    client.create_registered_model("without aliases")
    for name in ("without aliases", "nothing"):
        with pytest.raises(NotFound):
            tracking.get_model_version_by_alias(name, "champion")


def refuse(error):
    """Return a call of MLflow that raises an error."""

    def fail(*arguments, **options):
        raise error

    return fail


def test_experiment_id_of_a_deleted_experiment_raises_deleted(tracking, client, experiment_id, monkeypatch):
    monkeypatch.setattr(fluent, "_active_experiment_id", experiment_id)
    client.delete_experiment(experiment_id)
    assert tracking.get_experiment(experiment_id).lifecycle_stage == "deleted"
    with pytest.raises(Deleted, match=f"^experiment {tracking.experiment_name(experiment_id)} has been deleted: "):
        tracking.experiment_id()


def test_search_runs_leaves_out_deleted_runs_and_asks_for_so_many_at_once(tracking, experiment_id, monkeypatch):
    kept, gone, last = (tracking.create_run(experiment_id).info.run_id for _ in range(3))
    tracking.delete_run(gone)
    search, pages = tracking.mlflow.search_runs, []

    def record(*arguments, **options):
        pages.append((options["max_results"], gc.get_threshold()))
        return search(*arguments, **options)

    monkeypatch.setattr(tracking.mlflow, "search_runs", record)
    found = [run.info.run_id for run in tracking.search_runs(iter([experiment_id]), page_size=1)]
    assert sorted(found) == sorted([kept, last])
    assert {most for most, _ in pages} == {1} and len(pages) >= 2
    assert all(thresholds > gc.get_threshold() for _, thresholds in pages), "garbage is collected more rarely"


@pytest.mark.parametrize("name", ["get_run", "get_model_version_by_alias"])
def test_get_that_is_refused_for_another_reason_than_its_name_raises_rejected(tracking, monkeypatch, name):
    monkeypatch.setattr(tracking.mlflow, name, refuse(MlflowException("not yours", codes.BAD_REQUEST)))
    with pytest.raises(Rejected, match="not yours"):
        getattr(tracking, name)(*["a"] * (1 if name == "get_run" else 2))


def test_get_run_of_a_malformed_id_says_what_mlflow_says(tracking):
    with pytest.raises(NotFound, match="no id"):
        tracking.get_run("no id")


def test_create_registered_model_without_a_name_is_rejected(tracking):
    with pytest.raises(Rejected, match="name"):
        tracking.create_registered_model("")


def test_log_batch_waits_for_the_answer_where_mlflow_is_to_log_asynchronously(tracking, experiment_id, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    run_id = tracking.create_run(experiment_id).info.run_id
    tracking.log_batch(run_id, params={"depth": "8"})
    with pytest.raises(Rejected, match="depth"):
        tracking.log_batch(run_id, params={"depth": "9"})


def test_terminate_run_without_a_time_ends_it_now(tracking, experiment_id):
    run_id = tracking.create_run(experiment_id).info.run_id
    tracking.terminate_run(run_id, "FAILED")
    info = tracking.get_run(run_id).info
    assert info.status == "FAILED" and abs(info.end_time / 1000 - time.time()) < 60


def test_try_artifact_store_that_cannot_delete_leaves_its_file(tracking, tmp_path, monkeypatch):
    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", refuse(NotImplementedError()))
    tracking.try_artifact_store(tmp_path.as_uri(), "a.txt", "é")
    assert (tmp_path / "a.txt").read_text("utf-8") == "é"


def test_logged_models_are_found_on_later_pages(tracking, client, experiment_id, monkeypatch):
    run = tracking.create_run(experiment_id)
    for name in ("served", "calibrated", "model"):
        client.create_logged_model(experiment_id, name=name, source_run_id=run.info.run_id)
    search = functools.partial(tracking.mlflow.search_logged_models, max_results=1)
    monkeypatch.setattr(tracking.mlflow, "search_logged_models", search)
    assert {tracking.find_logged_model(run, name).name for name in ("served", "calibrated", "model")} == {
        "served",
        "calibrated",
        "model",
    }


def test_create_model_version_names_the_model_and_does_not_wait(tracking, client, experiment_id, monkeypatch):
    """A server lists the version on the page of the model that is named; a database alone does not."""
    run = tracking.create_run(experiment_id)
    tracking.create_registered_model("named")
    model = client.create_logged_model(experiment_id, name="served", source_run_id=run.info.run_id)
    create, given = tracking.mlflow.create_model_version, []

    def record(*arguments, **options):
        given.append(options)
        return create(*arguments, **options)

    monkeypatch.setattr(tracking.mlflow, "create_model_version", record)
    version = tracking.create_model_version("named", model, run.info.run_id, tags={"by": "hand"})
    assert given == [{"tags": {"by": "hand"}, "model_id": model.model_id, "await_creation_for": 0}]
    assert (version.name, version.source) == ("named", f"models:/{model.model_id}")
