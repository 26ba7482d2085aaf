"""The tables, figures and summary of a study."""

import math
import re
import shlex

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.config.recipe import parse_training
from pipeline.runtime.shell import project_command
from pipeline.search.attributes import WINNER
from pipeline.search.results import figures, leaderboard, reproduce_command, summarize, trials_dataframe
from pipeline.search.trial_states import enqueue
from tests.support.figures import title
from tests.support.scripted import CONTINUOUS, DISCRETE, make_search, open_study


@pytest.fixture
def study(tmp_path):
    """Opens a study of DISCRETE, or another."""
    return lambda text=DISCRETE, *flags: open_study(tmp_path, make_search(tmp_path, text, *flags))


def complete(study, *values):
    proposal = study.ask()
    study.set_trial_attrs(
        proposal.number, {"parameters": 1234.0, "epochs": 2.0, "seconds": 3.0, "run_id": f"r{proposal.number}"}
    )
    study.complete(proposal.number, values)
    return proposal


def add_every_kind(study):
    """Add five trials: complete, failed, complete and better, pruned, and a duplicate of the first."""
    first = complete(study, 0.5)
    study.fail(study.ask().number, retry=False)
    complete(study, 0.9)
    pruned = study.ask()
    study.report(pruned.number, 1, 0.7)
    study.prune(pruned.number)
    enqueue(study.optuna_study, first.params)
    study.ask()  # passes over the duplicate, and is running from here on
    return study


GRID = ["--sampler", "grid"]
FINALISTS = [
    {"trial": 0, "params": {"kernel_size": 1, "depth": 1}, "run_id": "f0", "seeds": 3, "mean": 0.7, "sd": 0.0123},
    {"trial": 1, "params": {"kernel_size": 1, "depth": 2}, "run_id": "f1", "seeds": 1, "mean": 0.65, "sd": None},
]
WON = FINALISTS[0] | {"seed": 2, "final_run_id": "f0", "trials": 2, "metric": "val_accuracy", "standings": FINALISTS}
WON |= {"model": "training", "networks": 1}


def test_trials_dataframe_has_a_row_and_the_state_of_each_trial_that_has_ended(study):
    trials = trials_dataframe(add_every_kind(study(DISCRETE, *GRID)))
    assert trials["state"].tolist() == ["complete", "failed", "complete", "pruned", "duplicate"]
    assert trials["number"].tolist() == [0, 1, 2, 3, 4]
    assert trials["duplicate_of"].tolist()[4] == 0
    assert trials.loc[0, ["params.kernel_size", "params.depth", "parameters", "run_id"]].tolist() == [1, 1, 1234, "r0"]
    assert math.isnan(trials["value"][1])


def test_trials_dataframe_marks_infeasible_trials(study):
    text = "recipe: smoke\nspace: {kernel_size: [3, 9], patch_size: [1, 4]}\n"
    mine = study(text + "enqueue: [{kernel_size: 9, patch_size: 4}]", *GRID)
    complete(mine, 0.5)
    assert trials_dataframe(mine)["state"].tolist()[:2] == ["infeasible", "complete"]


@pytest.mark.parametrize(("metric", "order"), [("val_accuracy", [2, 3, 0, 4, 1]), ("val_loss", [0, 4, 3, 2, 1])])
def test_leaderboard_has_the_best_first_the_earlier_of_equals_and_those_without_a_value_last(study, metric, order):
    ranked = leaderboard(add_every_kind(study(DISCRETE, *GRID, "--metric", metric)))
    assert ranked["number"].tolist() == order
    assert list(ranked.columns) == [
        *trials_dataframe(study(DISCRETE, *GRID, "--metric", metric)).columns,
        "pareto",
        "winner",
    ]
    assert not ranked["winner"].any()
    assert ranked["number"][ranked["pareto"]].tolist() == [order[0]], "all have the same number of parameters"


def test_study_without_a_complete_trial_has_a_table_no_best_and_all_figures(study):
    mine = study()
    assert summarize(mine) == ["no trial has finished"]
    assert len(leaderboard(mine)) == 0
    mine.fail(mine.ask().number, retry=False)
    assert summarize(mine) == ["no trial has finished"]
    assert all(isinstance(figure, Figure) for _, figure in figures(mine))


def test_summary_has_the_best_five_the_importances_and_the_command_that_trains_the_best(study):
    mine = study(DISCRETE, *GRID)
    for value in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        complete(mine, value)
    _, title, head, *rows, _, mattered, _, command = summarize(mine)
    assert title == "the best 5 of 6 trials, a single training each:"
    assert head.split() == ["trial", "val_accuracy", "kernel_size", "depth", "parameters"]
    assert rows[0].split() == ["t005", "60.00", "%", "5", "2", "1,234"]
    assert [row.split()[0] for row in rows] == ["t005", "t004", "t003", "t002", "t001"]
    assert re.fullmatch(r"mattered  kernel_size \d+ %, depth \d+ % \(fANOVA of 6 finished trials\)", mattered)
    assert command == f"again     {project_command('train', 'smoke', '--kernel_size', '5', '--depth', '2')}"


def test_reproduce_command_trains_the_winner_of_the_final_if_there_is_one(study):
    mine = study(DISCRETE, *GRID)
    for value in (0.1, 0.2):
        complete(mine, value)
    assert summarize(mine)[-1].endswith("train smoke --kernel_size 1 --depth 2")
    mine.set_attr(WINNER, WON)
    assert summarize(mine)[-1].endswith("train smoke --kernel_size 1 --depth 1 --seed 2")


def test_summary_shows_the_finals_with_the_winner_first(study):
    mine = study(DISCRETE, *GRID)
    for value in (0.1, 0.2):
        complete(mine, value)
    mine.set_attr(WINNER, WON)
    board = leaderboard(mine)
    assert board["number"][board["winner"]].tolist() == [0]
    _, title, head, *rows = [line.split() for line in summarize(mine)][:5]
    assert " ".join(title) == "finals of 2 trials:"
    assert head == ["trial", "val_accuracy", "mean", "±", "sd", "seeds", "kernel_size", "depth"]
    assert rows == [
        ["winner", "t000", "70.00", "±", "1.23", "%", "3", "1", "1"],
        ["t001", "65.00", "%", "1", "1", "2"],
    ]


def test_summary_rounds_settings_and_the_command_does_not(study):
    mine = study(CONTINUOUS)
    rate = complete(mine, 0.5).params["learning_rate"]
    *_, row, _, command = summarize(mine)
    assert f" {rate:.3g} " in row and str(rate) not in row
    assert str(rate) in command


def test_reproduce_command_trains_the_same_configuration_with_all_settings_of_the_search(study):
    mine = study(CONTINUOUS + "flip: true\n", "--epochs", "9")
    proposal = complete(mine, 0.5)
    words = shlex.split(
        reproduce_command(mine.search, {"learning_rate": mine.search.config(proposal.params).text("learning_rate")})
    )
    arguments = words[len(shlex.split(project_command("train"))) :]
    recipe, config, *_ = parse_training(arguments)
    assert recipe == "smoke"
    assert config == mine.search.config(proposal.params)
    assert config.learning_rate == proposal.params["learning_rate"]  # to the last digit


def test_reproduce_command_quotes_a_path_with_spaces(study, tmp_path):
    recipe = tmp_path / "my recipe.yaml"
    recipe.write_text("dataset: digits\n")
    search = study(f"recipe: '{recipe}'\nspace: {{depth: [1, 2]}}\n", "--dataset", "/my data/x.npz").search
    words = shlex.split(reproduce_command(search, {"depth": "2"}))
    assert words[-5:] == [str(recipe), "--dataset", "/my data/x.npz", "--depth", "2"]


def test_figures_have_a_heat_map_where_kernel_and_patch_size_are_searched(study):
    mine = study("recipe: smoke\nspace: {kernel_size: [1, 3], patch_size: [1, 2]}\n", *GRID)
    complete(mine, 0.5)
    paths = [path for path, figure in figures(mine) if isinstance(figure, Figure)]
    assert [path.removeprefix("plots/").removesuffix(".png") for path in paths] == [
        "optimization_history",
        "parameter_importances",
        "parallel_coordinates",
        "slices",
        "kernel_and_patch",
        "accuracy_vs_parameters",
        "curves",
    ]


def test_figures_have_no_heat_map_without_both_of_them(study):
    assert not [path for path, _ in figures(study()) if "kernel_and_patch" in path]


def test_figures_mark_the_winner_of_the_final_by_its_trial_and_mean(study):
    mine = study("recipe: smoke\nspace: {kernel_size: [1, 3], patch_size: [1, 2]}\n", *GRID)
    for value in (0.5, 0.9, 0.8):
        last = complete(mine, value)
    assert "★ best t001: val_accuracy 90.00 %" in title(dict(figures(mine))["plots/slices.png"])
    final = {"metric": "val_accuracy", "val_accuracy_mean": 0.8123, "val_accuracy_sd": 0.004, "seeds": 3}
    mine.set_attr(WINNER, final | {"trial": last.number, "params": dict(last.params)})
    for path, figure in figures(mine):
        if "importances" not in path and "curves" not in path:
            assert "★ winner t002: mean val_accuracy of 3 seeds 81.23 ± 0.40 %" in title(figure), path
        assert "digits, validation split, search mine" in title(figure), path


def test_figures_of_two_metrics_have_no_curves_which_optuna_does_not_keep(study):
    mine = study(DISCRETE, "--metric", "val_accuracy,parameters")
    complete(mine, 0.5, 100.0)
    paths = [path for path, _ in figures(mine)]
    assert "plots/curves.png" not in paths and "plots/accuracy_vs_parameters.png" in paths


def test_figures_show_every_value_of_a_space_that_is_not_too_large(study):
    space = "{depth: {low: 2, high: 6}, filters: {low: 8, high: 64, log: true}, flip: [true, false]}"
    mine = study(f"recipe: smoke\nspace: {space}\n")
    proposal = complete(mine, 0.5)
    depth, filters, flip = dict(figures(mine))["plots/slices.png"].axes[:3]
    assert [label.get_text() for label in depth.get_xticklabels()] == ["2", "3", "4", "5", "6"]
    assert [label.get_text() for label in flip.get_xticklabels()] == ["false", "true"]
    place = np.log(proposal.params["filters"] / 8) / np.log(64 / 8)
    assert np.asarray(filters.collections[0].get_offsets())[0, 0] == pytest.approx(place)
