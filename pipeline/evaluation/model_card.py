"""Model cards (Mitchell et al. 2019, arXiv 1810.03993): what was logged of a model, as Markdown; no field is guessed.

What is not known says so. Names of classes, data sets and runs are anybody's text, in which nothing is markup.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pipeline.config.monitor import metric_words
from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.significance import wilson_interval
from pipeline.runtime.tables import markdown_cell, markdown_code, markdown_facts, markdown_text
from pipeline.runtime.text import format_bare, format_duration, format_metric, is_share, one_line, percent

UNKNOWN = "not known"
NAME_CHARACTERS = 100
LISTED_CLASSES = 30  # of more the card gives the number, and the tables of classes their extremes
WEAK_CLASSES = 3  # named among the limits


class DataSplit(NamedTuple):
    """A split of the data that a model was trained, validated or tested on."""

    context: str  # train, validation or test
    digest: str
    class_sizes: Mapping[str, int]  # empty where they were not logged


class ClassResult(NamedTuple):
    """What a model reached on the test images of a class; NaN is a ratio over no image."""

    name: str
    images: int
    recall: float
    precision: float
    f1: float


@dataclass(frozen=True)
class CardFacts:
    """All that a card says, as it was logged; None and what is empty is not known."""

    run_id: str
    run_name: str
    model_uri: str  # by which it is loaded
    is_registered: bool
    params: Mapping[str, str] = field(default_factory=dict)  # settings as they were used
    unusual: Mapping[str, str] = field(default_factory=dict)  # those of them that are not the program's defaults
    changes: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # to the recipe: value, and the recipe's
    metrics: Mapping[str, float] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)  # sentences by their subject
    code: Mapping[str, str] = field(default_factory=dict)  # commit, libraries, device, precision, by what they are
    registry: Mapping[str, str] = field(default_factory=dict)  # version, alias, reason and the like
    classes: Sequence[str] = ()
    image_shape: Sequence[int] = ()  # (height, width, channels)
    resize: str = ""
    data_name: str = ""
    data_source: str = ""
    data_fingerprint: str = ""
    duplicates: str = ""
    splits: Sequence[DataSplit] = ()
    per_class: Sequence[ClassResult] = ()
    interval: tuple[str, Interval] | None = None  # of the monitored metric, where that is not accuracy
    evaluations: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # metrics by data set and split
    accesses: int = 0  # to the test set
    temperature: str = ""  # of a calibrated model, in words
    exports: Sequence[str] = ()  # paths among the run's artifacts


class Section(NamedTuple):
    """A part of a card."""

    title: str
    text: str
    is_detail: bool = False  # left out where there is little room


def write_card(facts: CardFacts, *, at_most: int | None = None) -> str:
    """Return a model card as Markdown.

    Args:
        facts: What is known.
        at_most: Number of characters; None is no limit. A shorter card leaves out details, and says where they are.
    """
    sections = [
        Section("What it is", _what_it_is(facts)),
        Section("Intended use and limits", _limits(facts)),
        Section("Data", _data(facts)),
        Section("Images of each class", _class_sizes(facts), is_detail=True),
        Section("Training", _training(facts)),
        Section("Settings", _settings(facts), is_detail=True),
        Section("Results", _results(facts)),
        Section("Results of each class", _per_class(facts), is_detail=True),
        Section("Calibration and robustness", _evaluations(facts)),
        Section("How to load it", _loading(facts)),
    ]
    title = f"# Model card: {markdown_text(one_line(facts.run_name or facts.run_id, most=NAME_CHARACTERS))}"
    full = _join(title, sections)
    if at_most is None or len(full) <= at_most:
        return full
    note = f"\n\nShortened; model_card.md among the artifacts of run `{facts.run_id}` has all of it.\n"
    room = at_most - len(note)
    kept = [section for section in sections if not section.is_detail]
    while len(kept) > 1 and len(_join(title, kept)) > room:
        # names can be long; what comes first matters most, and how to load it is the same for every model
        del kept[-1]
    return _join(title, kept)[:room].rstrip() + note


def _join(title: str, sections: Sequence[Section]) -> str:
    parts = (f"## {section.title}\n\n{section.text}" for section in sections if section.text)
    return "\n\n".join([title, *parts]) + "\n"


def _what_it_is(facts: CardFacts) -> str:
    shape = "×".join(map(str, facts.image_shape))
    resize = f", other sizes: {_cell(facts.resize)}" if facts.resize else ""
    images = f"images of {shape} (height, width, channels), values 0 to 255{resize}"
    classes = f"a probability for each of {len(facts.classes)} classes: {_class_names(facts)}"
    rows = {
        "model": _network(facts),
        "input": images if facts.image_shape else UNKNOWN,
        "output": classes if facts.classes else UNKNOWN,
    }
    if facts.temperature:
        rows["calibrated"] = f"temperature {_cell(facts.temperature)}"
    rows |= {name: _cell(text) for name, text in facts.registry.items()}
    rows["run"] = f"{_cell(facts.run_name)} {markdown_code(facts.run_id)}"
    rows |= {name: _cell(text) for name, text in facts.code.items()}
    if "latency_ms" in facts.metrics:
        rows["latency"] = f"{facts.metrics['latency_ms']:.3g} ms for a single image, on the machine of the training"
    return markdown_facts(rows)


def _network(facts: CardFacts) -> str:
    names = ("filters", "depth", "kernel_size", "patch_size", "activation")
    parameters = f"{facts.metrics['parameters']:,.0f} parameters" if "parameters" in facts.metrics else ""
    if not all(name in facts.params for name in names):
        return ", ".join(filter(None, ["networks of the ConvMixer family", parameters]))
    filters, depth, kernel_size, patch_size, activation = (_cell(facts.params[name]) for name in names)
    text = f"ConvMixer-{filters}/{depth}, kernel {kernel_size}, patch {patch_size}, {activation}"
    return ", ".join(filter(None, [text, parameters]))


def _class_names(facts: CardFacts) -> str:
    shown = ", ".join(_cell(name) for name in facts.classes[:LISTED_CLASSES])
    more = len(facts.classes) - LISTED_CLASSES
    return f"{shown} and {more:,} more" if more > 0 else shown


def _limits(facts: CardFacts) -> str:
    lines = [
        "Intended use was not recorded. What follows from how the model is made:",
        "",
        f"- Every image gets one of its {len(facts.classes)} classes, also one that shows none of them."
        if facts.classes
        else "- Every image gets one of its classes, also one that shows none of them.",
        f"- The results hold for images like those of {_cell(facts.data_name) or 'its data'}, taken and resized in the "
        "same way.",
    ]
    missed = [one for one in facts.per_class if one.images and one.recall < 1]
    if missed:
        weak = sorted(missed, key=lambda one: one.recall)[:WEAK_CLASSES]
        named = ", ".join(f"{_cell(one.name)} ({percent(one.recall)} of {one.images:,})" for one in weak)
        lines.append(f"- It finds the fewest test images of these classes (recall): {named}.")
    if facts.accesses > 1:
        lines.append(
            f"- The test set was evaluated {facts.accesses} times: its results are too good if anything was chosen by "
            "them."
        )
    if facts.duplicates not in {"", "0"}:
        lines.append(f"- {_cell(facts.duplicates)} images are, pixel for pixel, in two splits.")
    if not facts.evaluations:
        lines.append("- Its calibration and its robustness to corruptions have not been measured.")
    if not facts.temperature:
        lines.append("- Its probabilities are not calibrated.")
    return "\n".join(lines)


def _data(facts: CardFacts) -> str:
    rows = {
        "data set": _cell(facts.data_name) or UNKNOWN,
        "source": _cell(facts.data_source) or UNKNOWN,
        "fingerprint": markdown_code(facts.data_fingerprint) if facts.data_fingerprint else UNKNOWN,
        "license": UNKNOWN,
    }
    for split in facts.splits:
        images = f"{sum(split.class_sizes.values()):,} images" if split.class_sizes else f"number of images {UNKNOWN}"
        rows[f"{split.context} images"] = f"{images}, digest {markdown_code(split.digest)}"
    if not facts.splits:
        rows["splits"] = UNKNOWN
    return markdown_facts(rows)


def _class_sizes(facts: CardFacts) -> str:
    splits = [split for split in facts.splits if split.class_sizes]
    if not splits:
        return f"The number of images of each class is {UNKNOWN}."
    if len(facts.classes) > LISTED_CLASSES:
        lines = []
        for split in splits:
            sizes = sorted(split.class_sizes.values())
            lines.append(f"- {split.context}: {sizes[0]:,} to {sizes[-1]:,}, median {sizes[len(sizes) // 2]:,}")
        return "\n".join(lines)
    names = facts.classes or list(splits[0].class_sizes)
    rows = ([_cell(name), *(f"{split.class_sizes.get(name, 0):,}" for split in splits)] for name in names)
    return _table(["class", *(split.context for split in splits)], rows)


def _training(facts: CardFacts) -> str:
    changes = ", ".join(
        f"{markdown_code(name)} {_cell(value)} instead of {_cell(of_recipe)}"
        for name, (value, of_recipe) in facts.changes.items()
    )
    recipe = _cell(facts.params.get("recipe", ""))
    rows = {"recipe": f"{recipe}{f', {changes}' if changes else ''}" if recipe else UNKNOWN}
    names = ("epochs", "batch_size", "learning_rate", "weight_decay", "optimizer", "seed")
    rows["main settings"] = (
        ", ".join(f"{markdown_code(name)} {_cell(facts.params[name])}" for name in names if name in facts.params)
        or UNKNOWN
    )
    rows |= {name: _cell(text) for name, text in facts.lineage.items()}
    if "best_epoch" in facts.metrics:
        rows["weights of"] = f"epoch {facts.metrics['best_epoch']:.0f}"
    if "seconds" in facts.metrics:
        rows["time"] = format_duration(facts.metrics["seconds"])
    if "energy_kwh" in facts.metrics:
        rows["energy"] = f"{facts.metrics['energy_kwh']:.3g} kWh"
    return markdown_facts(rows)


def _settings(facts: CardFacts) -> str:
    if not facts.unusual:
        return ""
    rows = ([markdown_code(name), _cell(value)] for name, value in facts.unusual.items())
    return "Those that are not the program's defaults:\n\n" + _table(["setting", "value"], rows, align="---")


def _results(facts: CardFacts) -> str:
    images = sum(one.images for one in facts.per_class)
    rows = {}
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "loss"):
        metric = f"test_{name}"
        if metric not in facts.metrics:
            continue
        value = facts.metrics[metric]
        interval = _interval(facts, metric, value, images)
        rows[metric_words(metric)] = f"{format_metric(metric, value)}{interval}"
    if facts.temperature and "test_loss" in facts.metrics:
        rows["test loss"] += ", before the calibration"
    if "test_accuracy_views" in facts.metrics:
        value = facts.metrics["test_accuracy_views"]
        rows["averaged over views of each image"] = f"accuracy {format_metric('test_accuracy_views', value)}"
    if not rows:
        rows["test"] = "not tested"
    monitor = facts.params.get("monitor", "val_accuracy")
    if f"best_{monitor}" in facts.metrics:
        best, sd = facts.metrics[f"best_{monitor}"], facts.metrics.get(f"best_{monitor}_sd")
        rows["validation, by which it was chosen"] = f"{_cell(monitor)} {format_metric(monitor, best, sd)}"
    times = f"{facts.accesses} time{'' if facts.accesses == 1 else 's'}"
    rows["test set opened"] = f"{times}, training included" if facts.accesses else "never, as far as was recorded"
    return markdown_facts(rows)


def _interval(facts: CardFacts, metric: str, value: float, images: int) -> str:
    """Return the 95 % interval of a result in words; empty where none was computed."""
    if metric == "test_accuracy" and images:
        low, high = (float(end[0]) for end in wilson_interval(np.array([value]), np.array([images])))
        return f" (95 % interval {_range(metric, low, high)}, Wilson, {images:,} images)"
    if facts.interval and facts.interval[0] == metric:
        return f" (95 % interval {_range(metric, *facts.interval[1])}, bootstrap of the images)"
    return ""


def _range(metric: str, low: float, high: float) -> str:
    return f"{format_bare(metric, low)} to {format_bare(metric, high)}{' %' if is_share(metric) else ''}"


def _per_class(facts: CardFacts) -> str:
    known = [one for one in facts.per_class if one.images]
    if not known:
        return ""
    shown = known if len(known) <= LISTED_CLASSES else sorted(known, key=lambda one: one.f1)[:LISTED_CLASSES]
    rows = []
    for one in shown:
        low, high = (float(end[0]) for end in wilson_interval(np.array([one.recall]), np.array([one.images])))
        recall = f"{percent(one.recall)} ({100 * low:.1f} to {100 * high:.1f})"
        rows.append([_cell(one.name), _ratio(one.precision), recall, _ratio(one.f1), f"{one.images:,}"])
    more = f"\n\nThe {len(shown)} of {len(known)} with the lowest F1." if len(shown) < len(known) else ""
    return _table(["class", "precision", "recall (95 % interval)", "F1", "test images"], rows) + more


def _ratio(value: float) -> str:
    return "–" if np.isnan(value) else percent(value)


def _evaluations(facts: CardFacts) -> str:
    if not facts.evaluations:
        return f"Not measured yet; `python -m pipeline evaluate {facts.run_id}` measures them."
    columns = {
        "accuracy": ("accuracy", True),
        "ece": ("ECE", True),
        "nll": ("NLL", False),
        "temperature": ("temperature", False),
        "scaled_ece": ("ECE with it", True),
        "scaled_nll": ("NLL with it", False),
        "mean_corruption_accuracy": ("mean accuracy under corruptions", True),
    }
    rows = []
    for name, values in facts.evaluations.items():
        cells = [
            "–" if column not in values else percent(values[column]) if share else f"{values[column]:.4g}"
            for column, (_, share) in columns.items()
        ]
        rows.append([_cell(name), *cells])
    return _table(["images", *(title for title, _ in columns.values())], rows) + (
        "\n\nECE: expected calibration error; NLL: negative log likelihood; without a temperature, unless the "
        "images end in -calibrated. A temperature is fitted on validation images. Corruptions: noise, blur, contrast "
        "and JPEG at three strengths."
    )


def _loading(facts: CardFacts) -> str:
    uri = facts.model_uri
    if facts.is_registered:
        pyfunc = 'model.predict({"image": [base64_of_a_file]})  # class, probability and probabilities'
    else:
        pyfunc = "model.predict(images)  # (n, height, width, channels) float32, 0 to 255 -> (n, classes)"
    python = "\n".join(
        [
            "import mlflow",
            f'model = mlflow.pyfunc.load_model("{uri}")',
            pyfunc,
            f'network = mlflow.keras.load_model("{uri}")  # the Keras model',
            f'network = mlflow.tensorflow.load_model("{uri}")  # the same',
        ]
    )
    shell = "\n".join(
        [
            f"mlflow models serve -m {uri} --env-manager local",
            f"python -m pipeline predict {uri} --images picture.jpg",
        ]
    )
    exported = ", ".join(markdown_code(path) for path in facts.exports)
    exports = f"\n\nExported among the artifacts of the run: {exported}." if exported else ""
    return f"```python\n{python}\n```\n\n```sh\n{shell}\n```{exports}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, align: str = "---:") -> str:
    """Return a table whose first column is text and whose others are numbers, which stand to the right, or as given."""
    lines = [f"| {' | '.join(head)} |", f"|---{f'|{align}' * (len(head) - 1)}|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Return foreign text as a part of a cell of a table, in which it is no markup."""
    return markdown_cell(one_line(text, most=NAME_CHARACTERS * 3))
