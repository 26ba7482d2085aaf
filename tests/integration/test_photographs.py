"""Photographs of different sizes: each way from a file to probabilities resizes them alike."""

import base64

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.commands.main import run
from pipeline.data.decode import read_image, resize_to
from pipeline.tracking.tags import Tag
from tests.support.stores import tracking_store

SIZES = [(40, 24), (17, 50), (33, 33), (9, 8)]  # height, width
SETTINGS = {
    "image_size": "12,16",
    "patch_size": 4,
    "filters": 4,
    "epochs": 1,
    "batch_size": 8,
    "precision": "float32",
    "crop_scale": 0.5,
    "vertical_flip": "true",
}


def photograph(path, *seed, size):
    """Write a gradient with a bright frame, whose share of the picture depends on how that is resized."""
    random, (height, width) = np.random.default_rng(seed), size
    pixels = np.linspace(*random.uniform(0, 120, (2, 3)), height * width).reshape(height, width, 3)
    pixels[[0, 1, -2, -1]] = pixels[:, [0, 1, -2, -1]] = random.uniform(200, 255, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return two folders of photographs in class folders, to train on and others."""
    root = tmp_path_factory.mktemp("photographs")
    for number in range(24):
        for label, name in enumerate(("cat", "dog")):
            size = SIZES[number % len(SIZES)]
            photograph(root / "trained" / name / f"{number}.jpe", label, number, size=size)
            if number < 8:
                photograph(root / "others" / name / f"{number}.jfif", label, number + 100, size=size)
    return root / "trained", root / "others"


def train(**settings):
    return run(["train", "smoke", *(f"--{name}={value}" for name, value in (SETTINGS | settings).items())])


@pytest.fixture(scope="module")
def run_id(folders, tmp_path_factory):
    """Return the id of a run whose images are padded; its model is registered."""
    with tracking_store(tmp_path_factory.mktemp("tracking"), "photographs"):
        mlflow.set_experiment("photographs")
        assert train(dataset=folders[0], resize="pad", register_as="photos") == 0
        yield newest_run("run").info.run_id


def newest_run(role):
    (found,) = mlflow.search_runs(
        search_all_experiments=True, filter_string=f"tags.{Tag.ROLE} = '{role}'", output_format="list", max_results=1
    )
    return found


def read_table(run_id, path):
    return pd.read_csv(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{path}"))


def by_file(table, name, probability):
    probabilities = [pytest.approx(value, abs=2e-6) for value in table[probability]]
    return dict(zip(table["file"], zip(table[name], probabilities, strict=True), strict=True))


def evaluated(run_id, others):
    """Return the predicted class and its probability by the name of each file, as `evaluate` writes them."""
    arguments = ["--dataset", str(others), "--split", "all", "--corrupted_images", "2"]
    assert run(["evaluate", run_id, *arguments]) == 0
    table = read_table(run_id, "evaluation/others-all/predictions.csv")
    return by_file(table, "predicted_class", "probability_of_predicted_class")


def predicted(run_id, others, folder):
    """Return the same as `predict` writes it."""
    assert run(["predict", run_id, "--images", str(others), "--folder", str(folder)]) == 0
    table = read_table(newest_run("predict").info.run_id, "predictions.csv")
    return by_file(table, "class", "probability")


def test_evaluate_predict_and_the_served_model_give_each_photograph_the_same_probability(run_id, folders, tmp_path):
    _, others = folders
    names = sorted(str(file.relative_to(others)) for file in others.rglob("*.jfif"))
    served = mlflow.pyfunc.load_model("models:/photos@champion")

    def answers(images):
        return [(row["class"], row["probability"]) for row in served.predict({"image": images})]

    files = answers([base64.b64encode((others / name).read_bytes()).decode() for name in names])
    assert files == answers([np.asarray(Image.open(others / name)).tolist() for name in names])
    for expected in (evaluated(run_id, others), predicted(run_id, others, tmp_path)):
        assert files == [expected[name] for name in names] and len(expected) == 16
    network = mlflow.tensorflow.load_model(f"runs:/{run_id}/model")
    for resize, is_close in (("pad", True), ("crop", False), ("stretch", False)):
        pixels = [resize_to(read_image(str(others / name)), (12, 16, 3), resize) for name in names]
        probabilities = network.predict_on_batch(np.array(pixels)).max(axis=1)
        assert (abs(probabilities - [probability for _, probability in files]).max() < 1e-5) == is_close


@pytest.mark.slow
def test_run_that_starts_from_the_model_with_another_way_of_resizing_says_so(run_id, folders, capsys):
    assert train(dataset=folders[0], resize="crop", weights_from=run_id) == 0
    assert "all layers; resize crop instead of pad" in capsys.readouterr().out
