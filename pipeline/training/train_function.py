"""The function that makes training steps: several of them at each call from Python, in compiled code."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

Logs = dict[str, tf.Tensor]


@dataclass(frozen=True)
class StepGroups:
    """The division of an epoch's steps into groups, each of which is one call of the train function."""

    steps: int  # of an epoch
    size: int = 1  # steps of a group; the last one of an epoch has what is left

    @property
    def count(self) -> int:
        """Return the number of groups in an epoch."""
        return math.ceil(self.steps / self.size)

    def first_step(self, group: int) -> int:
        """Return the first step of a group, counted from 1; groups are counted from 0."""
        return group * self.size + 1

    def last_step(self, group: int) -> int:
        """Return the last step of a group, counted from 1; groups are counted from 0."""
        return min((group + 1) * self.size, self.steps)

    def sizes(self) -> Iterator[int]:
        """Yield the number of steps of each group of an epoch."""
        for group in range(self.count):
            yield self.last_step(group) - self.first_step(group) + 1


def make_train_function(
    model: keras.Model, groups: StepGroups, makers: Sequence[Callable[[Any], Any]] = ()
) -> Callable[[tf.data.Iterator], Logs]:
    """Return what `keras.Model.fit` is to call for each group of steps, as the model's `train_function`.

    It makes as many training steps of the compiled model as the group has, one after another in a graph, and returns
    the metrics so far. To Keras each group is one step. Keras' own `steps_per_execution` (3.15) runs on into the
    batches of the next epoch where it does not divide the steps of one.

    Args:
        model: Compiled.
        groups: The epoch's steps.
        makers: Make the batch of a step from an element of the data set, one after another, as a part of the compiled
            step, on each device for its share; none take the element as the batch.
    """
    strategy = model.distribute_strategy
    sizes = itertools.cycle(groups.sizes())

    def make_and_train(part: Any) -> None:
        for make in makers:
            part = make(part)
        model.train_step(part)

    @tf.function(autograph=False, reduce_retracing=True, jit_compile=model.jit_compile)
    def step(element: Any) -> None:
        strategy.run(make_and_train, args=(element,))

    @tf.function(autograph=False, reduce_retracing=True)
    def execute(elements: tf.data.Iterator, steps: tf.Tensor) -> None:
        def one_more(done: tf.Tensor) -> tuple[tf.Tensor]:
            step(elements.get_next())
            return (done + 1,)

        # one step at a time: each one reads the weights that the one before it has written
        tf.while_loop(lambda done: done < steps, one_more, (tf.constant(0),), parallel_iterations=1)

    def train(elements: tf.data.Iterator) -> Logs:
        # a tensor, as each other Python number would be traced anew
        execute(elements, tf.constant(next(sizes)))
        return model.get_metrics_result()

    return train
