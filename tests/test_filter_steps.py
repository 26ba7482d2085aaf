"""When the filters of a run are kept, and what of them is found again."""

import numpy as np
import pytest

from pipeline.filter_steps import FilterSteps, epochs_drawn


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"),
    [
        (100, 5, [1, 3, 10, 32, 100]),
        (4, 24, [1, 2, 3, 4]),  # an epoch is drawn once
        (100, 1, [100]),
        (100, 0, []),
        (1, 5, [1]),
    ],
)
def test_the_first_and_the_last_epoch_are_drawn_and_early_ones_closer(epochs, steps, expected):
    assert epochs_drawn(epochs, steps) == expected


def test_a_process_that_goes_on_finds_what_the_one_before_it_kept(tmp_path):
    before = FilterSteps(tmp_path / "run", epochs=4, steps=4)
    before.keep(1, np.full((3, 3, 2, 1), 1.5))
    (tmp_path / "run" / "filters-000002.part").write_bytes(b"a kill in mid-write leaves this")
    after = FilterSteps(tmp_path / "run", epochs=4, steps=4)
    after.keep(2, np.full((3, 3, 2, 1), 2.5))
    assert {epoch: kernels.mean() for epoch, kernels in after.kept().items()} == {1: 1.5, 2: 2.5}


def test_nothing_is_kept_unless_it_is_asked_for(tmp_path):
    steps = FilterSteps(tmp_path / "run", epochs=10, steps=0)
    assert not any(steps.wants(epoch) for epoch in range(1, 11)) and steps.kept() == {}


def test_a_full_disk_costs_the_picture_and_not_the_run(tmp_path, caplog):
    (tmp_path / "run").write_text("a file where the folder should be")
    FilterSteps(tmp_path / "run", epochs=4, steps=4).keep(1, np.zeros((3, 3, 2, 1)))
    assert "the filters of epoch 1 could not be kept" in caplog.text
