"""Training callbacks: averaged weights, kernel snapshots, and the order of callbacks."""

import keras
import numpy as np
import pytest

from pipeline.evaluation.metrics import ClassCounts
from pipeline.model.conv_mixer import conv_mixer, depthwise_kernels
from pipeline.runtime.errors import Diverged
from pipeline.training import callbacks
from pipeline.training.callbacks import (
    ORDER,
    BestWeights,
    CheckpointSaver,
    EarlyStopping,
    EMAWeights,
    EpochMetrics,
    KernelSnapshots,
    ProgressBar,
    ProgressReporter,
    TerminateOnNonFinite,
    TrainingCallback,
    moving_averages,
    order_callbacks,
    renew_batch_norm,
    snapshot_epochs,
)
from pipeline.training.progress import TrainingProgress
from pipeline.training.train_function import StepGroups

MOMENTUM = 0.7
RANDOM = np.random.default_rng(0)
IMAGES, LABELS = RANDOM.normal(size=(24, 3)).astype(np.float32), RANDOM.normal(size=(24, 2)).astype(np.float32)
BATCHES = [(IMAGES[start : start + 8], LABELS[start : start + 8]) for start in (0, 8, 16)]


def small_model():
    keras.utils.set_random_seed(0)
    norm = keras.layers.BatchNormalization(momentum=0.9)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), norm, keras.layers.Dense(2)])


class WeightRecorder(keras.callbacks.Callback):
    """Record all weights after each step, in validation, and when an epoch ends and begins."""

    def __init__(self):
        super().__init__()
        self.steps, self.at_test_end, self.at_epoch_end, self.at_epoch_begin = [], [], [], []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(self.model.get_weights())

    def on_test_end(self, logs=None):
        self.at_test_end.append(self.model.get_weights())

    def on_epoch_end(self, epoch, logs=None):
        self.at_epoch_end.append(self.model.get_weights())

    def on_epoch_begin(self, epoch, logs=None):
        self.at_epoch_begin.append(self.model.get_weights())


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "loss scaling"])
def trained_model(request):
    """Return a model after three epochs of three steps, and its WeightRecorder."""
    model, recorder = small_model(), WeightRecorder()
    optimizer = keras.optimizers.AdamW(0.1, use_ema=True, ema_momentum=MOMENTUM)
    if request.param:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, loss="mse")
    callbacks = [recorder, EMAWeights(lambda epoch: BATCHES if epoch == 2 else BATCHES[:1], groups=3)]
    model.fit(IMAGES, LABELS, batch_size=8, epochs=3, validation_data=(IMAGES, LABELS), callbacks=callbacks, verbose=0)
    return model, recorder


def trainable_values(model, weights):
    """Return those of a model's weights that are trained."""
    statistics = {"moving_mean", "moving_variance"}
    return [value for weight, value in zip(model.weights, weights, strict=True) if weight.name not in statistics]


def test_ema_weights_in_validation_and_at_epoch_end_are_the_average_of_all_steps(trained_model):
    model, recorder = trained_model
    for epoch in range(3):
        steps = [trainable_values(model, weights) for weights in recorder.steps[: 3 * (epoch + 1)]]
        expected_values = steps[0]
        for raw in steps[1:]:
            expected_values = [
                MOMENTUM * old + (1 - MOMENTUM) * new for old, new in zip(expected_values, raw, strict=True)
            ]
        for recorded in (recorder.at_test_end[epoch], recorder.at_epoch_end[epoch]):
            for actual, value in zip(trainable_values(model, recorded), expected_values, strict=True):
                np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-6)


def test_ema_weights_after_an_epoch_restores_the_raw_weights_to_the_last_bit(trained_model):
    _, recorder = trained_model
    for epoch in (1, 2):
        for actual, raw in zip(recorder.at_epoch_begin[epoch], recorder.steps[3 * epoch - 1], strict=True):
            np.testing.assert_array_equal(actual, raw)


def test_ema_weights_after_a_training_leaves_the_raw_weights_for_the_next_one(trained_model):
    model, recorder = trained_model
    for actual, raw in zip(model.get_weights(), recorder.steps[-1], strict=True):
        np.testing.assert_array_equal(actual, raw)


def test_moving_averages_are_among_the_variables_of_the_optimizer(trained_model):
    model, _ = trained_model
    saved = {id(variable) for variable in model.optimizer.variables}
    assert {id(average) for average in moving_averages(model.optimizer)} <= saved
    assert len(moving_averages(model.optimizer)) == len(model.trainable_variables)


def test_ema_weights_renews_batch_norm_for_the_averaged_weights_from_batches_of_the_epoch(trained_model):
    _, recorder = trained_model
    twin = small_model()
    twin.set_weights(recorder.at_epoch_end[-1])
    kernel, bias = twin.layers[0].get_weights()
    norm = twin.layers[1]
    each = [images @ kernel + bias for images, _ in BATCHES]
    shares = np.array([0.9**2, 0.9, 1])[:, None] / (0.9**2 + 0.9 + 1)  # the later, the more
    np.testing.assert_allclose(norm.moving_mean, (shares * [x.mean(axis=0) for x in each]).sum(axis=0), atol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, (shares * [x.var(axis=0) for x in each]).sum(axis=0), rtol=1e-3)


def test_renew_batch_norm_does_not_depend_on_the_old_statistics():
    actual = []
    for start in (0.0, 100.0):
        model = small_model()
        model.layers[1].moving_mean.assign(np.full(4, start))
        renew_batch_norm(model, BATCHES)
        actual.append(model.layers[1].moving_mean.numpy())
    np.testing.assert_array_equal(*actual)


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"),
    [
        (100, 5, [1, 3, 10, 32, 100]),
        (4, 24, [1, 2, 3, 4]),  # an epoch is drawn once
        (100, 1, [100]),
        (100, 2, [1, 100]),
        (100, 0, []),
        (1, 5, [1]),
    ],
)
def test_snapshot_epochs_include_first_and_last_and_are_denser_at_the_start(epochs, steps, expected):
    assert snapshot_epochs(epochs, steps) == expected


def test_kernel_snapshots_that_are_damaged_are_passed_over_with_a_warning(tmp_path, caplog):
    snapshots = KernelSnapshots(tmp_path, epochs=2, steps=2, block=1)
    for epoch in (1, 2):
        snapshots.save(epoch, np.ones((3, 3, 4, 1), np.float32))
    (tmp_path / "filters-000001.npy").write_bytes(b"damaged")
    assert list(snapshots.load()) == [2]
    (warning,) = caplog.messages
    assert "filters-000001.npy cannot be read and is not shown" in warning


def test_kernel_snapshots_after_a_restart_include_those_of_the_process_before(tmp_path):
    before = KernelSnapshots(tmp_path / "run", epochs=4, steps=4, block=1)
    before.save(1, np.full((3, 3, 2, 1), 1.5))
    (tmp_path / "run" / "filters-000002.part").write_bytes(b"a kill in mid-write leaves this")
    after = KernelSnapshots(tmp_path / "run", epochs=4, steps=4, block=1)
    after.save(2, np.full((3, 3, 2, 1), 2.5))
    assert {epoch: kernels.mean() for epoch, kernels in after.load().items()} == {1: 1.5, 2: 2.5}


@pytest.mark.parametrize(("steps", "expected"), [(0, []), (3, [0, 1, 3, 10])])
def test_kernel_snapshots_in_training_save_the_block_before_it_and_at_the_selected_epochs(tmp_path, steps, expected):
    snapshots = with_progress(KernelSnapshots(tmp_path / "run", epochs=10, steps=steps, block=2))
    snapshots.set_model(conv_mixer((8, 8, 1), 3, filters=4, depth=2, kernel_size=3, patch_size=2))
    snapshots.on_train_begin()
    for epoch in range(10):
        snapshots.on_epoch_end(epoch)
    saved = snapshots.load()
    assert list(saved) == expected
    for kernels in saved.values():
        np.testing.assert_array_equal(kernels, depthwise_kernels(snapshots.model, 2))


def test_kernel_snapshots_of_a_resumed_training_keep_the_initial_kernels_as_they_were(tmp_path):
    snapshots = with_progress(KernelSnapshots(tmp_path / "run", epochs=4, steps=4, block=1), 0.5)
    snapshots.set_model(conv_mixer((8, 8, 1), 3, filters=4, depth=1, kernel_size=3, patch_size=2))
    snapshots.on_train_begin()
    assert snapshots.load() == {}


def test_kernel_snapshots_with_a_full_disk_warn_and_go_on(tmp_path, caplog):
    (tmp_path / "run").write_text("a file where the folder should be")
    KernelSnapshots(tmp_path / "run", epochs=4, steps=4, block=1).save(1, np.zeros((3, 3, 2, 1)))
    assert "the filters of epoch 1 could not be saved" in caplog.text


def with_progress(callback, *accuracies):
    """Return a callback after epochs of these validation accuracies."""
    callback.progress = TrainingProgress(monitor="val_accuracy")
    for accuracy in accuracies:
        callback.progress.add_epoch({"loss": 1.0, "val_accuracy": accuracy})
    return callback


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_terminate_on_non_finite_loss_raises_diverged_with_epoch_and_step(value):
    callback = with_progress(TerminateOnNonFinite(StepGroups(8)), 0.5, 0.6)
    with pytest.raises(Diverged, match=rf"^loss became {value} at epoch 3, step 5; try a lower learning_rate"):
        callback.on_train_batch_end(4, {"loss": value})
    with pytest.raises(Diverged, match=rf"^val_loss became {value} after epoch 3; try a lower learning_rate"):
        callback.on_epoch_end(2, {"val_loss": value})


def test_terminate_on_non_finite_weights_where_no_validation_shows_them():
    callback = with_progress(TerminateOnNonFinite(StepGroups(8)))
    callback.set_model(small_model())
    callback.on_epoch_end(0, {"loss": 0.5})
    callback.model.layers[0].bias.assign(np.full(4, np.nan))
    callback.on_epoch_end(0, {"loss": 0.5, "val_loss": 0.5})
    with pytest.raises(Diverged, match="^weights became NaN or infinite after epoch 1; try a lower learning_rate"):
        callback.on_epoch_end(0, {"loss": 0.5})


@pytest.mark.parametrize(("group", "steps"), [(0, "between steps 1 and 3"), (2, "between steps 7 and 8")])
def test_terminate_on_non_finite_loss_of_a_group_of_steps_names_its_first_and_last(group, steps):
    callback = with_progress(TerminateOnNonFinite(StepGroups(8, size=3)))
    with pytest.raises(Diverged, match=f"^loss became nan at epoch 1, {steps}; try"):
        callback.on_train_batch_end(group, {"loss": float("nan")})


def test_progress_bar_counts_the_steps_of_groups(capsys):
    bar = ProgressBar(StepGroups(8, size=3))
    bar.set_params({"verbose": 1, "epochs": 1, "steps": 3})
    bar.on_epoch_begin(0)
    seen = []
    for group in range(3):
        bar.on_train_batch_end(group, {"loss": 0.5})
        seen.append(bar.seen)
    bar.on_epoch_end(0, {"loss": 0.5})
    assert seen == [3, 6, 8]
    assert "8/8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("patience", "accuracies", "expected"),
    [
        (None, [0.5, 0.4, 0.3], False),
        (2, [], False),
        (2, [0.5, 0.4], False),
        (2, [0.5, 0.4, 0.5], True),
        (2, [0.5, 0.4, 0.6], False),
    ],
)
def test_early_stopping_is_out_of_patience_after_epochs_without_improvement(patience, accuracies, expected):
    assert with_progress(EarlyStopping(patience), *accuracies).is_out_of_patience() == expected


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([0.5, 0.4, 0.3], False),
        ([0.5, 0.4, 0.3, 0.2], False),
        ([0.5, 0.4, 0.3, 0.2, 0.1], True),
        ([0.5, 0.4, 0.3, 0.6, 0.1], False),
    ],
)
def test_early_stopping_has_patience_until_all_layers_have_been_trained(accuracies, expected):
    assert with_progress(EarlyStopping(2, head_epochs=3), *accuracies).is_out_of_patience() == expected


def test_order_callbacks_in_any_order_returns_the_declared_order():
    ordered = [object.__new__(kind) for kind in ORDER]
    for seed in range(20):
        shuffled = np.random.default_rng(seed).permutation(np.array(ordered, dtype=object))
        assert order_callbacks(shuffled) == ordered


def test_order_callbacks_with_a_subclass_and_a_callback_of_keras_puts_keras_own_last():
    class OwnReporter(ProgressReporter):
        pass

    reporter, saver = OwnReporter(), CheckpointSaver(lambda state: None)
    one, other = keras.callbacks.History(), keras.callbacks.LambdaCallback()
    assert order_callbacks([one, reporter, other, saver]) == [saver, reporter, one, other]


def test_order_has_every_callback_of_the_module():
    kinds = {kind for kind in vars(callbacks).values() if isinstance(kind, type)}
    assert {kind for kind in kinds if issubclass(kind, TrainingCallback)} - {TrainingCallback} == set(ORDER)


def epoch_metrics(monkeypatch, *, classes, logs, monitor="val_accuracy"):
    """Return the metrics of the fifth epoch, whose steps took 4 s and validation 2 s, of predictions of two classes."""
    clock, rates = [100.0], []
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: clock[0])
    # of 6 images of the first class and 2 of the second, which all were predicted as the first but one
    counts = ClassCounts(np.array([6, 2]), np.array([7, 1]), np.array([6, 1]))
    monkeypatch.setattr(callbacks, "class_counts", lambda model: counts)
    callback = EpochMetrics(images=40, classes=classes, learning_rate=lambda epoch: rates.append(epoch) or 0.125)
    callback.progress = TrainingProgress(monitor=monitor)
    callback.set_model(small_model())
    callback.on_epoch_begin(4)
    for _ in range(2):
        clock[0] += 2
        callback.on_train_batch_end(0)
    clock[0] += 2
    callback.on_epoch_end(4, logs)
    assert rates == [4] and callback.progress.epoch == 1
    return callback.progress.last_metrics()


TRAINED = {"loss": 0.5, "accuracy": 0.25, "learning_rate": 0.125, "epoch_seconds": 6.0, "images_per_second": 10.0}


def test_epoch_metrics_are_losses_accuracies_learning_rate_and_speed(monkeypatch):
    logs = {"loss": np.float32(0.5), "accuracy": 0.25, "other": 1.0}
    metrics = epoch_metrics(monkeypatch, classes=("cat", "dog"), logs=logs)
    assert metrics == TRAINED and type(metrics["loss"]) is float
    metrics = epoch_metrics(monkeypatch, classes=("cat", "dog"), logs=logs | {"val_loss": 0.75, "val_accuracy": 0.875})
    of_classes = {"val_balanced_accuracy": 0.75, "val_macro_f1": pytest.approx((12 / 13 + 2 / 3) / 2)}
    of_classes |= {"val_recall/cat": 1.0, "val_recall/dog": 0.5}
    assert metrics == TRAINED | {"val_loss": 0.75, "val_accuracy": 0.875} | of_classes


def test_epoch_metrics_give_the_progress_bar_the_metric_that_decides(monkeypatch):
    logs = {"loss": 0.5, "accuracy": 0.25, "val_loss": 0.75, "val_accuracy": 0.875}
    epoch_metrics(monkeypatch, classes=("cat", "dog"), logs=logs, monitor="val_balanced_accuracy")
    assert logs["val_balanced_accuracy"] == 0.75 and "val_macro_f1" not in logs


@pytest.mark.parametrize(("number", "recalls"), [(20, 2), (21, 0)])
def test_epoch_metrics_have_recalls_of_at_most_20_classes(monkeypatch, number, recalls):
    monkeypatch.setattr(callbacks, "recalls", lambda counts, *, classes: {"recall/a": 0.5, f"recall/{len(classes)}": 1})
    logs = {"loss": 0.5, "accuracy": 0.25, "val_loss": 0.75, "val_accuracy": 0.875}
    metrics = epoch_metrics(monkeypatch, classes=tuple(map(str, range(number))), logs=logs)
    assert [name for name in metrics if "recall" in name] == ["val_recall/a", "val_recall/20"][:recalls]


def test_best_weights_are_those_of_the_best_epoch_so_far():
    callback, model = BestWeights(), small_model()
    callback.set_model(model)
    callback.progress = TrainingProgress(monitor="val_accuracy")
    best = []
    for epoch, accuracy in enumerate((0.5, 0.75, 0.25)):
        model.layers[0].bias.assign(np.full(4, epoch))
        callback.progress.add_epoch({"loss": 1.0, "val_accuracy": accuracy})
        callback.on_epoch_end(epoch)
        best.append(callback.progress.best_weights[1].tolist())
    assert best == [[0] * 4, [1] * 4, [1] * 4]


def test_early_stopping_stops_the_model_when_it_is_out_of_patience():
    for accuracies, stops in (([0.5, 0.4], False), ([0.5, 0.4, 0.3], True)):
        callback = with_progress(EarlyStopping(2), *accuracies)
        callback.set_model(small_model())
        callback.model.stop_training = False
        callback.on_epoch_end(len(accuracies) - 1)
        assert callback.model.stop_training is stops


def test_progress_reporter_reports_steps_and_epochs_counted_from_1():
    calls = []
    reporter = with_progress(
        ProgressReporter(lambda *epoch: calls.append(epoch), after_step=lambda: calls.append("step")), 0.25, 0.5
    )
    reporter.on_train_batch_end(0)
    reporter.on_epoch_end(1)
    assert calls == ["step", (2, {"loss": 1.0, "val_accuracy": 0.5})]
    silent = with_progress(ProgressReporter(), 0.5)
    silent.on_train_batch_end(0)
    silent.on_epoch_end(0)


def test_checkpoint_saver_saves_the_state_after_each_epoch():
    states = []
    saver = with_progress(CheckpointSaver(states.append), 0.25, 0.5)
    saver.set_model(small_model())
    saver.model.compile("sgd", loss="mse")
    saver.on_epoch_end(1)
    (state,) = states
    assert state.epoch == 2 and state.history["val_accuracy"] == [0.25, 0.5]


def test_terminate_on_non_finite_lets_finite_losses_pass():
    callback = with_progress(TerminateOnNonFinite(StepGroups(8)))
    callback.set_model(small_model())
    callback.on_train_batch_end(0, {"loss": 1e30})
    callback.on_epoch_end(0, {"loss": 1.0, "val_loss": 1e30})
    callback.on_epoch_end(0, {"loss": 1.0})


def test_kernel_snapshots_are_private_files_named_after_the_epoch(tmp_path):
    snapshots = KernelSnapshots(tmp_path / "run", epochs=4, steps=4, block=1)
    snapshots.save(12, np.zeros((3, 3, 2, 1)))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["filters-000012.npy"]
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


def test_renew_batch_norm_leaves_layers_that_are_not_trained():
    model = small_model()
    model.layers[1].trainable = False
    model.layers[1].moving_mean.assign(np.full(4, 7.0))
    renew_batch_norm(model, BATCHES)
    assert model.layers[1].moving_mean.numpy().tolist() == [7.0] * 4
