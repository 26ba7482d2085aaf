"""Where a study is kept: an Optuna URL that may be shown, and that holds no password unless the environment gave it."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.lifetime.ancestors import OPENED
from pipeline.store_urls import masked, refuse_unescaped

VARIABLE = "OPTUNA_STORAGE"


def storage_url(storage: str | None, environ: Mapping[str, str]) -> str:
    """Where the study is kept: as told, else as OPTUNA_STORAGE says, else in `optuna.db` beside MLflow's own file."""
    told = storage or environ.get(VARIABLE)
    if told:
        return told
    tracking = environ.get("MLFLOW_TRACKING_URI", "")
    beside = Path(tracking.removeprefix("sqlite:///")) if tracking.startswith("sqlite:///") else Path("mlflow.db")
    return f"sqlite:///{beside.absolute().with_name('optuna.db')}"


def check_environment(environ: Mapping[str, str]) -> None:
    """Refuse an OPTUNA_STORAGE that is no URL, or whose password is not escaped; a password itself is well there.

    Raises:
        UsageError: which does not repeat it.
    """
    told = environ.get(VARIABLE)
    if told and "://" not in told:
        raise UsageError(f"{VARIABLE} must be a URL such as postgresql://me:password@host/studies, got another text")
    refuse_unescaped(VARIABLE, told or "")


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
    run = environ.get(OPENED)
    recorded = (
        f"; `mlflow run` has already recorded this one in run {run}: remove it with "
        f"`mlflow runs delete --run-id {run}` and `mlflow gc --run-ids {run}`, and change the password"
    )
    raise UsageError(
        "storage must hold no password: it comes from PGPASSWORD or ~/.pgpass, or with the whole URL in OPTUNA_STORAGE"
        + (recorded if run else "")
    )
