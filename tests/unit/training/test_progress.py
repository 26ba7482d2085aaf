"""History, best epoch and resumable state of a training."""

import keras
import numpy as np
import pytest

from pipeline.runtime.errors import UsageError
from pipeline.training.checkpoint import TrainingState
from pipeline.training.progress import TrainingProgress, restore_variables, training_variables


def compiled_model(units=2):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units)])
    model.compile(keras.optimizers.AdamW(0.1), loss="mse", metrics=["mae"])
    return model


def test_best_epoch_of_equal_accuracies_is_the_first():
    progress = TrainingProgress(monitor="val_accuracy")
    for accuracy in (0.5, 0.7, 0.6, 0.7):
        progress.add_epoch({"val_accuracy": accuracy, "loss": 1 - accuracy})
    assert (progress.epoch, progress.best_epoch) == (4, 2)
    assert progress.last_metrics() == {"val_accuracy": 0.7, "loss": 1 - 0.7}


@pytest.mark.parametrize(
    ("monitor", "best"), [("val_accuracy", 3), ("val_loss", 2), ("val_balanced_accuracy", 1), ("val_macro_f1", 4)]
)
def test_best_epoch_is_that_of_the_monitored_metric(monitor, best):
    values = {"val_accuracy": [0, 1, 2, 1], "val_loss": [2, 1, 3, 1]}
    values |= {"val_balanced_accuracy": [3, 1, 2, 3], "val_macro_f1": [0, 0, 0, 1]}
    start = TrainingState(4, values, [], [])
    assert TrainingProgress(start, monitor=monitor).best_epoch == best


def test_progress_without_validation_has_the_last_epoch_as_its_best():
    progress = TrainingProgress(monitor="val_accuracy")
    for loss in (0.5, 0.2, 0.9):
        progress.add_epoch({"loss": loss})
    assert (progress.epoch, progress.best_epoch) == (3, 3)


def test_state_after_later_epochs_is_unchanged():
    model, progress = compiled_model(), TrainingProgress(monitor="val_accuracy")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    progress.add_epoch({"loss": 1.0, "val_accuracy": 0.5})
    state = progress.state(model)
    before = [np.array(value) for value in state.variables]
    progress.add_epoch({"loss": 0.8, "val_accuracy": 0.7})
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    assert (state.epoch, state.history) == (1, {"loss": [1.0], "val_accuracy": [0.5]})
    for value, same in zip(state.variables, before, strict=True):
        np.testing.assert_array_equal(value, same)


def test_restored_variables_include_the_optimizers_and_no_metrics():
    trained, progress = compiled_model(), TrainingProgress(monitor="val_accuracy")
    trained.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    progress.add_epoch({"loss": 1.0, "val_accuracy": 0.5})
    progress.best_weights = trained.get_weights()
    resumed = compiled_model()
    restore_variables(resumed, progress.state(trained))
    for variable, same in zip(training_variables(resumed), training_variables(trained), strict=True):
        np.testing.assert_array_equal(variable, same)
    assert int(resumed.optimizer.iterations) == 1
    assert not {id(variable) for metric in trained.metrics for variable in metric.variables} & {
        id(variable) for variable in training_variables(trained)
    }


def test_restored_variables_without_the_optimizers_are_the_models_alone():
    trained, progress = compiled_model(), TrainingProgress(monitor="val_accuracy")
    trained.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    progress.best_weights = trained.get_weights()
    resumed = compiled_model()
    restore_variables(resumed, progress.state(trained), with_optimizer=False)
    for weight, same in zip(resumed.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    assert int(resumed.optimizer.iterations) == 0


def test_restore_variables_with_the_state_of_another_model_raises_usage_error():
    trained, progress = compiled_model(units=3), TrainingProgress(monitor="val_accuracy")
    trained.optimizer.build(trained.trainable_variables)
    progress.best_weights = trained.get_weights()
    with pytest.raises(UsageError) as error:
        restore_variables(compiled_model(), progress.state(trained))
    assert str(error.value) == (
        "a checkpoint must fit the model: 8 variables here, got 8 or others; resume with the version of the code that "
        "wrote it"
    )


def test_progress_continues_from_a_state_without_changing_it():
    start = TrainingState(2, {"val_accuracy": [0.5, 0.25], "loss": [1.0, 2.0]}, [], [np.ones(3)])
    progress = TrainingProgress(start, monitor="val_accuracy")
    assert (progress.epoch, progress.best_epoch) == (2, 1)
    np.testing.assert_array_equal(progress.best_weights, start.best_weights)
    progress.add_epoch({"val_accuracy": 0.75, "loss": 0.5})
    assert progress.history == {"val_accuracy": [0.5, 0.25, 0.75], "loss": [1.0, 2.0, 0.5]}
    assert start.history == {"val_accuracy": [0.5, 0.25], "loss": [1.0, 2.0]}


def test_state_holds_the_best_weights_and_the_variables_of_the_model():
    model, progress = compiled_model(), TrainingProgress(monitor="val_accuracy")
    progress.best_weights = [np.full(2, 7.0)]
    state = progress.state(model)
    assert (state.epoch, state.history, state.best_weights) == (0, {}, progress.best_weights)
    for value, variable in zip(state.variables, training_variables(model), strict=True):
        np.testing.assert_array_equal(value, variable)


def test_restore_variables_with_best_weights_of_another_model_raises_usage_error():
    trained, progress = compiled_model(), TrainingProgress(monitor="val_accuracy")
    trained.optimizer.build(trained.trainable_variables)
    progress.best_weights = compiled_model(units=3).get_weights()
    with pytest.raises(UsageError, match="^a checkpoint must fit the model"):
        restore_variables(compiled_model(), progress.state(trained))
