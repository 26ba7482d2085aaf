"""A search that hands over a refit of its winner, with the ensemble of its finalists beside it: loaded and used."""

import mlflow
import numpy as np
import pytest

from pipeline.commands import main
from pipeline.tracking.tags import Role, Tag
from tests.support.stores import tracking_store

EXPERIMENT = "handed over"
SEARCH = """\
recipe: smoke
epochs: 1
batch_size: 20
batch_norm_momentum: 0.5
trials: 2
sampler: grid
final_top: 2
final_seeds: 1
refit: true
ensemble: beside
register_as: handed-over
space: {depth: [1, 2]}
"""


@pytest.fixture(scope="module")
def handed_over(tmp_path_factory):
    """Search to the end, and return the runs by their role: of the search, the refit and the ensemble."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "mini.yaml").write_text(SEARCH)
    with tracking_store(folder, EXPERIMENT):
        flags = ["--storage", f"sqlite:///{folder}/optuna.db", "--experiment", EXPERIMENT]
        assert main.run(["search", str(folder / "mini.yaml"), *flags]) == 0
        runs = mlflow.search_runs(experiment_names=[EXPERIMENT], output_format="list")
        (search,) = (run for run in runs if run.data.tags[Tag.ROLE] == Role.SEARCH)
        (ensemble,) = (run for run in runs if run.data.tags[Tag.ROLE] == Role.ENSEMBLE)
        (refit,) = (run for run in runs if run.data.params.get("refit") == "true" and run is not search)
        yield search, refit, ensemble


@pytest.mark.slow
def test_search_with_refit_and_ensemble_opens_the_test_set_once(handed_over, capsys, tmp_path):
    search, refit, ensemble = handed_over
    assert refit.data.tags[Tag.WINNER] == search.data.tags[Tag.WINNER] == refit.info.run_id
    assert search.data.tags[Tag.TEST_SET_ACCESSES] == refit.data.tags[Tag.TEST_SET_ACCESSES] == "1"
    assert refit.data.tags[Tag.REFIT] and not [name for name in refit.data.metrics if "val_" in name]
    assert not [name for name in ensemble.data.metrics if name.startswith("test_")]
    assert {"val_accuracy", "val_loss", "winner_val_accuracy", "p_value"} <= ensemble.data.metrics.keys()
    assert search.data.metrics["ensemble_val_accuracy"] == ensemble.data.metrics["val_accuracy"]

    served = mlflow.pyfunc.load_model("models:/handed-over@champion")
    (answer,) = served.predict({"image": [np.zeros((8, 8, 1)).tolist()]})
    assert len(answer["probabilities"]) == 10
    model = mlflow.keras.load_model(f"runs:/{ensemble.info.run_id}/model")
    images = np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 1)).astype(np.float32)
    members = [layer for layer in model.layers if layer.name.startswith("member")]
    mean = np.mean([member.predict(images, verbose=0) for member in members], axis=0)
    np.testing.assert_allclose(model.predict(images, verbose=0), mean, atol=1e-6)

    assert main.run(["evaluate", refit.info.run_id, "--split", "validation"]) == 2
    assert "got the validation images of digits, its training data; try split=test" in capsys.readouterr().err
    arguments = ["--split", "validation", "--corrupted_images", "10"]
    assert main.run(["evaluate", ensemble.info.run_id, *arguments]) == 0
    accuracy = mlflow.get_run(ensemble.info.run_id).data.metrics["evaluation/digits-validation/accuracy"]
    assert accuracy == pytest.approx(ensemble.data.metrics["val_accuracy"])

    assert main.run(["report", EXPERIMENT, "--folder", str(tmp_path)]) == 0
    (page,) = tmp_path.rglob("report.html")
    for badge in ("winner", "refit", "ensemble"):
        assert page.read_text().count(f'<span class="badge">{badge}</span>') == 1
