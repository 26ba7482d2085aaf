"""Ranking groups of runs, and the leaderboard as a table."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.report.leaderboard import leaderboard_table, rank_groups, to_markdown
from tests.support.leaderboard_rows import make_row


def predictions_of(correct, *, first=0):
    """A run's predictions, correct or not, on images that are numbered from `first`."""
    images = [f"{number:016x}" for number in range(first, first + len(correct))]
    return pd.DataFrame({"image": images, "label": 0, "predicted": np.where(correct, 0, 1)})


@pytest.mark.parametrize(("first", "over"), [(0, "test images, one seed each"), (5, "")])
def test_rank_groups_pairs_images_only_if_both_runs_have_the_same_ones(first, over):
    better, worse = (make_row(rank, [value]).group for rank, value in ((1, 0.9), (2, 0.8)))
    random = np.random.default_rng(0)
    predictions = {
        better.runs[0].id: predictions_of(random.random(50) < 0.9),
        worse.runs[0].id: predictions_of(random.random(50) < 0.8, first=first),
    }
    _, second = rank_groups([better, worse], "test_accuracy", predictions)
    assert second.gap.over == over
    _, second = rank_groups([better, worse], "best_val_accuracy", predictions)
    assert second.gap.over == "", "the predictions are of test images"


def predictions_of_classes(rare_correct, probability=0.5):
    """A run's predictions of 90 images of a class, 80 of them right, and of 10 of another, some right."""
    label = np.repeat([0, 1], [90, 10])
    correct = np.concatenate([np.arange(90) < 80, np.arange(10) < rare_correct])
    images = [f"{number:016x}" for number in range(100)]
    table = pd.DataFrame({"image": images, "label": label, "predicted": np.where(correct, label, 1 - label)})
    return table.assign(probability_of_class=probability)


def test_rank_groups_by_another_metric_than_accuracy_resamples_the_images():
    better, worse = (make_row(rank, [value]).group for rank, value in ((1, 0.94), (2, 0.54)))
    groups, metric = [better, worse], "test_balanced_accuracy"
    runs = [
        replace(group, runs=(group.runs[0]._replace(metrics={metric: value}),))
        for group, value in zip(groups, (0.944, 0.544), strict=True)
    ]
    tables = {better.runs[0].id: predictions_of_classes(10), worse.runs[0].id: predictions_of_classes(2)}
    _, second = rank_groups(runs, metric, tables)
    assert (second.gap.over, second.verdict) == ("test images, one seed each", "worse")
    assert second.gap.mean == pytest.approx(0.4)
    assert 0.1 < second.gap.low < 0.4 < second.gap.high < 0.7
    noise = {better.runs[0].id: predictions_of_classes(7), worse.runs[0].id: predictions_of_classes(6)}
    assert rank_groups(runs, metric, noise)[1].verdict == "within noise"


def test_rank_groups_by_loss_calls_the_higher_one_worse():
    groups = [make_row(rank, [0.5]).group for rank in (1, 2)]
    losses = [-np.log(probability) for probability in (0.5, 0.25)]
    groups = [
        replace(group, runs=(group.runs[0]._replace(metrics={"test_loss": loss}),))
        for group, loss in zip(groups, losses, strict=True)
    ]
    probabilities = np.random.default_rng(0).uniform(0.9, 1.1, 100)
    tables = {
        group.runs[0].id: predictions_of_classes(5, np.exp(-loss) * probabilities)
        for group, loss in zip(groups, losses, strict=True)
    }
    rows = rank_groups(groups, "test_loss", tables | {groups[1].runs[0].id: predictions_of_classes(5, 0.25)})
    assert rows[1].gap.mean < 0 and rows[1].verdict == "worse"
    head, _, first, second = to_markdown(leaderboard_table(rows, "test_loss")).splitlines()
    assert "| 0.6931 |" in first and "| 1.3863 |" in second and "| value |" in head
    without = {run_id: table.drop(columns="probability_of_class") for run_id, table in tables.items()}
    assert rank_groups(groups, "test_loss", without)[1].verdict == "not known"


def test_rank_groups_compares_over_seeds_if_each_seed_splits_the_data_anew():
    better, worse = (make_row(rank, values).group for rank, values in ((1, [0.9, 0.8]), (2, [0.7, 0.8])))
    runs = [(run, seed) for group in (better, worse) for seed, run in enumerate(group.runs)]
    predictions = {run.id: predictions_of(np.ones(20, bool), first=100 * seed) for run, seed in runs}
    _, second = rank_groups([better, worse], "test_accuracy", predictions)
    assert second.gap.over == "seeds"


def test_rank_groups_gives_unfinished_runs_a_rank_and_their_state_as_verdict():
    done, unfinished = make_row(1, [0.5]).group, make_row(2, [0.99], state="running").group
    first, second = rank_groups([done, unfinished], "test_accuracy", {}, first_rank=7)
    assert (first.rank, first.verdict) == (7, "best")
    assert (second.rank, second.verdict, second.gap) == (8, "running", None)


def test_leaderboard_table_has_a_column_of_energy_only_where_it_is_known():
    rows = [make_row(1, [0.9, 0.8], energy_kwh=0.25), make_row(2, [0.7]), make_row(3, [0.6], energy_kwh=np.nan)]
    energy = leaderboard_table(rows, "test_accuracy")["energy_kwh"]
    assert energy[0] == 0.25 and energy[1:].isna().all()
    assert "energy_kwh" not in leaderboard_table(rows[1:], "test_accuracy")


def test_to_markdown_keeps_a_name_with_a_bar_or_a_line_break_in_its_cell():
    rows = [make_row(1, [0.9], name="a | b\nc", settings={"depth": "2"}), make_row(2, [0.8], settings={"depth": "3"})]
    head, rule, first, _ = to_markdown(leaderboard_table(rows, "test_accuracy")).splitlines()
    assert r"| a \| b c |" in first and "90.00%" in first and head.endswith("| settings.depth |")
    assert rule.count("|") == head.count("|") == first.replace(r"\|", "").count("|")


def test_to_markdown_shows_markup_in_names_as_text():
    rows = [make_row(1, [0.9], name="![x](http://a.b) <b>", settings={"depth": "2"})]
    assert r"| \!\[x\](http\://a.b) \<b\> |" in to_markdown(leaderboard_table(rows, "test_accuracy"))
