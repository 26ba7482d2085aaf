"""The seam where people predict images in files: the command, its table, its run, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.commands import predict as answers
from pipeline.commands.predict import main
from pipeline.tracking.tags import Tag
from tests.support.paths import ROOT
from tests.support.registered import CLASSES, NAME
from tests.support.stores import environment

COLOURS = {"red": (200, 30, 40), "green": (30, 200, 40), "blue": (30, 40, 200)}
CHAMPION = f"models:/{NAME}@champion"


def picture(path, colour, size=(20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS[colour]).save(path)


def newest():
    return mlflow.search_runs(search_all_experiments=True, output_format="list", max_results=1)[0]


def table(folder, run):
    return pd.read_csv(folder / run.info.run_id / "predictions.csv", keep_default_na=False)


@pytest.fixture
def predicted(registered_model, tmp_path, capsys, monkeypatch):
    """Predict what a test put into a folder: the exit code, the run, the table and what was printed."""
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)

    def predict(images, model=CHAMPION):
        code = main([model, "--images", str(images), "--folder", str(tmp_path / "out")])
        run = newest()
        return code, run, table(tmp_path / "out", run), capsys.readouterr()

    return predict


def test_mlflow_run_writes_a_table_here_and_into_a_run_of_its_own(registered_model, tmp_path):
    picture(tmp_path / "my images" / "one.png", "green")
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", "predict", "--env-manager", "local"]
    given = [f"model={CHAMPION}", f"images={tmp_path}/my images", f"folder={tmp_path}/out"]
    command += ["--experiment-name", "registering", *(word for pair in given for word in ("-P", pair))]
    done = subprocess.run(
        command,
        env=environment(registered_model.uri, "registering"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = newest()
    assert (run.info.status, run.data.tags[Tag.ROLE], run.data.tags[Tag.OUTCOME]) == ("FINISHED", "predict", "finished")
    assert run.data.tags["predict.trained_by"] == registered_model.run_id
    (row,) = table(tmp_path / "out", run).to_dict("records")
    assert (row["file"], row["class"], row["error"]) == ("one.png", "green", "") and row["probability"] > 0.9
    assert [row["class_2"], row["class_3"]] == ["blue", "red"] and row["probability_2"] > row["probability_3"]
    logged = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/predictions.csv")
    assert Path(logged).read_bytes() == (tmp_path / "out" / run.info.run_id / "predictions.csv").read_bytes()
    assert f"table    {tmp_path}/out/{run.info.run_id}/predictions.csv" in done.stdout
    assert "1 image predicted" in done.stdout


def test_folders_of_the_classes_names_give_accuracy_and_a_confusion_matrix(predicted, tmp_path):
    for number, (name, colour) in enumerate([("red", "red"), ("red", "blue"), ("green", "green"), ("blue", "blue")]):
        picture(tmp_path / "images" / name / f"{number}.jpg", colour)
    code, run, rows, said = predicted(tmp_path / "images")
    assert code == 0 and run.data.metrics == {"images": 4, "unreadable": 0, "accuracy": 0.75}
    assert rows[["truth", "class"]].values.tolist() == [
        ["blue", "blue"],
        ["green", "green"],
        ["red", "red"],
        ["red", "blue"],
    ]
    assert [file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id, "plots")] == [
        "plots/confusion_matrix.png"
    ]
    assert "accuracy 75.00% by the names of their folders" in said.out


def test_an_accuracy_is_of_the_images_in_folders_and_folders_of_other_names_are_told(predicted, tmp_path):
    picture(tmp_path / "images" / "loose.png", "blue")
    picture(tmp_path / "images" / "red" / "one.png", "red")
    code, run, rows, said = predicted(tmp_path / "images")
    assert code == 0 and run.data.metrics == {"images": 2, "unreadable": 0, "accuracy": 1.0}
    assert rows["truth"].tolist() == ["", "red"]
    assert "2 images predicted, accuracy 100.00% of 1 of them by the names of their folders" in said.out
    picture(tmp_path / "images" / "test" / "red.png", "red")
    code, run, _, said = predicted(tmp_path / "images")
    assert code == 0 and run.data.metrics == {"images": 3, "unreadable": 0}
    assert "no accuracy, as folders are not called as classes of the model: test\n" in said.out


def test_a_file_that_is_no_image_is_a_row_with_the_reason_and_the_others_are_predicted(predicted, tmp_path):
    picture(tmp_path / "images" / "good.png", "blue")
    (tmp_path / "images" / "bad.png").write_text("hello")
    code, run, rows, said = predicted(tmp_path / "images")
    assert code == 0 and run.data.metrics == {"images": 1, "unreadable": 1}
    assert rows["error"].tolist() == ["not a JPEG, PNG, BMP or WebP image", ""]
    assert rows["class"].tolist() == ["", "blue"] and set(rows["truth"]) == {""}
    assert "1 file could not be read" in said.out


def test_no_more_images_than_a_batch_are_in_memory_and_each_has_its_own_answer(predicted, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "BATCH", 4)
    read, sizes = answers.read_batch, []
    monkeypatch.setattr(answers, "read_batch", lambda files, *more: sizes.append(len(files)) or read(files, *more))
    colours = [CLASSES[number] for number in np.random.default_rng(0).integers(0, 3, 10)]
    for number, colour in enumerate(colours):
        picture(tmp_path / "images" / f"{number}.png", colour, size=(3 + number, 5))
    _, _, rows, _ = predicted(tmp_path / "images")
    assert rows["class"].tolist() == colours and sizes == [4, 4, 2]


def test_every_form_of_a_models_name_gives_the_same(predicted, registered_model, tmp_path):
    picture(tmp_path / "one.png", "red")
    _, _, rows, _ = predicted(tmp_path / "one.png", f"runs:/{registered_model.run_id}/model")
    assert rows.equals(predicted(tmp_path / "one.png", f"models:/{NAME}/1")[2])


def test_where_no_file_is_an_image_the_run_has_failed(registered_model, tmp_path, capsys):
    (tmp_path / "a.png").write_text("hello")
    assert main([CHAMPION, "--images", str(tmp_path), "--folder", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "error: at least one file must be an image, got 1 file: not a JPEG, PNG, BMP or WebP image\n"
    )
    assert newest().info.status == "FAILED"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name the model first: models:/NAME@champion, "),
        (
            ["digits"],
            "model must be models:/NAME@champion, models:/NAME/VERSION, runs:/RUN_ID/model or models:/m-ID, got",
        ),
        ([CHAMPION], "images must name an image or a folder of images, got none"),
        ([CHAMPION, "--images", "nowhere"], "images must be an existing file or folder, got "),
        ([CHAMPION, "--images", "a\0b"], "images must be an existing file or folder, got "),
        ([CHAMPION, "--images", str(ROOT / "pipeline")], "images must be a folder with JPEG, PNG, BMP or WebP files"),
        (
            ["models:/nothing@champion", "--images", str(ROOT / "README.md")],
            "model must be in this tracking store, got",
        ),
        ([CHAMPION, "--images", ".", "--foler", "x"], "unknown setting 'foler'; did you mean folder?"),
    ],
)
def test_what_cannot_be_predicted_is_refused_before_a_run_is_opened(registered_model, words, said, capsys):
    before = newest().info.run_id
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and len(error.splitlines()) == 1
    assert newest().info.run_id == before
