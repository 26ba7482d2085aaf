"""Weight averaging: what is validated, what is kept, and what training goes on with."""

import keras
import numpy as np
import pytest

from pipeline.model.conv_mixer import conv_mixer, depthwise_kernels
from pipeline.training import callbacks
from pipeline.training.callbacks import (
    ORDER,
    CheckpointSaver,
    EMAWeights,
    KernelSnapshots,
    ProgressReporter,
    TrainingCallback,
    moving_averages,
    order_callbacks,
    renew_batch_norm,
    snapshot_epochs,
)

MOMENTUM = 0.7
RANDOM = np.random.default_rng(0)
IMAGES, LABELS = RANDOM.normal(size=(24, 3)).astype(np.float32), RANDOM.normal(size=(24, 2)).astype(np.float32)
BATCHES = [(IMAGES[start : start + 8], LABELS[start : start + 8]) for start in (0, 8, 16)]


def network():
    keras.utils.set_random_seed(0)
    norm = keras.layers.BatchNormalization(momentum=0.9)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), norm, keras.layers.Dense(2)])


class Watch(keras.callbacks.Callback):
    """Notes all weights after each step, in validation, and when the epoch ends, before and after averaging ends."""

    def __init__(self):
        super().__init__()
        self.steps, self.validated, self.kept, self.goes_on = [], [], [], []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(self.model.get_weights())

    def on_test_end(self, logs=None):
        self.validated.append(self.model.get_weights())

    def on_epoch_end(self, epoch, logs=None):
        self.kept.append(self.model.get_weights())

    def on_epoch_begin(self, epoch, logs=None):
        self.goes_on.append(self.model.get_weights())


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "loss scaling"])
def watched(request):
    """A network after three epochs of three steps, and its Watch."""
    model, watch = network(), Watch()
    optimizer = keras.optimizers.AdamW(0.1, use_ema=True, ema_momentum=MOMENTUM)
    if request.param:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, loss="mse")
    callbacks = [watch, EMAWeights(BATCHES)]
    model.fit(IMAGES, LABELS, batch_size=8, epochs=3, validation_data=(IMAGES, LABELS), callbacks=callbacks, verbose=0)
    return model, watch


def trained(model, weights):
    """Those of a model's weights that are trained."""
    statistics = {"moving_mean", "moving_variance"}
    return [value for weight, value in zip(model.weights, weights, strict=True) if weight.name not in statistics]


def test_validation_and_the_best_checkpoint_have_the_moving_average_of_all_steps(watched):
    model, watch = watched
    for epoch in range(3):
        steps = [trained(model, weights) for weights in watch.steps[: 3 * (epoch + 1)]]
        wanted = steps[0]
        for raw in steps[1:]:
            wanted = [MOMENTUM * old + (1 - MOMENTUM) * new for old, new in zip(wanted, raw, strict=True)]
        for seen in (watch.validated[epoch], watch.kept[epoch]):
            for found, value in zip(trained(model, seen), wanted, strict=True):
                np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)


def test_training_goes_on_with_the_raw_weights_to_the_last_bit(watched):
    _, watch = watched
    for epoch in (1, 2):
        for found, raw in zip(watch.goes_on[epoch], watch.steps[3 * epoch - 1], strict=True):
            np.testing.assert_array_equal(found, raw)


def test_the_averages_are_among_the_optimizers_variables_so_that_saving_those_saves_them(watched):
    model, _ = watched
    saved = {id(variable) for variable in model.optimizer.variables}
    assert {id(average) for average in moving_averages(model.optimizer)} <= saved
    assert len(moving_averages(model.optimizer)) == len(model.trainable_variables)


def test_batch_norm_gets_the_statistics_of_the_averaged_weights(watched):
    _, watch = watched
    twin = network()
    twin.set_weights(watch.kept[-1])
    kernel, bias = twin.layers[0].get_weights()
    norm = twin.layers[1]
    each = [images @ kernel + bias for images, _ in BATCHES]
    shares = np.array([0.9**2, 0.9, 1])[:, None] / (0.9**2 + 0.9 + 1)  # the later, the more
    np.testing.assert_allclose(norm.moving_mean, (shares * [x.mean(axis=0) for x in each]).sum(axis=0), atol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, (shares * [x.var(axis=0) for x in each]).sum(axis=0), rtol=1e-3)


def test_renewed_statistics_do_not_depend_on_the_old_ones():
    found = []
    for start in (0.0, 100.0):
        model = network()
        model.layers[1].moving_mean.assign(np.full(4, start))
        renew_batch_norm(model, BATCHES)
        found.append(model.layers[1].moving_mean.numpy())
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"),
    [
        (100, 5, [1, 3, 10, 32, 100]),
        (4, 24, [1, 2, 3, 4]),  # an epoch is drawn once
        (100, 1, [100]),
        (100, 0, []),
        (1, 5, [1]),
    ],
)
def test_the_first_and_the_last_epoch_are_drawn_and_early_ones_closer(epochs, steps, expected):
    assert snapshot_epochs(epochs, steps) == expected


def test_a_process_that_goes_on_finds_what_the_one_before_it_kept(tmp_path):
    before = KernelSnapshots(tmp_path / "run", epochs=4, steps=4, block=1)
    before.save(1, np.full((3, 3, 2, 1), 1.5))
    (tmp_path / "run" / "filters-000002.part").write_bytes(b"a kill in mid-write leaves this")
    after = KernelSnapshots(tmp_path / "run", epochs=4, steps=4, block=1)
    after.save(2, np.full((3, 3, 2, 1), 2.5))
    assert {epoch: kernels.mean() for epoch, kernels in after.load().items()} == {1: 1.5, 2: 2.5}


@pytest.mark.parametrize(("steps", "expected"), [(0, []), (3, [1, 3, 10])])
def test_kernel_snapshots_in_training_saves_the_block_at_the_selected_epochs(tmp_path, steps, expected):
    snapshots = KernelSnapshots(tmp_path / "run", epochs=10, steps=steps, block=2)
    snapshots.set_model(conv_mixer((8, 8, 1), 3, filters=4, depth=2, kernel_size=3, patch_size=2))
    for epoch in range(10):
        snapshots.on_epoch_end(epoch)
    saved = snapshots.load()
    assert list(saved) == expected
    for kernels in saved.values():
        np.testing.assert_array_equal(kernels, depthwise_kernels(snapshots.model, 2))


def test_a_full_disk_costs_the_picture_and_not_the_run(tmp_path, caplog):
    (tmp_path / "run").write_text("a file where the folder should be")
    KernelSnapshots(tmp_path / "run", epochs=4, steps=4, block=1).save(1, np.zeros((3, 3, 2, 1)))
    assert "the filters of epoch 1 could not be kept" in caplog.text


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
