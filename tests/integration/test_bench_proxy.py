"""Studies on a proxy go on where they were cut off."""

import sys

import pandas as pd
import pytest

from tests.support.paths import ROOT

BENCHMARKS = ROOT / "experiments" / "benchmarks"


@pytest.fixture(scope="module")
def proxy():
    """The benchmark as a module: it is a script in a folder that is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.delitem(sys.modules, "proxy", raising=False)
        import proxy

        yield proxy
        sys.modules.pop("proxy", None)


def test_what_stands_in_the_file_is_not_trained_again(proxy, tmp_path, capsys):
    begun = []

    def train(variant: str, seed: int) -> pd.DataFrame:
        if len(begun) == 2:
            raise KeyboardInterrupt
        begun.append((variant, seed))
        return pd.DataFrame({"epoch": [1, 2], "val_accuracy": [0.5, 0.25]})

    with pytest.raises(KeyboardInterrupt):
        proxy.kept(tmp_path / "runs.csv", ("a", "b"), 2, train)
    cut_off, begun[:] = begun[:], []
    runs = proxy.kept(tmp_path / "runs.csv", ("a", "b"), 2, train)
    assert (cut_off, begun) == ([("a", 0), ("b", 0)], [("a", 1), ("b", 1)])
    assert list(runs[["variant", "seed", "epoch"]].itertuples(index=False, name=None)) == [
        (variant, seed, epoch) for seed in (0, 1) for variant in ("a", "b") for epoch in (1, 2)
    ]
    assert pd.read_csv(tmp_path / "runs.csv").equals(runs.reset_index(drop=True))
    assert "a, seed 0: 50.00 %" in capsys.readouterr().out
