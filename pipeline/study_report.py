"""A study -> its tables and figures, and the lines that end a search in the terminal."""

import shlex
from collections.abc import Iterator, Mapping

import pandas as pd
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from pipeline import space_plots, study_plots
from pipeline.space import Search
from pipeline.standings import sign
from pipeline.study import DUPLICATE_OF, INFEASIBLE, Study

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
BEST = 5  # rows of the table in the terminal


def table(study: Study) -> pd.DataFrame:
    """A row a trial that has ended, as pipeline.standings wants it, with `name`, `run_id` and what became of it."""
    rows = [_row(trial, study.search) for trial in study.trials() if trial.state in STATES]
    columns = ["number", "state", "value", "parameters", "seconds", "epochs", "outcome", "run_id", "duplicate_of"]
    params = [f"params.{name}" for name in study.search.space]
    return pd.DataFrame(rows, columns=[*columns[:3], *params, *columns[3:]])


def leaderboard(study: Study) -> pd.DataFrame:
    """The trials with the best value first; then those without, by number."""
    trials = table(study)
    order = trials.assign(_key=-sign(study.search.directions[0]) * pd.to_numeric(trials["value"]))
    return order.sort_values(["_key", "number"], na_position="last").drop(columns="_key").reset_index(drop=True)


def figures(study: Study) -> Iterator[tuple[str, Figure]]:
    """Artifact paths and figures of a study."""
    trials, search = table(study), study.search
    metric, direction = search.settings.metric[0], search.directions[0]
    log = [name for name, of in search.space.items() if _is_log(of)]
    yield "plots/optimisation_history.png", study_plots.optimisation_history(trials, metric=metric, direction=direction)
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
    yield (
        "plots/accuracy_against_parameters.png",
        study_plots.accuracy_against_parameters(trials, metric=metric, direction=direction),
    )
    curves = {
        trial.number: [value for _, value in sorted(trial.intermediate_values.items())] for trial in study.trials()
    }
    yield "plots/curves.png", study_plots.intermediate_curves(curves, trials, metric=metric, direction=direction)


def summary(study: Study) -> list[str]:
    """The best trials as a table, what mattered most, and the command that trains the best alone."""
    search, ranked = study.search, study.ranked()
    if not ranked:
        return ["no trial has finished"]
    metric = search.settings.metric[0]
    rows = [
        {"trial": f"t{trial.number:03d}", metric: f"{trial.values[0]:.4f}", **_params(trial, search)}
        | {"parameters": f"{trial.user_attrs.get('parameters', 0):,.0f}"}
        for trial in ranked[:BEST]
    ]
    lines = ["", *pd.DataFrame(rows).to_string(index=False).splitlines()]
    if importances := study.importances():
        lines.append("mattered  " + ", ".join(f"{name} {share:.0%}" for name, share in importances.items()))
    return [*lines, f"again     {again(search, _params(ranked[0], search))}"]


def again(search: Search, params: Mapping[str, str]) -> str:
    """The command that trains one configuration of a search alone."""
    recipe_says = search.differences()
    settings = {"recipe": search.recipe} | recipe_says | dict(params)
    given = " ".join(f"-P {shlex.quote(f'{name}={value}')}" for name, value in settings.items())
    return f"mlflow run . --env-manager local {given}"


def _row(trial: FrozenTrial, search: Search) -> dict[str, object]:
    state = STATES[trial.state]
    state = "duplicate" if DUPLICATE_OF in trial.user_attrs else state
    state = "infeasible" if INFEASIBLE in trial.user_attrs else state
    return {
        "number": trial.number,
        "state": state,
        "value": trial.values[0] if trial.values else float("nan"),
        **{f"params.{name}": value for name, value in search.exact(trial.params).items()},
        **{name: trial.user_attrs.get(name) for name in ("parameters", "seconds", "epochs", "outcome", "run_id")},
        "duplicate_of": trial.user_attrs.get(DUPLICATE_OF),
    }


def _params(trial: FrozenTrial, search: Search) -> dict[str, str]:
    config = search.config(trial.params)
    return {name: config.text(name) for name in search.space}


def _is_log(of: BaseDistribution) -> bool:
    return bool(getattr(of, "log", False))
