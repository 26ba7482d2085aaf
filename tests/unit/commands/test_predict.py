"""The command `predict`: its table, its run, and what it refuses."""

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.commands import predict
from pipeline.commands.main import run
from pipeline.tracking.tags import Tag
from tests.support.mlflow_project import run_project
from tests.support.paths import ROOT
from tests.support.registered_model import CLASSES, NAME

COLORS = {"red": (200, 30, 40), "green": (30, 200, 40), "blue": (30, 40, 200)}
CHAMPION = f"models:/{NAME}@champion"


def save_image(path, color, size=(20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLORS[color]).save(path)


def newest_run():
    return mlflow.search_runs(search_all_experiments=True, output_format="list", max_results=1)[0]


def read_table(folder, run):
    return pd.read_csv(folder / run.info.run_id / "predictions.csv", keep_default_na=False)


@pytest.fixture
def run_predict(registered_model, tmp_path, capsys, monkeypatch):
    """Run the command: the exit code, its run, its table and its output."""
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)

    def run_command(images, model=CHAMPION):
        code = run(["predict", model, "--images", str(images), "--folder", str(tmp_path / "out")])
        own_run = newest_run()
        return code, own_run, read_table(tmp_path / "out", own_run), capsys.readouterr().out

    return run_command


def test_predict_started_by_mlflow_run_writes_and_logs_a_table(registered_model, tmp_path):
    save_image(tmp_path / "my images" / "one.png", "green")
    parameters = {"model": CHAMPION, "images": f"{tmp_path}/my images", "folder": f"{tmp_path}/out"}
    result = run_project(registered_model.uri, "registering", entry_point="predict", **parameters)
    assert result.succeeded, result.stderr
    own_run = newest_run()
    tags = own_run.data.tags
    assert (own_run.info.status, tags[Tag.ROLE], tags[Tag.OUTCOME]) == ("FINISHED", "predict", "finished")
    assert tags[Tag.PREDICT_TRAINED_BY] == tags[Tag.PARENT_RUN_ID] == registered_model.run_id
    (row,) = read_table(tmp_path / "out", own_run).to_dict("records")
    assert (row["file"], row["class"], row["error"]) == ("one.png", "green", "") and row["probability"] > 0.9
    assert [row["class_2"], row["class_3"]] == ["blue", "red"] and row["probability_2"] > row["probability_3"]
    logged = mlflow.artifacts.download_artifacts(f"runs:/{own_run.info.run_id}/predictions.csv")
    written = tmp_path / "out" / own_run.info.run_id / "predictions.csv"
    assert Path(logged).read_bytes() == written.read_bytes()
    assert f"table    {written}" in result.stdout
    assert "1 image predicted" in result.stdout
    assert "oneDNN" not in result.stderr, "TensorFlow's start-up lines are kept from the terminal"


def test_predict_of_folders_with_class_names_logs_accuracy_and_confusion_matrix(run_predict, tmp_path):
    for number, (name, color) in enumerate([("red", "red"), ("red", "blue"), ("green", "green"), ("blue", "blue")]):
        save_image(tmp_path / "images" / name / f"{number}.jpg", color)
    code, own_run, table, output = run_predict(tmp_path / "images")
    assert code == 0 and own_run.data.metrics == {"images": 4, "unreadable": 0, "accuracy": 0.75}
    assert table[["truth", "class"]].values.tolist() == [
        ["blue", "blue"],
        ["green", "green"],
        ["red", "red"],
        ["red", "blue"],
    ]
    plots = [file.path for file in mlflow.MlflowClient().list_artifacts(own_run.info.run_id, "plots")]
    assert plots == ["plots/confusion_matrix.png", "plots/confusion_matrix.svg"]
    assert "accuracy 75.00 % by the names of their folders" in output


def test_predict_measures_accuracy_on_images_in_class_folders_only(run_predict, tmp_path):
    save_image(tmp_path / "images" / "loose.png", "blue")
    save_image(tmp_path / "images" / "red" / "one.png", "red")
    code, own_run, table, output = run_predict(tmp_path / "images")
    assert code == 0 and own_run.data.metrics == {"images": 2, "unreadable": 0, "accuracy": 1.0}
    assert table["truth"].tolist() == ["", "red"]
    assert "2 images predicted, accuracy 100.00 % of 1 of them by the names of their folders" in output


def test_predict_with_a_folder_of_another_name_logs_no_accuracy(run_predict, tmp_path):
    save_image(tmp_path / "images" / "loose.png", "blue")
    save_image(tmp_path / "images" / "red" / "one.png", "red")
    save_image(tmp_path / "images" / "test" / "red.png", "red")
    code, own_run, _, output = run_predict(tmp_path / "images")
    assert code == 0 and own_run.data.metrics == {"images": 3, "unreadable": 0}
    assert "no accuracy: these folders do not have the names of classes: test\n" in output


def test_predict_of_a_file_that_is_no_image_writes_the_reason_and_predicts_the_others(run_predict, tmp_path):
    save_image(tmp_path / "images" / "good.png", "blue")
    (tmp_path / "images" / "bad.png").write_text("hello")
    code, own_run, table, output = run_predict(tmp_path / "images")
    assert code == 0 and own_run.data.metrics == {"images": 1, "unreadable": 1}
    assert table["error"].tolist() == ["not a JPEG, PNG, TIFF, GIF, WebP, BMP or PNM image", ""]
    assert table["class"].tolist() == ["", "blue"] and set(table["truth"]) == {""}
    assert "1 file could not be read" in output


def test_predict_writes_no_cell_that_a_spreadsheet_would_evaluate(run_predict, tmp_path):
    save_image(tmp_path / "images" / "=1+1.png", "red")
    assert run_predict(tmp_path / "images")[2]["file"].tolist() == ["'=1+1.png"]


def test_predict_of_twelve_bits_in_sixteen_warns_unless_one_uses_them(registered_model, tmp_path, capsys):
    wide = np.arange(256, dtype=np.uint16).reshape(16, 16) * 16
    images = tmp_path / "images"
    images.mkdir()
    command = ["predict", CHAMPION, "--images", str(images), "--folder", str(tmp_path / "out")]
    for name, factor, warned in (("dark.png", 1, True), ("bright.png", 16, False)):
        Image.fromarray(wide * factor).save(images / name)
        assert run(command) == 0
        assert ("warning: images of 16 bits must use them" in capsys.readouterr().err) is warned


def test_predict_reads_one_batch_of_images_at_a_time(run_predict, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "BATCH_SIZE", 4)
    read, sizes = predict.read_batch, []
    monkeypatch.setattr(predict, "read_batch", lambda files, *more: sizes.append(len(files)) or read(files, *more))
    colors = [CLASSES[number] for number in np.random.default_rng(0).integers(0, 3, 10)]
    for number, color in enumerate(colors):
        save_image(tmp_path / "images" / f"{number}.png", color, size=(3 + number, 5))
    _, _, table, _ = run_predict(tmp_path / "images")
    assert table["class"].tolist() == colors and sizes == [4, 4, 2]


def test_predict_gives_the_same_table_for_each_name_of_a_model(run_predict, registered_model, tmp_path, monkeypatch):
    save_image(tmp_path / "one.png", "red")
    _, _, table, _ = run_predict(tmp_path / "one.png", f"runs:/{registered_model.run_id}/model")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "registering")
    for model in (f"models:/{NAME}/1", registered_model.run_id, "latest"):
        _, own_run, same, _ = run_predict(tmp_path / "one.png", model)
        assert table.equals(same)
        assert own_run.data.tags[Tag.PARENT_RUN_ID] == registered_model.run_id


def test_predict_with_the_model_of_a_deleted_run_is_in_an_experiment_of_predictions(
    run_predict, registered_model, tmp_path
):
    save_image(tmp_path / "one.png", "red")
    mlflow.delete_run(registered_model.run_id)
    try:
        code, own_run, _, _ = run_predict(tmp_path / "one.png")
    finally:
        mlflow.MlflowClient().restore_run(registered_model.run_id)
    assert code == 0 and Tag.PARENT_RUN_ID not in own_run.data.tags
    assert mlflow.get_experiment(own_run.info.experiment_id).name == "predictions"


def test_predict_whose_table_the_artifact_store_refuses_says_where_it_is(
    registered_model, tmp_path, capsys, monkeypatch
):
    save_image(tmp_path / "one.png", "red")
    (tmp_path / "file").touch()
    experiment_id = mlflow.create_experiment("unwritable", artifact_location=str(tmp_path / "file" / "artifacts"))
    monkeypatch.setattr(predict, "_place", lambda client, model: (None, experiment_id))
    assert run(["predict", CHAMPION, "--images", str(tmp_path / "one.png"), "--folder", str(tmp_path / "out")]) == 2
    printed, own_run = capsys.readouterr(), newest_run()
    (line,) = printed.err.splitlines()
    assert line.startswith(f"error: the artifacts of a run must be writable: {tmp_path}/file/artifacts/")
    assert read_table(tmp_path / "out", own_run)["class"].tolist() == ["red"]
    assert f"table    {tmp_path / 'out' / own_run.info.run_id / 'predictions.csv'}" in printed.out.splitlines()
    assert own_run.info.status == "FAILED"


def test_predict_of_no_image_at_all_fails_the_run(registered_model, tmp_path, capsys):
    (tmp_path / "a.png").write_text("hello")
    assert run(["predict", CHAMPION, "--images", str(tmp_path), "--folder", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "error: at least one file must be an image, got 1 file: not a JPEG, PNG, TIFF, GIF, WebP, BMP or PNM image\n"
    )
    assert newest_run().info.status == "FAILED"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name the model first: models:/NAME@ALIAS, "),
        (["digits"], "model must be models:/NAME@ALIAS, models:/m-ID, runs:/RUN_ID/model, a run's id, or latest, got"),
        ([CHAMPION], "images must name an image or a folder of images, got none"),
        ([CHAMPION, "--images", "nowhere"], "images must be an existing file or folder, got "),
        ([CHAMPION, "--images", "a\0b"], "images must be an existing file or folder, got "),
        (
            [CHAMPION, "--images", str(ROOT / "pipeline")],
            "images must be a folder with JPEG, PNG, TIFF, ",
        ),
        (
            ["models:/nothing@champion", "--images", str(ROOT / "README.md")],
            "model must be in this tracking store, got",
        ),
        ([CHAMPION, "--images", ".", "--foler", "x"], "unknown setting 'foler'; did you mean folder?"),
    ],
)
def test_predict_with_invalid_input_is_refused_before_a_run_is_opened(registered_model, words, message, capsys):
    before = newest_run().info.run_id
    assert run(["predict", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and len(error.splitlines()) == 1
    assert newest_run().info.run_id == before
