"""The ensemble of a search's finalists against its winner, and on the test set."""

import numpy as np
import pytest

from pipeline.config.training import DataConfig, TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.evaluation.metrics import ClassCounts, balanced_accuracy, confusion_matrix, macro_f1
from pipeline.evaluation.significance import mcnemar_exact
from pipeline.model.conv_mixer import build_stock_model
from pipeline.tracking.test_set_access import access_count
from pipeline.training import benchmark
from pipeline.training.checkpoint import write_weights
from pipeline.training.ensemble import compare, evaluate_ensemble, load_ensemble, measure_ensemble
from tests.unit.training.test_results import RecordingRun


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(dataset="digits", train_examples=200), seed=0)


@pytest.fixture(scope="module")
def members():
    """The settings of three networks, of which two have other shapes of weights."""
    return tuple(
        TrainingConfig.build({"dataset": "digits", "filters": filters, "depth": depth, "kernel_size": 3})
        for filters, depth in ((6, 1), (4, 2), (6, 1))
    )


@pytest.fixture(scope="module")
def networks(members):
    random = np.random.default_rng(0)
    models = [build_stock_model(config.model, (8, 8, 1), 10) for config in members]
    for model in models:
        model.set_weights([random.uniform(-1, 1, weight.shape) ** 2 for weight in model.get_weights()])
    return models


@pytest.fixture(scope="module")
def weights(networks, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "ensemble.weights.npz"
    write_weights(path, [array for network in networks for array in network.get_weights()])
    return path


def test_load_ensemble_gives_each_network_its_weights(digits, members, networks, weights):
    images, _ = digits.test.take(np.arange(5))
    expected = np.mean([network.predict_on_batch(images) for network in networks], axis=0)
    ensemble = load_ensemble(members, digits, weights)
    np.testing.assert_allclose(ensemble.predict_on_batch(images), expected, atol=1e-6)


def test_measure_ensemble_compares_it_with_the_first_network_on_validation_alone(
    digits, members, networks, weights, capsys
):
    run = RecordingRun()
    results = measure_ensemble(run, members[0], members, digits, weights, metric="val_accuracy")
    images, labels = digits.validation.take(np.arange(len(digits.validation)))
    alone = networks[0].predict(images, verbose=0)
    together = np.mean([network.predict(images, verbose=0) for network in networks], axis=0)
    assert results["winner_val_accuracy"] == pytest.approx((alone.argmax(axis=1) == labels).mean())
    assert results["val_accuracy"] == pytest.approx((together.argmax(axis=1) == labels).mean())
    assert results["p_value"] == pytest.approx(compare("val_accuracy", together, alone, labels))
    names = {"val_accuracy", "val_loss", "val_balanced_accuracy", "val_macro_f1"}
    assert results.keys() == names | {f"winner_{name}" for name in names} | {"p_value", "parameters"}
    for prefix, probabilities in (("", together), ("winner_", alone)):
        of_label = np.clip(probabilities[np.arange(len(labels)), labels], np.finfo(np.float32).tiny, 1)
        assert results[f"{prefix}val_loss"] == pytest.approx(-np.log(of_label).mean(), rel=1e-4)
        counts = ClassCounts.of_confusion(confusion_matrix(probabilities, labels))
        assert results[f"{prefix}val_balanced_accuracy"] == pytest.approx(balanced_accuracy(counts))
        assert results[f"{prefix}val_macro_f1"] == pytest.approx(macro_f1(counts))
    predictions = run.tables["validation_predictions.csv"]
    assert predictions["predicted"].tolist() == together.argmax(axis=1).tolist()
    (save,) = run.models
    np.testing.assert_allclose(save.keywords["model"].predict_on_batch(images[:5]), together[:5], atol=1e-6)
    assert save.keywords["classes"] == digits.classes
    np.testing.assert_array_equal(save.keywords["example"], images[:1])
    assert capsys.readouterr() == ("", "")
    assert results["parameters"] == sum(network.count_params() for network in networks)
    assert run.results == results and len(run.models) == 1
    assert list(run.tables) == ["validation_predictions.csv", "validation_per_class.csv"] and not run.tags


@pytest.mark.parametrize("register_as", [None, "numbers"])
def test_evaluate_ensemble_opens_the_test_set_once(digits, members, networks, weights, monkeypatch, register_as):
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    run, config = RecordingRun(), members[0].model_copy(update={"register_as": register_as})
    results = evaluate_ensemble(run, config, members, digits, weights)
    assert access_count(run.tags, run_id=run.id, tested=False) == 1
    assert {"test_accuracy", "test_loss"} <= results.keys() and len(run.tables["test_predictions.csv"]) == 180
    assert len(run.models) == 1 and len(run.registered) == bool(register_as)
    assert run.results == results
    images, labels = digits.test.take(slice(None))
    (save,) = run.models
    together = save.keywords["model"].predict_on_batch(images)
    assert results["test_accuracy"] == pytest.approx((together.argmax(axis=1) == labels).mean())
    assert (results.keys() & {"parameters", "latency_ms"}) == ({"parameters", "latency_ms"} if register_as else set())
    if register_as:
        ((name, save, classes, tags),) = run.registered
        assert (name, classes) == ("numbers", digits.classes)
        assert results["parameters"] == sum(network.count_params() for network in networks)
        assert tags["parameters"] == f"{results['parameters']:.6g}"
        assert tags["latency_ms"] == f"{results['latency_ms']:.6g}"
        np.testing.assert_allclose(save.keywords["model"].predict_on_batch(images), together, atol=1e-6)


def test_compare_is_mcnemars_test_for_accuracy_and_a_bootstrap_for_the_loss():
    labels = np.zeros(40, np.int64)
    right, wrong = [0.9, 0.1], [0.4, 0.6]
    first = np.array([right] * 40)
    second = np.array([right] * 30 + [wrong] * 10)
    assert compare("val_accuracy", first, second, labels) == mcnemar_exact(10, 0) < 0.01
    assert compare("val_loss", first, second, labels) < 0.01
    assert compare("val_loss", first, first, labels) == 1
    assert compare("val_accuracy", second, first, labels) == mcnemar_exact(0, 10)
    # 27 and 10 are right where the other one is wrong
    third = np.array([wrong] * 27 + [right] * 13)
    assert compare("val_accuracy", second, third, labels) == mcnemar_exact(27, 10) != mcnemar_exact(30, 13)
