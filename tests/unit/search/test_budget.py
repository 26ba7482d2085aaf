"""What ends a search: trials, hours, epochs, a target, or no better value for many trials."""

import pytest

from pipeline.search.budget import share_spent, why_spent
from tests.support.errors import usage_error
from tests.support.scripted import CONTINUOUS, make_search, open_study


@pytest.fixture
def study(tmp_path):
    """Opens a study with flags, in which trials have finished with these values after two epochs each."""

    def opened(*values, flags=()):
        mine = open_study(tmp_path, make_search(tmp_path, CONTINUOUS, *flags))
        for value in values:
            proposal = mine.ask()
            for epoch in (1, 2):
                mine.report(proposal.number, epoch, value)
            mine.set_trial_attrs(proposal.number, {"epochs": 2.0})
            mine.complete(proposal.number, [value])
        return mine

    return opened


@pytest.mark.parametrize(
    ("flags", "values", "seconds", "expected"),
    [
        ([], [0.5], 0.0, None),
        (["--trials", "2"], [0.5], 0.0, None),
        (["--trials", "2"], [0.5, 0.6], 0.0, "its 2 trials are done"),
        (["--hours", "2"], [], 7199.0, None),
        (["--hours", "2"], [], 7200.0, "its 2 hours are over"),
        (["--max_epochs_total", "5"], [0.5, 0.6], 0.0, None),
        (["--max_epochs_total", "5"], [0.5, 0.6, 0.7], 0.0, "its 5 epochs are trained"),
        (["--target", "0.7"], [0.5, 0.69], 0.0, None),
        (["--target", "0.7"], [0.5, 0.7], 0.0, "t001 has reached the target of val_accuracy 70.00 %"),
        (["--target", "0.3", "--metric", "val_loss"], [0.4], 0.0, None),
        (["--target", "0.3", "--metric", "val_loss"], [0.2], 0.0, "t000 has reached the target of val_loss 0.3000"),
        (["--patience_trials", "2"], [], 0.0, None),
        (["--patience_trials", "2"], [0.5, 0.6, 0.6], 0.0, None),
        (["--patience_trials", "2"], [0.5, 0.6, 0.6, 0.2], 0.0, "2 trials in a row were no better than t001"),
    ],
)
def test_budget_is_spent_only_once_a_limit_is_reached(study, flags, values, seconds, expected):
    assert why_spent(study(*values, flags=flags), seconds=seconds) == expected


def test_epochs_of_running_trials_count(study):
    mine = study(0.5, flags=["--max_epochs_total", "3"])
    running = mine.ask()
    assert why_spent(mine, seconds=0) is None
    mine.report(running.number, 1, 0.4)
    assert mine.epochs_trained() == 3
    assert why_spent(mine, seconds=0) == "its 3 epochs are trained"


def test_share_spent_is_that_of_the_limit_which_ends_first(study):
    mine = study(0.5, flags=["--trials", "10", "--hours", "1", "--max_epochs_total", "4"])
    assert share_spent(mine, seconds=0, finished=2.5) == 0.5
    assert share_spent(mine, seconds=0, finished=7) == 0.7
    assert share_spent(mine, seconds=2880, finished=7) == 0.8
    assert share_spent(mine, seconds=9999, finished=7) == 1


def test_budgets_of_a_search_do_not_make_another_study(tmp_path):
    flags = ["--max_epochs_total", "9", "--patience_trials", "3", "--target", "0.9", "--final_only", "true"]
    names = {make_search(tmp_path, CONTINUOUS, *some).study_name("data") for some in ([], flags)}
    assert len(names) == 1


def test_final_only_without_a_final_is_refused(tmp_path):
    flags = ["--final_only", "true", "--final_top", "0"]
    assert "final_top must be at least 1 with final_only: got 0" in usage_error(
        make_search, tmp_path, CONTINUOUS, *flags
    )
