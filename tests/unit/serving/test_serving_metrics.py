"""What Prometheus reads of a served model."""

import subprocess
import sys

from pipeline.serving import serving_metrics
from pipeline.serving.serving_metrics import ServingMetrics
from tests.support.paths import ROOT


def lines(metrics):
    status, kind, body = metrics.text()
    assert status == 200 and kind.startswith("text/plain")
    return dict(line.rsplit(" ", 1) for line in body.decode().splitlines() if not line.startswith("#"))


def test_text_counts_requests_errors_latencies_and_batches():
    metrics = ServingMetrics()
    metrics.count_request(200, 0.004, "")
    metrics.count_request(200, 0.2, "")
    metrics.count_request(400, 0.003, "file")
    metrics.count_batch(7)
    found = lines(metrics)
    assert found['convmixer_serving_requests_total{status="200"}'] == "2.0"
    assert found['convmixer_serving_requests_total{status="400"}'] == "1.0"
    assert found['convmixer_serving_errors_total{kind="file"}'] == "1.0"
    assert [found[f'convmixer_serving_request_seconds_bucket{{le="{limit}"}}'] for limit in ("0.005", "0.25")] == [
        "2.0",
        "3.0",
    ]
    assert found["convmixer_serving_batch_images_sum"] == "7.0"
    assert float(found["process_resident_memory_bytes"]) > 0


def test_text_without_prometheus_client_says_what_to_install(monkeypatch):
    monkeypatch.setattr(serving_metrics, "prometheus_client", None)
    metrics = ServingMetrics()
    metrics.count_request(400, 0.1, "file")
    metrics.count_batch(1)
    status, _, body = metrics.text()
    assert status == 501 and body.decode().endswith("pip install prometheus-client\n")


def test_text_of_any_worker_counts_what_all_workers_did(tmp_path):
    program = (
        "from pipeline.serving.serving_metrics import ServingMetrics; metrics = ServingMetrics(); "
        "metrics.count_request(200, 0.1, ''); metrics.count_batch(2); print(metrics.text()[2].decode())"
    )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={
                "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
                "PYTHONPATH": ":".join(filter(None, [str(ROOT), *sys.path])),
            },
            capture_output=True,
            text=True,
            check=True,
        )
    assert 'convmixer_serving_requests_total{status="200"} 2.0' in done.stdout
    assert "convmixer_serving_batch_images_sum 4.0" in done.stdout
