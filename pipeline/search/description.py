"""How a search presents itself in MLflow: the descriptions of its run and of its winner's, in Markdown."""

from statistics import mean, stdev
from typing import Any

from pipeline.data.dataset import Dataset
from pipeline.runtime.text import percent, short_settings
from pipeline.search.attributes import RUN_ID, WINNER
from pipeline.search.results import best_command
from pipeline.search.study import Study
from pipeline.tracking.experiment_page import link_to_run

BEST_TRIALS = 5
FIGURES = "optimization history, importances of the settings, parallel coordinates, slices and accuracy against size"


def describe_search(study: Study, data: Dataset, *, experiment_id: str) -> str:
    """Return the description of a study's run.

    Args:
        study: The study as it is now, with a finished trial.
        data: Its data.
        experiment_id: The experiment of its runs.
    """
    winner = study.get_attr(WINNER)
    rows = {
        "result": _result(study, winner),
        "trials": f"{study.n_finished()} of {study.search.settings.trials}",
        "searched": ", ".join(f"`{name}`" for name in study.search.space),
        "data": f"{data.name}: {len(data.train):,} training and {len(data.validation):,} validation images",
        "again": f"`{best_command(study)}`",
        "figures": f"among the artifacts, in `plots/`: {FIGURES}",
    }
    if winner:
        rows["winner"] = link_to_run(experiment_id, winner["run_id"], short_settings(winner["params"]))
    table = ["| | |", "|---|---|", *(f"| **{name}** | {text} |" for name, text in rows.items())]
    return "\n".join([*table, *_best_trials(study, experiment_id)])


def describe_winner(winner: dict[str, Any], values: list[float], *, metric: str) -> str:
    """Return the description of the run of a winner's training that was evaluated on the test set.

    Args:
        winner: As the study keeps it.
        values: The metric of the configuration's trainings, one a seed.
        metric: Name of the metric.
    """
    return (
        f"**Winner of the search**: {_settings(winner['params'])}. Its mean {metric} of {len(values)} seed(s) is the "
        f"best of the finalists: {_mean_and_sd(values)}. Seed {winner['seed']}, this run, has a test accuracy of "
        f"{percent(winner['test_accuracy'])}."
    )


def _result(study: Study, winner: dict[str, Any] | None) -> str:
    metric = study.search.settings.metric[0]
    if winner:
        means = ", ".join(f"`{name}` {winner[name]:.4f}" for name in winner if name.endswith("_mean"))
        return f"winner {_settings(winner['params'])}: {means}, test accuracy {percent(winner['test_accuracy'])}"
    best = study.ranked()[0]
    return f"best trial t{best.number:03d}: `{metric}` {best.values[0]:.4f}; a single training, which may be lucky"


def _best_trials(study: Study, experiment_id: str) -> list[str]:
    """Return the lines of a table of the best trials."""
    rows = [
        f"| {link_to_run(experiment_id, trial.user_attrs.get(RUN_ID, ''), f't{trial.number:03d}')} "
        f"| {trial.values[0]:.4f} | {_settings(study.search.snap(trial.params))} |"
        for trial in study.ranked()[:BEST_TRIALS]
    ]
    return ["", f"| best trials | {study.search.settings.metric[0]} | settings |", "|---|---|---|", *rows]


def _settings(params: dict[str, Any]) -> str:
    return f"`{short_settings(params)}`"


def _mean_and_sd(values: list[float]) -> str:
    return f"{mean(values):.4f} ± {stdev(values):.4f}" if len(values) > 1 else f"{mean(values):.4f}"
