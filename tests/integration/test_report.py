"""The command `report` end to end: what it writes, logs and refuses."""

import re
import subprocess
import sys

import mlflow
import numpy as np
import pandas as pd
import pytest

from pipeline.commands import main
from pipeline.tracking.tags import Role, Tag
from tests.support.mlflow_project import run_project
from tests.support.paths import ROOT
from tests.support.runs import Store, make_run
from tests.support.stores import tracking_store


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    with tracking_store(tmp_path_factory.mktemp("tracking"), "compared") as uri:
        yield uri


@pytest.fixture(scope="module")
def runs(uri):
    """Log runs of two equal configurations, a worse one, one on other data and two unfinished ones; ids by name."""
    client = mlflow.MlflowClient()
    store = Store(client, client.get_experiment_by_name("compared").experiment_id)
    random = np.random.default_rng(0)
    probabilities = random.beta(4, 0.6, 2000)  # of each image to be classified correctly

    def draw(shift=0.0):
        return random.random(len(probabilities)) < probabilities + shift

    ids = {}
    for seed in range(3):
        spelled = {"learning_rate": ("1e-3", "0.001", "1.0e-3")[seed]}
        make_run(store, f"plain seed {seed}", correct=draw(), settings={"seed": seed}, params=spelled)
        alike = {"seed": seed + 3, "randaugment_magnitude": 5}
        make_run(store, f"alike seed {seed}", correct=draw(), settings=alike)
    ids["worse"] = make_run(store, "worse <b>&", correct=draw(-0.1), settings={"depth": 2})
    ids["flowers"] = make_run(store, "flowers", correct=draw(), tags={"data": "flowers", Tag.DATA_FINGERPRINT: "f1"})
    ids["open"] = make_run(store, "open", settings={"depth": 3}, status="RUNNING", metrics={"test_accuracy": 0.99})
    ids["nothing"] = make_run(store, "nothing yet", curve=(), status="RUNNING")
    return ids


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Return the file in which a process that starts here writes at its end which modules it has imported."""
    folder = tmp_path_factory.mktemp("imported")
    write = f"atexit.register(lambda: open({str(folder / 'modules.txt')!r}, 'w').write(' '.join(sys.modules)))"
    (folder / "sitecustomize.py").write_text(f"import atexit, sys\n{write}\n")
    return folder / "modules.txt"


@pytest.fixture(scope="module")
def report(uri, runs, imported, tmp_path_factory):
    """Write a report with the project's entry point; return its output, the report's run and its folder."""
    folder = tmp_path_factory.mktemp("reports of mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(imported.parent))
        result = run_project(uri, "compared", entry_point="report", runs="compared", folder=folder)
    assert result.succeeded, result.stderr
    (run,) = mlflow.search_runs(["1"], f"tags.{Tag.ROLE} = '{Role.REPORT}'", output_format="list")
    return result.stdout, run, folder / run.info.run_id


def read_board(folder):
    board = pd.read_csv(folder / "leaderboard.csv", dtype={"data_fingerprint": str})
    return board.set_index("configuration")


def test_leaderboard_tells_worse_configurations_from_equal_ones_with_other_seeds(report):
    _, _, folder = report
    board = read_board(folder)
    assert board.loc[["plain", "alike"], "runs"].tolist() == [3, 3]
    assert set(board.loc[["plain", "alike"], "verdict"]) == {"best", "within noise"}
    assert board.loc["worse <b>&", "verdict"] == "worse"
    assert board.loc["worse <b>&", "interval_over"] == "test images and seeds of other configurations"
    second = board.loc[board["rank"] == 2].iloc[0]
    assert second["gap_low"] < 0 < second["gap_high"] and second["interval_over"] == "test images and seeds"


def test_report_shows_other_data_and_unfinished_runs_without_comparing_them(report):
    output, _, folder = report
    board = read_board(folder)
    assert board.loc["flowers", "verdict"] == "best", "the first on its own data"
    assert board.loc["open", "verdict"] == "running" and np.isnan(board.loc["open", "gap"])
    assert "2 different data sets" in output
    page = (folder / "report.html").read_text()
    assert "These runs used 2 different data sets (digits d0; flowers f1)" in page
    assert "without an accuracy: 1 running (nothing yet)" in page


def test_leaderboard_has_the_differing_settings_whatever_their_spelling(report):
    _, _, folder = report
    settings = [name for name in read_board(folder) if name.startswith("settings.")]
    assert sorted(settings) == ["settings.depth", "settings.randaugment_magnitude"]


def test_page_loads_nothing_and_runs_its_own_script_alone(report):
    _, _, folder = report
    page = (folder / "report.html").read_text()
    links = set(re.findall(r"""(?:src|href|action)=["']?(?!data:|#)([^"'\s>]+)""", page))
    assert links and all(link.startswith("http://127.0.0.1:5000/#/experiments/1/runs/") for link in links)
    assert page.count("<script") == 1 and "@import" not in page and not re.search(r"url\((?!#)", page)
    assert "worse &lt;b&gt;&amp;" in page and "<b>" not in page
    # curves of both data sets and three costs; a cost is not drawn of a single configuration
    assert len(re.findall('<svg class="plot"|<svg [^>]* class="plot"', page)) == 2 + 2
    assert len(re.findall("data:image/png", page)) == 2


def test_report_run_is_finished_and_left_out_of_later_reports(report, runs, tmp_path, capsys):
    output, run, folder = report
    assert run.info.status == "FINISHED" and run.data.tags[Tag.OUTCOME] == "finished"
    assert run.info.run_name == "report on experiment compared"
    assert f"report   {folder / 'report.html'}" in output
    assert f"page      http://127.0.0.1:5000/#/experiments/1/runs/{run.info.run_id}?" in output
    artifacts = {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert artifacts == {"report.html", "leaderboard.csv", "leaderboard.md"}
    assert main.run(["report", "compared", "--folder", str(tmp_path)]) == 0
    assert "of 9 runs: experiment compared" in capsys.readouterr().out


def test_markdown_leaderboard_has_the_rows_of_the_csv_file(report):
    _, _, folder = report
    lines = (folder / "leaderboard.md").read_text().splitlines()
    assert len(lines) == 2 + len(read_board(folder))
    assert len({line.count("|") for line in lines}) == 1


def test_report_reads_the_runs_of_all_search_pages(uri, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pipeline.tracking.client.RUNS_PER_PAGE", 3)
    assert main.run(["report", "compared", "--folder", str(tmp_path), "--metric", "best_val_accuracy"]) == 0
    assert "of 9 runs" in capsys.readouterr().out


def test_report_of_one_run_compares_nothing(uri, runs, tmp_path, capsys):
    assert main.run(["report", runs["worse"], "--folder", str(tmp_path)]) == 0
    assert "There is no other configuration to compare it with." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the runs first: an experiment"),
        (["--metric", "loss"], "name the runs first"),
        (["compared", "--metrc", "auto"], "unknown setting 'metrc'; did you mean metric?"),
        (["compared", "--metric", "loss"], "metric must be auto, test_accuracy, best_val_accuracy, test_loss, "),
        (["compared", "--rows", "0"], "rows must be a whole number from 1 to 1000, got '0'"),
        (["no such"], "runs must be an experiment, a study, run ids"),
        (["f" * 32], "runs must be in this tracking store"),
        (["compared", "--folder", "/proc/nowhere"], "folder must be writable, got /proc/nowhere"),
    ],
)
def test_report_of_bad_input_is_one_line_and_exit_code_2(uri, runs, capsys, arguments, message):
    assert main.run(["report", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    (latest,) = mlflow.search_runs(["1"], f"tags.{Tag.ROLE} = '{Role.REPORT}'", output_format="list", max_results=1)
    assert latest.info.status != "RUNNING"


def test_refusal_imports_no_mlflow():
    code = (
        "import sys; from pipeline.commands.main import run; print(run(['report', 'compared', '--rows', 'x']));"
        "print({'tensorflow', 'keras', 'mlflow', 'pandas', 'matplotlib'} & sys.modules.keys() or 'none')"
    )
    completed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert completed.stdout.splitlines() == ["2", "none"]


def test_report_imports_no_tensorflow(report, imported):
    modules = imported.read_text().split()
    assert "mlflow" in modules and not {"tensorflow", "keras"} & {*modules}
