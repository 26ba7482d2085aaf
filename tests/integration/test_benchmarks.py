"""Benchmarks: the ablation study resumes where it was interrupted; searches count epochs right and need few of them."""

import importlib
import sys

import numpy as np
import pandas as pd
import pytest

from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def benchmark_module():
    """Return a function that imports a benchmark by name: it is a script in a folder that is no package."""
    names = ("proxy", "search", "replay")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments" / "benchmarks"))
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def proxy(benchmark_module):
    return benchmark_module("proxy")


@pytest.fixture(scope="module")
def search(benchmark_module):
    return benchmark_module("search")


def test_ablation_resumed_trains_only_what_is_not_in_its_file(proxy, tmp_path, capsys):
    trained = []

    def train(variant: str, seed: int) -> pd.DataFrame:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append((variant, seed))
        return pd.DataFrame({"epoch": [1, 2], "val_accuracy": [0.5, 0.25]})

    with pytest.raises(KeyboardInterrupt):
        proxy.train_missing(tmp_path / "runs.csv", ("a", "b"), 2, train)
    before_interrupt, trained[:] = trained[:], []
    history = proxy.train_missing(tmp_path / "runs.csv", ("a", "b"), 2, train)
    assert (before_interrupt, trained) == ([("a", 0), ("b", 0)], [("a", 1), ("b", 1)])
    assert list(history[["variant", "seed", "epoch"]].itertuples(index=False, name=None)) == [
        (variant, seed, epoch) for seed in (0, 1) for variant in ("a", "b") for epoch in (1, 2)
    ]
    assert pd.read_csv(tmp_path / "runs.csv").equals(history.reset_index(drop=True))
    assert "a, seed 0: 50.00 %" in capsys.readouterr().out


@pytest.fixture(scope="module")
def recorded(search):
    return search.RecordedCurves(pd.read_csv(search.CURVES), search.SETTINGS)


def test_recorded_curves_cover_the_whole_grid(search, recorded):
    configurations = np.prod([len(list(search.values(distribution))) for distribution in search.SPACE.values()])
    assert len(recorded.curves) == configurations == 45
    assert {len(curve) for curve in recorded.curves.values()} == {recorded.epochs} == {8}


def test_search_log_credits_a_training_only_when_its_epochs_are_spent(search, recorded):
    for name, run in search.STRATEGIES.items():
        log = search.SearchLog()
        run(recorded, log, 0, 60)
        spent = [epochs for epochs, _ in log.finished]
        assert spent == sorted(spent), name
        assert log.epochs >= max(spent) and spent[0] >= recorded.epochs, name
        assert log.best_after(spent[0] - 1) == 0
        assert log.epochs_until(log.best_after(log.epochs)) in spent


@pytest.mark.slow
def test_search_loop_needs_half_of_randoms_epochs_and_fewer_than_optunas_defaults(search, recorded):
    epochs = {}
    for name, run in search.STRATEGIES.items():
        logs = [search.SearchLog() for _ in range(search.SEEDS)]
        for seed, log in enumerate(logs):
            run(recorded, log, seed, 2 * recorded.epochs * len(recorded.curves))
        epochs[name] = np.median([log.epochs_until(recorded.best_accuracy - search.TOLERANCE) for log in logs])
    assert epochs["this project"] <= epochs["random, no pruning"] / 2
    assert epochs["this project"] < epochs["Optuna's Keras example"]
