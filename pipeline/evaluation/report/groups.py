"""Runs -> groups of runs with equal settings, apart from the seed, on the same data."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isnan, nan
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.config.monitor import ResultMetric, monitor_of, sign
from pipeline.config.training import CHANGE_NO_RESULT, CHANGE_ROUNDING, TrainingConfig
from pipeline.runtime.errors import UsageError

Kind = Literal["winner", "final", "trial", "run"]
Settings = Mapping[str, str]  # by name, each value in the one spelling that `TrainingConfig.text` gives

# the last two decide how fast a run is, and `auto` stands for other values of them on another device
NOT_COMPARED = CHANGE_NO_RESULT | CHANGE_ROUNDING | {"seed"}
# roles of a search's runs: a single training, and one of several of the same configuration
TRIAL, FINAL = "trial", "final"
ENSEMBLE = "ensemble"  # role of the finalists of a search as one model
FOLD = "fold"  # of one of the networks of a run with folds
SEED_IN_NAME = re.compile(r"[ ,_-]*\bseed[ =_-]?\d+$")
PLACE_IN_NAME = re.compile(r"^(?:final(?: \d+)?|winner) ")


class RunRecord(NamedTuple):
    """What a report reads of one MLflow run."""

    id: str
    name: str
    experiment_id: str
    artifact_uri: str
    state: str  # finished, running, pruned, stopped or failed
    role: str
    study: str
    parent: str  # run id; empty if the run is not nested
    params_as_typed: bool  # logged by `mlflow run` as the user spelled them
    commit: str  # of the code that trained it; empty if unknown
    recipe: str  # the YAML file that the run was started with; empty if unknown
    params: Mapping[str, str]  # of settings
    metrics: Mapping[str, float]
    data: str  # name of the data set, as the user gave it
    fingerprint: str  # of the data; empty if unknown
    start_time: int  # ms since 1970
    seconds: float | None  # wall time; None while the run goes on
    test_set_accesses: int  # evaluations on the test set, by the training and by later commands
    is_winner: bool = False  # of a search
    models: tuple[str, ...] = ()  # those that the training has started from or was taught by, in words


@dataclass(frozen=True)
class RunGroup:
    """The runs of one configuration: equal settings apart from the seed.

    Runs that have not finished form a group of their own, from which nothing can be concluded.
    """

    name: str
    settings: Settings  # without the seed
    runs: tuple[RunRecord, ...]  # ordered by seed
    data: str  # fingerprint of the data, or its name if the fingerprint is unknown
    data_name: str
    state: str  # finished, or the states of its runs
    superseded: tuple[RunRecord, ...] = ()  # older runs with the seed of a run in `runs`, and trials before finals
    refits: tuple[RunRecord, ...] = ()  # of a search's winner, on training and validation images
    is_ranked_apart: bool = False  # single trials of a search that has finals: the best of many is a lucky one

    @property
    def finished(self) -> bool:
        """Return whether the runs have finished."""
        return self.state == "finished"

    @property
    def kind(self) -> Kind:
        """Return what the runs are: a search's winner, another finalist, a trial, or trained by themselves."""
        roles = {run.role for run in self.runs}
        if any(run.is_winner for run in (*self.runs, *self.superseded, *self.refits)):
            return "winner"
        if FINAL in roles:
            return "final"
        return "trial" if roles == {TRIAL} else "run"

    @property
    def traits(self) -> list[str]:
        """Return what is special in the model, beside what its runs are for a search."""
        is_refit = bool(self.refits) or self.settings.get("refit") == "true"
        is_ensemble = any(run.role == ENSEMBLE for run in self.runs)
        return ["refit"] * is_refit + ["ensemble"] * is_ensemble

    @property
    def models(self) -> list[str]:
        """Return the models that the runs have started from or were taught by, each once."""
        return list(dict.fromkeys(model for run in self.runs for model in run.models))

    @property
    def study(self) -> str:
        """Return the name of the study that the runs belong to; empty if they belong to none, or to several."""
        studies = {run.study for run in self.runs}
        return studies.pop() if len(studies) == 1 else ""

    @property
    def test_set_accesses(self) -> int:
        """Return how often the models of all runs were evaluated on the test set."""
        return sum(run.test_set_accesses for run in (*self.runs, *self.refits))

    def values(self, metric: ResultMetric) -> npt.NDArray[np.float64]:
        """Return the metric of each run, (k,); a run that has not finished counts with its value so far."""
        return np.array([metric_value(run, metric) for run in self.runs], dtype=np.float64)

    def mean_metric(self, name: str) -> float:
        """Return the mean of a metric that the seed does not change, over the runs that have it; NaN if none has.

        Superseded runs count too: a search times its trials, and the best of them are trained again with the same seed.
        """
        return _mean(run.metrics.get(name) for run in (*self.runs, *self.superseded, *self.refits))

    def mean_seconds(self) -> float:
        """Return the mean wall time of the runs in seconds; NaN if none has ended."""
        return _mean(run.seconds for run in self.runs)


def parse_settings(run: RunRecord) -> Settings:
    """Return the settings of a run, parsed from its parameters: `1e-3` and `0.001` are the same value."""
    try:
        config = TrainingConfig.build(run.params)
    except UsageError:
        # Another version logged the run, with other bounds.
        return dict(run.params)
    settings = format_settings(config)
    # an ensemble has those that all of its networks share
    return {name: settings[name] for name in run.params if name in settings} if run.role == ENSEMBLE else settings


def format_settings(config: TrainingConfig) -> Settings:
    """Return every setting by name, spelled by `TrainingConfig.text`."""
    return {name: config.text(name) for name in TrainingConfig.model_fields}


def metric_value(run: RunRecord, metric: ResultMetric) -> float:
    """Return the metric of a run, NaN if it has none.

    For a run that goes on or ended early, the last value of validation stands in for that of the best epoch; an
    ensemble, which has no epochs, has one alone.
    """
    value = run.metrics.get(metric)
    if value is None and metric.startswith("best_") and (run.state != "finished" or run.role == ENSEMBLE):
        value = run.metrics.get(monitor_of(metric))
    return nan if value is None else value


def monitors(runs: Iterable[RunRecord]) -> Counter[str]:
    """Return how many runs monitor each metric."""
    return Counter(run.params.get("monitor", "val_accuracy") for run in runs)


def choose_metric(runs: Sequence[RunRecord]) -> ResultMetric:
    """Return what the runs monitor, or accuracy if that differs.

    It is that of the test images if at least half of the runs have it: of a search, one run has.
    """
    monitored = monitors(runs)
    monitor = next(iter(monitored)) if len(monitored) == 1 else "val_accuracy"
    test = monitor.replace("val_", "test_")
    tested = sum(test in run.metrics for run in runs)
    return cast(ResultMetric, test if 2 * tested >= len(runs) else f"best_{monitor}")


def group_runs(runs: Iterable[RunRecord], settings: Mapping[str, Settings], metric: ResultMetric) -> list[RunGroup]:
    """Group runs by settings and data; return the group with the best mean first, unfinished groups after the finished.

    Of several finished runs with one seed the newest counts. The older ones are superseded, not further seeds. The
    trials of a search that has finals come after all other groups, and those whose settings were trained again in the
    finals are superseded. If all finished groups but these are finals of one search, its winner is the first.

    Args:
        runs: The runs, in any order.
        settings: The settings of every run, by run id.
        metric: What the groups are ordered by.
    """
    runs = sorted(runs, key=lambda run: -run.start_time)
    refitted = [run for run in runs if is_refit(run)]
    finals = [run for run in runs if run not in refitted]
    # of the configuration of these finals, whose group they join
    refits = [run for run in refitted if any(_is_refit_of(run, final, settings) for final in finals)]
    runs = [run for run in runs if run not in refits]
    with_finals = {run.study for run in runs if run.role == FINAL and run.state == "finished"}
    # group key -> seed -> runs, newest first; unfinished runs are never merged by seed
    groups: dict[tuple, dict[str, list[RunRecord]]] = {}
    trials: dict[tuple, dict[str, list[RunRecord]]] = {}
    for run in runs:
        state = run.state if run.state == "finished" else "not finished"
        compared = {name: value for name, value in settings[run.id].items() if name not in NOT_COMPARED}
        if run.fingerprint:
            # The same images may lie in another place.
            compared.pop("dataset", None)
        # the folds of a run differ by the images that they are trained on
        apart = run.id if run.role == FOLD else run.role == ENSEMBLE
        key = (run.fingerprint or run.data, state, tuple(sorted(compared.items())), apart)
        seed = settings[run.id].get("seed", "") if state == "finished" else run.id
        is_apart = run.role == TRIAL and run.study in with_finals
        (trials if is_apart else groups).setdefault(key, {}).setdefault(seed, []).append(run)
    found = [
        _group(key[0], by_seed, settings, trials.pop(key, {}) if key[1] == "finished" else {})
        for key, by_seed in groups.items()
    ]
    found += [replace(_group(key[0], by_seed, settings), is_ranked_apart=True) for key, by_seed in trials.items()]

    found = [
        replace(group, refits=tuple(refit for refit in refits if _is_refit_of(refit, group.runs[0], settings)))
        for group in found
    ]

    studies: dict[str, set[str]] = {}  # of the groups that are ranked, by data
    for group in found:
        if group.finished and not group.is_ranked_apart:
            studies.setdefault(group.data, set()).add(group.study)

    def order(group: RunGroup) -> tuple:
        is_first = group.kind == "winner" and studies.get(group.data) == {group.study}
        return (
            *(group.is_ranked_apart, not group.finished, not is_first),
            # what has no such metric comes last: a refit has none of validation images
            *(inf if isnan(value := group.values(metric).mean()) else -sign(metric) * value, group.kind != "winner"),
            group.name,
        )

    return _tell_apart(sorted(found, key=order))


def is_refit(run: RunRecord) -> bool:
    """Return whether a run is that of a search's winner on training and validation images."""
    return run.role == FINAL and run.params.get("refit") == "true"


def _is_refit_of(refit: RunRecord, final: RunRecord, settings: Mapping[str, Settings]) -> bool:
    """Return whether a final of a search is one of the configuration that a refit has trained on more images."""
    if (refit.study, final.role, final.state) != (final.study, FINAL, "finished"):
        return False
    apart = NOT_COMPARED | {"refit", "folds"}
    first, second = (
        {name: value for name, value in settings[run.id].items() if name not in apart} for run in (refit, final)
    )
    return first == second


def differing_settings(groups: Sequence[RunGroup]) -> pd.DataFrame:
    """Return the settings that are not equal in all groups: a row a group, a column a setting, "" where it is absent.

    The data set's name counts as a setting only if the groups were trained on different data.
    """
    names = dict.fromkeys(name for group in groups for name in group.settings)
    table = pd.DataFrame([{name: group.settings.get(name, "") for name in names} for group in groups])
    if len({group.data for group in groups}) == 1:
        names.pop("dataset", None)
    return table.loc[:, [name for name in names if table[name].nunique() > 1]]


def _tell_apart(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """Return the groups, those of the same name with the settings by which they differ, else with a run's id."""
    by_name: dict[tuple[str, bool], list[int]] = {}
    for position, group in enumerate(groups):
        by_name.setdefault((group.name, group.finished), []).append(position)
    renamed = list(groups)
    for positions in by_name.values():
        if len(positions) > 1:
            same = [groups[position] for position in positions]
            for position, text in zip(positions, _telling(same), strict=True):
                renamed[position] = replace(groups[position], name=f"{groups[position].name} {text}")
    return renamed


def _telling(groups: Sequence[RunGroup]) -> list[str]:
    """Return a text for each group that no other one has, of as few of its settings as possible."""
    settings = differing_settings(groups).drop(columns="dataset", errors="ignore")
    data = [group.data_name for group in groups]
    if len({group.data for group in groups}) > 1:
        same_name = len(set(data)) < len({group.data for group in groups})
        settings.insert(0, "data", [group.data[:8] for group in groups] if same_name else data)
    chosen: list[str] = []
    for name in sorted(settings.columns, key=lambda name: -settings[name].nunique()):
        chosen.append(name)
        if not settings[chosen].duplicated().any():
            rows = settings[chosen].to_numpy().tolist()
            return [", ".join(f"{name}={value}" for name, value in zip(chosen, row, strict=True)) for row in rows]
    return [f"run {group.runs[0].id[:8]}" for group in groups]


def _group(
    data: str,
    by_seed: Mapping[str, Sequence[RunRecord]],
    settings: Mapping[str, Settings],
    trials: Mapping[str, Sequence[RunRecord]] | None = None,
) -> RunGroup:
    """Return the group of runs given by seed, the newest of each seed first; `trials` are those that they supersede."""
    runs = [newest for newest, *_ in by_seed.values()]
    states = Counter(run.state for run in runs)
    older = [run for _, *others in by_seed.values() for run in others]
    return RunGroup(
        name=_group_name(runs),
        settings={name: value for name, value in settings[runs[0].id].items() if name not in NOT_COMPARED},
        runs=tuple(sorted(runs, key=lambda run: (_seed(settings[run.id]), run.id))),
        data=data,
        data_name=runs[0].data,
        state=", ".join(states),
        superseded=(*older, *(run for same_seed in (trials or {}).values() for run in same_seed)),
    )


def _group_name(runs: Sequence[RunRecord]) -> str:
    """Return the most frequent name of the runs, newest first, without the seed; of equally frequent ones the oldest.

    If no two runs share a name, the group is named after their recipe.
    """
    names = Counter(_plain_name(run) for run in reversed(runs))
    name, frequency = names.most_common(1)[0]
    if frequency > 1 or len(runs) == 1 or not runs[0].recipe:
        return name
    return Path(runs[0].recipe).stem


def _plain_name(run: RunRecord) -> str:
    """Return the name of a run without its seed, and of a search's finals without their place."""
    name = SEED_IN_NAME.sub("", run.name) or run.name
    return (PLACE_IN_NAME.sub("", name) or name) if run.role == FINAL else name


def _seed(settings: Settings) -> int:
    seed = settings.get("seed", "0")
    return int(seed) if seed.isdecimal() else 0


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None and not isnan(value)]
    return float(np.mean(known)) if known else nan
