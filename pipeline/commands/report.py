"""Finished runs, compared on one page: `python -m pipeline report "my experiment"`.

What is compared is named as an experiment, a study, run ids with commas between, or an MLflow filter such as
"params.depth = '8' and metrics.test_accuracy > 0.9" in the experiment that the command runs in. The page, report.html,
needs nothing beside it; leaderboard.csv and leaderboard.md hold its first table. MLflow takes seconds to import, so it
comes after the command line has been accepted; TensorFlow is not needed.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import mlflow
from mlflow import MlflowClient

from pipeline.config.commands import ReportCommand
from pipeline.evaluation.figures.style import COLOURS
from pipeline.evaluation.report import leaderboard, page
from pipeline.evaluation.report.groups import (
    Metric,
    RunGroup,
    RunRecord,
    accuracy,
    format_setting,
    group_runs,
    settings_of,
    usual_metric,
)
from pipeline.evaluation.report.leaderboard import LeaderboardRow
from pipeline.runtime.code_version import code_version
from pipeline.runtime.errors import Stopped, UsageError
from pipeline.runtime.parent_watch import PROJECT_RUN_ID_ENV
from pipeline.runtime.text import count
from pipeline.runtime.urls import mask_password, storage_error
from pipeline.tracking import ownership, query, stale_runs
from pipeline.tracking.select_runs import RunSelection, select_runs
from pipeline.tracking.tags import Role, Tag, code_version_tags

READ_CONFIGS = 2000  # config.yaml files at most, the best runs' first: a server takes 15 s or more for them
COMMIT = "commit"  # where it is told like a setting
CURVES = 5  # runs of a recipe whose curve is drawn


def build_report(asked: ReportCommand) -> list[str]:
    """Write the report; returns lines for the terminal.

    Raises:
        UsageError: nothing that could be compared was named, or the store or the folder cannot be used.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        client = MlflowClient()
        client.search_experiments(max_results=1)
    except Exception as error:  # noqa: BLE001 - each kind of store raises its own
        raise storage_error("the tracking store", mlflow.get_tracking_uri(), error) from None
    with ownership.close_if_unused(client, os.environ.get(PROJECT_RUN_ID_ENV)):
        chosen = select_runs(client, asked.runs)
        metric, left_out, found = _ranked(chosen, asked)
        with _open_own_run(client, chosen, asked) as run_id:
            lost = stale_runs.close_stale_runs(client, chosen.rows[0].experiment_id)
            return [*lost, *_log_report(client, run_id, chosen, metric, found, left_out, asked)]


def _ranked(chosen: RunSelection, asked: ReportCommand) -> tuple[Metric, list[str], list[RunGroup]]:
    """By what is ranked, what is not compared and why, and the recipes of all data sets."""
    metric = usual_metric(chosen.rows) if asked.settings.metric == "auto" else asked.settings.metric
    rows = [one for one in chosen.rows if accuracy(one, metric) == accuracy(one, metric)]  # NaN: it has none
    if not rows:
        raise UsageError(f"metric must be one that runs have, got {metric}, which none of {chosen.title} has; try auto")
    left_out = list(chosen.left_out)
    if without := len(chosen.rows) - len(rows):
        left_out.append(f"without {metric}: {count(without, 'run')}")
    settings = {one.id: settings_of(one) for one in rows}
    typed = sorted((one for one in rows if one.params_as_typed), key=lambda one: -accuracy(one, metric))[:READ_CONFIGS]
    settings |= {run_id: format_setting(config) for run_id, config in query.fetch_configs(typed).items()}
    found = group_runs(rows, settings, metric)
    if chosen.by_id and _repeats(rows, found):  # a person compares what two commits make of the same settings
        settings = {one.id: {**settings[one.id], COMMIT: one.commit} for one in rows}
        found = group_runs(rows, settings, metric)
    if repeats := _repeats(rows, found):
        left_out.append(f"finished again with the settings and the seed of a newer run: {count(repeats, 'run')}")
    return metric, left_out, found


def _repeats(rows: Sequence[RunRecord], found: Sequence[RunGroup]) -> int:
    """How many of the runs are of a seed that a newer run of their recipe has too."""
    return len(rows) - sum(len(recipe.runs) for recipe in found)


def _log_report(
    client: MlflowClient,
    run_id: str,
    chosen: RunSelection,
    metric: Metric,
    found: Sequence[RunGroup],
    left_out: Sequence[str],
    asked: ReportCommand,
) -> list[str]:
    """Write the report's files into a folder and into its run; returns lines for the terminal."""
    sections, standings = _sections(client, found, metric, _count_accesses(chosen.rows), asked.settings.rows)
    board = leaderboard.leaderboard_table(standings, metric)
    title = f"Comparison of {chosen.title}"
    notes = [f"Not compared: {phrase}." for phrase in left_out]
    html = page.page(title, sections, metric, notes=notes, facts=_facts(run_id, asked))
    folder = _written(
        Path(asked.settings.folder).expanduser() / run_id,
        {
            "report.html": html,
            "leaderboard.csv": board.to_csv(index=False),
            "leaderboard.md": leaderboard.as_markdown(board),
        },
    )
    client.log_artifacts(run_id, str(folder))
    answers = [page.answer(section, metric) for section in sections]
    client.set_tag(run_id, Tag.DESCRIPTION, "\n\n".join(answers)[: ownership.TAG_CHARACTERS])
    runs = count(sum(len(recipe.runs) for recipe in found), "run")
    return [
        f"compared {count(len(board), 'recipe')} of {runs}: {chosen.title}",
        *(f"left out {phrase}" for phrase in left_out),
        *[f"data     {len(sections)} different data sets: each is ranked by itself"] * (len(sections) > 1),
        *(f"answer   {said}" for said in answers),
        *(f"opened   {page.opened(section)}" for section in sections),
        f"report   {folder / 'report.html'}",
        f"run      {run_id}",
    ]


def _count_accesses(rows: Sequence[RunRecord]) -> Counter[str]:
    """How often the test images of each data set have been looked at, by runs too that are not compared."""
    opened: Counter[str] = Counter()
    for one in rows:
        opened[one.fingerprint or one.data] += one.test_set_accesses
    return opened


def _sections(
    client: MlflowClient, found: Sequence[RunGroup], metric: Metric, opened: Counter[str], rows: int
) -> tuple[list[page.Section], list[LeaderboardRow]]:
    """What is shown of each data set, that of most recipes first, and the places of all recipes."""
    sections: list[page.Section] = []
    standings: list[LeaderboardRow] = []
    many = Counter(recipe.data for recipe in found)
    ordered = sorted(found, key=lambda recipe: (-many[recipe.data], recipe.data))
    for _, same_data in groupby(ordered, key=lambda recipe: recipe.data):
        section, places = _section(client, list(same_data), metric, opened, len(standings) + 1, rows)
        sections.append(section)
        standings += places
    return sections, standings


def _section(
    client: MlflowClient, same_data: Sequence[RunGroup], metric: Metric, opened: Counter[str], place: int, rows: int
) -> tuple[page.Section, list[LeaderboardRow]]:
    """What is shown of the recipes of one data set, and the places of all of them."""
    shown = same_data[:rows]
    runs = [run for recipe in shown if recipe.finished for run in recipe.runs]
    predictions = query.fetch_predictions(runs) if metric == "test_accuracy" else {}
    places = leaderboard.leaderboard_rows(same_data, metric, predictions, first=place)
    first = places[: len(COLOURS)]
    drawn = [run for one in first for run in one.recipe.runs]
    pictures = query.fetch_kernel_images(one.recipe.runs[0] for one in first)
    kernels = [(one, pictures[one.recipe.runs[0].id]) for one in first if one.recipe.runs[0].id in pictures]
    section = page.Section(
        data=same_data[0].data_name,
        fingerprint=same_data[0].data,
        found=places[:rows],
        others=len(places) - len(shown),
        test_opened=opened[same_data[0].data],
        curves={run.id: _curve(client, run) for one in first for run in one.recipe.runs[:CURVES]},
        recalls=query.fetch_recalls(drawn),
        kernels=kernels[:2],
    )
    return section, places


def _curve(client: MlflowClient, run: RunRecord) -> list[tuple[int, float]]:
    """(epoch, validation accuracy) of a run."""
    points = client.get_metric_history(run.id, "val_accuracy")
    return sorted((point.step, point.value) for point in points)


@contextmanager
def _open_own_run(client: MlflowClient, chosen: RunSelection, asked: ReportCommand) -> Iterator[str]:
    """The report's run: the one that `mlflow run` opened, else one beside the runs that are compared."""
    opened = os.environ.pop(PROJECT_RUN_ID_ENV, None)
    run_id = opened or client.create_run(chosen.rows[0].experiment_id).info.run_id
    tags = {Tag.ROLE: Role.REPORT, Tag.RUN_NAME: f"report on {chosen.title}"[:200], Tag.REPORT_RUNS: asked.runs}
    ownership.claim_run(client, run_id, tags | code_version_tags())
    try:
        yield run_id
    except BaseException as error:
        stopped = isinstance(error, Stopped)
        ownership.end_run(client, run_id, "stopped" if stopped else "failed", f"by {error}" if stopped else str(error))
        raise
    ownership.end_run(client, run_id, "finished", "")


def _written(folder: Path, contents: dict[str, str]) -> Path:
    """Files in a folder that is made for them; returns its absolute path."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"folder must be writable, got {folder}: {error.strerror}; name another") from None
    return folder.absolute()


def _facts(run_id: str, asked: ReportCommand) -> dict[str, str]:
    version = code_version()
    return {
        "asked for": asked.runs,
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, as run {run_id}",
        "tracking store": mask_password(mlflow.get_tracking_uri()),
        "settings": "from config.yaml of runs that `mlflow run` opened, else from the parameters",
        "code": f"commit {version.commit}" if version else "not known",
    }
