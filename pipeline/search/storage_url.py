"""The URL of a study's storage: where it comes from, and that it holds no password which would be shown.

It is a module of its own, so that a search can be refused without the import of SQLAlchemy.
"""

from collections.abc import Mapping
from pathlib import Path

from pipeline.runtime.errors import UsageError
from pipeline.runtime.urls import check_password_escaped, mask_password
from pipeline.tracking.project_run import ProjectRun

STORAGE_ENV = "OPTUNA_STORAGE"


def storage_url(storage: str | None, environ: Mapping[str, str]) -> str:
    """Return the URL of the storage: the setting, else OPTUNA_STORAGE, else `optuna.db` beside MLflow's own file."""
    url = storage or environ.get(STORAGE_ENV)
    if url:
        return url
    tracking = environ.get("MLFLOW_TRACKING_URI", "")
    file = Path(tracking.removeprefix("sqlite:///")) if tracking.startswith("sqlite:///") else Path("mlflow.db")
    return f"sqlite:///{file.absolute().with_name('optuna.db')}"


def validate_environment(environ: Mapping[str, str]) -> None:
    """Raise UsageError if OPTUNA_STORAGE is no URL or its password is not escaped; a password is allowed there.

    The message does not repeat the value.
    """
    url = environ.get(STORAGE_ENV)
    if url and "://" not in url:
        raise UsageError(f"{STORAGE_ENV} must be a URL such as postgresql://me:password@host/studies, got another text")
    check_password_escaped(STORAGE_ENV, url or "")


def validate_storage_url(storage: str, environ: Mapping[str, str], *, setting: str = "storage") -> None:
    """Raise UsageError if a storage is no URL or holds a password, which the message does not repeat.

    Args:
        storage: the setting's value.
        environ: where `mlflow run` says which run has recorded a setting that was given by flag, for a message on how
            to delete that run; empty for a setting from a file.
    """
    if "://" not in storage:
        raise UsageError(
            f"{setting} must be a URL such as sqlite:////home/me/studies.db or postgresql://me@host/studies"
        )
    if mask_password(storage) == storage:
        return
    message = (
        f"{setting} must hold no password: it comes from PGPASSWORD or ~/.pgpass, or with the whole URL in "
        "OPTUNA_STORAGE"
    )
    if run := ProjectRun.find(environ):
        message += (
            f"; `mlflow run` has already recorded this one in run {run.id}: remove it with "
            f"`mlflow runs delete --run-id {run.id}` and `mlflow gc --run-ids {run.id}`, and change the password"
        )
    raise UsageError(message)
