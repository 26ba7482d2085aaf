"""What the figures of a search share."""

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from pipeline.evaluation.figures.heat_map import heat_map
from pipeline.evaluation.figures.history import intermediate_curves, optimization_history
from pipeline.evaluation.figures.importances import parameter_importances
from pipeline.evaluation.figures.parallel_coordinates import parallel_coordinates
from pipeline.evaluation.figures.search_style import Winner, find_leader
from pipeline.evaluation.figures.slices import slices
from pipeline.evaluation.figures.style import VERMILLION
from pipeline.evaluation.figures.value_vs_cost import value_vs_cost
from pipeline.evaluation.ranking import finished
from tests.support.figures import margins, title
from tests.support.studies import ACCURACY, LOG, SIX, make_study


def draw_figures(trials: pd.DataFrame, curves: dict[int, list[float]], **arguments: Any) -> dict[str, Figure]:
    """Draw every figure of a study that needs no importances."""
    return {
        "history": optimization_history(trials, **arguments),
        "curves": intermediate_curves(curves, trials, **arguments),
        "front": value_vs_cost(trials, **arguments),
        "parallel": parallel_coordinates(trials, space=LOG, **arguments),
        "slices": slices(trials, space=LOG, **arguments),
        "grid": heat_map(trials, rows="kernel_size", columns="patch_size", space=LOG, **arguments),
        "ranges": heat_map(trials, rows="depth", columns="learning_rate", space=LOG, **arguments),
    }


@pytest.mark.parametrize(("number", "every_kind"), [(1, False), (12, True), (300, True)])
def test_figures_of_a_study_of_any_size_take_a_second_each_and_cut_nothing_off(number: int, every_kind: bool) -> None:
    trials, curves = make_study(number, every_kind=every_kind)
    began = time.process_time()
    figures = draw_figures(trials, curves, **ACCURACY)
    shares = {name: 1 / (index + 1) for index, name in enumerate(trials.filter(like="params.").columns)}
    figures["importances"] = parameter_importances(shares, shares, trials, metric="val_accuracy", needed=4)
    for name, figure in figures.items():
        assert min(margins(figure)) > 5, name
    assert time.process_time() - began < len(figures)


def test_figures_of_losses_equal_values_and_long_names_raise_no_warning() -> None:
    trials, curves = make_study(40)
    long = trials.rename(columns={"params.depth": "params." + "depth_of_the_whole_" * 6})
    trials["value"] *= 1e5 ** np.linspace(0, 1, 40)
    trials.loc[0, "value"] = np.inf
    equal = trials.assign(value=0.5, parameters=602_890)
    for table_, metric in ((trials, "val_loss"), (equal, "a_very_long_metric_" * 9)):
        for name, figure in draw_figures(table_, curves, metric=metric, direction="minimize").items():
            assert min(margins(figure)) > 5, name
    for figure in (
        parallel_coordinates(long, space={}, **ACCURACY),
        slices(long, space={}, **ACCURACY),
        heat_map(long, space={}, rows=long.columns[5][7:], columns="kernel_size", **ACCURACY),
        parameter_importances({long.columns[5]: 1.0}, {}, long, metric="val_accuracy", needed=4),
    ):
        assert min(margins(figure)) > 5


@pytest.mark.parametrize("number", [0, 5])
def test_figures_without_a_finished_trial_are_a_text(number: int) -> None:
    trials = make_study(5)[0].assign(state="failed", value=np.nan)[:number]
    for figure in draw_figures(trials, {}, **ACCURACY).values():
        assert "needs 1" in title(figure) and "there are none" in title(figure)


def test_figures_name_the_best_trial_and_count_the_states() -> None:
    trials, curves = make_study(60)
    leader = finished(trials).sort_values("value").iloc[-1]
    for name, figure in draw_figures(trials, curves, **ACCURACY).items():
        assert f"★ best t{leader['number']:03d}: val_accuracy {100 * leader['value']:.2f} %" in title(figure), name
        assert f"{(trials['state'] == 'pruned').sum()} pruned" in title(figure), name
        colours = [line.get_color() for axes in figure.axes for line in axes.lines]
        edges = [patch.get_edgecolor() for axes in figure.axes for patch in axes.patches]
        assert any(same_color(colour, VERMILLION) for colour in colours + edges), name


def test_figures_mark_the_winner_alone_in_orange_by_the_same_star() -> None:
    trials, curves = make_study(60)
    ranked = finished(trials).sort_values("value")["number"]
    winner = Winner(int(ranked.iloc[-3]), "mean val_accuracy 79.0 % in the final")
    for name, figure in draw_figures(trials, curves, **ACCURACY, winner=winner).items():
        assert f"★ winner t{winner.number:03d}: mean val_accuracy 79.0 % in the final" in title(figure), name
        orange = [line for axes in figure.axes for line in axes.lines if same_color(line.get_color(), VERMILLION)]
        assert orange and {line.get_marker() for line in orange} == {"*"}, name
        labels = {str(line.get_label()) for line in orange if not str(line.get_label()).startswith("_")}
        assert labels <= {f"winner t{winner.number:03d}"}, name
    star = optimization_history(trials, **ACCURACY, winner=winner).axes[0].lines[-1]
    assert list(star.get_xdata()) == [winner.number]


def test_find_leader_of_a_winner_that_has_not_finished_is_the_best_trial() -> None:
    leader = find_leader(SIX, metric="val_loss", direction="minimize", winner=Winner(4, "failed"))
    assert leader == (0, "best t000", "val_loss 0.5000")
    assert find_leader(SIX[:0], metric="val_loss", direction="minimize") is None


def test_importing_the_figures_imports_no_pyplot_optuna_or_tensorflow() -> None:
    program = """
import sys
from pipeline.evaluation.figures import heat_map, history, importances, parallel_coordinates, slices, value_vs_cost
print({"matplotlib.pyplot", "optuna", "tensorflow", "mlflow"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
