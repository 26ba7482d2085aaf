"""The figure of class activation maps."""

import numpy as np
import pytest

from pipeline.evaluation.figures.class_activation import ExplainedImage, area_of_half, class_activation
from tests.support.figures import margins, title

NOTES = ["the most confident 3 of 7 mistakes in 100 images"]


def explained(number, shape=(8, 8, 1), *, patch=2, names=("cat", "dog")):
    random = np.random.default_rng(number)
    height, width = shape[:2]
    maps = random.normal(0, 3, (2, height // patch, width // patch)).repeat(patch, 1).repeat(patch, 2)
    return ExplainedImage(
        random.integers(0, 256, shape, np.uint8),
        true=names[1],
        predicted=names[0],
        probability=0.98,
        other=names[1],
        other_probability=0.013,
        maps=maps,
    )


def draw(examples):
    return class_activation(examples, title="Class activation maps: digits", notes=NOTES, none="no mistakes")


def test_area_of_half_is_the_least_share_of_an_image_that_holds_half_of_what_speaks_for_a_class():
    assert area_of_half(np.ones((4, 4))) == 0.5
    assert area_of_half(np.array([[5.0, 1.0], [4.0, -9.0]])) == 0.25
    assert area_of_half(np.array([[4.0, 1.0], [4.0, 1.0]])) == 0.5
    assert np.isnan(area_of_half(np.array([[-1.0, 0.0]])))


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 48, 3), (24, 12, 4)])
def test_class_activation_draws_an_image_and_its_two_maps_with_classes_and_probabilities(shape):
    example = explained(0, shape)
    figure = draw([example, explained(1, shape), explained(2, shape)])
    image, predicted, other = figure.axes[:3]
    np.testing.assert_array_equal(np.squeeze(image.images[0].get_array()), np.squeeze(example.image))
    for axes, evidence in ((predicted, example.maps[0]), (other, example.maps[1])):
        np.testing.assert_array_equal(axes.images[1].get_array(), evidence)
        largest = np.abs(example.maps).max()
        assert axes.images[1].get_clim() == (-largest, largest), "both maps have one scale"
        assert axes.get_xlabel() == f"half in {100 * area_of_half(evidence):.1f} %"
    assert [axes.get_title() for axes in (image, predicted, other)] == ["dog", "cat (98.0 %)", "dog (1.3 %)"]
    assert "the most confident 3 of 7 mistakes" in title(figure)
    assert min(margins(figure)) > 5


def test_class_activation_of_one_example_and_of_long_names_cuts_nothing_off():
    for names in (("cat", "dog"), ("a very long name of a class " * 4, "$x_1^{$ 犬")):
        assert min(margins(draw([explained(0, names=names)]))) > 5


def test_class_activation_without_examples_says_so():
    figure = draw([])
    assert not figure.axes and "no mistakes" in title(figure)
