"""Runs -> recipes: what has equal settings apart from the seed, on the same data, is one recipe with several runs."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.config.training import CHANGE_NO_RESULT, TrainingConfig
from pipeline.runtime.errors import UsageError


class RunRecord(NamedTuple):
    """What a report needs of a run."""

    id: str
    name: str
    experiment_id: str
    artifact_uri: str
    state: str  # finished, running, pruned, stopped or failed
    role: str
    study: str
    parent: str
    params_as_typed: bool  # whether parameters may be in a person's spelling, as `mlflow run` logs them
    commit: str  # that it was trained with; empty where nobody knows it
    recipe: str
    params: Mapping[str, str]  # of settings
    metrics: Mapping[str, float]
    data: str  # name, as a person gave it
    fingerprint: str  # of the data; empty where nobody has said it
    start_time: int  # ms since 1970
    seconds: float | None  # of wall time, where it has ended
    test_set_accesses: int  # how often its test images have been looked at, by its training and by evaluations


Metric = Literal["test_accuracy", "best_val_accuracy"]
Settings = Mapping[str, str]  # by name, in the one spelling that `Config.text` gives

NOT_COMPARED = CHANGE_NO_RESULT | {"seed"}
SEED_IN_NAME = re.compile(r"[ ,_-]*\bseed[ =_-]?\d+$")


@dataclass(frozen=True)
class RunGroup:
    """Runs of equal settings; those that have not finished are another recipe, of which nothing can be concluded."""

    name: str
    settings: Settings  # all but the seed
    runs: tuple[RunRecord, ...]  # by seed
    data: str  # fingerprint of the data, or its name where that is not known
    data_name: str
    state: str  # finished, or what its runs are instead
    repeats: tuple[RunRecord, ...] = ()  # older runs of the same seeds

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
        return _mean(one.metrics.get(name) for one in (*self.runs, *self.repeats))

    @property
    def test_opened(self) -> int:
        """How often the test images have been looked at, by all its runs together."""
        return sum(one.test_set_accesses for one in self.runs)

    def seconds(self) -> float:
        """Mean wall time of the runs."""
        return _mean(one.seconds for one in self.runs)


def settings_of(one: RunRecord) -> Settings:
    """The settings of a run from its parameters, read as what a person types: `1e-3` and `0.001` are one value."""
    try:
        config = TrainingConfig.build(one.params)
    except UsageError:  # of another version, whose bounds were others
        return dict(one.params)
    return format_setting(config)


def format_setting(config: TrainingConfig) -> Settings:
    """Every setting, as `Config.text` spells it."""
    return {name: config.text(name) for name in TrainingConfig.model_fields}


def accuracy(one: RunRecord, metric: Metric) -> float:
    """The metric of a run; of one under way or ended early its last validation accuracy stands for the best."""
    value = one.metrics.get(metric)
    if value is None and metric == "best_val_accuracy" and one.state != "finished":
        value = one.metrics.get("val_accuracy")
    return float("nan") if value is None else value


def usual_metric(rows: Sequence[RunRecord]) -> Metric:
    """test_accuracy, where at least half of the runs have it: of a search one run has."""
    tested = sum("test_accuracy" in one.metrics for one in rows)
    return "test_accuracy" if 2 * tested >= len(rows) else "best_val_accuracy"


def group_runs(rows: Iterable[RunRecord], settings: Mapping[str, Settings], metric: Metric) -> list[RunGroup]:
    """The recipes of some runs: those with the best mean first, those that have not finished last.

    Of several finished runs with one seed the newest counts: the others repeat it, and are no further seeds.

    Args:
        settings: of every run, by its id.
    """
    groups: dict[tuple, dict[str, list[RunRecord]]] = {}
    for one in sorted(rows, key=lambda one: -one.start_time):
        state = one.state if one.state == "finished" else "not finished"
        told = {name: value for name, value in settings[one.id].items() if name not in NOT_COMPARED}
        if one.fingerprint:
            told.pop("dataset", None)  # the same images may lie elsewhere
        key = (one.fingerprint or one.data, state, tuple(sorted(told.items())))
        which = settings[one.id].get("seed", "") if state == "finished" else one.id
        groups.setdefault(key, {}).setdefault(which, []).append(one)
    found = [_group(key[0], list(runs.values()), settings) for key, runs in groups.items()]
    return sorted(found, key=lambda recipe: (not recipe.finished, -recipe.values(metric).mean(), recipe.name))


def _group(data: str, by_seed: Sequence[Sequence[RunRecord]], settings: Mapping[str, Settings]) -> RunGroup:
    runs = [newest for newest, *_ in by_seed]
    told = settings[runs[0].id]
    states = Counter(one.state for one in runs)
    return RunGroup(
        name=_group_name(runs),
        settings={name: value for name, value in told.items() if name not in NOT_COMPARED},
        runs=tuple(sorted(runs, key=lambda one: (_seed(settings[one.id]), one.id))),
        data=data,
        data_name=runs[0].data,
        state=", ".join(states),
        repeats=tuple(older for _, *others in by_seed for older in others),
    )


def _group_name(runs: Sequence[RunRecord]) -> str:
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


def differing_settings(recipes: Sequence[RunGroup]) -> pd.DataFrame:
    """A row a recipe in the order given, a column a setting that is not the same in all; empty where it is absent."""
    names = dict.fromkeys(name for recipe in recipes for name in recipe.settings)
    table = pd.DataFrame([{name: recipe.settings.get(name, "") for name in names} for recipe in recipes])
    same_data = len({recipe.data for recipe in recipes}) == 1
    return table.loc[:, [name for name in names if table[name].nunique() > 1 and not (same_data and name == "dataset")]]
