"""A fixture of all tests of trainings: TensorFlow runs their graphs as they are."""

from collections.abc import Iterator

import pytest
import tensorflow as tf


@pytest.fixture(autouse=True, scope="package")
def without_graph_optimization() -> Iterator[None]:
    """Leave graphs as they are: to optimize them takes a quarter of the time of such small trainings."""
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
