"""Descriptions of a search and of its winner."""

from types import SimpleNamespace

import pytest

from pipeline.search.attributes import RUN_ID, WINNER
from pipeline.search.description import describe_search, describe_winner
from tests.support.scripted import DISCRETE, make_search, open_study

DATA = SimpleNamespace(name="digits", train=range(1455), validation=range(162))
WON = {"rank": 2, "params": {"kernel_size": 5, "depth": 2}, "seed": 1, "run_id": "abc"}
WON |= {"test_accuracy": 0.9722, "val_accuracy_mean": 0.9512}


@pytest.fixture
def study(tmp_path):
    """Return a study of six trials, of which the last is the best."""
    mine = open_study(tmp_path, make_search(tmp_path, DISCRETE, "--sampler", "grid"), name="mine")
    for value in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        proposal = mine.ask()
        mine.set_trial_attrs(proposal.number, {RUN_ID: f"run{proposal.number}"})
        mine.complete(proposal.number, [value])
    return mine


def test_describe_search_without_a_final_names_the_best_trial_and_five_trials(study):
    text = describe_search(study, DATA, experiment_id="7")
    assert "best trial t005: `val_accuracy` 0.6000" in text and "winner" not in text
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in text.splitlines()[-5:]]
    assert cells[0] == ["[t005](#/experiments/7/runs/run5)", "0.6000"]
    assert [value for _, value in cells] == ["0.6000", "0.5000", "0.4000", "0.3000", "0.2000"]


def test_describe_search_with_a_winner_names_it_and_its_test_accuracy(study):
    study.set_attr(WINNER, WON)
    text = describe_search(study, DATA, experiment_id="7")
    assert "winner `k5 d2`: `val_accuracy_mean` 0.9512, test accuracy 97.2 %" in text
    assert "[k5 d2](#/experiments/7/runs/abc)" in text
    assert "train smoke --kernel_size 5 --depth 2" in text


def test_describe_search_shows_a_name_with_markup_as_text(study):
    text = describe_search(study, SimpleNamespace(**vars(DATA) | {"name": "a|b*"}), experiment_id="7")
    assert r"| **data** | a\|b\*: 1,455 training" in text


def test_describe_winner_states_mean_deviation_and_seed():
    text = describe_winner(WON | {"val_accuracy_sd": 0.0141}, metric="val_accuracy", seeds=2)
    assert "`k5 d2`" in text and "0.9512 ± 0.0141" in text and "2 seed(s)" in text
    assert "Seed 1, this run, has a test accuracy of 97.2 %" in text
    assert "±" not in describe_winner(WON, metric="val_accuracy", seeds=1)
