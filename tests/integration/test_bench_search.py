"""The benchmark of search strategies counts epochs right, and this project's search needs few of them."""

import sys

import numpy as np
import pandas as pd
import pytest

from tests.support.paths import ROOT

BENCHMARKS = ROOT / "experiments" / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """Yield the benchmark as a module: it is a script in a folder that is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        for name in ("search", "replay"):
            patch.delitem(sys.modules, name, raising=False)
        import search

        yield search
        for name in ("search", "replay"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def recorded(bench):
    return bench.RecordedCurves(pd.read_csv(bench.CURVES), bench.SETTINGS)


def test_recorded_curves_cover_the_whole_grid(bench, recorded):
    configurations = np.prod([len(list(bench.values(distribution))) for distribution in bench.SPACE.values()])
    assert len(recorded.curves) == configurations == 45
    assert {len(curve) for curve in recorded.curves.values()} == {recorded.epochs} == {8}


def test_search_log_credits_a_training_only_when_its_epochs_are_spent(bench, recorded):
    for name, run in bench.STRATEGIES.items():
        log = bench.SearchLog()
        run(recorded, log, 0, 60)
        spent = [epochs for epochs, _ in log.finished]
        assert spent == sorted(spent), name
        assert log.epochs >= max(spent) and spent[0] >= recorded.epochs, name
        assert log.best_after(spent[0] - 1) == 0
        assert log.epochs_until(log.best_after(log.epochs)) in spent


@pytest.mark.slow
def test_search_loop_needs_half_of_randoms_epochs_and_fewer_than_optunas_defaults(bench, recorded):
    epochs = {}
    for name, run in bench.STRATEGIES.items():
        logs = [bench.SearchLog() for _ in range(bench.SEEDS)]
        for seed, log in enumerate(logs):
            run(recorded, log, seed, 2 * recorded.epochs * len(recorded.curves))
        epochs[name] = np.median([log.epochs_until(recorded.best_accuracy - bench.TOLERANCE) for log in logs])
    assert epochs["this project"] <= epochs["random, no pruning"] / 2
    assert epochs["this project"] < epochs["Optuna's Keras example"]
