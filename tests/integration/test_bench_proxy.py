"""An ablation study on the proxy resumes where it was interrupted."""

import sys

import pandas as pd
import pytest

from tests.support.paths import ROOT

BENCHMARKS = ROOT / "experiments" / "benchmarks"


@pytest.fixture(scope="module")
def proxy():
    """Yield the benchmark as a module: it is a script in a folder that is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.delitem(sys.modules, "proxy", raising=False)
        import proxy

        yield proxy
        sys.modules.pop("proxy", None)


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
