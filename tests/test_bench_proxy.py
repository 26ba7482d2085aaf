"""Studies on a proxy go on where they were cut off; a compression moves no pixel, and lets detail go."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parent.parent / "experiments" / "benchmarks"
NAMES = ("gap", "proxy")


@pytest.fixture(scope="module")
def gap():
    """The benchmark as a module: it is a script in a folder that is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        for name in NAMES:
            patch.delitem(sys.modules, name, raising=False)
        import gap

        yield gap
        for name in NAMES:
            sys.modules.pop(name, None)


def test_what_stands_in_the_file_is_not_trained_again(gap, tmp_path, capsys):
    begun = []

    def train(variant: str, seed: int) -> pd.DataFrame:
        if len(begun) == 2:
            raise KeyboardInterrupt
        begun.append((variant, seed))
        return pd.DataFrame({"epoch": [1, 2], "val_accuracy": [0.5, 0.25]})

    with pytest.raises(KeyboardInterrupt):
        gap.proxy.kept(tmp_path / "runs.csv", ("a", "b"), 2, train)
    cut_off, begun[:] = begun[:], []
    runs = gap.proxy.kept(tmp_path / "runs.csv", ("a", "b"), 2, train)
    assert (cut_off, begun) == ([("a", 0), ("b", 0)], [("a", 1), ("b", 1)])
    assert list(runs[["variant", "seed", "epoch"]].itertuples(index=False, name=None)) == [
        (variant, seed, epoch) for seed in (0, 1) for variant in ("a", "b") for epoch in (1, 2)
    ]
    assert pd.read_csv(tmp_path / "runs.csv").equals(runs.reset_index(drop=True))
    assert "a, seed 0: 50.00 %" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(32, 32, 3), (20, 45, 3)])
def test_a_compression_keeps_an_image_in_its_place(gap, shape):
    rows, columns = np.indices(shape[:2])
    smooth = np.stack([4 * rows, 4 * columns, np.full(shape[:2], 90)], axis=2).astype(np.uint8)
    assert gap.compressed(smooth).shape == shape
    assert np.abs(gap.compressed(smooth).astype(int) - smooth).mean() < 3


def test_a_compression_lets_detail_go_on_a_grid_of_its_own(gap):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    once = gap.compressed(noise)
    first, second = (np.abs(a.astype(int) - b).mean() for a, b in ((noise, once), (once, gap.compressed(once))))
    assert first > second > 0
