"""The seam where people meet a report: the command, what it writes and logs, and what it refuses."""

import re
import subprocess
import sys

import mlflow
import numpy as np
import pandas as pd
import pytest

from pipeline.commands.main import run as run_command
from pipeline.tracking import query
from pipeline.tracking.tags import Role, Tag
from tests.support.paths import ROOT
from tests.support.runs import Store, make_run
from tests.support.stores import environment, tracking_store


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    with tracking_store(tmp_path_factory.mktemp("tracking"), "compared") as uri:
        yield uri


@pytest.fixture(scope="module")
def runs(uri):
    """Two recipes alike in all but a setting that does nothing here, one that is worse, one other data set; by name."""
    client = mlflow.MlflowClient()
    store = Store(client, client.get_experiment_by_name("compared").experiment_id)
    random = np.random.default_rng(0)
    chances = random.beta(4, 0.6, 2000)  # how easy each image is

    def tested(shift=0.0):
        return random.random(len(chances)) < chances + shift

    found = {}
    for seed in range(3):
        spelled = {"learning_rate": ("1e-3", "0.001", "1.0e-3")[seed]}
        make_run(store, f"plain seed {seed}", correct=tested(), settings={"seed": seed}, params=spelled)
        alike = {"seed": seed + 3, "randaugment_magnitude": 5}
        make_run(store, f"alike seed {seed}", correct=tested(), settings=alike)
    found["worse"] = make_run(store, "worse <b>&", correct=tested(-0.1), settings={"depth": 2})
    found["flowers"] = make_run(
        store, "flowers", correct=tested(), tags={"data": "flowers", Tag.DATA_FINGERPRINT: "f1"}
    )
    found["open"] = make_run(store, "open", settings={"depth": 3}, status="RUNNING", metrics={"test_accuracy": 0.99})
    found["nothing"] = make_run(store, "nothing yet", curve=(), status="RUNNING")
    return found


@pytest.fixture(scope="module")
def report(uri, runs, tmp_path_factory):
    """A report by `mlflow run`: what was printed, its run and its folder."""
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", "report", "--env-manager", "local"]
    folder = tmp_path_factory.mktemp("reports of mine")
    command += ["--experiment-name", "compared", "-P", "runs=compared", "-P", f"folder={folder}"]
    done = subprocess.run(
        command, env=environment(uri, "compared"), cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    (run,) = mlflow.search_runs(["1"], f"tags.{Tag.ROLE} = '{Role.REPORT}'", output_format="list")
    return done, run, folder / run.info.run_id


def verdicts(folder):
    board = pd.read_csv(folder / "leaderboard.csv", dtype={"data_fingerprint": str})
    return board.set_index("recipe")


def test_equal_recipes_with_other_seeds_are_within_noise_and_a_worse_one_is_not(report):
    _, _, folder = report
    board = verdicts(folder)
    assert board.loc[["plain", "alike"], "runs"].tolist() == [3, 3]
    assert set(board.loc[["plain", "alike"], "verdict"]) == {"best", "within noise"}
    assert board.loc["worse <b>&", "verdict"] == "worse"
    assert board.loc["worse <b>&", "interval_over"] == "test images and seeds of other recipes"
    second = board.loc[board["place"] == 2].iloc[0]
    assert second["behind_low"] < 0 < second["behind_high"] and second["interval_over"] == "test images and seeds"


def test_runs_on_other_data_and_runs_under_way_are_shown_and_not_compared(report):
    done, _, folder = report
    board = verdicts(folder)
    assert board.loc["flowers", "verdict"] == "best", "the first on its own data"
    assert board.loc["open", "verdict"] == "running" and np.isnan(board.loc["open", "behind"])
    assert "2 different data sets" in done.stdout
    page = (folder / "report.html").read_text()
    assert "These runs saw 2 different data sets (digits d0; flowers f1)" in page
    assert "without an accuracy: 1 running (nothing yet)" in page


def test_only_settings_that_differ_are_compared_whatever_their_spelling(report):
    _, _, folder = report
    settings = [name for name in verdicts(folder) if name.startswith("settings.")]
    assert sorted(settings) == ["settings.depth", "settings.randaugment_magnitude"]


def test_the_page_needs_nothing_beside_it_and_runs_nothing(report):
    _, _, folder = report
    page = (folder / "report.html").read_text()
    assert not re.search(r"""(src|href|action)=["']?(?!data:)[^"'\s>]+""", page)
    assert "<script" not in page and "@import" not in page and "url(" not in page
    assert "worse &lt;b&gt;&amp;" in page and "<b>" not in page
    assert len(re.findall("data:image/svg", page)) == 4 - 1  # curves twice; the price of one recipe alone is not drawn
    assert len(re.findall("data:image/png", page)) == 2


def test_the_report_is_a_run_of_its_own_that_other_reports_pass_over(report, runs, tmp_path, capsys):
    done, run, folder = report
    assert run.info.status == "FINISHED" and run.data.tags[Tag.OUTCOME] == "finished"
    assert run.info.run_name == "report on experiment compared"
    assert f"report   {folder / 'report.html'}" in done.stdout
    there = {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert there == {"report.html", "leaderboard.csv", "leaderboard.md"}
    assert run_command(["report", "compared", "--folder", str(tmp_path)]) == 0
    assert "of 9 runs: experiment compared" in capsys.readouterr().out


def test_the_markdown_table_has_the_rows_of_the_csv(report):
    _, _, folder = report
    lines = (folder / "leaderboard.md").read_text().splitlines()
    assert len(lines) == 2 + len(verdicts(folder))
    assert len({line.count("|") for line in lines}) == 1


def test_one_page_of_runs_at_a_time_is_asked_for(uri, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(query, "PAGE", 3)
    assert run_command(["report", "compared", "--folder", str(tmp_path), "--metric", "best_val_accuracy"]) == 0
    assert "of 9 runs" in capsys.readouterr().out


def test_one_run_alone_is_a_report_that_compares_nothing(uri, runs, tmp_path, capsys):
    assert run_command(["report", runs["worse"], "--folder", str(tmp_path)]) == 0
    assert "There is no other recipe to compare it with." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name first the runs: an experiment"),
        (["--metric", "loss"], "name first the runs"),
        (["compared", "--metrc", "auto"], "unknown setting 'metrc'; did you mean metric?"),
        (["compared", "--metric", "loss"], "metric must be auto, test_accuracy or best_val_accuracy, got 'loss'"),
        (["compared", "--rows", "0"], "rows must be a whole number from 1 to 1000, got '0'"),
        (["no such"], "runs must be an experiment, a study, run ids"),
        (["f" * 32], "runs must be in this tracking store"),
        (["compared", "--folder", "/proc/nowhere"], "folder must be writable, got /proc/nowhere"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_exit_code_2(uri, runs, capsys, arguments, message):
    assert run_command(["report", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    (latest,) = mlflow.search_runs(["1"], f"tags.{Tag.ROLE} = '{Role.REPORT}'", output_format="list", max_results=1)
    assert latest.info.status != "RUNNING"


def test_a_refusal_needs_no_mlflow_and_a_report_no_tensorflow(uri, runs, tmp_path):
    code = (
        "import sys; from pipeline.commands.main import run; print(run(['report', *sys.argv[1:]]));"
        "print({'tensorflow', 'keras', 'mlflow', 'pandas', 'matplotlib'} & sys.modules.keys() or 'none')"
    )

    def last_lines(*arguments):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(uri, "compared"), capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()[-2:]

    assert last_lines("compared", "--rows", "x") == ["2", "none"]
    code_of_exit, loaded = last_lines("compared", "--folder", str(tmp_path))
    assert code_of_exit == "0" and "tensorflow" not in loaded and "keras" not in loaded
