"""Progress of a training: its history, its best weights, and the state from which it can be resumed."""

import keras
import numpy as np
import numpy.typing as npt

from pipeline.config.monitor import Monitor, sign
from pipeline.runtime.errors import UsageError
from pipeline.training.checkpoint import TrainingState


class TrainingProgress:
    """History and best weights of a training after its last finished epoch.

    `fit` gives one to each `TrainingCallback`: some callbacks write it, the others read it.

    Args:
        start: The state that the training is resumed from; None for a new training.
        monitor: The metric by which an epoch is the best.
    """

    def __init__(self, start: TrainingState | None = None, *, monitor: Monitor) -> None:
        self.monitor = monitor
        # one value per metric and epoch
        self.history: dict[str, list[float]] = {}
        self.best_weights: list[npt.NDArray] = []
        if start:
            self.history = {name: list(values) for name, values in start.history.items()}
            self.best_weights = start.best_weights

    @property
    def epoch(self) -> int:
        """Return the number of finished epochs."""
        return len(self.history.get("loss", ()))

    @property
    def best_epoch(self) -> int:
        """Return the epoch with the best value of the monitored metric, counted from 1; of equal ones, the first.

        Without validation images it is the last one.
        """
        if self.monitor not in self.history:
            return self.epoch
        return int(np.argmax(sign(self.monitor) * np.array(self.history[self.monitor]))) + 1

    def add_epoch(self, metrics: dict[str, float]) -> None:
        """Append the metrics of an epoch to the history."""
        for name, value in metrics.items():
            self.history.setdefault(name, []).append(value)

    def last_metrics(self) -> dict[str, float]:
        """Return the metrics of the last finished epoch."""
        return {name: values[-1] for name, values in self.history.items()}

    def state(self, model: keras.Model) -> TrainingState:
        """Return a copy of everything that resuming after the last finished epoch needs."""
        history = {name: list(values) for name, values in self.history.items()}
        variables = [np.array(variable) for variable in training_variables(model)]
        return TrainingState(self.epoch, history, variables, self.best_weights)


def training_variables(model: keras.Model) -> list[keras.Variable]:
    """Return all variables that training changes: the model's, then the optimizer's.

    The variables of metrics are left out, since every epoch resets them.
    """
    metrics = {id(variable) for metric in model.metrics for variable in metric.variables}
    return [variable for variable in model.variables if id(variable) not in metrics] + model.optimizer.variables


def restore_variables(model: keras.Model, state: TrainingState, *, with_optimizer: bool = True) -> None:
    """Assign the variables of a state to a compiled model and, unless it is to begin anew, its optimizer.

    Raises:
        UsageError: The state belongs to a model or an optimizer with other variables.
    """
    # Building Keras' LossScaleOptimizer again would add its variables again
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    variables = training_variables(model)
    if not with_optimizer:
        variables = variables[: -len(model.optimizer.variables)]
    values = state.variables if with_optimizer else state.variables[: len(variables)]
    expected = [(tuple(variable.shape), str(variable.dtype)) for variable in variables]
    found = [(tuple(variable.shape), str(variable.dtype)) for variable in values]
    weights = [tuple(weight.shape) for weight in model.weights]
    if expected != found or weights != [weight.shape for weight in state.best_weights]:
        raise UsageError(
            f"a checkpoint must fit the model: {len(expected)} variables here, got {len(found)} "
            "or others; resume with the version of the code that wrote it"
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
