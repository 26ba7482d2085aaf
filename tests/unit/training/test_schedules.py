"""Learning-rate schedules."""

import numpy as np
import pytest

from pipeline.training.schedules import LearningRateSchedule


def rates(kind, *, steps=1000, warmup_fraction=0.4):
    schedule = LearningRateSchedule(kind, peak=0.05, steps=steps, warmup_fraction=warmup_fraction)
    return np.array([float(schedule(step)) for step in range(0, steps, max(1, steps // 100))])


def test_one_cycle_with_a_warmup_of_0_4_equals_the_authors_schedule():
    # locuslab/convmixer-cifar10: np.interp(t, [0, epochs*2//5, epochs*4//5, epochs], [0, max, max/20, 0])
    middle_of_step = (np.arange(0, 1000, 10) + 0.5) / 1000
    np.testing.assert_allclose(
        rates("one_cycle"), np.interp(middle_of_step, [0, 0.4, 0.8, 1], [0, 0.05, 0.0025, 0]), rtol=1e-4, atol=1e-8
    )


def test_cosine_is_at_half_its_peak_midway_after_the_warmup():
    schedule = LearningRateSchedule("cosine", peak=1.0, steps=1000, warmup_fraction=0.2)
    assert float(schedule(99)) == pytest.approx(99.5 / 200, abs=1e-6)
    assert float(schedule(200)) == pytest.approx(1.0, abs=1e-3)
    assert float(schedule(600)) == pytest.approx(0.5, abs=1e-2)
    assert float(schedule(999)) == pytest.approx(0.0, abs=1e-3)


def test_constant_is_the_peak_at_every_step():
    assert set(rates("constant")) == {np.float32(0.05)}


@pytest.mark.parametrize("kind", ["constant", "one_cycle", "cosine"])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_every_schedule_is_above_zero_and_at_most_its_peak_at_every_step(kind, warmup_fraction, steps):
    values = rates(kind, steps=steps, warmup_fraction=warmup_fraction)
    assert np.all(values > 0) and np.all(values <= 0.05 + 1e-9)
