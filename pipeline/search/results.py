"""A study -> its tables and figures, and the lines that end a search in the terminal."""

import shlex
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from pipeline.evaluation.figures import search as space_plots
from pipeline.evaluation.figures import search as study_plots
from pipeline.evaluation.ranking import pareto_front, sign
from pipeline.search.attributes import DUPLICATE_OF, FIGURES, INFEASIBLE, LATENCIES, OUTCOME, RUN_ID, WINNER
from pipeline.search.space import SearchSpec
from pipeline.search.study import Study

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
KEPT = (*FIGURES, OUTCOME, RUN_ID)  # attributes of a trial that are columns of the table
BEST = 5  # rows of the table in the terminal
COSTS: dict[str, Callable[[float], str]] = {
    "parameters": "{:,.0f}".format,
    "epoch_seconds": "{:.2f}".format,
    "latency_ms": "{:.2f}".format,
}


def trials_dataframe(study: Study) -> pd.DataFrame:
    """A row a trial that has ended, as `study.standings` wants it, with `name`, `run_id` and what became of it."""
    alone = study.get_attr(LATENCIES) or {}
    rows = [_row(trial, study.search) for trial in study.trials() if trial.state in STATES]
    for row in rows:  # better than what a trial among others saw
        row["latency_ms"] = alone.get(str(row["number"]), row["latency_ms"])
    params = [f"params.{name}" for name in study.search.space]
    columns = ["number", "state", "value", *params, *KEPT, DUPLICATE_OF]
    second = [name for name in study.search.settings.metric[1:] if name not in columns]
    return pd.DataFrame(rows, columns=[*columns, *second])


def pareto_table(study: Study) -> list[int]:
    """Numbers of the trials that no other beats in both metrics, or in the one and the number of parameters."""
    if len(study.search.directions) > 1:
        return study.front()
    return pareto_front(trials_dataframe(study), direction=study.search.directions[0], cost="parameters")


def leaderboard(study: Study) -> pd.DataFrame:
    """The trials with the best value first; then those without, by number; `pareto` marks those of the front."""
    trials = trials_dataframe(study)
    trials = trials.assign(pareto=trials["number"].isin(pareto_table(study)))
    order = trials.assign(_key=-sign(study.search.directions[0]) * pd.to_numeric(trials["value"]))
    return order.sort_values(["_key", "number"], na_position="last").drop(columns="_key").reset_index(drop=True)


def figures(study: Study) -> Iterator[tuple[str, Figure]]:
    """Artifact paths and figures of a study."""
    trials, search = trials_dataframe(study), study.search
    metric, direction = search.settings.metric[0], search.directions[0]
    log = [name for name, of in search.space.items() if _is_log(of)]
    yield "plots/optimization_history.png", study_plots.optimization_history(trials, metric=metric, direction=direction)
    yield "plots/parameter_importances.png", study_plots.parameter_importances(study.importances(), metric=metric)
    yield (
        "plots/parallel_coordinates.png",
        space_plots.parallel_coordinates(trials, log=log, metric=metric, direction=direction),
    )
    yield "plots/slices.png", space_plots.slices(trials, log=log, metric=metric, direction=direction)
    if {"kernel_size", "patch_size"} <= set(search.space):
        figure = space_plots.heat_map(
            trials, rows="kernel_size", columns="patch_size", metric=metric, direction=direction, log=log
        )
        yield "plots/kernel_and_patch.png", figure
    for cost in dict.fromkeys(["parameters", *search.settings.metric[1:]]):
        if cost == metric or cost not in COSTS:
            continue
        yield (
            f"plots/{metric.removeprefix('val_')}_against_{cost}.png",
            study_plots.value_vs_cost(trials, metric=metric, direction=direction, cost=cost),
        )
    curves = {
        trial.number: [value for _, value in sorted(trial.intermediate_values.items())] for trial in study.trials()
    }
    yield "plots/curves.png", study_plots.intermediate_curves(curves, trials, metric=metric, direction=direction)


def summary(study: Study) -> list[str]:
    """The best trials as a table, of two metrics the Pareto front; what mattered most, and how to train the winner."""
    search, ranked = study.search, study.ranked()
    if not ranked:
        return ["no trial has finished"]
    figures, members = trials_dataframe(study).set_index("number").to_dict("index"), pareto_table(study)
    shown = [trial for trial in ranked if trial.number in members] if len(search.directions) > 1 else ranked[:BEST]
    rows = [_standing(trial, search, figures[trial.number]) for trial in shown]
    lines = ["", *pd.DataFrame(rows).fillna("").to_string(index=False).splitlines()]
    if importances := study.importances():
        lines.append("mattered  " + ", ".join(f"{name} {share:.0%}" for name, share in importances.items()))
    winner = study.get_attr(WINNER)
    params = winner["params"] if winner else search.exact(ranked[0].params)
    return [*lines, f"again     {reproduce_command(search, _as_text(params, search))}"]


def reproduce_command(search: SearchSpec, params: Mapping[str, str]) -> str:
    """The command that trains one configuration of a search alone."""
    recipe_says = search.differences()
    settings = {"recipe": search.recipe} | recipe_says | dict(params)
    given = " ".join(f"-P {shlex.quote(f'{name}={value}')}" for name, value in settings.items())
    return f"mlflow run . --env-manager local {given}"


def _row(trial: FrozenTrial, search: SearchSpec) -> dict[str, object]:
    state = STATES[trial.state]
    state = "duplicate" if DUPLICATE_OF in trial.user_attrs else state
    state = "infeasible" if INFEASIBLE in trial.user_attrs else state
    return {
        "number": trial.number,
        "state": state,
        "value": trial.values[0] if trial.values else float("nan"),
        **{f"params.{name}": value for name, value in search.exact(trial.params).items()},
        **{name: trial.user_attrs.get(name) for name in KEPT},
        **dict(zip(search.settings.metric[1:], trial.values[1:] if trial.values else [], strict=False)),
        DUPLICATE_OF: trial.user_attrs.get(DUPLICATE_OF),
    }


def _standing(trial: FrozenTrial, search: SearchSpec, figures: Mapping[Hashable, Any]) -> dict[str, str]:
    """A line of the table in the terminal."""
    known = {cost: show(figures[cost]) for cost, show in COSTS.items() if pd.notna(figures.get(cost))}
    return {
        "trial": f"t{trial.number:03d}",
        search.settings.metric[0]: f"{trial.values[0]:.4f}",
        **_as_text(trial.params, search),
        **known,
    }


def _as_text(params: Mapping[str, object], search: SearchSpec) -> dict[str, str]:
    config = search.config(params)
    return {name: config.text(name) for name in search.space}


def _is_log(of: BaseDistribution) -> bool:
    return bool(getattr(of, "log", False))
