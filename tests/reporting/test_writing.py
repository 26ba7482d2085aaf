"""What is read of runs to compare them."""

import mlflow
from made_runs import made

from pipeline.report import main


def test_settings_are_those_of_config_yaml_where_a_person_may_have_typed_the_parameters(experiment, tmp_path, capsys):
    store, _ = experiment
    typed = {"mlflow.project.entryPoint": "main"}
    settings = {"precision": "float32", "jit_compile": "false"}
    one = made(store, "plain", settings=settings)
    other = made(store, "typed", settings=settings | {"seed": 1}, params={"precision": "auto"}, tags=typed)
    assert main([f"{one},{other}", "--folder", str(tmp_path)]) == 0
    assert "compared 1 recipe of 2 runs" in capsys.readouterr().out


def test_a_newer_run_of_the_same_seed_stands_for_an_older_one_and_that_is_said(experiment, tmp_path, capsys):
    store, name = experiment
    for accuracy in (0.5, 0.75):
        made(store, "again", figures={"test_accuracy": accuracy})
    assert main([name, "--folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "highest test accuracy: 75.00 % of one run" in out
    assert "left out finished again with the settings and the seed of a newer run: 1 run" in out


def test_a_report_lies_beside_the_runs_that_it_compares(experiment, tmp_path):
    store, _ = experiment
    run = made(store, "a")
    assert main([run, "--folder", str(tmp_path)]) == 0
    (found,) = mlflow.search_runs([store.experiment_id], "tags.role = 'report'", output_format="list")
    assert found.data.tags["report.runs"] == run
