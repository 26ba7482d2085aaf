"""The results of a search: tables and figures of its study, and the summary that ends it in the terminal."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from pipeline.evaluation.figures import Figure
from pipeline.evaluation.figures.axis_scale import FEW, NOT_DRAWN, SettingRange
from pipeline.evaluation.figures.heat_map import heat_map
from pipeline.evaluation.figures.history import intermediate_curves, optimization_history
from pipeline.evaluation.figures.importances import parameter_importances
from pipeline.evaluation.figures.parallel_coordinates import parallel_coordinates
from pipeline.evaluation.figures.search_style import Winner
from pipeline.evaluation.figures.slices import slices
from pipeline.evaluation.figures.value_vs_cost import value_vs_cost
from pipeline.evaluation.ranking import pareto_front, sign
from pipeline.runtime.shell import project_command
from pipeline.runtime.text import count, format_metric, format_value, trial_name
from pipeline.search.attributes import (
    CONTINUES,
    DUPLICATE_OF,
    FIGURES,
    IMPORTED_FROM,
    INFEASIBLE,
    LATENCIES,
    OUTCOME,
    RUN_ID,
    WINNER,
)
from pipeline.search.distributions import bounds, values
from pipeline.search.importances import (
    IMPORTANCE_TRIALS,
    fanova_importances,
    ped_anova_importances,
    trials_with_conditional_settings,
)
from pipeline.search.space import SearchSpec
from pipeline.search.study import Study

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
# Attributes of a trial that are columns of the table
KEPT = (*FIGURES, OUTCOME, RUN_ID, IMPORTED_FROM, CONTINUES)
# Rows of the table in the terminal
SUMMARY_ROWS = 5
COSTS: dict[str, Callable[[float], str]] = {
    "parameters": "{:,.0f}".format,
    "epoch_seconds": "{:.2f}".format,
    "latency_ms": "{:.2f}".format,
}


def trials_dataframe(study: Study) -> pd.DataFrame:
    """Return a table with a row for each trial that has ended, as `pipeline.evaluation.ranking` describes it.

    It also has the columns of KEPT, `duplicate_of`, and the second metric if there is one.
    """
    rows = [_row(trial, study.search) for trial in study.trials() if trial.state in STATES]
    # A latency that was measured while no trial ran is better than the trial's own
    latencies = study.get_attr(LATENCIES) or {}
    for row in rows:
        row["latency_ms"] = latencies.get(str(row["number"]), row["latency_ms"])
    params = [f"params.{name}" for name in study.search.space]
    columns = ["number", "state", "value", *params, *KEPT, DUPLICATE_OF]
    second = [name for name in study.search.settings.metric[1:] if name not in columns]
    return pd.DataFrame(rows, columns=[*columns, *second])


def pareto_trials(study: Study) -> list[int]:
    """Return the numbers of the trials on the Pareto front: of two metrics, or of the metric and the parameters."""
    if len(study.search.directions) > 1:
        return study.pareto_front()
    return pareto_front(trials_dataframe(study), direction=study.search.directions[0], cost="parameters")


def leaderboard(study: Study) -> pd.DataFrame:
    """Return the table of trials, best value first, then those without one by number.

    The column `pareto` marks the trials on the Pareto front, `winner` the one whose configuration has won the final. A
    setting that was not drawn in a trial is empty.
    """
    trials, winner = trials_dataframe(study), study.get_attr(WINNER) or {"trial": None}
    trials = trials.assign(
        pareto=trials["number"].isin(pareto_trials(study)), winner=trials["number"] == winner["trial"]
    )
    order = trials.assign(_key=-sign(study.search.directions[0]) * pd.to_numeric(trials["value"]))
    ranked = order.sort_values(["_key", "number"], na_position="last").drop(columns="_key").reset_index(drop=True)
    return ranked.replace(NOT_DRAWN, None).infer_objects() if study.search.conditions else ranked


def figures(study: Study) -> Iterator[tuple[str, Figure]]:
    """Yield the artifact path and the figure of each plot of a study."""
    trials, search = trials_dataframe(study), study.search
    metric = search.settings.metric[0]
    subject = f"{Path(search.base.dataset).name}, validation split, search {search.name}"
    space = {name: _setting_range(distribution) for name, distribution in search.space.items()}
    what: dict[str, Any] = {
        "metric": metric,
        "subject": subject,
        "direction": search.directions[0],
        "winner": _winner(study),
    }
    yield "plots/optimization_history.png", optimization_history(trials, **what)
    importances = fanova_importances(study), ped_anova_importances(study)
    drawn_in = trials_with_conditional_settings(study)
    figure = parameter_importances(
        *importances, trials, metric=metric, needed=IMPORTANCE_TRIALS, drawn_in=drawn_in, subject=subject
    )
    yield "plots/parameter_importances.png", figure
    yield "plots/parallel_coordinates.png", parallel_coordinates(trials, space=space, **what)
    yield "plots/slices.png", slices(trials, space=space, **what)
    if {"kernel_size", "patch_size"} <= set(search.space):
        figure = heat_map(trials, rows="kernel_size", columns="patch_size", space=space, **what)
        yield "plots/kernel_and_patch.png", figure
    for cost in dict.fromkeys(["parameters", *search.settings.metric[1:]]):
        if cost != metric and cost in COSTS:
            yield f"plots/{metric.removeprefix('val_')}_vs_{cost}.png", value_vs_cost(trials, cost=cost, **what)
    # Optuna keeps no values by epoch of two metrics
    if len(search.directions) == 1:
        curves = {
            trial.number: [value for _, value in sorted(trial.intermediate_values.items())] for trial in study.trials()
        }
        unit = "fold" if search.base.folds else "epoch"
        yield "plots/curves.png", intermediate_curves(curves, trials, unit=unit, **what)


def summarize(study: Study) -> list[str]:
    """Return the lines that end a search.

    These are a table of the finalists, one of the best trials, or of the Pareto front of two metrics, the importances
    of the settings, and the command that trains the winner of the final, or else the best trial's configuration.
    """
    search, ranked = study.search, study.ranked()
    if not ranked:
        return ["no trial has finished"]
    known = trials_dataframe(study).set_index("number").to_dict("index")
    of_all = f"of {count(study.n_finished(), 'trial')}, {describe_value(search)} each"
    if len(search.directions) > 1:
        front = pareto_trials(study)
        shown = [trial for trial in ranked if trial.number in front]
        title = f"the {len(shown)} on the Pareto front {of_all}:"
    else:
        shown = ranked[:SUMMARY_ROWS]
        title = f"the best {len(shown)} {of_all}:"
    rows = [_summary_row(trial, search, known[trial.number]) for trial in shown]
    lines = [*_finals_table(study), "", title, *_table(rows)]
    if importances := fanova_importances(study):
        of_its = {
            name: f" of its {count(number, 'trial')}"
            for name, number in trials_with_conditional_settings(study).items()
        }
        shares = ", ".join(f"{name} {100 * share:.0f} %{of_its.get(name, '')}" for name, share in importances.items())
        lines += ["", f"mattered  {shares} (fANOVA of {len(ranked)} finished trials)"]
    return [*lines, "", f"again     {best_command(study)}"]


def describe_value(search: SearchSpec) -> str:
    """Return what the value of a trial is, in words."""
    return f"the mean of {search.base.folds} folds" if search.base.folds else "a single training"


def _finals_table(study: Study) -> list[str]:
    """Return the lines of a table of the finalists, the winner first; none if there is no winner."""
    winner = study.get_attr(WINNER)
    if not winner:
        return []
    metric = winner["metric"]
    others = [one for one in winner["standings"] if one["run_id"] != winner["final_run_id"]]
    rows = [
        {
            "": "winner" if one not in others else "",
            "trial": trial_name(one["trial"], {}),
            f"{metric} mean ± sd": format_metric(metric, one["mean"], one["sd"]),
            "seeds": str(one["seeds"]),
            **_settings_in_short(one["params"]),
        }
        for one in [*(one for one in winner["standings"] if one not in others), *others]
    ]
    return ["", f"finals of {count(winner['trials'], 'trial')}:", *_table(rows)]


def _table(rows: list[dict[str, str]]) -> list[str]:
    return [line.rstrip() for line in pd.DataFrame(rows).fillna("").to_string(index=False).splitlines()]


def best_command(study: Study) -> str:
    """Return the command that trains the winner of the final, or else the best trial's configuration."""
    search, winner = study.search, study.get_attr(WINNER)
    if not winner:
        return reproduce_command(search, settings_as_text(search.snap(study.ranked()[0].params), search))
    # Its seed also decides which images are for validation
    more = {} if winner["seed"] == search.base.seed else {"seed": str(winner["seed"])}
    if winner["model"] == "refit":
        more["refit"] = "true"
    return reproduce_command(search, settings_as_text(winner["params"], search) | more)


def reproduce_command(search: SearchSpec, params: Mapping[str, str]) -> str:
    """Return the command that trains one configuration of a search, with settings as text."""
    settings = search.differing_settings() | dict(params)
    return project_command(
        "train", search.recipe, *(word for name, value in settings.items() for word in (f"--{name}", value))
    )


def _row(trial: FrozenTrial, search: SearchSpec) -> dict[str, object]:
    """Return a trial's row of the table."""
    if INFEASIBLE in trial.user_attrs:
        state = "infeasible"
    elif DUPLICATE_OF in trial.user_attrs:
        state = "duplicate"
    else:
        state = STATES[trial.state]
    return {
        "number": trial.number,
        "state": state,
        "value": trial.values[0] if trial.values else float("nan"),
        **{f"params.{name}": NOT_DRAWN for name in search.conditions},
        **{f"params.{name}": value for name, value in search.snap(trial.params).items()},
        **{name: trial.user_attrs.get(name) for name in KEPT},
        **dict(zip(search.settings.metric[1:], trial.values[1:] if trial.values else [], strict=False)),
        DUPLICATE_OF: trial.user_attrs.get(DUPLICATE_OF),
    }


def _summary_row(trial: FrozenTrial, search: SearchSpec, known: Mapping[Hashable, Any]) -> dict[str, str]:
    """Return a trial's row of the table in the terminal."""
    costs = {cost: form(known[cost]) for cost, form in COSTS.items() if pd.notna(known.get(cost))}
    return {
        "trial": trial_name(trial.number, {}),
        search.settings.metric[0]: format_metric(search.settings.metric[0], trial.values[0]),
        **_settings_in_short(search.snap(trial.params)),
        **costs,
    }


def _settings_in_short(params: Mapping[str, object]) -> dict[str, str]:
    """Return searched settings with the digits that a person reads."""
    return {name: format_value(value) for name, value in params.items()}


def settings_as_text(params: Mapping[str, object], search: SearchSpec) -> dict[str, str]:
    """Return drawn settings as a command line takes them."""
    config = search.config(params)
    return {name: config.text(name) for name in search.space if name in params}


def _winner(study: Study) -> Winner | None:
    """Return the trial whose configuration has won the final, as figures mark it; None if there is no winner."""
    winner = study.get_attr(WINNER)
    if not winner:
        return None
    metric = winner["metric"]
    mean = format_metric(metric, winner[f"{metric}_mean"], winner.get(f"{metric}_sd"))
    return Winner(winner["trial"], f"mean {metric} of {count(winner['seeds'], 'seed')} {mean}")


def _setting_range(distribution: BaseDistribution) -> SettingRange:
    """Return the values of a distribution, as an axis shows them."""
    every = values(distribution)
    log = bool(getattr(distribution, "log", False))
    if every is not None and len(every) <= FEW:
        return SettingRange(tuple(every), log=log)
    ends = bounds(distribution)
    is_range = not isinstance(distribution, CategoricalDistribution)
    return SettingRange(None, ends[0], ends[-1], log) if is_range else SettingRange(tuple(ends))
