"""Who is compared with whom, and how the table is written down."""

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.report.leaderboard import as_markdown, leaderboard_rows, leaderboard_table
from tests.support.leaderboard_rows import make_row


def outcomes(right, *, first=0):
    """A run's predictions on images of which the first has this number."""
    images = [f"{number:016x}" for number in range(first, first + len(right))]
    return pd.DataFrame({"image": images, "label": 0, "predicted": np.where(right, 0, 1)})


@pytest.mark.parametrize(("first", "over"), [(0, "test images, one seed each"), (5, "")])
def test_images_are_paired_where_both_runs_saw_the_same_ones(first, over):
    better, worse = (make_row(place, [value]).recipe for place, value in ((1, 0.9), (2, 0.8)))
    random = np.random.default_rng(0)
    predictions = {
        better.runs[0].id: outcomes(random.random(50) < 0.9),
        worse.runs[0].id: outcomes(random.random(50) < 0.8, first=first),
    }
    _, second = leaderboard_rows([better, worse], "test_accuracy", predictions)
    assert second.behind.over == over
    _, second = leaderboard_rows([better, worse], "best_val_accuracy", predictions)
    assert second.behind.over == "", "the outcomes are of test images"


def test_a_recipe_whose_seeds_split_the_data_anew_is_compared_over_seeds():
    better, worse = (make_row(place, values).recipe for place, values in ((1, [0.9, 0.8]), (2, [0.7, 0.8])))
    every = [(run, seed) for recipe in (better, worse) for seed, run in enumerate(recipe.runs)]
    predictions = {run.id: outcomes(np.ones(20, bool), first=100 * seed) for run, seed in every}
    _, second = leaderboard_rows([better, worse], "test_accuracy", predictions)
    assert second.behind.over == "seeds"


def test_what_has_not_finished_has_a_place_and_no_verdict_but_its_state():
    done, open_ = make_row(1, [0.5]).recipe, make_row(2, [0.99], state="running").recipe
    first, second = leaderboard_rows([done, open_], "test_accuracy", {}, first=7)
    assert (first.place, first.verdict) == (7, "best")
    assert (second.place, second.verdict, second.behind) == (8, "running", None)


def test_a_name_with_a_bar_or_a_line_break_stays_in_its_cell():
    found = [make_row(1, [0.9], name="a | b\nc", settings={"depth": "2"}), make_row(2, [0.8], settings={"depth": "3"})]
    head, rule, first, _ = as_markdown(leaderboard_table(found, "test_accuracy")).splitlines()
    assert r"| a \| b c |" in first and "90.00%" in first and head.endswith("| settings.depth |")
    assert rule.count("|") == head.count("|") == first.replace(r"\|", "").count("|")
