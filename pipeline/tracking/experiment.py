"""The experiment that new runs belong to, as `--experiment` names it; without it MLflow's own variables do.

This module imports MLflow only inside a function, where a variable names a run or an experiment by its id.
"""

import os
import shlex
from collections.abc import MutableMapping
from typing import Final

from pipeline.runtime.errors import UsageError
from pipeline.runtime.parent_watch import PROJECT_RUN_ID_ENV
from pipeline.runtime.text import shown

EXPERIMENT_NAME_ENV: Final = "MLFLOW_EXPERIMENT_NAME"
EXPERIMENT_ID_ENV: Final = "MLFLOW_EXPERIMENT_ID"


def select_experiment(name: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Make an experiment the present one for MLflow, which creates it where it does not exist; `none` names none.

    Raises:
        UsageError: It has no name, a variable names another one, or the tracking store does not answer.
    """
    if not name.strip():
        raise UsageError("experiment must be the name of an experiment, got nothing")
    if name.strip().lower() == "none":
        return
    named = environ.get(EXPERIMENT_NAME_ENV) or name
    if named != name:
        raise _contradiction(name, EXPERIMENT_NAME_ENV, shown(named))
    for variable in (PROJECT_RUN_ID_ENV, EXPERIMENT_ID_ENV):
        if named_id := environ.get(variable):
            found = _experiment_of(variable, named_id)
            if found != name:
                raise _contradiction(name, variable, f"{named_id} of {shown(found)}")
            return
    environ[EXPERIMENT_NAME_ENV] = name


def _experiment_of(variable: str, named_id: str) -> str:
    """Return the name of the experiment that a run is in, or that has an id."""
    from pipeline.tracking.client import TrackingClient
    from pipeline.tracking.ownership import require_server

    with require_server():
        client = TrackingClient()
        is_run = variable == PROJECT_RUN_ID_ENV
        return client.experiment_name(client.get_run(named_id).info.experiment_id if is_run else named_id)


def _contradiction(name: str, variable: str, value: str) -> UsageError:
    cure = (
        f"give `mlflow run` --experiment-name {shlex.quote(name)}"
        if variable == PROJECT_RUN_ID_ENV
        else f"unset {variable}"
    )
    return UsageError(f"experiment must be the one that {variable} names, got {shown(name)} and {value}; {cure}")
