"""How the answers of two forms of a model are compared."""

import numpy as np
import pytest

from pipeline.serving.export.comparison import BATCH_SIZE, compare, in_batches, predict_on_cpu
from tests.support.registered_model import SHAPE, build_model

EXPECTED = np.array([[0.75, 0.25], [0.5, 0.5]], np.float32)


def test_compare_returns_the_largest_difference_and_the_share_of_equal_classes():
    found = compare(EXPECTED, np.array([[0.25, 0.75], [0.625, 0.375]], np.float32))
    assert (found.images, found.max_difference, found.equal_classes) == (2, 0.5, 0.5)
    assert found.is_within(0.5) and not found.is_within(0.49)


def test_compare_with_nan_is_within_no_tolerance():
    found = compare(EXPECTED, np.array([[np.nan, 0.25], [0.5, 0.5]], np.float32))
    assert np.isnan(found.max_difference) and not found.is_within(1)


@pytest.mark.parametrize("got", [EXPECTED[:1], EXPECTED[:, :1]])
def test_compare_of_other_shapes_raises(got):
    with pytest.raises(ValueError, match="one shape"):
        compare(EXPECTED, got)


def test_compare_without_images_raises():
    with pytest.raises(ValueError, match="one image"):
        compare(EXPECTED[:0], EXPECTED[:0])


def test_predict_on_cpu_returns_what_the_model_predicts_of_all_images():
    model = build_model()
    images = np.random.default_rng(0).integers(0, 256, (BATCH_SIZE + 3, *SHAPE), np.uint8)
    np.testing.assert_allclose(predict_on_cpu(model, images), model.predict_on_batch(images), rtol=1e-5)


def test_in_batches_predicts_a_bounded_number_at_once():
    sizes = []

    def predict(images):
        sizes.append(len(images))
        return images

    images = np.arange(2 * BATCH_SIZE + 1)[:, None]
    np.testing.assert_array_equal(in_batches(predict, images), images)
    assert sizes == [BATCH_SIZE, BATCH_SIZE, 1]
