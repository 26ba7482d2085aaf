"""The command `report`: compare finished runs on one HTML page.

What it compares is an experiment, a study, some run ids, or the runs that an MLflow filter finds in the experiment of
the command. It writes `report.html`, which needs no other file, and the leaderboard as `leaderboard.csv` and
`leaderboard.md`, into a folder and into an MLflow run of its own. It does not import TensorFlow.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby
from math import isnan
from pathlib import Path
from typing import Literal

import pandas as pd

from pipeline.commands.report_examples import find_examples
from pipeline.config.commands import ReportCommand
from pipeline.config.monitor import ResultMetric, metric_words, monitor_of, sign
from pipeline.evaluation.figures.style import COLORS
from pipeline.evaluation.report.groups import (
    RunGroup,
    RunRecord,
    choose_metric,
    format_settings,
    group_runs,
    is_refit,
    metric_value,
    monitors,
    parse_settings,
)
from pipeline.evaluation.report.leaderboard import LeaderboardRow, leaderboard_table, rank_groups, to_markdown
from pipeline.evaluation.report.page import Section, answer, describe_test_set_accesses, render_page
from pipeline.runtime.code_version import code_version
from pipeline.runtime.console import Console
from pipeline.runtime.errors import UsageError
from pipeline.runtime.tables import markdown_text, to_csv
from pipeline.runtime.text import count
from pipeline.runtime.urls import mask_password
from pipeline.tracking import query
from pipeline.tracking.client import TrackingClient, tracking_uri
from pipeline.tracking.experiment_page import link_to_run, page_links, run_url, ui_command
from pipeline.tracking.lifecycle import start_run
from pipeline.tracking.ownership import claim_run, end_run, outcome_of_error, require_server
from pipeline.tracking.project_run import ProjectRun, close_if_unused
from pipeline.tracking.select_runs import RunSelection, select_runs
from pipeline.tracking.tags import Role, RunOutcome, Tag, code_version_tags

READ_CONFIGS = 2000  # config.yaml files at most, those of the best runs: a server needs 15 s or more for as many
COMMIT = "commit"  # its name among the settings, where commits are compared
CURVES = 5  # runs of a group whose curves are drawn


def build_report(command: ReportCommand, console: Console) -> None:
    """Compare runs and write the report into a folder and into an MLflow run.

    Raises:
        UsageError: Nothing that can be compared was named, the tracking store or the folder cannot be used, or the
            artifact store refuses the report, which is in the folder then.
    """
    with require_server():
        client = TrackingClient()
        # the store is asked here, so that later errors are about the runs
        next(client.search_experiments(), None)
    with close_if_unused(ProjectRun.find()):
        selection = select_runs(client, command.runs)
        metric, groups, left_out = _group(client, selection, command.settings.metric)
        notes = _different_monitors(groups, metric)
        experiment_id = selection.rows[0].experiment_id
        tags = {Tag.RUN_NAME: f"report on {selection.title}"[:200], Tag.REPORT_RUNS: command.runs}
        with (
            _refer_to_report(client, experiment_id, tags) as refer,
            start_run(role=Role.REPORT, parent=selection.subject or None, experiment_id=experiment_id) as run,
        ):
            refer(run.id)
            run.set_tags(tags | code_version_tags())
            runs = count(sum(len(group.runs) for group in groups), "run")
            console.print(
                *run.notices,
                f"compared {count(len(groups), 'configuration')} of {runs}: {selection.title}",
                *(f"left out {reason}" for reason in left_out),
                *notes,
            )

            sections, rows = _rank(client, selection, groups, metric, on_page=command.settings.rows)
            not_paired = _describe_not_paired(sections, rows, metric)
            notes += not_paired
            answers = [answer(section, metric) for section in sections]
            if len(sections) > 1:
                console.print(f"data     {len(sections)} different data sets, each with its own leaderboard")
            console.print(
                *(f"answer   {sentences}" for sentences in answers),
                *(f"test set {describe_test_set_accesses(section)}" for section in sections),
                *not_paired,
            )

            html = render_page(
                f"Comparison of {selection.title}",
                sections,
                metric,
                notes=[*notes, *([f"Not compared: {'; '.join(left_out)}."] if left_out else [])],
                facts=_facts(run.id, command),
            )
            board = leaderboard_table(rows, metric)
            contents = {"report.html": html, "leaderboard.csv": to_csv(board), "leaderboard.md": to_markdown(board)}
            folder = _write(Path(os.path.expanduser(command.settings.folder)) / run.id, contents)
            console.print(f"report   {folder / 'report.html'}")
            for name, content in contents.items():
                run.log_text(name, content)
            run.set_description(markdown_text("\n\n".join(answers)))
            # in an outage the outbox keeps the files; a refusal is final
            run.check_artifacts_accepted()

    if pending := run.outbox.pending():
        console.print(pending)
    console.print(f"run      {run.id}", *page_links(experiment_id, run.id)[:-1])


@contextmanager
def _refer_to_report(
    client: TrackingClient, experiment_id: str, tags: Mapping[str, str]
) -> Iterator[Callable[[str], None]]:
    """Context manager: take the run that `mlflow run` opened, if the report belongs into another experiment.

    A run stays in its experiment, and `mlflow run` fails if its run is deleted. So it gets the report's name, and says
    where the report is.

    Args:
        client: Of the tracking store.
        experiment_id: The experiment of the report.
        tags: Of the report.

    Yields:
        A function that is given the id of the report's run.
    """
    project_run = ProjectRun.find()
    if project_run is None or client.get_run(project_run.id).info.experiment_id == experiment_id:
        yield lambda run_id: None
        return
    project_run.claim()
    claim_run(client, project_run.id, {Tag.ROLE: Role.REPORT, **tags})

    def refer(run_id: str) -> None:
        link = link_to_run(experiment_id, run_id, "this run")
        name = markdown_text(client.experiment_name(experiment_id))
        client.set_tags(project_run.id, {Tag.DESCRIPTION: f"The report is in experiment {name}: {link}."})

    try:
        yield refer
    except BaseException as error:
        end_run(client, project_run.id, *outcome_of_error(error))
        raise
    end_run(client, project_run.id, RunOutcome.FINISHED, "")


def _group(
    client: TrackingClient, selection: RunSelection, ranked_by: ResultMetric | Literal["auto"]
) -> tuple[ResultMetric, list[RunGroup], list[str]]:
    """Return the metric that ranks, the groups of runs on all data sets, and why other runs are left out."""
    metric = choose_metric(selection.rows) if ranked_by == "auto" else ranked_by
    # the refit of a search's winner has no validation accuracy of its own, and joins the winner's finals
    runs = [run for run in selection.rows if not isnan(metric_value(run, metric)) or is_refit(run)]
    if not runs:
        raise UsageError(
            f"metric must be one that runs have, got {metric}, which none of {selection.title} has; try auto"
        )
    left_out = list(selection.left_out)
    if len(runs) < len(selection.rows):
        left_out.append(f"without {metric}: {count(len(selection.rows) - len(runs), 'run')}")

    settings = _read_settings(client, runs, metric)
    groups = group_runs(runs, settings, metric)
    if selection.by_id and _superseded(groups):
        # The user has named each run, so as to compare two commits with the same settings.
        settings = {run.id: {**settings[run.id], COMMIT: run.commit} for run in runs}
        groups = group_runs(runs, settings, metric)
    retrained = sum(
        run.role == Role.TRIAL for group in groups if group.kind in {"winner", "final"} for run in group.superseded
    )
    if retrained:
        left_out.append(f"trained again as finals: {count(retrained, 'trial')}")
    if superseded := _superseded(groups) - retrained:
        left_out.append(f"superseded by a newer run with the same settings and seed: {count(superseded, 'run')}")
    return metric, groups, left_out


def _different_monitors(groups: Sequence[RunGroup], metric: ResultMetric) -> list[str]:
    """Return a sentence that says what the runs are compared by, if they monitor different metrics, else none."""
    monitored = monitors(run for group in groups for run in group.runs)
    if len(monitored) < 2:
        return []
    counts = ", ".join(f"{name} {count(number, 'run')}" for name, number in monitored.items())
    return [f"Runs monitor different metrics ({counts}): they are compared by {metric_words(metric)}."]


def _read_settings(
    client: TrackingClient, runs: Sequence[RunRecord], metric: ResultMetric
) -> dict[str, Mapping[str, str]]:
    """Return the settings of each run by run id: from its config.yaml where `mlflow run` logged the parameters."""
    settings = {run.id: parse_settings(run) for run in runs}
    as_typed = sorted(
        (run for run in runs if run.params_as_typed), key=lambda run: -sign(metric) * metric_value(run, metric)
    )
    configs = query.fetch_configs(client, as_typed[:READ_CONFIGS])
    return settings | {run_id: format_settings(config) for run_id, config in configs.items()}


def _superseded(groups: Sequence[RunGroup]) -> int:
    return sum(len(group.superseded) for group in groups)


def _rank(
    client: TrackingClient, selection: RunSelection, groups: Sequence[RunGroup], metric: ResultMetric, *, on_page: int
) -> tuple[list[Section], list[LeaderboardRow]]:
    """Return a section for each data set, the one with the most groups first, and the rows of all groups.

    Args:
        client: Of the tracking store.
        selection: The runs that were selected.
        groups: Those that are compared.
        metric: What they are ranked by.
        on_page: Rows of a section at most; the rows that are returned are all. Those beyond are not paired by image:
            of thousands of runs, the predictions would be gigabytes.
    """
    accesses = _count_test_set_accesses(selection.rows)
    size = Counter(group.data for group in groups)
    by_data = sorted(groups, key=lambda group: (-size[group.data], group.data))
    sections: list[Section] = []
    rows: list[LeaderboardRow] = []
    for data, same_data in groupby(by_data, key=lambda group: group.data):
        of_data = list(same_data)
        tested = [run for group in of_data[:on_page] if group.finished for run in group.runs]
        predictions = query.fetch_predictions(client, tested) if metric.startswith("test_") else {}
        ranked = rank_groups(of_data, metric, predictions, first_rank=len(rows) + 1)
        rows += ranked
        sections.append(
            _section(client, ranked, metric, predictions, on_page=on_page, test_set_accesses=accesses[data])
        )
    return sections, rows


def _describe_not_paired(
    sections: Sequence[Section], rows: Sequence[LeaderboardRow], metric: ResultMetric
) -> list[str]:
    """Return a sentence on the rows beyond those on the page, whose predictions were not fetched; none if none are."""
    on_page = {row.rank for section in sections for row in section.rows}
    beyond = sum(row.is_ranked and row.rank not in on_page for row in rows)
    if not beyond or not metric.startswith("test_"):
        return []
    return [
        f"leaderboard.csv has {count(beyond, 'more configuration')}, compared with the best over seeds alone: a larger "
        "value of rows shows more here, and compares them by image."
    ]


def _count_test_set_accesses(runs: Sequence[RunRecord]) -> Counter[str]:
    """Return how often models were evaluated on the test set of each data set, also by runs that are not compared."""
    accesses: Counter[str] = Counter()
    for run in runs:
        accesses[run.fingerprint or run.data] += run.test_set_accesses
    return accesses


def _section(
    client: TrackingClient,
    rows: Sequence[LeaderboardRow],
    metric: ResultMetric,
    predictions: Mapping[str, pd.DataFrame],
    *,
    on_page: int,
    test_set_accesses: int,
) -> Section:
    """Return what the page shows of one data set; curves, classes and filters of the first few rows only."""
    first = rows[: len(COLORS)]
    curves = {run.id: _fetch_curve(client, run, monitor_of(metric)) for row in first for run in row.group.runs[:CURVES]}
    images = query.fetch_kernel_images(client, [row.group.runs[0] for row in first])
    kernels = [(row, images[row.group.runs[0].id]) for row in first if row.group.runs[0].id in images]
    examples = find_examples(client, rows, predictions)
    on_page_rows = rows[:on_page]
    return Section(
        data=rows[0].group.data_name,
        fingerprint=rows[0].group.data,
        rows=on_page_rows,
        others=len(rows[on_page:]),
        test_set_accesses=test_set_accesses,
        curves=curves,
        recalls=query.fetch_recalls(client, [run for row in first for run in row.group.runs]),
        kernels=kernels[:2],
        strips=examples.strips,
        image_notes=examples.notes,
        run_urls={
            run.id: run_url(run.experiment_id, run.id)
            for row in on_page_rows
            for run in (*row.group.runs, *row.group.refits)
        },
    )


def _fetch_curve(client: TrackingClient, run: RunRecord, metric: str) -> list[tuple[int, float]]:
    """Return the (epoch, value) of a metric of validation of a run; an ensemble has no epochs."""
    if run.role == Role.ENSEMBLE:
        return []
    return sorted((point.step, point.value) for point in client.get_metric_history(run.id, metric))


def _write(folder: Path, contents: Mapping[str, str]) -> Path:
    """Write text files by name into a folder, which is created; return its absolute path."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"folder must be writable, got {folder}: {error.strerror}; name another") from None
    return folder.absolute()


def _facts(run_id: str, report: ReportCommand) -> dict[str, str]:
    """Return how the page was made, by name, for its last lines."""
    version = code_version()
    return {
        "runs": report.runs,
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, as run {run_id}",
        "tracking store": mask_password(tracking_uri()),
        **({"links to runs": f"open while `{command}` runs"} if (command := ui_command()) else {}),
        "settings": "from config.yaml of runs that `mlflow run` started, otherwise from the parameters",
        "code": f"commit {version.commit}" if version else "unknown",
    }
