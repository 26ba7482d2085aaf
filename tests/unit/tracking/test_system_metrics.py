"""Tests of logging system metrics through an outage."""

import threading

import mlflow

from pipeline.tracking.system_metrics import log_system_metrics


def test_log_system_metrics_without_a_server_continues_after_the_last_step(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    client = mlflow.MlflowClient()
    run_id = client.create_run(mlflow.get_experiment_by_name("mine").experiment_id).info.run_id
    client.log_metric(run_id, "system/cpu_utilization_percentage", 1.0, step=6)
    told, enough = [], threading.Event()

    def log(figures, step):
        told.append((step, figures))
        if len(told) == 3:
            enough.set()

    with log_system_metrics(run_id, log):
        mlflow.set_tracking_uri("http://127.0.0.1:1")
        assert enough.wait(60)
    mlflow.set_tracking_uri(store)
    assert [step for step, _ in told[:3]] == [7, 8, 9]
    assert "system/cpu_utilization_percentage" in told[0][1]
    many = len(told)
    threading.Event().wait(0.1)
    assert len(told) == many
