"""Configurations that are not trained twice, in a real Optuna storage."""

import pytest

from pipeline.search.attributes import DUPLICATE_OF
from pipeline.search.trial_states import enqueue
from tests.support.scripted import DISCRETE, finish, states


def test_configurations_that_train_alike_are_trained_once(study):
    text = "recipe: smoke\nrandaugment_layers: 0\nspace: {randaugment_magnitude: [3, 6, 9], depth: [1, 2]}\n"
    mine = study(text, "--sampler", "random")
    assert len(finish(mine, 2)) == 2 and mine.ask() is None
    assert mine.n_feasible() == 2 and mine.search.n_configurations() == 6
    assert study(text, "--sampler", "random").ask() is None


def test_enqueued_configuration_that_trains_like_another_is_skipped_and_named(study):
    enqueue = "enqueue: [{layers: 0, magnitude: 3}, {layers: 0, magnitude: 9}]"
    enqueue = enqueue.replace("layers", "randaugment_layers").replace("magnitude", "randaugment_magnitude")
    mine = study("recipe: smoke\nspace: {randaugment_layers: [0, 1], randaugment_magnitude: [3, 9]}\n" + enqueue)
    skipped = []
    mine.on_skipped = lambda number, params, reason: skipped.append((number, reason))
    first, second = finish(mine, 2)
    assert first.params["randaugment_layers"] == 0 and second.params["randaugment_layers"] == 1
    assert skipped[0] == (1, "the same as t000, not trained again")


def test_trial_that_died_while_it_was_drawn_is_like_no_other(study):
    mine = study(DISCRETE)
    mine.optuna_study.ask()
    first, second = finish(study(DISCRETE), 2)
    assert first.params.keys() == second.params.keys() == {"kernel_size", "depth"}


def test_tpe_draws_duplicates_before_a_small_space_is_exhausted(study):
    mine = study(DISCRETE)
    for number in range(6):  # what makes the record worth keeping
        mine.complete(mine.ask().number, [0.1 * number])
    assert any(DUPLICATE_OF in trial.user_attrs for trial in mine.trials())


def test_running_configuration_is_not_proposed_again(study):
    mine = study(DISCRETE)
    running = mine.ask()
    enqueue(mine.optuna_study, running.params)
    assert mine.ask().params != running.params
    assert states(mine)[1] == "FAIL"
    assert mine.trials()[1].user_attrs[DUPLICATE_OF] == 0


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_abandoned_configuration_is_not_proposed_again_until_another_driver_starts(study, sampler):
    mine = study(DISCRETE, "--sampler", sampler)
    bad = mine.ask()
    mine.fail(bad.number, retry=False)
    assert bad.params not in [one.params for one in finish(mine, 5)]
    assert mine.ask() is None
    assert study(DISCRETE, "--sampler", sampler).ask().params == bad.params  # its cause may have been mended
