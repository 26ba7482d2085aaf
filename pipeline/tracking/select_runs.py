"""Select the runs that a person names: by experiment, study, run ids or an MLflow filter."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.config.commands import RUNS_RULE
from pipeline.evaluation.report.groups import RunRecord
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import count, join_names, nearest, one_line, shown
from pipeline.tracking.client import Deleted, NotFound, Rejected, TrackingClient
from pipeline.tracking.query import inherit_data, is_training, search_run_records, to_run_record
from pipeline.tracking.tags import Role, Tag

RUN_ID = re.compile(r"[0-9a-f]{32}")
FILTER = re.compile(r"[=<>]|\b(LIKE|ILIKE|IN|IS)\b", re.IGNORECASE)
ACCURACIES = {"test_accuracy", "best_val_accuracy", "val_accuracy"}


class RunSelection(NamedTuple):
    """Training runs, each with an accuracy."""

    title: str
    rows: list[RunRecord]
    left_out: list[str]  # a phrase for each kind of run that was named and is not among them
    by_id: bool  # whether the runs were named by their ids
    subject: str  # id of the one run that stands for all of them: a training, or the run of a search; else empty


class _Match(NamedTuple):
    """All runs that a text names, of whatever kind."""

    title: str
    records: list[RunRecord]
    left_out: list[str]


def select_runs(client: TrackingClient, text: str) -> RunSelection:
    """Return the training runs that `text` names.

    Args:
        client: Asked for the runs.
        text: An experiment or a study by its name, run ids separated by commas, or an MLflow filter.

    Raises:
        UsageError: It names nothing, a run that does not exist, or no run with an accuracy.
    """
    match, by_id = _match(client, text), bool(_split_ids(text))
    trainings = inherit_data(
        client, [record for record in match.records if is_training(record, by_id=by_id)], match.records
    )
    rows = [record for record in trainings if has_accuracy(record)]
    without = [record for record in trainings if not has_accuracy(record)]
    left_out = list(match.left_out)
    if without:
        states = Counter(record.state for record in without)
        counts = ", ".join(f"{number:,} {state}" for state, number in states.items())
        left_out.append(f"without an accuracy: {counts} ({join_names([record.name for record in without])})")
    if not rows:
        reasons = left_out
        if others := len(match.records) - len(trainings):
            reasons = [f"{others:,} that train nothing themselves", *left_out]
        raise UsageError(
            f"a report needs runs with an accuracy, got none of {match.title}: "
            f"{'; '.join(reasons) or 'it has no runs'}; train first, or name others"
        )
    return RunSelection(match.title, rows, left_out, by_id=by_id, subject=_subject(match.records))


def _subject(records: Sequence[RunRecord]) -> str:
    """Return the id of the only record, or of the search that all of them belong to; empty if there is neither."""
    if len(records) == 1:
        return records[0].id
    searches = [record for record in records if record.role == Role.SEARCH]
    is_one_search = len(searches) == 1 and {record.study for record in records} == {searches[0].study}
    return searches[0].id if is_one_search else ""


def has_accuracy(record: RunRecord) -> bool:
    """Return whether a run has been measured at all."""
    return not ACCURACIES.isdisjoint(record.metrics)


def _match(client: TrackingClient, text: str) -> _Match:
    """Return all runs that `text` names: as run ids, else as an experiment, else as a study, else as a filter."""
    if run_ids := _split_ids(text):
        return _match_ids(client, run_ids)
    try:
        experiment = client.find_experiment(text)
    except Deleted as error:
        raise UsageError(f"the experiment must not be deleted, got {shown(text)}: {error}; or name another") from None
    if experiment:
        records = list(search_run_records(client, [experiment.experiment_id], ""))
        return _Match(f"experiment {one_line(text)}", records, [])
    names = {each.experiment_id: each.name for each in client.search_experiments()}
    if records := _search_study(client, text, list(names)):
        return _Match(f"study {one_line(text)}", records, [])
    if not FILTER.search(text):
        raise UsageError(f"runs must be {RUNS_RULE}, got {shown(text)}{nearest(text, names.values())}")
    return _match_filter(client, text)


def _split_ids(text: str) -> list[str]:
    """Return the run ids in a list separated by commas, each once; none if `text` is anything else."""
    parts = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    return parts if all(RUN_ID.fullmatch(part) for part in parts) else []


def _match_ids(client: TrackingClient, run_ids: Sequence[str]) -> _Match:
    """Return runs by their ids; the run of a search stands for all runs of its study."""
    records: dict[str, RunRecord] = {}
    deleted = []
    for run_id in run_ids:
        try:
            record = to_run_record(client.get_active_run(run_id))
        except Deleted:
            deleted.append(run_id)
            continue
        except NotFound:
            raise UsageError(f"runs must be in this tracking store, got {run_id}, which is not") from None
        if record.role == Role.SEARCH and record.study:
            records |= {each.id: each for each in _search_study(client, record.study, [record.experiment_id])}
        else:
            records[record.id] = record
    left_out = []
    if deleted:
        left_out = [f"deleted: {', '.join(deleted)} (`mlflow runs restore --run-id ID` restores one)"]
    return _Match(f"{count(len(run_ids), 'run')} by id", list(records.values()), left_out)


def _search_study(client: TrackingClient, name: str, experiment_ids: Sequence[str]) -> list[RunRecord]:
    """Return the runs of a study in some experiments."""
    if "'" in name and '"' in name:
        # MLflow's filters cannot quote such a text, and no study is named so
        return []
    quote = '"' if "'" in name else "'"
    return list(search_run_records(client, experiment_ids, f"tags.{Tag.STUDY} = {quote}{name}{quote}"))


def _match_filter(client: TrackingClient, where: str) -> _Match:
    """Return the runs of the present experiment that match an MLflow filter."""
    experiment_id = client.experiment_id()
    try:
        records = list(search_run_records(client, [experiment_id], where))
    except Rejected as error:
        raise UsageError(f"runs must be {RUNS_RULE}, got {shown(where)}: {one_line(error, most=300)}") from None
    name = client.experiment_name(experiment_id)
    return _Match(f"runs of experiment {name} where {one_line(where, most=300)}", records, [])
