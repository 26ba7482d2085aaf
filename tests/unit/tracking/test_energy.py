"""Tests of the energy that a run logs; the counters are scripted, the store is real."""

import math

import mlflow
import pytest

from pipeline.runtime.energy import JOULES_PER_KWH, Counter, EnergyMeter
from pipeline.tracking import ownership
from pipeline.tracking.energy import log_energy
from pipeline.tracking.lifecycle import start_run
from pipeline.tracking.tags import Role, Tag


@pytest.fixture(autouse=True)
def no_other_machines(monkeypatch):
    """Do not wait for the claims of other machines."""
    monkeypatch.setattr(ownership, "CLAIM_SECONDS", 0.0)


def make_meter(watt_hours=1.0):
    """Return a meter to which each sample brings so much; minutes seem to lie between them."""
    state = {"joules": 0.0, "now": 0.0}

    def read():
        state["joules"] += watt_hours / 1000 * JOULES_PER_KWH
        return state["joules"]

    def clock():
        state["now"] += 100.0
        return state["now"]

    return EnergyMeter([Counter("package-0", read)], clock=clock)


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
