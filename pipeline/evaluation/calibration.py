"""Temperature scaling (Guo et al. 2017, arXiv 1706.04599, section 4.2): calibrated probabilities of a classifier.

The logits are divided by one number, the temperature, which is fitted on the validation images: above 1 it makes the
model less confident, below 1 more. The most probable class stays the same, and with it the accuracy. As the softmax
takes no notice of a constant, the logarithms of probabilities serve as logits, also for the mean of several networks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.evaluation import metrics

# What no useful temperature is beyond: the best one of predictions that are all right is 0
LOWEST, HIGHEST = 0.1, 100.0
# of a probability: that of a class may be 0 in single precision
LEAST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class ScaledResult:
    """Metrics of the images of an evaluation after temperature scaling."""

    temperature: float
    metrics: dict[str, float]  # temperature, scaled_nll, scaled_ece, scaled_brier_score
    reliability: pd.DataFrame  # see `metrics.reliability_table`


def fit_temperature(probabilities: metrics.Probabilities, labels: metrics.Labels) -> float:
    """Return the temperature that minimizes the negative log likelihood of the labels, from LOWEST to HIGHEST.

    Args:
        probabilities: Of validation images, on which the model was not trained.
        labels: Of the same images.
    """
    if (probabilities.argmax(axis=1) == labels).all():
        # the lower the better, until the likelihood is 1 and tells temperatures apart no more
        return LOWEST
    # not above, as it takes a second
    from scipy.optimize import minimize_scalar

    logits = _logits(probabilities)  # (n, classes)
    of_label = logits[np.arange(len(labels)), labels]

    def nll(log_temperature: float) -> float:
        """Return the mean of log(sum(exp(z / T))) - z of the label / T: convex in 1 / T, so that it has one minimum."""
        scale = np.exp(-log_temperature)
        scaled = scale * logits
        highest = scaled.max(axis=1)
        normalizer = highest + np.log(np.exp(scaled - highest[:, None]).sum(axis=1))
        return float((normalizer - scale * of_label).mean())

    found = minimize_scalar(nll, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(found.x))


def scale_probabilities(probabilities: metrics.Probabilities, temperature: float) -> npt.NDArray[np.float64]:
    """Return the probabilities of logits that are divided by a temperature."""
    logits = _logits(probabilities) / temperature
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def measure_scaled(
    probabilities: metrics.Probabilities, labels: metrics.Labels, temperature: float, *, bins: int
) -> ScaledResult:
    """Return the calibration of the images of an evaluation after temperature scaling."""
    scaled = scale_probabilities(probabilities, temperature)
    reliability = metrics.reliability_table(scaled, labels, bins=bins)
    values = {
        "temperature": temperature,
        "scaled_nll": metrics.cross_entropy(scaled, labels),
        "scaled_ece": metrics.expected_calibration_error(reliability),
        "scaled_brier_score": metrics.brier_score(scaled, labels),
    }
    return ScaledResult(temperature, values, reliability)


def _logits(probabilities: metrics.Probabilities) -> npt.NDArray[np.float64]:
    return np.log(np.maximum(probabilities.astype(np.float64), LEAST))
