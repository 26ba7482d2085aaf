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


@pytest.mark.parametrize("kind", ["one_cycle", "cosine"])
def test_schedule_without_warmup_falls_from_its_peak_and_one_of_warmup_alone_rises_to_it(kind):
    schedule = LearningRateSchedule(kind, peak=1.0, steps=10_000, warmup_fraction=0.0)
    assert float(schedule(0)) == pytest.approx(1.0, abs=1e-3)
    if kind == "one_cycle":
        # two thirds of the way, linear in both parts
        assert float(schedule(3333)) == pytest.approx(1 - 0.475, abs=1e-3)
        assert float(schedule(6666)) == pytest.approx(0.05, abs=1e-3)
        assert float(schedule(8333)) == pytest.approx(0.025, abs=1e-3)
    rising = LearningRateSchedule(kind, peak=1.0, steps=10_000, warmup_fraction=0.999)
    assert float(rising(4995)) == pytest.approx(0.5, abs=1e-3)


def test_schedule_made_again_from_its_config_is_the_same():
    schedule = LearningRateSchedule("cosine", peak=0.5, steps=10, warmup_fraction=0.2)
    again = LearningRateSchedule.from_config(schedule.get_config())
    assert [float(again(step)) for step in range(10)] == [float(schedule(step)) for step in range(10)]
    assert schedule.get_config() == {"kind": "cosine", "peak": 0.5, "steps": 10, "warmup_fraction": 0.2}
