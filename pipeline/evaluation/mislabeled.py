"""Images that are probably mislabeled, by confident learning (Northcutt et al. 2021, arXiv 1911.00068)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.evaluation.metrics import Labels, Probabilities


@dataclass(frozen=True)
class LabelErrors:
    """Images that are probably mislabeled, the most probable first."""

    positions: npt.NDArray[np.int64]  # (k,) among the images
    given: Labels  # (k,)
    suggested: Labels  # (k,)


def find_label_errors(probabilities: Probabilities, labels: Labels) -> LabelErrors:
    """Return the images off the diagonal of the confident joint, ordered by normalized margin.

    The threshold of a class is the mean of its probability over the images with that label (section 3.1, equation 2).
    In the confident joint an image counts as the most probable of the classes that reach their thresholds (equation 1);
    where that is another class than its label, the label is probably wrong (section 3.2, method 2). An image whose
    label is as probable as that class is left out. The normalized margin is the probability of the
    label less the highest of the others; the lowest come first.

    Args:
        probabilities: (n, classes), each image's by a model that was not trained on it.
        labels: (n,), the given ones.
    """
    row = np.arange(len(labels))
    confident = probabilities >= class_thresholds(probabilities, labels)
    counted = np.where(confident, probabilities, -1.0).argmax(axis=1)
    others = probabilities.copy()
    others[row, labels] = -1.0
    margin = probabilities[row, labels] - others.max(axis=1)
    is_likelier = probabilities[row, counted] > probabilities[row, labels]
    positions = np.flatnonzero(confident.any(axis=1) & is_likelier)
    positions = positions[np.argsort(margin[positions], kind="stable")]
    return LabelErrors(positions, labels[positions], counted[positions])


def class_thresholds(probabilities: Probabilities, labels: Labels) -> npt.NDArray[np.float64]:
    """Return the mean probability of each class over the images with its label, (classes,).

    It is infinite for a class without images, of which nothing is known.
    """
    classes = probabilities.shape[1]
    images = np.bincount(labels, minlength=classes)
    of_label = probabilities[np.arange(len(labels)), labels]
    sums = np.bincount(labels, weights=of_label, minlength=classes)
    return np.divide(sums, images, out=np.full(classes, np.inf), where=images > 0)


def label_errors_table(
    errors: LabelErrors,
    probabilities: Probabilities,
    *,
    images: npt.NDArray[np.bytes_],
    files: Sequence[str],
    classes: Sequence[str],
) -> pd.DataFrame:
    """Return a row for each image that is probably mislabeled, the most probable first.

    Args:
        errors: See `find_label_errors`.
        probabilities: (n, classes), as given there.
        images: Digests (n,) of the images' pixels.
        files: Names (n,) of the images' files, empty where there are none.
        classes: Names by label.

    Returns:
        Columns rank (from 1), file, image (the first 16 hexadecimal digits of the digest), class and suggested_class
        (names), probability_of_class and probability_of_suggested_class.
    """
    names = np.array(classes, dtype=object)
    return pd.DataFrame(
        {
            "rank": np.arange(1, len(errors.positions) + 1),
            "file": np.array(files, dtype=object)[errors.positions],
            "image": [digest.hex()[:16] for digest in images[errors.positions].tolist()],
            "class": names[errors.given],
            "suggested_class": names[errors.suggested],
            "probability_of_class": probabilities[errors.positions, errors.given].round(6),
            "probability_of_suggested_class": probabilities[errors.positions, errors.suggested].round(6),
        }
    )
