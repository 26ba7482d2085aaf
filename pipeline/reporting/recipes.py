"""Runs -> recipes: what has equal settings apart from the seed, on the same data, is one recipe with several runs."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.config import CHANGE_NO_RESULT, Config
from pipeline.errors import UsageError
from pipeline.reporting.reading import Row

Metric = Literal["test_accuracy", "best_val_accuracy"]
Settings = Mapping[str, str]  # by name, in the one spelling that `Config.text` gives

NOT_COMPARED = CHANGE_NO_RESULT | {"seed"}
SEED_IN_NAME = re.compile(r"[ ,_-]*\bseed[ =_-]?\d+$")


@dataclass(frozen=True)
class Recipe:
    """Runs of equal settings; those that have not finished are another recipe, of which nothing can be concluded."""

    name: str
    settings: Settings  # all but the seed
    runs: tuple[Row, ...]  # by seed
    data: str  # fingerprint of the data, or its name where that is not known
    data_name: str
    state: str  # finished, or what its runs are instead
    repeats: tuple[Row, ...] = ()  # older runs of the same seeds

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    def values(self, metric: Metric) -> npt.NDArray[np.float64]:
        """The metric of each run, (k,); of one that has not finished, what it has reached so far."""
        return np.array([accuracy(one, metric) for one in self.runs], dtype=np.float64)

    def figure(self, name: str) -> float:
        """Mean over the runs that have this figure, of what no seed changes; NaN where none has.

        A search times its trials, and the best of them are trained again with the same seed: so a repeat counts too.
        """
        return _mean(one.figures.get(name) for one in (*self.runs, *self.repeats))

    @property
    def test_opened(self) -> int:
        """How often the test images have been looked at, by all its runs together."""
        return sum(one.test_opened for one in self.runs)

    def seconds(self) -> float:
        """Mean wall time of the runs."""
        return _mean(one.seconds for one in self.runs)


def settings_of(one: Row) -> Settings:
    """The settings of a run from its parameters, read as what a person types: `1e-3` and `0.001` are one value."""
    try:
        config = Config.build(one.params)
    except UsageError:  # of another version, whose bounds were others
        return dict(one.params)
    return spelled(config)


def spelled(config: Config) -> Settings:
    """Every setting, as `Config.text` spells it."""
    return {name: config.text(name) for name in Config.model_fields}


def accuracy(one: Row, metric: Metric) -> float:
    """The metric of a run; of one under way or ended early its last validation accuracy stands for the best."""
    value = one.figures.get(metric)
    if value is None and metric == "best_val_accuracy" and one.state != "finished":
        value = one.figures.get("val_accuracy")
    return float("nan") if value is None else value


def usual_metric(rows: Sequence[Row]) -> Metric:
    """test_accuracy, where at least half of the runs have it: of a search one run has."""
    tested = sum("test_accuracy" in one.figures for one in rows)
    return "test_accuracy" if 2 * tested >= len(rows) else "best_val_accuracy"


def recipes(rows: Iterable[Row], settings: Mapping[str, Settings], metric: Metric) -> list[Recipe]:
    """The recipes of some runs: those with the best mean first, those that have not finished last.

    Of several finished runs with one seed the newest counts: the others repeat it, and are no further seeds.

    Args:
        settings: of every run, by its id.
    """
    groups: dict[tuple, dict[str, list[Row]]] = {}
    for one in sorted(rows, key=lambda one: -one.began):
        state = one.state if one.state == "finished" else "not finished"
        told = {name: value for name, value in settings[one.id].items() if name not in NOT_COMPARED}
        if one.fingerprint:
            told.pop("dataset", None)  # the same images may lie elsewhere
        key = (one.fingerprint or one.data, state, tuple(sorted(told.items())))
        which = settings[one.id].get("seed", "") if state == "finished" else one.id
        groups.setdefault(key, {}).setdefault(which, []).append(one)
    found = [_recipe(key[0], list(runs.values()), settings) for key, runs in groups.items()]
    return sorted(found, key=lambda recipe: (not recipe.finished, -recipe.values(metric).mean(), recipe.name))


def _recipe(data: str, by_seed: Sequence[Sequence[Row]], settings: Mapping[str, Settings]) -> Recipe:
    runs = [newest for newest, *_ in by_seed]
    told = settings[runs[0].id]
    states = Counter(one.state for one in runs)
    return Recipe(
        name=_name(runs),
        settings={name: value for name, value in told.items() if name not in NOT_COMPARED},
        runs=tuple(sorted(runs, key=lambda one: (_seed(settings[one.id]), one.id))),
        data=data,
        data_name=runs[0].data,
        state=", ".join(states),
        repeats=tuple(older for _, *others in by_seed for older in others),
    )


def _name(runs: Sequence[Row]) -> str:
    """What most of the runs are called, without the seed; of equally many the oldest."""
    names = Counter(SEED_IN_NAME.sub("", one.name) or one.name for one in reversed(runs))
    name, many = names.most_common(1)[0]
    return name if many > 1 or len(runs) == 1 or not runs[0].recipe else Path(runs[0].recipe).stem


def _seed(settings: Settings) -> int:
    seed = settings.get("seed", "0")
    return int(seed) if seed.isdecimal() else 0


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")
