"""MLflow's pages of runs, a search and a report by this program, and the report page, in a real Chromium."""

import os
import shlex
import subprocess
import sys
from urllib.parse import quote

import mlflow
import pytest

from pipeline.tracking.tags import Role, Tag
from tests.support.browser import MISSING, answers, browser, wait_until
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.stores import environment, tracking_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING is not None, reason=f"{MISSING} is not installed: apt install chromium chromium-driver"),
]


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    with tracking_store(tmp_path_factory.mktemp("tracking"), "seen") as uri:
        yield uri


@pytest.fixture(scope="module")
def printed(uri):
    """Train twice, registering the second model, and search; return the printed lines by their first word."""
    lines = []
    for program, *arguments in (
        ("train", "smoke", "--filter_steps", "2"),
        ("train", "smoke", "--filter_steps", "2", "--kernel_size", "5", "--register_as", "best"),
        ("search", "smoke", "--trials", "3", "--epochs", "1", "--final_seeds", "1"),
    ):
        command = [sys.executable, "-m", "pipeline", program, *arguments]
        completed = subprocess.run(
            command, cwd=ROOT, env=environment(uri, "seen"), capture_output=True, text=True, timeout=600, check=False
        )
        assert completed.returncode == 0, completed.stderr
        lines += [line.partition(" ") for line in completed.stdout.splitlines()]
    return {word: rest.strip() for word, _, rest in lines}


@pytest.fixture(scope="module")
def runs(printed):
    """Return the two runs by kernel size."""
    logged = mlflow.search_runs(["1"], f"tags.{Tag.ROLE} = '{Role.RUN}'", output_format="list")
    return {run.data.params["kernel_size"]: run for run in logged}


@pytest.fixture(scope="module")
def address(uri, runs, tmp_path_factory):
    """Serve `mlflow ui`; return the address of the experiment's page."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    log = (tmp_path_factory.mktemp("ui") / "log").open("w")
    settings = environment(uri, "seen") | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (
        log,
        subprocess.Popen(
            [*command, "--backend-store-uri", uri], env=settings, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            wait_until(
                lambda: answers(f"http://127.0.0.1:{port}/health"), seconds=180, message="mlflow ui does not answer"
            )
            yield f"http://127.0.0.1:{port}/#/experiments/1"
        finally:
            os.killpg(process.pid, 15)


@pytest.fixture(scope="module")
def window(address):
    with browser(width=2400, height=1400) as window:
        yield window


def test_runs_table_nests_trials_below_their_search(window, address):
    window.open(f"{address}/runs")
    before = window.shows("search smoke", "smoke kernel_size=5")
    assert "t000" not in before
    window.click("[role=row] button[type=button]:not([aria-label])")  # the plus before its name
    window.shows("t000 lr", "t002 lr", "final t00")
    tops = (
        "return [...document.querySelectorAll('[role=row] a')].map(e => [e.innerText, e.getBoundingClientRect().top])"
    )
    order = [name for name, _ in sorted(window.run(tops), key=lambda row: row[1])]
    place = order.index("search smoke")
    assert {name.split()[0] for name in order[place + 1 : place + 5]} == {"final", "t000", "t001", "t002"}
    assert "smoke kernel_size=5" in order[place + 5 :]


def test_runs_table_shows_settings_and_results_as_columns(window, address):
    window.open(f"{address}/runs")
    window.shows("search smoke")
    window.click("button", containing="Columns")
    for name in ("Dataset", "Source", "test_accuracy", "best_val_accuracy", "kernel_size"):  # the first two: away
        window.click(f"[class*=tree-checkbox]:has(+ [title='{name}'])")
    heads = "return [...document.querySelectorAll('[role=columnheader]')].map(e => e.innerText.trim())"
    wanted = {"test_accuracy", "best_val_accuracy", "kernel_size"}
    wait_until(lambda: wanted <= set(window.run(heads)), seconds=30, message=lambda: window.run(heads))
    offered = "return [...document.querySelectorAll('[class*=tree-checkbox] + [title]')].map(e => e.title)"
    assert {"recipe", "learning_rate", "val_accuracy", "parameters", "role"} <= set(window.run(offered))


def test_chart_view_overlays_the_curves_of_runs(window, address, runs):
    window.open(f"{address}/runs?compareRunsMode=CHART")
    window.shows("Model metrics")
    # it stands below the recalls of the classes, and its charts are drawn once they are seen
    section = "[...document.querySelectorAll('*')].findLast(e => e.innerText?.trim() === 'Model metrics')"
    window.run(f"{section}.scrollIntoView()")
    window.shows("val_accuracy", *(f"{run.info.run_name} (accuracy)" for run in runs.values()))
    lines = "return [...document.querySelectorAll('.js-plotly-plot')].map(e => e.querySelectorAll('.js-line').length)"
    wait_until(lambda: max(window.run(lines), default=0) >= 2, seconds=60, message=lambda: str(window.run(lines)))


def test_shared_view_opens_the_table_with_columns_of_settings_and_results(window, address):
    window.open(f"{address}/runs?workflowType=machine_learning&viewStateShareKey=convmixer")
    window.shows("You're viewing a shared view", "Image classifiers of the ConvMixer family")
    heads = "return [...document.querySelectorAll('[role=columnheader]')].map(e => e.innerText.trim())"
    wanted = {"test_accuracy", "best_val_accuracy", "depth", "kernel_size"}
    wait_until(lambda: wanted <= set(window.run(heads)), seconds=60, message=lambda: str(window.run(heads)))


def test_shared_chart_view_shows_the_figures_of_several_runs_side_by_side(window, address, runs):
    window.open(f"{address}/runs?workflowType=machine_learning&viewStateShareKey=convmixer&compareRunsMode=CHART")
    text = window.shows("Figures", "Image grid", "curves", "depthwise_kernels")
    assert "learning_rate=" not in text, "no card lists the parameters of a run"
    # the first card is a table with a column for each run
    names = [run.info.run_name for run in runs.values()]
    columns = "return [...document.querySelectorAll('[role=columnheader]')].map(e => e.innerText.trim())"
    wait_until(
        lambda: all(any(name in column for column in window.run(columns)) for name in names),
        seconds=60,
        message=lambda: str(window.run(columns)),
    )
    few = "fewer than two pictures for each run"
    wait_until(lambda: len([size for size in window.pictures() if min(size) > 200]) >= 4, seconds=60, message=few)


def test_slider_of_the_chart_view_shows_the_kernels_of_runs_at_two_epochs(window, address, runs):
    window.open(f"{address}/runs?workflowType=machine_learning&viewStateShareKey=convmixer&compareRunsMode=CHART")
    window.shows("depthwise_kernels_by_epoch")
    card = (
        "const title = [...document.querySelectorAll('*')].find(e => !e.children.length && "
        "e.textContent.trim() === 'depthwise_kernels_by_epoch');"
        "const card = title.closest('[data-testid=experiment-view-compare-runs-card]');"
    )

    def epochs():
        sources = window.run(f"{card} return [...card.querySelectorAll('img')].map(e => decodeURIComponent(e.src))")
        return [source.partition("+step+")[2].partition("+")[0] for source in sources]

    wait_until(lambda: epochs() == ["1", "1"], seconds=60, message=lambda: str(epochs()))
    window.run(f"{card} const slider = card.querySelector('[role=slider]'); slider.scrollIntoView(); slider.focus()")
    arrow = {"key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39}
    window.command("Input.dispatchKeyEvent", type="rawKeyDown", **arrow)
    wait_until(lambda: epochs() == ["2", "2"], seconds=60, message=lambda: str(epochs()))


def test_page_of_a_search_shows_its_result_and_its_children(window, address, printed):
    (search,) = mlflow.search_runs(["1"], f"tags.{Tag.ROLE} = '{Role.SEARCH}'", output_format="list")
    window.open(f"{address}/runs/{search.info.run_id}?workflowType=machine_learning")
    text = window.shows("winner", "best trial", "Child runs", "t000", "final t00")
    assert text.index("role\n: search") < text.index("convmixer.host")


def test_evaluation_view_puts_the_classes_of_several_runs_side_by_side(window, address, runs):
    # without the trials of a search that an earlier test has opened, which would come first
    only = quote(f"tags.{Tag.ROLE} = '{Role.RUN}'")
    window.open(f"{address}/runs?workflowType=machine_learning&compareRunsMode=ARTIFACT&searchFilter={only}")
    # nothing has to be chosen: it opens with the first table, its first column and its second one
    window.shows("per_class.json", "recall")
    heads = "return [...document.querySelectorAll('[role=columnheader]')].map(e => e.innerText.trim())"
    names = [run.info.run_name for run in runs.values()]
    wait_until(
        lambda: all(any(name in head for head in window.run(heads)) for name in names),
        seconds=60,
        message=lambda: str(window.run(heads)),
    )


def test_run_page_shows_the_tags_for_people_first(window, address, runs):
    window.open(f"{address}/runs/{runs['3'].info.run_id}?workflowType=machine_learning")
    text = window.shows("Tags", "convmixer.host")
    places = [text.index(f"{name}\n: ") for name in ("role", "data", "device", "precision", "convmixer.host")]
    assert places == sorted(places)


def test_comparison_of_two_runs_shows_parallel_coordinates_and_differences(window, address, runs):
    ids = ",".join(f'"{run.info.run_id}"' for run in runs.values())
    window.open(f'{address.rpartition("/experiments")[0]}/compare-runs?runs=[{ids}]&experiments=["1"]')
    text = window.shows("Parallel Coordinates Plot", "best_val_accuracy", "kernel_size")
    assert all(run.info.run_name in text for run in runs.values())
    drawn = "return document.querySelectorAll('.parcoords').length"
    wait_until(lambda: window.run(drawn), seconds=60, message="no parallel coordinates were drawn")


@pytest.mark.parametrize(
    "path",
    [
        "plots/curves.png",
        "plots/confusion_matrix.png",
        "plots/depthwise_kernels.png",
        "plots/depthwise_kernels/block_1.png",
    ],
)
def test_artifact_page_shows_pictures(window, address, runs, path):
    window.open(f"{address}/runs/{runs['3'].info.run_id}/artifacts/{path}")
    window.shows(f"Path: {runs['3'].info.artifact_uri.removeprefix('file://')}/{path}")
    large = "no picture of more than 300 pixels a side"
    wait_until(lambda: [size for size in window.pictures() if min(size) > 300], seconds=60, message=large)


def test_model_page_shows_metrics_and_signature(window, address, runs):
    run = runs["3"]
    (model,) = run.outputs.model_outputs
    window.open(f"{address}/models/{model.model_id}")
    text = window.shows("test_accuracy", "test_loss", run.info.run_name, "Ready")
    assert str(run.data.metrics["test_accuracy"]) in text
    window.open(f"{address}/models/{model.model_id}/artifacts")
    window.click("[data-testid=artifact-tree-node]", containing="MLmodel")
    signature = " ".join(window.shows("signature:", "type_hint").split())
    assert '"shape": [-1, 8, 8, 1]' in signature and '"shape": [-1, 10]' in signature


def test_model_version_page_shows_signature_alias_and_tags(window, address):
    window.open(f"{address.rpartition('/experiments')[0]}/models/best/versions/1")
    text = window.shows("Version 1", "champion", Tag.DATA_FINGERPRINT, "test_accuracy", "latency_ms", "Schema")
    assert "there was no champion" in text
    # the description
    assert all(words in text for words in ("Model card", "Results of each class", "How to load it"))
    window.click("[role=cell]", containing="Inputs (1)")
    window.shows("image (optional)", "any")


def test_dashboard_command_of_a_search_shows_its_study(window, printed):
    port = free_port()
    command = [*shlex.split(printed["dashboard"]), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as one:
        try:
            wait_until(
                lambda: answers(f"http://127.0.0.1:{port}"), seconds=180, message="optuna-dashboard does not answer"
            )
            window.open(f"http://127.0.0.1:{port}/dashboard")
            window.click("a", containing="smoke")
            window.shows("val_accuracy", "learning_rate", "kernel_size")
        finally:
            os.killpg(one.pid, 15)


def test_report_is_shown_alone_and_among_the_artifacts_of_its_run(window, address, uri, tmp_path):
    command = [sys.executable, "-m", "pipeline", "report", "seen", "--folder", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=environment(uri, "seen"), check=True)
    (run,) = mlflow.search_runs(["1"], f"tags.{Tag.ROLE} = '{Role.REPORT}'", output_format="list")
    window.open(f"file://{tmp_path}/{run.info.run_id}/report.html")
    window.shows("Comparison of experiment seen", "Leaderboard", "How to read this page")
    assert len(window.pictures()) >= 3
    window.open(f"{address}/runs/{run.info.run_id}/artifacts/report.html")
    window.shows("leaderboard.csv", "report.html")
