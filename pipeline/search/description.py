"""How a search presents itself in MLflow: the descriptions of its run and of those below it, in Markdown."""

from collections.abc import Mapping
from typing import Any

from pipeline.config.monitor import describe_test
from pipeline.data.dataset import Dataset
from pipeline.runtime.tables import markdown_cell, markdown_code, markdown_facts
from pipeline.runtime.text import count, format_duration, format_metric, short_settings, trial_name
from pipeline.search.attributes import ENSEMBLE, RUN_ID, TESTED, WINNER
from pipeline.search.conditions import describe_condition
from pipeline.search.executors.base import TrialResult
from pipeline.search.importances import fanova_importances
from pipeline.search.results import best_command, describe_value, reproduce_command, settings_as_text
from pipeline.search.study import Study
from pipeline.tracking.experiment_page import link_to_run
from pipeline.tracking.tags import TrialOutcome

BEST_TRIALS = 5
STATUS_TRIALS = 3
FIGURES = "optimization history, importances of the settings, parallel coordinates, slices and the metric against size"


def describe_search(study: Study, data: Dataset, *, experiment_id: str) -> str:
    """Return the description of a study's run.

    Args:
        study: The study as it is now.
        data: Its data.
        experiment_id: The experiment of its runs.
    """
    winner, ranked, settings = study.get_attr(WINNER), study.ranked(), study.search.settings
    metric = settings.metric[0]
    rows = {}
    if winner:
        link = link_to_run(experiment_id, winner["run_id"], markdown_cell(_name(winner)))
        rows["winner"] = f"{link}: {_means(winner)}; {_test_results(winner)}"
        if winner["model"] != "training":
            rows["winner"] += f" of {tested_words(winner)}"
        if winner["trials"] < study.n_finished():
            rows["winner"] += f"; of the first {count(winner['trials'], 'trial')}, the final of the others is to come"
    ensemble = study.get_attr(ENSEMBLE)
    if ensemble and ensemble["metrics"]:
        link = link_to_run(experiment_id, ensemble["run_id"], f"of {len(ensemble['networks'])} finalists")
        rows["ensemble"] = f"{link}: {ensemble_verdict(study, ensemble)}"
    if ranked:
        lucky = f"{describe_value(study.search)}, which may be lucky"
        rows["best trial"] = (
            f"t{ranked[0].number:03d}: `{metric}` {format_metric(metric, ranked[0].values[0])}; {lucky}"
        )
    # Before the first one the description stays for as long as the trials run
    rows["trials"] = f"{study.n_finished():,} of {settings.trials:,}" if ranked else f"up to {settings.trials:,}"
    rows["searched"] = ", ".join(
        " ".join(filter(None, [markdown_code(setting), describe_condition(setting, study.search.conditions)]))
        for setting in study.search.space
    )
    rows["data"] = f"{markdown_cell(data.name)}: {describe_images(data)}"
    if tested := study.get_attr(TESTED):
        rows["test set"] = f"evaluated for {count(len(tested), 'winner')}, one after the other"
        rows["test set"] = rows["test set"] if len(tested) > 1 else "evaluated once, for the winner"
    if ranked:
        rows["train it again"] = markdown_code(best_command(study))
        rows["figures"] = f"among the artifacts, in `plots/`: {FIGURES}"
    return "\n".join([markdown_facts(rows), *_finals(winner, experiment_id), *_best_trials(study, experiment_id)])


def describe_images(data: Dataset) -> str:
    """Return how many images trials are trained and validated on, in words."""
    training, validation = len(data.train), len(data.validation)
    if data.folds:
        return f"{training + validation:,} images in {len(data.folds)} folds"
    return f"{training:,} training and {validation:,} validation images"


def describe_for_dashboard(study: Study) -> str:
    """Return the note that optuna-dashboard shows beside its best trial, which is that of a single training."""
    winner, best, metric = study.get_attr(WINNER), study.best(), study.search.settings.metric[0]
    lines = []
    if winner:
        text = (
            f"**Winner**: trial {winner['trial']}, {markdown_code(short_settings(winner['params']))}: {_means(winner)}"
        )
        lines += [f"{text}; {_test_results(winner)}."]
    if best:
        value = format_metric(metric, best.values[0])
        lines += [f"The best trial, {best.number}, is {describe_value(study.search)} ({value}), and may be lucky."]
    return "\n\n".join(lines)


def describe_status(study: Study, seconds: float) -> list[str]:
    """Return the lines that say in the terminal what a search knows so far.

    Args:
        study: Its study.
        seconds: For how long it has been searched.
    """
    ended = f"{count(study.n_finished(), 'trial')} in {format_duration(seconds)}"
    ranked, metric = study.ranked(), study.search.settings.metric[0]
    if not ranked:
        return [f"so far   {ended}, none of them complete"]
    lines = [f"so far   {ended}; the best of them, {describe_value(study.search)} each:"]
    for trial in ranked[:STATUS_TRIALS]:
        params = study.search.snap(trial.params)
        lines.append(f"         {trial_name(trial.number, params)}  {metric} {format_metric(metric, trial.values[0])}")
    if importances := fanova_importances(study):
        name, share = next(iter(importances.items()))
        lines.append(f"         {name} matters most: {100 * share:.0f} % of the variation (fANOVA)")
    return lines


def describe_training(
    study: Study, params: Mapping[str, Any], result: TrialResult, *, epochs: int, seed: int | None = None
) -> str:
    """Return the description of the run of a trial, or of a finalist's training.

    Args:
        study: Its study.
        params: The settings that were drawn.
        result: How it ended.
        epochs: How many it was to train.
        seed: A finalist's, other than those of trials.
    """
    search, metrics = study.search, result.metrics
    settings = settings_as_text(params, search)
    more = {} if seed is None else {"seed": str(seed)}
    rows = {
        "result": _result(result, epochs=epochs, metric=search.monitor),
        "drawn": _drawn(settings),
    }
    if "parameters" in metrics:
        rows["size"] = f"{metrics['parameters']:,.0f} parameters"
    if "seconds" in metrics:
        rows["time"] = format_duration(metrics["seconds"])
    return markdown_facts(rows | {"train it again": markdown_code(reproduce_command(search, settings | more))})


def describe_finalist(study: Study, standing: dict[str, Any], *, metric: str) -> str:
    """Return the description of the run of a finalist, above those of its trainings.

    Args:
        study: Its study.
        standing: Its mean and more, as `Finalist.standing` returns it.
        metric: Name of the metric of its values.
    """
    settings = settings_as_text(standing["params"], study.search)
    return markdown_facts(
        {
            "result": f"{_mean(standing, metric)}; its trainings stand below this run",
            "finalist": f"the configuration of trial t{standing['trial']:03d}, trained again with other seeds",
            "drawn": _drawn(settings),
            "train it again": markdown_code(reproduce_command(study.search, settings)),
        }
    )


def training_name(trial: int, params: Mapping[str, Any], seed: int) -> str:
    """Return the name of the run of a finalist's training."""
    return f"final {trial_name(trial, params)} seed {seed}"


def handed_over_name(winner: dict[str, Any]) -> str:
    """Return the name of the run of a model that was handed over, without the word winner."""
    if winner["model"] == "ensemble":
        return f"ensemble of {winner['networks']} finalists"
    name = training_name(winner["trial"], winner["params"], winner["seed"])
    return f"{name}, refit" if winner["model"] == "refit" else name


def tested_words(winner: dict[str, Any]) -> str:
    """Return which model of the winner was evaluated on the test set."""
    if winner["model"] == "ensemble":
        return f"the ensemble of {winner['networks']} finalists"
    refit = ", trained once more on training and validation images" if winner["model"] == "refit" else ""
    return f"seed {winner['seed']}{refit}"


def describe_ensemble(study: Study, ensemble: dict[str, Any]) -> str:
    """Return the description of the run of an ensemble.

    Args:
        study: Its study.
        ensemble: As the study keeps it.
    """
    names = markdown_cell(", ".join(ensemble["networks"]))
    return markdown_facts(
        {
            "result": ensemble_verdict(study, ensemble),
            "ensemble": f"the mean of the probabilities of {len(ensemble['networks'])} networks: {names}",
            "size": f"{ensemble['metrics']['parameters']:,.0f} parameters",
        }
    )


def ensemble_line(study: Study, ensemble: dict[str, Any]) -> str:
    """Return what an ensemble was compared with, and what was decided, for the terminal."""
    names = ", ".join(ensemble["networks"])
    return f"ensemble  {names}: {ensemble_verdict(study, ensemble)}; run {ensemble['run_id']}"


def ensemble_verdict(study: Study, ensemble: dict[str, Any]) -> str:
    """Return the comparison of an ensemble with the winner's network on the validation images, and what follows."""
    metric, values = study.search.monitor, ensemble["metrics"]
    mean, alone = (format_metric(metric, values[name]) for name in (metric, f"winner_{metric}"))
    is_better = ensemble["is_better"]
    is_replaced = is_better and study.search.settings.ensemble == "replace"
    place = "takes the winner's place" if is_replaced else "logged beside the winner"
    return (
        f"{metric} {mean}, the winner's network alone {alone}: {'' if is_better else 'not '}better beyond noise "
        f"(p = {values['p_value']:.2g}), {place}"
    )


def describe_winner(study: Study, winner: dict[str, Any]) -> str:
    """Return the description of the run of a winner's training that was evaluated on the test set.

    Args:
        study: The study.
        winner: As the study keeps it.
    """
    finalists = count(len(winner["standings"]), "finalist")
    won = f"of the search among {count(winner['trials'], 'trial')}: its {_means(winner)} is the best of {finalists}"
    return _describe_won(study, winner, {"winner": won})


def describe_former_winner(study: Study, winner: dict[str, Any]) -> str:
    """Return the description of the run of a winner that another one has replaced; see `describe_winner`."""
    won = f"of the search among {count(winner['trials'], 'trial')}: its {_means(winner)}; another model has won since"
    return _describe_won(study, winner, {"former winner": won})


def _describe_won(study: Study, winner: dict[str, Any], first: Mapping[str, str]) -> str:
    settings = settings_as_text(winner["params"], study.search)
    more = {"seed": str(winner["seed"])} | ({"refit": "true"} if winner["model"] == "refit" else {})
    rows = {**first, "this run": f"{tested_words(winner)}, {_test_results(winner)}"}
    ensemble = study.get_attr(ENSEMBLE)
    if winner["model"] == "ensemble" and ensemble and ensemble["metrics"]:
        rows["networks"] = f"{markdown_cell(', '.join(ensemble['networks']))}: {ensemble_verdict(study, ensemble)}"
    rows["drawn"] = _drawn(settings)
    what = "train the winner's network again" if winner["model"] == "ensemble" else "train it again"
    return markdown_facts(rows | {what: markdown_code(reproduce_command(study.search, settings | more))})


def _drawn(settings: Mapping[str, str]) -> str:
    return ", ".join(f"`{name}` {markdown_cell(value)}" for name, value in settings.items())


def _result(result: TrialResult, *, epochs: int, metric: str) -> str:
    """Return how a training ended, and the best value that it reached."""
    value = result.metrics.get(f"best_{metric}")
    reached = "" if value is None else f"`{metric}` {format_metric(metric, value)}"
    done = int(result.metrics.get("epochs", 0))
    match result.outcome:
        case TrialOutcome.FINISHED:
            return f"{reached}, at the best of {count(done, 'epoch')}"
        case TrialOutcome.PRUNED:
            why = f"pruned after epoch {done} of {epochs}, as it was behind other trials"
        case TrialOutcome.STOPPED:
            why = f"stopped after epoch {done} of {epochs}; its configuration is trained again when the search goes on"
        case _:
            why = f"**{result.outcome}** after epoch {done} of {epochs}: {markdown_cell(result.reason)}"
    return f"{why}; {reached} until then" if reached else why


def _finals(winner: dict[str, Any] | None, experiment_id: str) -> list[str]:
    """Return the lines of a table of the finalists."""
    if not winner:
        return []
    metric = winner["metric"]
    rows = [
        f"| {link_to_run(experiment_id, one['run_id'], trial_name(one['trial'], {}))} | {_value(one, metric)} "
        f"| {one['seeds']} | {markdown_code(short_settings(one['params']))} |"
        for one in winner["standings"]
    ]
    return ["", f"| finals | {metric}, mean ± sd | seeds | settings |", "|---|---|---|---|", *rows]


def _best_trials(study: Study, experiment_id: str) -> list[str]:
    """Return the lines of a table of the best trials."""
    best, metric = study.ranked()[:BEST_TRIALS], study.search.settings.metric[0]
    if not best:
        return []
    rows = []
    for trial in best:
        link = link_to_run(experiment_id, trial.user_attrs.get(RUN_ID, ""), trial_name(trial.number, {}))
        settings = markdown_code(short_settings(study.search.snap(trial.params)))
        rows.append(f"| {link} | {format_metric(metric, trial.values[0])} | {settings} |")
    header = f"best {len(best)} of {study.n_finished():,} trials"
    return ["", f"| {header} | {metric} | settings |", "|---|---|---|", *rows]


def _name(winner: dict[str, Any]) -> str:
    return trial_name(winner["trial"], winner["params"])


def _means(winner: dict[str, Any]) -> str:
    standing = {"mean": winner[f"{winner['metric']}_mean"], "sd": winner.get(f"{winner['metric']}_sd")}
    return _mean(standing | {"seeds": winner["seeds"]}, winner["metric"])


def _mean(standing: dict[str, Any], metric: str) -> str:
    """Return a finalist's mean in words."""
    if standing["seeds"] == 1:
        return f"`{metric}` of {_value(standing, metric)} with one seed"
    return f"mean `{metric}` of {_value(standing, metric)} with {standing['seeds']} seeds"


def _value(standing: dict[str, Any], metric: str) -> str:
    return format_metric(metric, standing["mean"], standing["sd"])


def _test_results(winner: dict[str, Any]) -> str:
    return describe_test(winner["metric"], winner)
