"""Ways of searching on recorded curves: that epochs are counted, and that this project's way keeps what it promises."""

import sys

import numpy as np
import pandas as pd
import pytest

from tests.support.paths import ROOT

BENCHMARKS = ROOT / "experiments" / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """The benchmark as a module: it is a script in a folder that is no package."""
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
    return bench.Recorded(pd.read_csv(bench.CURVES), bench.SETTINGS)


def test_the_recorded_curves_are_those_of_the_whole_grid(bench, recorded):
    many = np.prod([len(list(bench.values(of))) for of in bench.SPACE.values()])
    assert len(recorded.curves) == many == 45
    assert {len(curve) for curve in recorded.curves.values()} == {recorded.epochs} == {8}


def test_a_training_counts_when_it_is_paid_for(bench, recorded):
    for name, way in bench.WAYS.items():
        log = bench.Log()
        way(recorded, log, 0, 60)
        spent = [epochs for epochs, _ in log.found]
        assert spent == sorted(spent), name
        assert log.epochs >= max(spent) and spent[0] >= recorded.epochs, name
        assert log.best_after(spent[0] - 1) == 0
        assert log.epochs_until(log.best_after(log.epochs)) in spent


@pytest.mark.slow
def test_the_driver_needs_at_most_half_of_randoms_epochs_and_beats_optunas_defaults(bench, recorded):
    until = {}
    for name, way in bench.WAYS.items():
        logs = [bench.Log() for _ in range(bench.SEEDS)]
        for seed, log in enumerate(logs):
            way(recorded, log, seed, 2 * recorded.epochs * len(recorded.curves))
        until[name] = np.median([log.epochs_until(recorded.best - bench.NEAR) for log in logs])
    assert until["this driver"] <= until["random, no pruning"] / 2
    assert until["this driver"] < until["Optuna as in its Keras example"]
