"""What an evaluation leaves: metrics, tables and figures in MLflow, and lines on the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np
import numpy.typing as npt

from pipeline.data.subset import Subset
from pipeline.evaluation.calibration import ScaledResult
from pipeline.evaluation.corruptions import CORRUPTIONS, STRENGTHS
from pipeline.evaluation.figures.class_activation import ExplainedImage, class_activation
from pipeline.evaluation.figures.robustness import accuracy_by_strength, corrupted_examples, reliability_diagram
from pipeline.evaluation.figures.style import Figure, titled
from pipeline.evaluation.figures.training import confusion_matrix
from pipeline.evaluation.metrics import (
    most_confident_errors,
    most_confident_successes,
    per_class_table,
    per_class_view,
    predictions_view,
)
from pipeline.evaluation.robustness import EvaluationResult
from pipeline.runtime.text import count, format_share, one_line
from pipeline.tracking.models import LoggedModel
from pipeline.tracking.run import TrackedRun

EXPLAINED = 8  # images in each figure of class activation maps
# classes that have a line on the terminal: of more, the worst
CLASS_LINES, WORST_CLASSES = 12, 5
NAME_CHARACTERS = 30


@dataclass(frozen=True)
class EvaluationPlace:
    """Where in the training run an evaluation is logged."""

    folder: str  # a path among artifacts, and the beginning of the metrics' names
    step: int  # of the metrics
    name: str  # of the training run, for titles
    of_model: bool  # whether the metrics are also those of the run's own model


def log_evaluation(
    run: TrackedRun,
    result: EvaluationResult,
    scaled: ScaledResult | None,
    subset: Subset,
    model: LoggedModel,
    place: EvaluationPlace,
) -> None:
    """Log the metrics, tables and figures of an evaluation to the run that trained the model."""
    images = f"{subset}, run {place.name}"
    classes, folder = model.classes, place.folder
    corrupted = result.corruptions[result.corruptions["strength"] > 0]
    clean_accuracy = result.corruptions["accuracy"].iloc[0]
    per_class = per_class_table(result.confusion, classes=classes)
    figures = {
        "calibration": reliability_diagram(result.reliability, error=result.metrics["ece"], subject=images),
        "corruptions": accuracy_by_strength(corrupted, clean=clean_accuracy, subject=images),
        "corrupted_examples": corrupted_examples(
            result.examples, corruptions=list(CORRUPTIONS), strengths=STRENGTHS, subject=images
        ),
        "confusion_matrix": confusion_matrix(result.confusion, classes=classes, subject=images),
        **explanations(result, subset, model, subject=images),
    }
    metrics = result.metrics
    if scaled:
        metrics = metrics | scaled.metrics
        subject = f"{images}, temperature {scaled.temperature:.3g}"
        figures["calibration_scaled"] = reliability_diagram(
            scaled.reliability, error=scaled.metrics["scaled_ece"], subject=subject
        )
        run.log_table(f"{folder}/calibration_scaled.csv", scaled.reliability)
    run.log_table(f"{folder}/calibration.csv", result.reliability)
    run.log_table(f"{folder}/corruptions.csv", result.corruptions)
    run.log_table(f"{folder}/per_class.csv", per_class, view=per_class_view(per_class))
    run.log_table(f"{folder}/predictions.csv", result.predictions, view=predictions_view(result.predictions))
    for name, figure in figures.items():
        run.log_figure(f"{folder}/{name}.png", figure, key=f"{folder}/{name}")
    values = {f"{folder}/{name}": value for name, value in metrics.items()}
    if place.of_model:
        run.log_model_metrics(values, step=place.step)
    else:
        run.log_metrics(values, step=place.step)


def explanations(result: EvaluationResult, subset: Subset, model: LoggedModel, *, subject: str) -> dict[str, Figure]:
    """Return figures of the class activation maps of the most confident mistakes and successes, by name."""
    probabilities, labels = result.probabilities, subset.labels
    errors = most_confident_errors(probabilities, labels, most=EXPLAINED)
    successes = most_confident_successes(probabilities, labels, most=EXPLAINED)
    seconds = np.argsort(-probabilities[successes], axis=1, kind="stable")[:, 1]
    wrong, of = int((probabilities.argmax(axis=1) != labels).sum()), len(labels)
    which = f"the {EXPLAINED} most confident of {wrong:,} mistakes" if wrong > EXPLAINED else count(wrong, "mistake")
    return {
        "class_activation_mistakes": class_activation(
            _explain(model, subset, probabilities, errors.positions, errors.true),
            title=titled("Class activation maps of mistakes", subject),
            notes=[f"{which} in {count(of, 'image')}: maps of the predicted and of the true class"],
            none=f"no mistakes in {count(of, 'image')}",
        ),
        "class_activation_successes": class_activation(
            _explain(model, subset, probabilities, successes, seconds),
            title=titled("Class activation maps of successes", subject),
            notes=[
                f"{len(successes)} of {of - wrong:,} right predictions, the most confident ones of different classes "
                "first: maps of that class and of the second most probable one"
            ],
            none=f"no successes in {count(of, 'image')}",
        ),
    }


def _explain(
    model: LoggedModel,
    subset: Subset,
    probabilities: npt.NDArray[np.float32],
    positions: npt.NDArray[np.int64],
    others: npt.NDArray[np.int64],
) -> list[ExplainedImage]:
    """Return images with their maps of the predicted class and of another one.

    Args:
        model: The model.
        subset: The images of the evaluation.
        probabilities: (n, classes) of all of them.
        positions: (m,) of the images wanted.
        others: (m,) the other class of each.
    """
    if not len(positions):
        return []
    # imported here, as what is wrong is refused before Keras is imported
    from pipeline.model.class_activation import class_activation_maps

    images, _ = subset.split.take(positions)
    predicted = probabilities[positions].argmax(axis=1)
    maps = [class_activation_maps(model.model, images, classes).maps for classes in (predicted, others)]
    names = model.classes
    return [
        ExplainedImage(
            images[row],
            true=names[subset.labels[position]],
            predicted=names[predicted[row]],
            probability=float(probabilities[position, predicted[row]]),
            other=names[others[row]],
            other_probability=float(probabilities[position, others[row]]),
            maps=np.stack([of_class[row] for of_class in maps]),
        )
        for row, position in enumerate(positions)
    ]


def summarize(result: EvaluationResult, scaled: ScaledResult | None, subset: Subset) -> str:
    """Return the results of an evaluation in one line."""
    metrics = result.metrics
    text = (
        f"{subset}: accuracy {format_share(metrics['accuracy'])} of {count(len(subset.split), 'image')}, expected "
        f"calibration error {format_share(metrics['ece'])} (mean confidence "
        f"{format_share(metrics['mean_confidence'])}), negative log likelihood {metrics['nll']:.4f}, Brier score "
        f"{metrics['brier_score']:.4f}; mean accuracy under corruptions "
        f"{format_share(metrics['mean_corruption_accuracy'])}"
    )
    if scaled is None:
        return text
    return (
        f"{text}; with temperature {scaled.temperature:.3f}: expected calibration error "
        f"{format_share(scaled.metrics['scaled_ece'])}, negative log likelihood {scaled.metrics['scaled_nll']:.4f}"
    )


def class_lines(result: EvaluationResult, classes: Sequence[str]) -> list[str]:
    """Return precision, recall, F1 and number of images of each class as lines; of many classes the worst by F1."""
    table = per_class_table(result.confusion, classes=classes)
    left_out = len(table) - WORST_CLASSES if len(table) > CLASS_LINES else 0
    if left_out:
        table = table.sort_values("f1", kind="stable", na_position="last").head(WORST_CLASSES)
    names = [one_line(name, most=NAME_CHARACTERS) for name in table["class"]]
    width = max(len("class"), *map(len, names))
    lines = [f"{'class':<{width}}  precision   recall       F1   images"]
    for name, (_, row) in zip(names, table.iterrows(), strict=True):
        shares = "  ".join(f"{_percent(row[column]):>{size}}" for column, size in (("precision", 9), ("recall", 7)))
        lines.append(f"{name:<{width}}  {shares}  {_percent(row['f1']):>7}  {row['images']:>7,}")
    if left_out:
        lines.append(f"and {left_out:,} more of a better F1: see per_class.csv")
    return lines


def _percent(value: float) -> str:
    """Return a ratio in per cent; one over no image is unknown."""
    return "-" if isnan(value) else f"{100 * value:.1f} %"
