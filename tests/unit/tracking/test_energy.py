"""Tests of the energy that a run logs; the counters are scripted, the store is real."""

import math
from types import SimpleNamespace

import mlflow
import pytest

from pipeline.runtime.energy import JOULES_PER_KWH, Counter, EnergyMeter
from pipeline.runtime.errors import Unavailable
from pipeline.tracking import energy, ownership
from pipeline.tracking.energy import log_energy
from pipeline.tracking.lifecycle import start_run
from pipeline.tracking.outbox import records
from pipeline.tracking.tags import Role, Tag
from tests.support.sleepers import wait_for


@pytest.fixture(autouse=True)
def no_other_machines(monkeypatch):
    """Do not wait for the claims of other machines."""
    monkeypatch.setattr(ownership, "CLAIM_SECONDS", 0.0)


def make_meter(watt_hours=1.0, name="package-0"):
    """Return a meter to which each sample brings so much; minutes seem to lie between them."""
    state = {"joules": 0.0, "now": 0.0}

    def read():
        state["joules"] += watt_hours / 1000 * JOULES_PER_KWH
        return state["joules"]

    def clock():
        state["now"] += 100.0
        return state["now"]

    return EnergyMeter([Counter(name, read)], clock=clock)


def points(run_id):
    return [point.value for point in mlflow.MlflowClient().get_metric_history(run_id, "energy_kwh")]


def test_log_energy_logs_the_sum_and_what_was_measured(store):
    with start_run(role=Role.RUN) as run, log_energy(run, is_resumed=False, meter=make_meter()):
        pass
    assert points(run.id) == pytest.approx([0.001, 0.002])
    logged = mlflow.get_run(run.id)
    assert logged.data.metrics["energy_kwh"] == pytest.approx(0.002)
    assert logged.data.tags[Tag.ENERGY_OF] == "package-0"


def test_log_energy_of_a_resumed_run_adds_up(store):
    with start_run(role=Role.RUN) as run, log_energy(run, is_resumed=False, meter=make_meter()):
        pass
    with (
        start_run(role=Role.RUN, resume=mlflow.get_run(run.id)) as again,
        log_energy(again, is_resumed=True, meter=make_meter(watt_hours=10.0)),
    ):
        pass
    assert mlflow.get_run(run.id).data.metrics["energy_kwh"] == pytest.approx(0.022)


def test_log_energy_of_a_resumed_run_without_a_known_beginning_logs_nothing(store):
    with start_run(role=Role.RUN) as run:
        pass
    with (
        start_run(role=Role.RUN, resume=mlflow.get_run(run.id)) as again,
        log_energy(again, is_resumed=True, meter=make_meter()),
    ):
        pass
    assert points(run.id) == []


def test_log_energy_is_not_a_number_once_a_counter_fails(store):
    values = [3.0, 2.0, 1.0]
    meter = EnergyMeter([Counter("package-0", lambda: values.pop())])
    with start_run(role=Role.RUN) as run, log_energy(run, is_resumed=False, meter=meter):
        values[:] = []
        meter._counters[0].read = lambda: int("none")
    assert math.isnan(mlflow.get_run(run.id).data.metrics["energy_kwh"])


def test_start_run_logs_no_energy_where_nothing_is_counted(store, monkeypatch):
    monkeypatch.setattr(EnergyMeter, "find", classmethod(lambda cls: None))
    with start_run(role=Role.RUN, system_metrics=True) as run:
        pass
    assert points(run.id) == [] and Tag.ENERGY_OF not in mlflow.get_run(run.id).data.tags


def test_start_run_with_system_metrics_logs_the_energy(store, monkeypatch):
    monkeypatch.setattr(EnergyMeter, "find", classmethod(lambda cls: make_meter()))
    with start_run(role=Role.RUN, system_metrics=True) as run:
        pass
    assert mlflow.get_run(run.id).data.metrics["energy_kwh"] == pytest.approx(0.002)


def test_energy_is_sampled_often_and_logged_once_a_minute(store, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(energy, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with start_run(role=Role.RUN) as run:
        log = energy._EnergyLog(run, make_meter(), is_resumed=False)
        for now[0] in (1010.0, 1059.0, 1060.0, 1070.0, 1119.0, 1120.0):
            log.sample()
    # to each sample before, those at which it is logged add one
    assert points(run.id) == pytest.approx([0.004, 0.008])


def test_log_energy_samples_at_the_interval_that_it_is_given(store, monkeypatch):
    monkeypatch.setattr(energy, "LOG_SECONDS", 0.0)
    with start_run(role=Role.RUN) as run, log_energy(run, is_resumed=False, meter=make_meter(), sample_seconds=0.01):
        wait_for(lambda: len(points(run.id)) >= 3, seconds=20)


def test_energy_of_a_counter_that_has_failed_is_logged_once(store):
    meter = make_meter()
    with start_run(role=Role.RUN) as run:
        log = energy._EnergyLog(run, meter, is_resumed=False)
        log.log()
        meter._counters[0].read = lambda: int("none")
        log.log()
        meter._counters[0].read = lambda: 0.0
        log.log()
    first, second = points(run.id)
    assert first == pytest.approx(0.001) and math.isnan(second)


def test_log_energy_of_a_resumed_run_leaves_the_tag_of_what_was_measured_first(store):
    with start_run(role=Role.RUN) as run, log_energy(run, is_resumed=False, meter=make_meter()):
        pass
    with (
        start_run(role=Role.RUN, resume=mlflow.get_run(run.id)) as again,
        log_energy(again, is_resumed=True, meter=make_meter(name="GPU 0")),
    ):
        pass
    assert mlflow.get_run(run.id).data.tags[Tag.ENERGY_OF] == "package-0"


def test_log_energy_of_a_resumed_run_is_added_once_a_server_answers_that_was_away(store, monkeypatch):
    with start_run(role=Role.RUN) as run, log_energy(run, is_resumed=False, meter=make_meter()):
        pass
    monkeypatch.setattr(energy, "FLUSH_SECONDS", 0.1)

    def fail(self, client):
        raise ConnectionError("nobody there")

    with start_run(role=Role.RUN, resume=mlflow.get_run(run.id)) as again:
        with monkeypatch.context() as failing:
            failing.setattr(records.LogFiles, "_send", fail)
            again.log_text("a.txt", "text")
            wait_for(again.outbox.failure, seconds=20)
            with pytest.raises(Unavailable, match="nobody there"):
                energy._EnergyLog(again, make_meter(), is_resumed=True).log()
            # what a training does in it goes on
            with log_energy(again, is_resumed=True, meter=make_meter()):
                pass
        assert again.outbox.flush() == 0
        assert points(run.id) == pytest.approx([0.001, 0.002])
        with log_energy(again, is_resumed=True, meter=make_meter()):
            pass
    assert points(run.id) == pytest.approx([0.001, 0.002, 0.003, 0.004])
