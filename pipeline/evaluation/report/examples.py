"""Test images on the report's page: the most confident mistakes, and those of which only one of two models is right."""

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.evaluation.metrics import is_correct

EXAMPLES = 10  # images of a strip
CONFIDENCE = "probability_of_predicted_class"


class Model(NamedTuple):
    """A model whose predictions of the test images are known."""

    name: str
    predictions: pd.DataFrame  # a row an image; of the columns of `predictions_table` at least image, label, predicted


class Example(NamedTuple):
    """A test image as the page shows it."""

    image: str  # the beginning of the digest of its pixels, as in a table of predictions
    name: str  # of its file, or its number
    text: str  # what it is, and what it was taken for
    url: str = ""  # of its file; empty where that is not on this machine
    png: bytes = b""  # its pixels; empty where they are not on this machine

    @property
    def data_uri(self) -> str:
        """Return the pixels as a URI; empty if there are none."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode('ascii')}" if self.png else ""


class Strip(NamedTuple):
    """Some test images under one heading."""

    title: str
    examples: Sequence[Example]
    others: int  # number of images that are left out


def choose_examples(models: Sequence[Model]) -> list[Strip]:
    """Return the most confident mistakes of the first model, and the images of which one of two models alone is right.

    Args:
        models: One or two models of the same test images; none gives no strips.
    """
    if not models:
        return []
    first, *others = models
    strips = [_mistakes(first)]
    for second in others:
        for right, mistaken in ((first, second), (second, first)):
            differing = np.flatnonzero(is_correct(right.predictions) & ~is_correct(mistaken.predictions))
            strips.append(_strip(f"Right by {right.name}, wrong by {mistaken.name}", mistaken, differing))
    return strips


def have_same_images(first: Model, second: Model) -> bool:
    """Return whether two models were tested on the same images in the same order."""
    return np.array_equal(first.predictions["image"].to_numpy(), second.predictions["image"].to_numpy())


def add_pictures(
    strips: Sequence[Strip], thumbnails: Mapping[str, bytes], file_url: Callable[[str], str]
) -> list[Strip]:
    """Return the strips with what this machine has of their images.

    Args:
        strips: The strips.
        thumbnails: PNG by image.
        file_url: Returns the URL of a file by its name, or an empty text where there is no such file.
    """
    return [
        strip._replace(
            examples=[
                example._replace(png=thumbnails.get(example.image, b""), url=file_url(example.name))
                for example in strip.examples
            ]
        )
        for strip in strips
    ]


def _mistakes(model: Model) -> Strip:
    wrong = np.flatnonzero(~is_correct(model.predictions))
    if CONFIDENCE not in model.predictions:
        return _strip(f"Mistakes of {model.name}", model, wrong)
    confidence = model.predictions[CONFIDENCE].to_numpy()[wrong]
    return _strip(f"Most confident mistakes of {model.name}", model, wrong[np.argsort(-confidence, kind="stable")])


def _strip(title: str, mistaken: Model, positions: np.ndarray) -> Strip:
    """Return a strip of images at positions in the predictions of a model that is wrong about all of them."""
    title = f"{title}: {len(positions):,} of {len(mistaken.predictions):,} test images"
    examples = []
    for position, row in mistaken.predictions.iloc[positions[:EXAMPLES]].iterrows():
        true = row.get("class", f"class {row['label']}")
        predicted = row.get("predicted_class", f"class {row['predicted']}")
        confidence = f" ({100 * row[CONFIDENCE]:.1f} %)" if CONFIDENCE in row else ""
        name = row.get("file") or f"test image {position}"
        examples.append(Example(row["image"], name, f"{true}, taken for {predicted}{confidence}"))
    return Strip(title, examples, len(positions) - len(examples))
