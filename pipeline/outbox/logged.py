"""The models of a run in MLflow, by their names."""

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run

MODEL = "model"  # the run's network as Keras has it
SERVED = "served"  # the same as it is registered: it answers with class names
DIGESTS = "sha256"  # tag of a logged model: the digest of each of its files, as JSON


def model_of(client: MlflowClient, run: Run, name: str = MODEL) -> LoggedModel | None:
    """The model that a run has logged or begun to log under a name."""
    asked = f"source_run_id = '{run.info.run_id}'"
    found = client.search_logged_models([run.info.experiment_id], filter_string=asked)
    return next((model for model in found if model.name == name), None)
