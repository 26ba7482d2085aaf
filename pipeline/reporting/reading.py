"""Runs from MLflow, page by page; of each no more is kept than a report needs."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList

from pipeline.config import Config
from pipeline.lifetime.ownership import PARENT
from pipeline.openings import openings

PAGE = 1000  # runs at a time: 40 MB of Python objects, of which a tenth is kept
SETTINGS = frozenset(Config.model_fields)
FIGURES = frozenset(
    ["test_accuracy", "test_loss", "best_val_accuracy", "val_accuracy", "best_epoch", "parameters", "latency_ms"]
)
TRAININGS = frozenset(["run", "trial", "final"])  # roles; a search, a resumption and a report train nothing themselves


class Row(NamedTuple):
    """What a report needs of a run."""

    id: str
    name: str
    experiment_id: str
    artifacts: str  # URI
    state: str  # finished, running, pruned, stopped or failed
    role: str
    study: str
    parent: str
    typed: bool  # whether parameters may be in a person's spelling, as `mlflow run` logs them
    commit: str  # that it was trained with; empty where nobody knows it
    recipe: str
    params: Mapping[str, str]  # of settings
    figures: Mapping[str, float]
    data: str  # name, as a person gave it
    fingerprint: str  # of the data; empty where nobody has said it
    began: int  # ms since 1970
    seconds: float | None  # of wall time, where it has ended
    test_opened: int  # how often its test images have been looked at, by its training and by evaluations


def pages(client: MlflowClient, experiments: Sequence[str], where: str) -> Iterator[Row]:
    """The runs of some experiments that match an MLflow filter, the newest first; deleted ones are passed over."""
    token, seen = None, set()
    while True:
        page = _page(client, experiments, where, token)
        for run in page:
            if run.info.run_id not in seen:  # of runs that began meanwhile, each moves one to the next page
                seen.add(run.info.run_id)
                yield row(run)
        if not (token := page.token):
            return


def _page(client: MlflowClient, experiments: Sequence[str], where: str, token: str | None) -> PagedList[Run]:
    """One page. A run is some sixty objects, and Python's looking through all of them took half the time."""
    usual = gc.get_threshold()
    gc.set_threshold(100_000, 50, 50)
    try:
        return client.search_runs(list(experiments), where, ViewType.ACTIVE_ONLY, max_results=PAGE, page_token=token)
    finally:
        gc.set_threshold(*usual)


def row(run: Run) -> Row:
    """What is kept of a run."""
    tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
    ended = (run.info.end_time - run.info.start_time) / 1000 if run.info.end_time else None
    return Row(
        id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        experiment_id=run.info.experiment_id,
        artifacts=run.info.artifact_uri,
        state=_state(run),
        role=tags.get("role", ""),
        study=tags.get("study", ""),
        parent=tags.get(PARENT, ""),
        typed="mlflow.project.entryPoint" in tags,
        commit=tags.get("git.commit", ""),
        recipe=params.get("recipe", ""),
        params={name: value for name, value in params.items() if name in SETTINGS},
        figures={name: value for name, value in metrics.items() if name in FIGURES},
        data=tags.get("data", params.get("dataset", "")),
        fingerprint=tags.get("data.fingerprint", ""),
        began=run.info.start_time,
        seconds=metrics.get("seconds", ended),
        test_opened=openings(tags, run_id=run.info.run_id, tested="test_accuracy" in metrics),
    )


def trains(one: Row) -> bool:
    """Whether a run is a training; of a search's finals those that hold the trainings of several seeds are not."""
    return one.role in TRAININGS and not (one.role == "final" and "seed" not in one.params)


def with_data_of_their_searches(client: MlflowClient, rows: Sequence[Row], known: Sequence[Row]) -> list[Row]:
    """Trials say nothing of their data: their search does, in the run above theirs, or above that.

    Args:
        known: runs that have been read, `rows` among them.
    """
    found = {one.id: one for one in known}

    def above(run_id: str) -> Row | None:
        if run_id not in found:
            try:
                found[run_id] = row(client.get_run(run_id))
            except MlflowException:  # gone for good
                return None
        return found[run_id]

    def told(one: Row) -> Row:
        parent = one
        while not parent.fingerprint and parent.parent:
            higher = above(parent.parent)
            if higher is None or higher.parent == parent.id:
                break
            parent = higher
        return one if parent is one else one._replace(data=parent.data or one.data, fingerprint=parent.fingerprint)

    return [told(one) for one in rows]


def _state(run: Run) -> str:
    status = run.info.status
    if status == "KILLED":
        return "pruned" if run.data.tags.get("trial.state") == "pruned" else "stopped"
    return {"FINISHED": "finished", "FAILED": "failed"}.get(status, "running")
