"""The train function: groups of steps, none of which runs on into the next epoch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.training.train_function import StepGroups, make_train_function


@pytest.mark.parametrize(
    ("steps", "size", "sizes"),
    [(5, 1, [1, 1, 1, 1, 1]), (6, 3, [3, 3]), (7, 3, [3, 3, 1]), (2, 16, [2])],
)
def test_step_groups_have_their_size_and_the_last_one_what_is_left(steps, size, sizes):
    groups = StepGroups(steps, size)
    assert list(groups.sizes()) == sizes and groups.count == len(sizes)
    assert [groups.last_step(group) for group in range(groups.count)] == np.cumsum(sizes).tolist()
    assert groups.first_step(groups.count - 1) == steps - sizes[-1] + 1


def test_train_function_takes_the_batches_of_each_epoch_and_no_more():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    # each step adds its image's value to the kernel, so that the kernel tells which batches have been taken
    model.compile(keras.optimizers.SGD(1.0), loss=lambda _, output: -output)
    # the kernel's values are right only if both take part in the step, one after the other
    makers = [lambda batch: (batch[0] - 3, batch[1]), lambda batch: (2 * batch[0] + 6, batch[1])]
    model.train_function = make_train_function(model, StepGroups(5, size=2), makers)
    kernels = []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_, **__: kernels.append(model.get_weights()[0].item())
    )
    powers = tf.data.Dataset.from_tensor_slices(2.0 ** np.arange(-1, 14)[:, None, None])
    batches = tf.data.Dataset.zip(powers, tf.data.Dataset.from_tensors(np.zeros((1, 1))).repeat())
    model.fit(batches, epochs=3, steps_per_epoch=3, shuffle=False, verbose=0, callbacks=[callback])
    assert kernels == [2.0**steps - 1 for steps in (2, 4, 5, 7, 9, 10, 12, 14, 15)]
