"""The page of an experiment in MLflow's UI: its description, and a shared view of its table of runs.

Both are tags of the experiment, which are set where they are missing, so that what a person has written stays.
"""

import json
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from pipeline.runtime.errors import TrackingError
from pipeline.runtime.shell import mlflow_command
from pipeline.runtime.urls import mask_password
from pipeline.tracking.client import TrackingClient, tracking_uri
from pipeline.tracking.tags import Tag

# MLflow's "Share" button makes tags of this form with a random key; the UI applies the one that the address names
VIEW_KEY: Final = "convmixer"
LOCAL: Final = "http://127.0.0.1:5000"  # where `mlflow ui` listens
VIEW: Final = f"mlflow.sharedViewState.{VIEW_KEY}"

COLUMNS = (
    "attributes.`Duration`",
    "metrics.`test_accuracy`",
    "metrics.`best_val_accuracy`",
    "metrics.`parameters`",
    "params.`recipe`",
    "params.`depth`",
    "params.`filters`",
    "params.`kernel_size`",
    "params.`patch_size`",
    "params.`learning_rate`",
    "params.`epochs`",
    "params.`seed`",
    "tags.`data`",
)
CURVES = ("val_accuracy", "accuracy", "val_loss", "loss", "learning_rate")
# by title, the keys of a card's images and the step at which its slider stands; of several keys it makes a table
IMAGES = {
    "runs side by side": (("curves", "depthwise_kernels", "patch_embeddings", "confusion_matrix"), 0),
    "curves": (("curves",), 0),
    "depthwise kernels": (("depthwise_kernels",), 0),
    "depthwise kernels by block": (("depthwise_kernels_by_block",), 1),
    "depthwise kernels by epoch": (("depthwise_kernels_by_epoch",), 1),
    "patch embeddings": (("patch_embeddings",), 0),
    "confusion matrix": (("confusion_matrix",), 0),
    "mistakes": (("mistakes",), 0),
}
MARKDOWN = """\
Image classifiers of the ConvMixer family. A row is a training (`role` run), or a search with its trials below it;
evaluations and predictions are below the training whose model they are about.

| column | meaning |
|---|---|
| `test_accuracy` | share of the test images that are classified correctly; a search has its winner's |
| `best_val_accuracy` | the same of the validation images, at the best epoch; settings are chosen by `monitor` |
| `parameters` | number of weights, batch norm's statistics included |

- **Compare**: the chart icon above the table; *Image grid* shows curves and kernels of several runs side by side; the
  table icon beside it compares classes and predictions.
- **Report**: `mlflow run . -e report --env-manager local -P runs=EXPERIMENT`
- **Search**: `mlflow run . -e search --env-manager local -P search=smoke`
- **Serve**: `mlflow models serve -m models:/NAME@champion --env-manager local`
"""


def prepare_experiment_page(client: TrackingClient, experiment_id: str, *, unfold: str | None = None) -> None:
    """Give an experiment a description and a shared view, unless it has them or this user may not change it.

    Args:
        client: The tracking store.
        experiment_id: The experiment.
        unfold: Id of a run whose children the view shows.
    """
    with suppress(TrackingError):
        _prepare(client, experiment_id, unfold)


def _prepare(client: TrackingClient, experiment_id: str, unfold: str | None) -> None:
    tags = client.get_experiment(experiment_id).tags
    if Tag.DESCRIPTION not in tags:
        client.set_experiment_tag(experiment_id, Tag.DESCRIPTION, MARKDOWN)
    view = tags.get(VIEW) or json.dumps(_new_view())
    if unfold:
        view = _unfold(view, unfold)
    if view != tags.get(VIEW):
        client.set_experiment_tag(experiment_id, VIEW, view)


def _new_view() -> dict[str, object]:
    """Return the state of MLflow's page of runs: the table's columns, and the cards of the chart view.

    The cards of images that the page makes itself list all parameters of each run, which leaves no room for the image.
    """
    curves = [_card("metrics", metric, "LINE", metricKey=metric) for metric in CURVES]
    images = [
        _card("figures", title, "IMAGE", imageKeys=keys, step=step, showRunParams=False)
        for title, (keys, step) in IMAGES.items()
    ]
    shown = {"display": True, "isReordered": False, "deleted": False, "isGenerated": False}
    return {
        "selectedColumns": COLUMNS,
        "runsExpanded": {},
        "compareRunCharts": [*curves, *images],
        # else the page puts the sections that it makes itself, such as that of an evaluation's metrics, before these
        "isAccordionReordered": True,
        "compareRunSections": [
            {"uuid": "figures", "name": "Figures", **shown},
            {"uuid": "metrics", "name": "Model metrics", **shown},
        ],
    }


def _card(section: str, key: str, kind: str, **settings: object) -> dict[str, object]:
    """Return a card of the chart view; the names are those of MLflow's page."""
    return {
        "uuid": f"{section}-{key}",
        "type": kind,
        "metricSectionId": section,
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": False,
        **settings,
    }


def _unfold(text: str, run_id: str) -> str:
    """Return a view that shows the children of a run; one that is not of the known form is returned as it is."""
    try:
        view = json.loads(text)
        # what a person has folded stays folded
        view["runsExpanded"].setdefault(run_id, True)
    except (AttributeError, KeyError, TypeError, ValueError):
        return text
    return json.dumps(view)


def page_links(experiment_id: str, run_id: str) -> list[str]:
    """Return lines for the terminal: the pages of a run and of its experiment, and how to start MLflow's UI."""
    experiment = f"{_ui_address()}/#/experiments/{experiment_id}"
    command = ui_command()
    return [
        *([f"ui        {command}"] if command else []),
        f"page      {run_url(experiment_id, run_id)}",
        f"compare   {experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW_KEY}",
    ]


def run_url(experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page on the tracking server, else where `ui_command` serves it.

    Without `workflowType` the UI shows traces of language models instead.
    """
    return f"{_ui_address()}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def ui_command() -> str:
    """Return the command that serves MLflow's UI for a store without a server; empty if there is a server."""
    uri = mask_password(tracking_uri())
    return "" if _is_served(uri) else mlflow_command("ui", "--backend-store-uri", uri)


def _ui_address() -> str:
    """Return where MLflow's UI is, without a user and a password."""
    uri = tracking_uri()
    if not _is_served(uri):
        return LOCAL
    parts = urlsplit(mask_password(uri))
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def _is_served(uri: str) -> bool:
    return uri.lower().startswith(("http://", "https://"))


def link_to_run(experiment_id: str, run_id: str, text: str) -> str:
    """Return a Markdown link to the page of a run, for descriptions on the same server."""
    return f"[{text}](#/experiments/{experiment_id}/runs/{run_id})" if run_id else text
