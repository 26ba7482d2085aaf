"""How a search presents itself in MLflow: the descriptions of its run and of its winner's, in Markdown."""

from typing import Any

from pipeline.data.dataset import Dataset
from pipeline.runtime.tables import markdown_cell, markdown_code, markdown_facts
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
        "searched": ", ".join(map(markdown_code, study.search.space)),
        "data": f"{markdown_cell(data.name)}: {len(data.train):,} training and {len(data.validation):,} validation "
        "images",
        "again": markdown_code(best_command(study)),
        "figures": f"among the artifacts, in `plots/`: {FIGURES}",
    }
    if winner:
        rows["winner"] = link_to_run(experiment_id, winner["run_id"], markdown_cell(short_settings(winner["params"])))
    return "\n".join([markdown_facts(rows), *_best_trials(study, experiment_id)])


def describe_winner(winner: dict[str, Any], *, metric: str, seeds: int) -> str:
    """Return the description of the run of a winner's training that was evaluated on the test set.

    Args:
        winner: As the study keeps it.
        metric: Name of the metric by which the finalists are ranked.
        seeds: How many trainings of the configuration have finished.
    """
    deviation = f" ± {winner[f'{metric}_sd']:.4f}" if f"{metric}_sd" in winner else ""
    return (
        f"**Winner of the search**: {_settings(winner['params'])}. Its mean {metric} of {seeds} seed(s) is the best of "
        f"the finalists: {winner[f'{metric}_mean']:.4f}{deviation}. Seed {winner['seed']}, this run, has a test "
        f"accuracy of {percent(winner['test_accuracy'])}."
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
    return markdown_code(short_settings(params))
