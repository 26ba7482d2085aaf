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


def test_log_system_metrics_on_one_of_several_nodes_names_the_node_and_forgets_what_it_has_logged(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "2")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_NODE_ID", "node-1")
    client = mlflow.MlflowClient()
    run_id = client.create_run(mlflow.get_experiment_by_name("mine").experiment_id).info.run_id
    told, enough = [], threading.Event()

    def log(figures, step):
        told.append((step, figures))
        if len(told) == 2:
            enough.set()

    with log_system_metrics(run_id, log):
        assert enough.wait(60)
    assert [step for step, _ in told[:2]] == [0, 1]
    assert all(name.startswith("system/node-1/") for name in told[0][1])
