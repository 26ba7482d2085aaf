"""Where a study is kept: an Optuna URL that may be shown, and that holds no password unless the environment gave it."""

import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import UsageError

IN_AUTHORITY = re.compile(r"(://[^:/]*:).+@")  # to the last @, as passwords hold some that nobody has escaped
IN_QUERY = re.compile(r"([?&][^=&]*(?:password|passwd|pwd)[^=&]*=)[^&]+", re.IGNORECASE)


def storage_url(storage: str | None, environ: Mapping[str, str]) -> str:
    """Where the study is kept: as told, else as OPTUNA_STORAGE says, else in `optuna.db` beside MLflow's own file."""
    told = storage or environ.get("OPTUNA_STORAGE")
    if told:
        return told
    tracking = environ.get("MLFLOW_TRACKING_URI", "")
    beside = Path(tracking.removeprefix("sqlite:///")) if tracking.startswith("sqlite:///") else Path("mlflow.db")
    return f"sqlite:///{beside.absolute().with_name('optuna.db')}"


def masked(url: str) -> str:
    """The URL with `***` for a password."""
    return IN_QUERY.sub(r"\1***", IN_AUTHORITY.sub(r"\1***@", url))


def check(storage: str, environ: Mapping[str, str]) -> None:
    """Refuse what is no URL, and a password, neither of them repeated in the message.

    Args:
        environ: where `mlflow run` says which run has recorded what was given by flag; empty for a file.

    Raises:
        UsageError: with how to have that run forgotten.
    """
    if "://" not in storage:
        raise UsageError("storage must be a URL such as sqlite:////home/me/studies.db or postgresql://me@host/studies")
    if masked(storage) == storage:
        return
    run = environ.get("MLFLOW_RUN_ID")
    recorded = (
        f"; `mlflow run` has already recorded this one in run {run}: remove it with "
        f"`mlflow runs delete --run-id {run}` and `mlflow gc --run-ids {run}`, and change the password"
    )
    raise UsageError(
        "storage must hold no password: it comes from PGPASSWORD or ~/.pgpass, or with the whole URL in OPTUNA_STORAGE"
        + (recorded if run else "")
    )
