"""Benchmarks: the ablation study resumes where it was interrupted; searches count epochs right and need few of them.

That of a GPU keeps what it has measured, within its time, whatever fails; here it runs without a GPU.
"""

import importlib
import json
import math
import os
import re
import subprocess
import sys
import time
from functools import cache
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest

from pipeline.config.recipe import read_recipe
from pipeline.config.training import TrainingConfig
from pipeline.tracking.run import TrackedRun
from pipeline.tracking.tags import Role, Tag
from pipeline.training.callbacks import snapshot_epochs
from tests.support.paths import ROOT
from tests.support.scripted import make_search, mlflow_store

GPU_MODULES = ("gpu", "gpu_process", "gpu_service", "gpu_trace")


@pytest.fixture(scope="module")
def benchmark_module():
    """Return a function that imports a benchmark by name: it is a script in a folder that is no package."""
    names = ("proxy", "search", "replay", "record", "time_to_accuracy", "step", "own_store", "arguments", "executions")
    names += (*GPU_MODULES, "around", "files_on_disk")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments" / "benchmarks"))
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def proxy(benchmark_module):
    return benchmark_module("proxy")


@pytest.fixture(scope="module")
def search(benchmark_module):
    return benchmark_module("search")


def test_benchmarks_that_take_no_arguments_answer_help_and_refuse_others(benchmark_module, monkeypatch, capsys):
    take_no_arguments = benchmark_module("arguments").take_no_arguments
    monkeypatch.setattr(sys, "argv", ["soak.py"])
    take_no_arguments("What it measures.")
    for word, code in (("--help", 0), ("--minutes", 2)):
        monkeypatch.setattr(sys, "argv", ["soak.py", word])
        with pytest.raises(SystemExit) as ended:
            take_no_arguments("What it measures.")
        assert ended.value.code == code
    out, err = capsys.readouterr()
    assert "What it measures." in out and "unrecognized arguments: --minutes" in err


def test_each_benchmark_reads_its_command_line():
    scripts = [file.read_text() for file in (ROOT / "experiments" / "benchmarks").glob("*.py")]
    started = [script for script in scripts if re.search("^def main\\(\\)", script, re.MULTILINE)]
    assert len(started) > 10
    assert [text[:60] for text in started if not re.search("take_no_arguments\\(__doc__|ArgumentParser", text)] == []


def test_benchmarks_log_to_a_store_of_their_own_whatever_the_users_variables_name(benchmark_module, monkeypatch):
    own_store = benchmark_module("own_store")
    monkeypatch.setattr(os, "environ", {"MLFLOW_RUN_ID": "a", "MLFLOW_EXPERIMENT_ID": "1", "HOME": "/home/me"})
    expected = {"HOME": "/home/me", "MLFLOW_TRACKING_URI": "sqlite:////s.db", "MLFLOW_DISABLE_TELEMETRY": "true"}
    assert own_store.with_store("sqlite:////s.db", PYTHONPATH="/p") == expected | {"PYTHONPATH": "/p"}
    own_store.use_store("sqlite:////s.db")
    assert os.environ == expected


def test_ablation_resumed_trains_only_what_is_not_in_its_file(proxy, tmp_path, capsys):
    trained = []

    def train(variant: str, seed: int) -> pd.DataFrame:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append((variant, seed))
        return pd.DataFrame({"epoch": [1, 2], "val_accuracy": [0.5, 0.25]})

    with pytest.raises(KeyboardInterrupt):
        proxy.train_missing(tmp_path / "runs.csv", ("a", "b"), 2, train)
    before_interrupt, trained[:] = trained[:], []
    history = proxy.train_missing(tmp_path / "runs.csv", ("a", "b"), 2, train)
    assert (before_interrupt, trained) == ([("a", 0), ("b", 0)], [("a", 1), ("b", 1)])
    assert list(history[["variant", "seed", "epoch"]].itertuples(index=False, name=None)) == [
        (variant, seed, epoch) for seed in (0, 1) for variant in ("a", "b") for epoch in (1, 2)
    ]
    assert pd.read_csv(tmp_path / "runs.csv").equals(history.reset_index(drop=True))
    assert "a, seed 0: 50.00 %" in capsys.readouterr().out


@pytest.fixture(scope="module")
def recorded(search):
    """Return a function that reads the curves of a search, by its name."""
    files = {name: search.FOLDER / file for file, name in search.RECORDED.items()}
    return cache(lambda name: search.RecordedCurves(search.parse_search([name]), files[name]))


@pytest.mark.parametrize(("name", "configurations", "epochs"), [("small-grid", 45, 8), ("conditional-grid", 216, 9)])
def test_recorded_curves_cover_the_whole_grid(recorded, name, configurations, epochs):
    known = recorded(name)
    assert len(known.curves) == configurations == known.search.n_configurations()
    assert {len(curve) for curve in known.curves.values()} == {known.epochs} == {epochs}


def test_search_log_credits_a_training_only_when_its_epochs_are_spent(search, recorded):
    for name in search.RECORDED.values():
        known = recorded(name)
        for strategy, run in search.strategies(known.search).items():
            log = search.SearchLog()
            # `one epoch each` trains all configurations first
            run(known, log, 0, len(known.curves) + 30)
            spent = [epochs for epochs, _ in log.finished]
            assert spent == sorted(spent), strategy
            assert log.epochs >= max(spent) and spent[0] >= known.epochs, strategy
            assert log.best_after(spent[0] - 1) == 0
            assert log.epochs_until(log.best_after(log.epochs)) in spent


def test_recorded_trials_have_text_and_empty_cells_and_are_found_again(search, benchmark_module, tmp_path):
    folder, file = tmp_path / "store", tmp_path / "mine.csv"
    space = "{optimizer: [adamw, muon], adam_epsilon: {values: [1e-8, 1e-7], when: {optimizer: adamw}}}"
    mine = make_search(tmp_path, f"recipe: smoke\nspace: {space}\n")
    folder.mkdir()
    with mlflow_store(folder):
        for number, params in enumerate(mine.configurations()):
            tags = {Tag.STUDY: "mine", Tag.ROLE: str(Role.TRIAL)}
            with mlflow.start_run(tags=tags):
                config = mine.config(params)
                mlflow.log_params({name: config.text(name) for name in mine.space})
                mlflow.log_metric("parameters", 100 + number)
                for epoch in (1, 2):
                    mlflow.log_metrics({"val_accuracy": number / 10 + epoch / 100, "epoch_seconds": 1.0}, step=epoch)
        benchmark_module("record").learning_curves(mine, "mine").to_csv(file, index=False)
    assert file.read_text().splitlines()[1:4:2] == ["adamw,1e-08,100,1,0.01,1.0", "adamw,1e-07,101,1,0.11,1.0"]
    known = search.RecordedCurves(mine, file)
    assert known.curves == {("adamw", 1e-8): [0.01, 0.02], ("adamw", 1e-7): [0.11, 0.12], ("muon", None): [0.21, 0.22]}
    assert known.parameters == {("adamw", 1e-8): 100, ("adamw", 1e-7): 101, ("muon", None): 102}


@pytest.mark.parametrize(
    ("accuracies", "seconds"),
    [([0.5, 0.83, 0.84], 20), ([0.84, 0.5, 0.83], 30), ([0.83, 0.5], math.inf), ([], math.inf)],
)
def test_accuracy_is_reached_at_the_first_epoch_from_which_on_all_reach_it(benchmark_module, accuracies, seconds):
    epochs = [(10.0 * epoch, accuracy) for epoch, accuracy in enumerate(accuracies, start=1)]
    assert benchmark_module("time_to_accuracy").seconds_until(epochs, 0.83) == seconds


def test_timed_training_yields_the_validation_accuracy_of_each_epoch(benchmark_module):
    lines = "data     digits\nepoch  9/10  loss 2.1  accuracy 0.2  val_loss 6.2  val_accuracy 0.1080  33 images/s\n"
    command = [sys.executable, "-c", f"print({lines!r})"]
    ((seconds, accuracy),) = benchmark_module("time_to_accuracy").train(command)
    assert 0 < seconds < 60 and accuracy == 0.108


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), [("small-grid", 1 / 3), ("conditional-grid", 0.6)])
def test_default_needs_a_share_of_randoms_epochs_and_fewer_than_optunas_defaults(search, recorded, name, share):
    known, epochs = recorded(name), {}
    for strategy in ("random, no pruning", "Optuna's Keras example", search.DEFAULT):
        goal = known.best_accuracy - search.TOLERANCE
        logs = [search.SearchLog(goal) for _ in range(search.SEEDS)]
        for seed, log in enumerate(logs):
            search.strategies(known.search)[strategy](known, log, seed, 2 * known.epochs * len(known.curves))
        epochs[strategy] = np.median([log.epochs_until(goal) for log in logs])
    assert epochs[search.DEFAULT] <= share * epochs["random, no pruning"]
    assert epochs[search.DEFAULT] < epochs["Optuna's Keras example"]


@pytest.fixture(scope="module")
def gpu(benchmark_module):
    return benchmark_module("gpu")


def test_gpu_parts_that_failed_go_on_where_they_were_and_others_are_left_out(gpu, tmp_path, capsys):
    calls = []

    def fails_once(session):
        calls.append(("first", session.measured))
        yield {"what": "one", "ms": 1}
        if not session.measured:
            raise ValueError("broken")

    def ends_well(session):
        calls.append(("second", session.measured))
        yield {"what": "two", "ms": 2}

    parts = {"first": gpu.Part(60, fails_once, by_row=True), "second": gpu.Part(60, ends_well)}
    options = ["--small", "--folder", str(tmp_path)]
    gpu.main(options, parts)
    assert "first: failed: ValueError: broken" in capsys.readouterr().out
    gpu.main(options, parts)
    table = capsys.readouterr().out
    assert calls == [("first", frozenset()), ("second", frozenset()), ("first", frozenset({"one"}))]
    assert "| second | two | ms 2 |" in table and "failed" not in table
    gpu.main([*options, "--again", "second"], parts)
    assert calls[3:] == [("second", frozenset())]


def test_gpu_parts_are_not_begun_without_time_and_stopped_at_their_limit(gpu, tmp_path, capsys):
    endless = 'print(\'{"what": "line"}\', flush=True); import time; time.sleep(600)'
    parts = {"endless": gpu.Part(0.3, lambda session: session.worker("-c", endless))}
    gpu.main(["--small", "--folder", str(tmp_path), "--minutes", "0"], parts)
    assert "endless: not begun: no time left" in capsys.readouterr().out
    began = time.monotonic()
    gpu.main(["--small", "--folder", str(tmp_path)], parts)
    assert time.monotonic() - began < 30
    results = json.loads((tmp_path / "gpu.json").read_text())["parts"]["endless"]
    assert results["rows"] == [{"what": "line"}] and results["state"].startswith("stopped after")


def test_gpu_results_of_tiny_networks_are_not_kept_on_a_gpu(gpu, tmp_path, monkeypatch):
    parts = {"one": gpu.Part(60, lambda session: iter([{"what": "small" if session.is_small else "large"}]))}
    gpu.main(["--small", "--folder", str(tmp_path)], parts)
    monkeypatch.setattr(gpu, "find_gpus", lambda visible: ["0"])
    monkeypatch.setattr(gpu, "check_tensorflow_sees_gpu", lambda: None)
    monkeypatch.setattr(gpu, "make_images", lambda *given: tmp_path / "none.npz")
    gpu.main(["--folder", str(tmp_path)], parts)
    results = json.loads((tmp_path / "gpu.json").read_text())["parts"]["one"]
    assert (results["small"], results["rows"]) == (False, [{"what": "large"}])
    gpu.main(["--small", "--folder", str(tmp_path)], parts)
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"]["one"] == results, "nor the other way round"


def test_gpu_that_tensorflow_cannot_use_ends_the_benchmark_with_the_remedy(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "find_gpus", lambda visible: ["0"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(SystemExit, match=r"^TensorFlow sees no GPU on this machine.* -e '\.\[gpu\]' brings"):
        gpu.main(["--folder", str(tmp_path)], {})


def test_gpu_trace_counts_each_operation_without_those_within_it(benchmark_module):
    def line(name, *events):
        fields = ("metadata_id", "offset_ps", "duration_ps")
        return SimpleNamespace(name=name, events=[SimpleNamespace(**dict(zip(fields, e, strict=True))) for e in events])

    names = {1: "fusion_7", 2: "fusion_12", 3: "cudnn::convolve", 4: "step"}
    metadata = {number: SimpleNamespace(name=name) for number, name in names.items()}
    streams = line("Stream #1", (1, 0, 2 * 10**9), (2, 4 * 10**9, 4 * 10**9), (3, 5 * 10**9, 10**9))
    planes = [
        SimpleNamespace(name="/host:CPU", lines=[line("python", (4, 0, 10**12))], event_metadata=metadata),
        SimpleNamespace(name="/device:GPU:0", lines=[streams, line("Steps", (4, 0, 10**12))], event_metadata=metadata),
    ]
    top_operations = benchmark_module("gpu_trace").top_operations
    expected = [("fusion", 5.0, 5 / 6), ("cudnn::convolve", 1.0, 1 / 6)]
    assert top_operations(SimpleNamespace(planes=planes), 5) == expected
    assert top_operations(SimpleNamespace(planes=planes[:1]), 5) == [("step", 1000.0, 1.0)]


def test_executions_train_each_variant_in_each_round_and_compare_it_with_the_first(benchmark_module, monkeypatch):
    executions = benchmark_module("executions")
    monkeypatch.setattr(executions, "VARIANTS", [("host", 1), ("device", 2)])
    costs = executions.measure(SimpleNamespace(filters=4, depth=1, batch=8, steps=2, rounds=1))
    assert {variant: len(rounds) for variant, rounds in costs.items()} == {("host", 1): 1, ("device", 2): 1}
    first, second = executions.rows(costs, images=16)
    assert (first["data_on"], second["data_on"], second["steps_per_execution"]) == ("host", "device", 2)
    assert first["ratio"] == first["processor_ratio"] == 1 and first["images_per_second"] > 0


def test_figures_of_a_run_are_counted_as_images_and_without_them(benchmark_module, monkeypatch):
    around = benchmark_module("around")
    monkeypatch.setattr(around, "RECIPE", "smoke")
    monkeypatch.setattr(around, "ROUNDS", 1)
    rows = list(around.time_images())
    # of each block, curves, patches, the middle block, matrix and mistakes; and of the middle block in 8 epochs more
    depth = TrainingConfig.build(read_recipe("smoke")).depth
    assert [name for name, _, _ in rows] == [
        f"filter_steps={steps}: {5 + depth + len(snapshot_epochs(10, steps))} images" for steps in (0, 8)
    ]
    assert 0 < rows[0][2] < rows[1][2]
    assert all(hasattr(TrackedRun, method) for method in around.TIMED_METHODS)


@pytest.mark.slow
def test_gpu_benchmark_runs_small_without_a_gpu(gpu, tmp_path):
    script = ROOT / "experiments" / "benchmarks" / "gpu.py"
    command = [sys.executable, str(script), "--small", "--folder", str(tmp_path), "--minutes", "60"]
    completed = subprocess.run(command, check=True, capture_output=True, text=True)
    results = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {name: part["state"] for name, part in results.items()} == dict.fromkeys(gpu.PARTS, "done"), completed
    rows = {name: part["rows"] for name, part in results.items()}
    assert {row["what"] for row in rows["baseline"]} == set(gpu.STEP_VARIANTS) - {"with XLA"}
    assert all("error" not in row and row["step_ms"] > 0 for row in rows["baseline"] + rows["fast"])
    assert any("Conv" in row["operation"] for row in rows["profile"])
    assert rows["search-4"][0]["finished"] == rows["search-4"][0]["trials"] == 2
    assert rows["killed"][0]["states"] == "finished, crashed"
    assert rows["resume"][1]["equal"]
