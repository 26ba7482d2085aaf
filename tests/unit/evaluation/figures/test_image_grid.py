"""Grids of images with text above and below."""

import numpy as np
import pytest

from pipeline.evaluation.figures.image_grid import mislabeled_images
from tests.support.figures import margins, title


def draw(number, **changes):
    return mislabeled_images(
        np.zeros((number, 8, 8, 1), np.uint8),
        **{
            "given": ["cat"] * number,
            "suggested": ["dog"] * number,
            "probabilities": [0.987] * number,
            "found": number,
            "of": 1500,
            "files": [f"cat/{index:04}.png" for index in range(number)],
            "subject": "pets",
        }
        | changes,
    )


def test_mislabeled_images_show_the_suggested_class_above_the_given_one_and_the_file_below() -> None:
    figure = draw(3)
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["dog (98.7 %)"] * 3
    assert [axes.get_xlabel() for axes in shown] == ["cat"] * 3
    assert [axes.texts[0].get_text() for axes in shown] == ["0000.png", "0001.png", "0002.png"]
    assert "Probably mislabeled: pets" in title(figure) and "all 3, in 1,500 images" in title(figure)
    assert "below: class of the label, file" in title(figure) and min(margins(figure)) > 5


@pytest.mark.parametrize("name", ["W" * 200, "two\nlines", "$_^{$"])
def test_mislabeled_images_of_any_name_cut_nothing_off(name) -> None:
    figure = draw(1, given=[name], suggested=[name], files=[f"{name.replace(chr(10), '')}.png"])
    assert min(margins(figure)) > 5


def test_mislabeled_images_that_are_some_of_many_say_so() -> None:
    text = title(draw(25, found=1400, files=[""] * 25))
    assert "the 25 most probable of 1,400, in 1,500 images" in text and text.endswith("below: class of the label")


def test_mislabeled_images_without_any_are_a_text() -> None:
    assert "none of 1,500 images" in title(draw(0))
