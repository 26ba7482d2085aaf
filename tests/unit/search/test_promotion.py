"""Successive halving whose trials go on: which are promoted later, and what a promoted one takes over."""

import pytest

from pipeline.search.attributes import CONTINUES, EPOCHS, RESUMED_AFTER
from pipeline.search.promotion import continued_trials, root
from tests.support.scripted import make_search, open_study

TEXT = """recipe: smoke
epochs: 9
pruner: asha
pruner_epochs: 1
space: {learning_rate: {low: 1e-4, high: 0.1, log: true}}
"""


@pytest.fixture
def study(tmp_path):
    return lambda text=TEXT, *flags: open_study(tmp_path, make_search(tmp_path, text, *flags))


def train(study, value, *, most=9):
    """Train a proposal with this value at all epochs, as the loop would, and return it and its last epoch."""
    proposal = study.ask()
    for epoch in range(len(proposal.values) + 1, most + 1):
        if study.report(proposal.number, epoch, value):
            study.set_trial_attrs(proposal.number, {"epochs": float(epoch)})
            study.prune(proposal.number)
            return proposal, epoch
    study.set_trial_attrs(proposal.number, {"epochs": float(most)})
    study.complete(proposal.number, [value])
    return proposal, most


def test_stopped_trial_goes_on_once_it_is_among_the_best_third(study):
    mine = study()
    ends = [train(mine, value)[1] for value in (0.9, 0.8, 0.1, 0.2, 0.3)]
    assert ends == [9, 1, 1, 1, 1]
    # of six at the first rung the best two go on: the last one is no better than the second
    train(mine, 0.4)
    promoted = mine.ask()
    trial = mine.trials()[promoted.number]
    assert trial.user_attrs[CONTINUES] == 1 and promoted.root == root(trial) == 1
    assert promoted.params == mine.search.snap(mine.trials()[1].params)
    assert promoted.values == (0.8,) and trial.intermediate_values == {1: 0.8}


def test_promoted_trial_is_compared_at_the_next_rung_and_counts_once(study):
    mine = study()
    for value in (0.9, 0.8, 0.1, 0.2, 0.3, 0.4):
        train(mine, value)
    finished, epochs = mine.n_finished(), mine.epochs_trained()
    assert (finished, epochs) == (6, 9 + 5)
    promoted, last = train(mine, 0.8)
    # it is the second of two at the second rung
    assert (promoted.root, last) == (1, 3)
    assert mine.n_finished() == finished and mine.epochs_trained() == epochs + 2
    assert continued_trials(mine.trials()) == {1}
    assert mine.ask().values == ()


def test_promotion_of_a_killed_driver_is_continued_by_the_next(study):
    mine = study()
    for value in (0.9, 0.8, 0.1, 0.2, 0.3, 0.4):
        train(mine, value)
    mine.ask()
    after = study()
    again = after.ask()
    assert again.root == 1 and again.values == (0.8,)
    assert [trial.state.name for trial in after.trials()[6:]] == ["FAIL", "RUNNING"]


def test_promoted_trial_that_fails_for_good_is_not_promoted_again(study):
    mine = study()
    for value in (0.9, 0.8, 0.1, 0.2, 0.3, 0.4):
        train(mine, value)
    mine.fail(mine.ask().number, retry=False)
    assert mine.ask().values == ()
    assert mine.n_finished() == 6


def test_trial_that_diverged_after_its_rung_is_not_promoted_to_diverge_again(study):
    mine = study()
    train(mine, 0.9)
    diverged = mine.ask()
    mine.report(diverged.number, 1, 0.8)
    # in its second epoch, which is not reported
    mine.set_trial_attrs(diverged.number, {"outcome": "diverged"})
    mine.prune(diverged.number)
    for value in (0.1, 0.2, 0.3, 0.4):
        train(mine, value)
    assert mine.ask().values == ()


def test_promotion_comes_before_the_end_of_an_exhausted_space(study):
    text = TEXT.replace("{low: 1e-4, high: 0.1, log: true}", "[0.001, 0.002, 0.003, 0.004, 0.005, 0.006]")
    mine = study(text, "--sampler", "grid")
    for value in (0.9, 0.8, 0.1, 0.2, 0.3, 0.4):
        train(mine, value)
    assert mine.ask().values == (0.8,)


def test_minimized_metric_promotes_the_lowest(study):
    mine = study(TEXT, "--metric", "val_loss")
    for value in (0.1, 0.2, 0.9, 0.8, 0.7, 0.6):
        train(mine, value)
    assert mine.ask().values == (0.2,)


def test_checkpoints_of_trials_that_continue_each_other_have_one_folder(study):
    mine = study()
    for value in (0.9, 0.8, 0.1, 0.2, 0.3, 0.4):
        train(mine, value)
    told = mine.checkpoints(mine.ask())
    assert (told["rungs"], told["resume"], told["checkpoints"].name) == ((1, 3), True, "1")
    assert study(TEXT, "--pruner", "median").checkpoints(mine.ask()) == {}


def test_hyperband_promotes_within_the_bracket_of_the_first_trial(tmp_path):
    mine = open_study(None, make_search(tmp_path, TEXT.replace("asha", "hyperband")))
    pruner = mine.optuna_study.pruner
    for number in range(40):
        train(mine, 1 - number / 100)
    trials = mine.trials()
    promoted = [trial for trial in trials if CONTINUES in trial.user_attrs]
    assert promoted
    for trial in promoted:
        first = trials[root(trial)]
        assert pruner._bracket(mine.optuna_study, trial) == pruner._bracket(mine.optuna_study, first)


def test_trial_that_is_tried_again_goes_on_from_the_checkpoints_of_the_first_try(study):
    mine = study()
    first = mine.ask()
    assert not mine.checkpoints(first)["resume"]
    for epoch in (1, 2, 3, 4):
        assert not mine.report(first.number, epoch, 0.5)
    mine.requeue(first.number, node_lost=True)
    again = mine.ask()
    told = mine.checkpoints(again)
    assert (again.root, told["resume"], told["checkpoints"].name) == (0, True, "0")
    # which were reported before, and are compared again, but not with themselves
    assert not any(mine.report(again.number, epoch, 0.5) for epoch in (1, 2, 3))
    after = study()
    (stale,) = after.requeue_stale()
    assert stale.number == again.number and after.ask().root == 0


def test_epochs_from_a_checkpoint_count_once(study):
    mine = study()
    first = mine.ask()
    for epoch in (1, 2, 3, 4):
        mine.report(first.number, epoch, 0.5)
    mine.requeue(first.number)
    again = mine.ask()
    mine.set_trial_attrs(again.number, {EPOCHS: 9.0, RESUMED_AFTER: 3.0})
    mine.complete(again.number, [0.5])
    assert mine.epochs_trained() == 4 + 6 and mine.n_finished() == 1


def test_training_of_one_epoch_has_no_rung(study):
    mine = study(TEXT.replace("epochs: 9", "epochs: 1"))
    assert [train(mine, value, most=1)[1] for value in (0.9, 0.1)] == [1, 1]
    assert [trial.state.name for trial in mine.trials()] == ["COMPLETE"] * 2
    assert mine.optuna_study.pruner.rungs == []


def test_checkpoints_are_kept_until_the_trial_is_complete(study, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mine = study()
    folders = []
    for value in (0.9, 0.8):
        proposal = mine.ask()
        folders.append(mine.checkpoints(proposal)["checkpoints"])
        folders[-1].mkdir(parents=True)
        if mine.report(proposal.number, 1, value):
            mine.prune(proposal.number)
        else:
            mine.complete(proposal.number, [value])
    assert [folder.exists() for folder in folders] == [False, True]
