"""The page "Your own images", command by command: from a folder of photographs to a served fine-tuned model."""

import base64
import re
import shlex

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from PIL import Image

from pipeline.tracking.tags import Role, Tag
from tests.support.mlflow_project import run_project
from tests.support.paths import ROOT
from tests.support.servers import serve_model
from tests.support.stores import environment, tracking_store

pytestmark = pytest.mark.slow

EXPERIMENT = "flowers"
COLOURS = {"daisy": (230, 230, 230), "rose": (200, 40, 60), "tulip": (240, 200, 40)}
# Photographs have many sizes, and a test has seconds
SMALL = {"image_size": 16, "epochs": 3, "head_epochs": 1, "batch_size": 8, "trial_minutes": 5}
SEARCH = {"trials": 2, "final_top": 2, "final_seeds": 1, "filters": 8, "workers": 1, "epochs": 8}
SEARCH |= {"batch_norm_momentum": 0.5, "validation_fraction": 0.3, "learning_rate": 0.02}


def photograph(colour, seed):
    """Return a picture of coloured noise, in landscape or portrait format."""
    random = np.random.default_rng(seed)
    height, width = random.integers(24, 64, 2)
    noise = random.normal(0, 40, (height, width, 3))
    return Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


def write_photographs(folder, *, each, seed):
    for label, (name, colour) in enumerate(COLOURS.items()):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            photograph(colour, (seed, label, number)).save(folder / name / f"{number}.jpg")


def commands(page):
    """Return the parameters of each `mlflow run` of a page, with its entry point."""
    blocks = re.findall(r"```sh\n(.*?)```", page, flags=re.S)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("mlflow run . ")]
    return [
        (
            words[words.index("-e") + 1] if "-e" in words else "main",
            dict(words[place + 1].split("=", 1) for place, word in enumerate(words) if word == "-P"),
        )
        for words in lines
    ]


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """Runs every command of the page, after a model `cifar` was registered; yields its runs, images and store."""
    folder = tmp_path_factory.mktemp("images")
    write_photographs(folder / "flowers", each=24, seed=0)
    write_photographs(folder / "others", each=24, seed=1)
    with tracking_store(folder, EXPERIMENT) as uri, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTUNA_STORAGE", f"sqlite:///{folder}/optuna.db")
        network = {"filters": 8, "depth": 2, "kernel_size": 3, "patch_size": 4}
        source = {"recipe": "fine-tune", "dataset": folder / "others", "register_as": "cifar", **network, **SMALL}
        del source["trial_minutes"]
        assert run_project(uri, EXPERIMENT, **source).succeeded
        for entry_point, given in commands((ROOT / "docs" / "your-own-images.md").read_text()):
            parameters = given | SMALL | {"dataset": str(folder / "flowers")}
            parameters |= SEARCH if entry_point == "search" else {}
            for setting in ["trial_minutes"] if entry_point == "main" else ["head_epochs"]:
                del parameters[setting]
            result = run_project(uri, EXPERIMENT, entry_point=entry_point, **parameters)
            assert result.succeeded, f"{given}: {result.stdout}{result.stderr}"
        yield mlflow.search_runs(experiment_names=[EXPERIMENT], output_format="list"), folder, uri


def test_page_has_a_command_for_each_thing_that_it_is_about():
    settings = [set(given) for _, given in commands((ROOT / "docs" / "your-own-images.md").read_text())]
    for setting in ("weights_from", "sampling", "monitor", "folds", "refit", "ensemble", "register_as"):
        assert any(setting in given for given in settings), setting


def test_commands_of_the_page_leave_finished_runs_that_say_where_they_come_from(followed):
    runs, _, _ = followed
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    roles = [run.data.tags.get(Tag.ROLE) for run in runs]
    assert roles.count(Role.SEARCH) == 1 and roles.count(Role.RUN) >= 5
    trained = [run for run in runs if run.data.tags.get(Tag.ROLE) == Role.RUN]
    tuned = [run for run in trained if run.data.params["weights_from"] != "none"]
    assert tuned and all(run.data.tags[Tag.WEIGHTS_FROM].startswith("models:/") for run in tuned)


def test_served_model_classifies_photographs_of_any_size_as_predict_does(followed):
    _, folder, uri = followed
    predictions = folder / "predictions"
    result = run_project(
        uri,
        EXPERIMENT,
        entry_point="predict",
        model="models:/flowers@champion",
        images=folder / "flowers",
        folder=predictions,
    )
    assert result.succeeded, result.stderr
    (table,) = predictions.rglob("*.csv")
    expected = pd.read_csv(table)
    files = [folder / "flowers" / name / "0.jpg" for name in COLOURS]
    images = [[base64.b64encode(file.read_bytes()).decode()] for file in files]
    with serve_model("models:/flowers@champion", environment(uri, EXPERIMENT), folder) as url:
        answer = requests.post(url, json={"dataframe_split": {"columns": ["image"], "data": images}}, timeout=60)
    assert answer.ok, answer.text
    for file, served in zip(files, answer.json()["predictions"], strict=True):
        predicted = expected[expected["file"].str.endswith(f"{file.parent.name}/0.jpg")].iloc[0]
        assert served["class"] == predicted["class"]
        assert served["probability"] == pytest.approx(predicted["probability"], abs=2e-6)
