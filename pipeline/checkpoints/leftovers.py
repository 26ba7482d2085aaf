"""Removes the checkpoints of runs that have finished: their process was killed between their end and its own."""

import shutil
from contextlib import suppress

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.cache import cache_folder
from pipeline.checkpoints.checkpoint_copies import clear


def clear_finished(client: MlflowClient) -> None:
    """Remove what lies on this machine, and among the artifacts, of such runs of the present tracking store."""
    root = cache_folder("checkpoints")
    for folder in root.iterdir() if root.is_dir() else ():
        with suppress(MlflowException):  # a run of another store, or the server is away
            if client.get_run(folder.name).info.status == "FINISHED":
                clear(client, folder.name)
                shutil.rmtree(folder, ignore_errors=True)
