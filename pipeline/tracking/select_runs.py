"""Which runs a person has named: an experiment's, a study's, some by id, or those that an MLflow filter finds."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.tracking.fluent import _get_experiment_id

from pipeline.config.commands import RUNS
from pipeline.evaluation.report.groups import RunRecord
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import join_names, nearest, one_line, shown
from pipeline.tracking.query import inherit_data, is_training, search_run_records, to_run_record

RUN_ID = re.compile(r"[0-9a-f]{32}")
FILTER = re.compile(r"[=<>]|\b(LIKE|ILIKE|IN|IS)\b", re.IGNORECASE)


class RunSelection(NamedTuple):
    """The trainings that were asked for, with an accuracy each."""

    title: str
    rows: list[RunRecord]
    left_out: list[str]  # a phrase for each kind of run that is not among them
    by_id: bool  # whether each run was named by itself


def select_runs(client: MlflowClient, text: str) -> RunSelection:
    """The runs that `text` names.

    Raises:
        UsageError: it names nothing, a run that does not exist, or runs without any accuracy.
    """
    title, found, left_out = _find(client, text)
    trainings = inherit_data(client, [one for one in found if is_training(one)], found)
    without = [one for one in trainings if not has_accuracy(one)]
    rows = [one for one in trainings if has_accuracy(one)]
    if without:
        states = Counter(one.state for one in without)
        many = ", ".join(f"{number:,} {state}" for state, number in states.items())
        left_out.append(f"without an accuracy: {many} ({join_names([one.name for one in without])})")
    if not rows:
        other = len(found) - len(trainings)
        reasons = [f"{other:,} that train nothing themselves"] * bool(other) + left_out
        raise UsageError(
            f"a report needs runs with an accuracy, got none of {title}: "
            f"{'; '.join(reasons) or 'it has no runs'}; train first, or name others"
        )
    return RunSelection(title, rows, left_out, by_id=bool(_ids(text)))


def has_accuracy(one: RunRecord) -> bool:
    """Whether a run has been measured at all."""
    return bool({"test_accuracy", "best_val_accuracy", "val_accuracy"} & one.metrics.keys())


def _find(client: MlflowClient, text: str) -> tuple[str, list[RunRecord], list[str]]:
    """A title, the runs as they are, and what is not among them."""
    if ids := _ids(text):
        return _by_id(client, ids)
    if experiment := client.get_experiment_by_name(text):
        if experiment.lifecycle_stage != "active":
            raise UsageError(f"the experiment must not be deleted, and {shown(text)} is: restore it, or name another")
        return f"experiment {one_line(text)}", list(search_run_records(client, [experiment.experiment_id], "")), []
    names = _experiments(client)
    if found := _study(client, text, list(names)):
        return f"study {one_line(text)}", found, []
    if not FILTER.search(text):
        raise UsageError(f"runs must be {RUNS}, got {shown(text)}{nearest(text, names.values())}")
    return _filtered(client, text, names)


def _ids(text: str) -> list[str]:
    """The ids of which `text` is a list, once each; none if it is anything else."""
    parts = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    return parts if all(RUN_ID.fullmatch(part) for part in parts) else []


def _by_id(client: MlflowClient, ids: Sequence[str]) -> tuple[str, list[RunRecord], list[str]]:
    """Runs by their ids; that of a search stands for its trainings."""
    found: list[RunRecord] = []
    deleted = []
    for run_id in ids:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UsageError(f"runs must be in this tracking store, got {run_id}, which is not") from None
        if run.info.lifecycle_stage != "active":
            deleted.append(run_id)
            continue
        one = to_run_record(run)
        found += _study(client, one.study, [one.experiment_id]) if one.role == "search" and one.study else [one]
    found = list({one.id: one for one in found}.values())
    left_out = [f"deleted: {', '.join(deleted)} (`mlflow runs restore --run-id ID` brings one back)"] if deleted else []
    return f"{len(ids)} run{'s' if len(ids) > 1 else ''} by id", found, left_out


def _study(client: MlflowClient, name: str, experiments: Sequence[str]) -> list[RunRecord]:
    if "'" in name and '"' in name:  # which MLflow's filters cannot quote
        return []
    quote = '"' if "'" in name else "'"
    return list(search_run_records(client, experiments, f"tags.study = {quote}{name}{quote}"))


def _filtered(client: MlflowClient, text: str, names: dict[str, str]) -> tuple[str, list[RunRecord], list[str]]:
    experiment = str(_get_experiment_id())
    where = f"experiment {names.get(experiment, experiment)}"
    try:
        found = list(search_run_records(client, [experiment], text))
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        raise UsageError(f"runs must be {RUNS}, got {shown(text)}: {one_line(error, most=300)}") from None
    return f"runs of {where} where {one_line(text, most=300)}", found, []


def _experiments(client: MlflowClient) -> dict[str, str]:
    """Names of the experiments that are not deleted, by id."""
    names: dict[str, str] = {}
    token = None
    while True:
        page = client.search_experiments(page_token=token)
        names |= {one.experiment_id: one.name for one in page}
        if not (token := page.token):
            return names
