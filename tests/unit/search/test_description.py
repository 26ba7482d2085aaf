"""Descriptions of a search and of the runs below it."""

from types import SimpleNamespace

import pytest

from pipeline.search import description
from pipeline.search.attributes import ENSEMBLE, RUN_ID, TESTED, WINNER
from pipeline.search.description import (
    describe_ensemble,
    describe_finalist,
    describe_for_dashboard,
    describe_former_winner,
    describe_images,
    describe_search,
    describe_status,
    describe_training,
    describe_winner,
    ensemble_line,
    handed_over_name,
)
from pipeline.search.executors.base import TrialResult
from pipeline.tracking.tags import TrialOutcome
from tests.support.scripted import DISCRETE, make_search, open_study

DATA = SimpleNamespace(name="digits", train=range(1455), validation=range(162), folds=())
STANDINGS = [
    {"trial": 5, "params": {"kernel_size": 5, "depth": 2}, "run_id": "f5", "seeds": 2, "mean": 0.9512, "sd": 0.0141},
    {"trial": 4, "params": {"kernel_size": 5, "depth": 1}, "run_id": "f4", "seeds": 1, "mean": 0.9, "sd": None},
]
WON = {"trial": 5, "params": {"kernel_size": 5, "depth": 2}, "seed": 1, "seeds": 2, "trials": 6, "run_id": "abc"}
WON |= {"metric": "val_accuracy", "val_accuracy_mean": 0.9512, "val_accuracy_sd": 0.0141, "standings": STANDINGS}
WON |= {"test_accuracy": 0.9722, "model": "training", "networks": 1}
MEAN = {"networks": ["t005 seed 1", "t004 seed 0"], "run_id": "e1", "is_better": True}
MEAN |= {"metrics": {"val_accuracy": 0.96, "winner_val_accuracy": 0.9512, "p_value": 0.0123, "parameters": 2468.0}}
VERDICT = "val_accuracy 96.00 %, the winner's network alone 95.12 %: {} (p = 0.012), {}"


@pytest.fixture
def study(tmp_path):
    """Return a study of six trials, of which the last is the best."""
    mine = open_study(tmp_path, make_search(tmp_path, DISCRETE, "--sampler", "grid"), name="mine")
    for value in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        proposal = mine.ask()
        mine.set_trial_attrs(proposal.number, {RUN_ID: f"run{proposal.number}"})
        mine.complete(proposal.number, [value])
    return mine


def cells(text, first):
    """Return the cells of the rows below the header that begins so."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    start = next(number for number, row in enumerate(lines) if row[0] == first)
    return [row for row in lines[start + 2 :] if len(row) > 1]


def test_describe_search_without_a_final_names_the_best_trial_and_five_trials(study):
    text = describe_search(study, DATA, experiment_id="7")
    assert "t005: `val_accuracy` 60.00 %; a single training, which may be lucky" in text and "winner" not in text
    rows = cells(text, "best 5 of 6 trials")
    assert rows[0] == ["[t005](#/experiments/7/runs/run5)", "60.00 %", "`k5 d2`"]
    assert [row[1] for row in rows] == ["60.00 %", "50.00 %", "40.00 %", "30.00 %", "20.00 %"]


def test_describe_status_names_the_best_trials_and_what_matters(study, tmp_path):
    assert describe_status(study, 4200.0) == [
        "so far   6 trials in 70 min; the best of them, a single training each:",
        "         t005 k5 d2  val_accuracy 60.00 %",
        "         t004 k5 d1  val_accuracy 50.00 %",
        "         t003 k3 d2  val_accuracy 40.00 %",
        "         kernel_size matters most: 97 % of the variation (fANOVA)",
    ]
    (tmp_path / "new").mkdir()
    empty = open_study(tmp_path / "new", make_search(tmp_path, DISCRETE))
    assert describe_status(empty, 30.0) == ["so far   0 trials in 30 s, none of them complete"]


def test_describe_search_begins_with_the_winner_and_its_test_accuracy(study):
    study.set_attr(WINNER, WON)
    study.set_attr(TESTED, ["abc"])
    text = describe_search(study, DATA, experiment_id="7")
    assert text.splitlines()[2] == (
        "| **winner** | [t005 k5 d2](#/experiments/7/runs/abc): mean `val_accuracy` of 95.12 ± 1.41 % with 2 seeds; "
        "test accuracy 97.22 % |"
    )
    assert "| **test set** | evaluated once, for the winner |" in text
    assert "train smoke --kernel_size 5 --depth 2 --seed 1" in text
    assert cells(text, "finals")[:2] == [
        ["[t005](#/experiments/7/runs/f5)", "95.12 ± 1.41 %", "2", "`k5 d2`"],
        ["[t004](#/experiments/7/runs/f4)", "90.00 %", "1", "`k5 d1`"],
    ]


def test_describe_search_says_that_a_winner_is_one_of_fewer_trials(study):
    study.set_attr(WINNER, WON | {"trials": 4})
    assert "; of the first 4 trials, the final of the others is to come |" in describe_search(
        study, DATA, experiment_id="7"
    )


def test_describe_search_counts_the_winners_that_were_evaluated(study):
    study.set_attr(TESTED, ["abc", "def"])
    text = describe_search(study, DATA, experiment_id="7")
    assert "| **test set** | evaluated for 2 winners, one after the other |" in text


def test_describe_search_before_the_first_trial_says_what_is_searched(tmp_path):
    text = describe_search(open_study(tmp_path, make_search(tmp_path, DISCRETE)), DATA, experiment_id="7")
    assert "| **trials** | up to 50 |" in text and "`kernel_size`, `depth`" in text


def test_describe_search_shows_a_name_with_markup_as_text(study):
    text = describe_search(study, SimpleNamespace(**vars(DATA) | {"name": "a|b*"}), experiment_id="7")
    assert r"| **data** | a\|b\*: 1,455 training" in text


def test_describe_winner_states_mean_deviation_seed_and_settings(study):
    lines = describe_winner(study, WON).splitlines()[2:]
    assert lines[:3] == [
        "| **winner** | of the search among 6 trials: its mean `val_accuracy` of 95.12 ± 1.41 % with 2 seeds is the "
        "best of 2 finalists |",
        "| **this run** | seed 1, test accuracy 97.22 % |",
        "| **drawn** | `kernel_size` 5, `depth` 2 |",
    ]
    assert lines[3].endswith("--kernel_size 5 --depth 2 --seed 1` |")
    one_seed = {name: value for name, value in WON.items() if name != "val_accuracy_sd"} | {"seeds": 1}
    assert "its `val_accuracy` of 95.12 % with one seed is" in describe_winner(study, one_seed)


def test_describe_former_winner_says_so(study):
    text = describe_former_winner(study, WON)
    assert "| **former winner** | of the search among 6 trials: " in text and "another model has won since |" in text


def ended(outcome, reason="", **metrics):
    return TrialResult(0, outcome, reason, False, metrics, "", "cpu", 0.1)


@pytest.mark.parametrize(
    ("result", "how"),
    [
        (
            ended(TrialOutcome.FINISHED, best_val_accuracy=0.5, epochs=3.0, parameters=1234.0, seconds=12.0),
            "`val_accuracy` 50.00 %, at the best of 3 epochs",
        ),
        (
            ended(TrialOutcome.PRUNED, "by the driver", best_val_accuracy=0.25, epochs=1.0),
            "pruned after epoch 1 of 3, as it was behind other trials; `val_accuracy` 25.00 % until then",
        ),
        (ended(TrialOutcome.OOM, "needs 3 GiB | has 2"), r"**oom** after epoch 0 of 3: needs 3 GiB \| has 2"),
        (
            ended(TrialOutcome.STOPPED),
            "stopped after epoch 0 of 3; its configuration is trained again when the search goes on",
        ),
    ],
)
def test_describe_training_says_how_it_ended(study, result, how):
    text = describe_training(study, {"kernel_size": 5, "depth": 2}, result, epochs=3)
    lines = text.splitlines()
    assert lines[2] == f"| **result** | {how} |"
    assert lines[3] == "| **drawn** | `kernel_size` 5, `depth` 2 |"
    assert ("| **size** | 1,234 parameters |" in lines) == ("parameters" in result.metrics)
    assert lines[-1].endswith("train smoke --kernel_size 5 --depth 2` |")


def test_describe_training_of_a_finalist_names_its_seed(study):
    result = ended(TrialOutcome.FINISHED, best_val_accuracy=0.5, epochs=1.0, seconds=90.0)
    text = describe_training(study, {"kernel_size": 5, "depth": 2}, result, epochs=1, seed=7)
    assert "| **result** | `val_accuracy` 50.00 %, at the best of 1 epoch |" in text
    assert "| **time** | 2 min |" in text and "parameters" not in text
    assert text.endswith("train smoke --kernel_size 5 --depth 2 --seed 7` |")


def test_describe_finalist_states_its_mean_and_its_trial(study):
    lines = describe_finalist(study, STANDINGS[0], metric="val_accuracy").splitlines()[2:]
    assert lines[:3] == [
        "| **result** | mean `val_accuracy` of 95.12 ± 1.41 % with 2 seeds; its trainings stand below this run |",
        "| **finalist** | the configuration of trial t005, trained again with other seeds |",
        "| **drawn** | `kernel_size` 5, `depth` 2 |",
    ]
    assert lines[3].endswith("train smoke --kernel_size 5 --depth 2` |")


@pytest.mark.parametrize(
    ("is_better", "mode", "words"),
    [
        (True, "beside", ("better beyond noise", "logged beside the winner")),
        (True, "replace", ("better beyond noise", "takes the winner's place")),
        (False, "replace", ("not better beyond noise", "logged beside the winner")),
    ],
)
def test_ensemble_is_described_with_the_winner_s_network_and_what_follows(tmp_path, is_better, mode, words):
    flags = ("--final_top", "2", "--ensemble", mode)
    study, mean = open_study(tmp_path, make_search(tmp_path, DISCRETE, *flags)), MEAN | {"is_better": is_better}
    verdict = VERDICT.format(*words)
    assert ensemble_line(study, mean) == f"ensemble  t005 seed 1, t004 seed 0: {verdict}; run e1"
    assert describe_ensemble(study, mean).splitlines()[2:] == [
        f"| **result** | {verdict} |",
        "| **ensemble** | the mean of the probabilities of 2 networks: t005 seed 1, t004 seed 0 |",
        "| **size** | 2,468 parameters |",
    ]
    study.set_attr(ENSEMBLE, mean)
    text = describe_search(study, DATA, experiment_id="7")
    assert f"| **ensemble** | [of 2 finalists](#/experiments/7/runs/e1): {verdict} |" in text
    study.set_attr(ENSEMBLE, mean | {"metrics": {}})  # before it is measured
    assert "ensemble" not in describe_search(study, DATA, experiment_id="7")


def test_describe_winner_of_an_ensemble_names_its_networks(study):
    study.set_attr(ENSEMBLE, MEAN)
    won = WON | {"model": "ensemble", "networks": 2}
    text = describe_winner(study, won)
    assert "| **this run** | the ensemble of 2 finalists, test accuracy 97.22 % |" in text
    assert (
        f"| **networks** | t005 seed 1, t004 seed 0: {VERDICT.format('better beyond noise', 'logged beside')}" in text
    )
    assert "| **train the winner's network again** | `" in text and text.endswith("--depth 2 --seed 1` |")
    study.set_attr(WINNER, won)
    assert "; test accuracy 97.22 % of the ensemble of 2 finalists |" in describe_search(study, DATA, experiment_id="7")


@pytest.mark.parametrize(
    ("model", "name", "words"),
    [
        ("training", "final t005 k5 d2 seed 1", "seed 1"),
        ("refit", "final t005 k5 d2 seed 1, refit", "seed 1, trained once more on training and validation images"),
        ("ensemble", "ensemble of 2 finalists", "the ensemble of 2 finalists"),
    ],
)
def test_model_that_was_handed_over_has_a_name(model, name, words):
    winner = WON | {"model": model, "networks": 2}
    assert (handed_over_name(winner), description.tested_words(winner)) == (name, words)


def test_describe_winner_that_was_refitted_trains_it_again_so(study):
    assert describe_winner(study, WON | {"model": "refit"}).endswith("--seed 1 --refit true` |")


def test_describe_for_dashboard_tells_the_winner_from_the_best_trial(study, tmp_path):
    best = "The best trial, 5, is a single training (60.00 %), and may be lucky."
    assert describe_for_dashboard(study) == best
    study.set_attr(WINNER, WON)
    assert describe_for_dashboard(study) == (
        "**Winner**: trial 5, `k5 d2`: mean `val_accuracy` of 95.12 ± 1.41 % with 2 seeds; test accuracy 97.22 %."
        f"\n\n{best}"
    )
    (tmp_path / "new").mkdir()
    assert describe_for_dashboard(open_study(tmp_path / "new", make_search(tmp_path, DISCRETE))) == ""


def test_describe_images_counts_those_of_folds_together():
    assert describe_images(DATA) == "1,455 training and 162 validation images"
    folds = SimpleNamespace(**vars(DATA) | {"folds": (1, 2, 3)})
    assert describe_images(folds) == "1,617 images in 3 folds"
