"""Pruners: after which epochs each stops which trials."""

import typing
from functools import partial

import pytest

from pipeline.config.search import SearchConfig
from pipeline.search.pruners import PRUNERS, build_pruner
from tests.support.scripted import make_search, open_study

TEXT = "recipe: smoke\nepochs: 9\nspace: {learning_rate: {low: 1e-4, high: 0.1, log: true}}\n"


@pytest.fixture
def epochs_of(tmp_path):
    """Returns after how many epochs each trial ended whose values are these at all epochs, or by epoch."""

    def ended(pruner, curves, *flags, text=TEXT):
        study = open_study(None, make_search(tmp_path, text, "--pruner", pruner, *flags))
        ends = []
        for curve in curves:
            number = study.ask().number
            values = curve if isinstance(curve, list) else [curve] * 9
            for epoch, value in enumerate(values, start=1):
                if study.report(number, epoch, value):
                    study.prune(number)
                    break
            else:
                study.complete(number, [max(values)])
            ends.append(epoch)
        return ends

    return ended


def test_every_pruner_of_the_settings_is_registered():
    assert set(PRUNERS) == set(typing.get_args(SearchConfig.model_fields["pruner"].annotation))


def test_no_pruner_stops_no_trial(epochs_of):
    assert epochs_of("none", [0.9, 0.1, 0.2]) == [9, 9, 9]


def test_median_stops_a_worse_trial_after_half_of_the_epochs(epochs_of):
    assert epochs_of("median", [0.4, 0.5, 0.6, 0.3, 0.7], "--pruner_trials", "3") == [9, 9, 9, 4, 9]


def test_median_of_folds_stops_a_worse_trial_after_half_of_them(tmp_path):
    text = "recipe: smoke\nepochs: 9\nfolds: 4\nspace: {learning_rate: {low: 1e-4, high: 0.1, log: true}}\n"
    study = open_study(None, make_search(tmp_path, text, "--pruner_trials", "1"))
    ended = []
    for value in (0.6, 0.3, 0.7):
        number = study.ask().number
        # after each fold there is the mean of those so far
        ends = [epochs for epochs in (9, 18, 27, 36) if study.report(number, epochs, value)]
        study.complete(number, [value])
        ended.append(ends[:1])
    assert ended == [[], [18], []]


def test_percentile_keeps_only_the_best_so_many_percent(epochs_of):
    flags = ["--pruner_trials", "4", "--pruner_epochs", "2", "--pruner_percentile", "25"]
    assert epochs_of("percentile", [0.1, 0.2, 0.3, 0.4, 0.29, 0.35], *flags) == [9, 9, 9, 9, 2, 9]


def test_asha_keeps_the_best_third_at_each_rung(epochs_of):
    # the last one is among the best two of six, but not the best of three
    flags = ["--pruner_epochs", "1"]
    assert epochs_of("asha", [0.5, 0.4, 0.3, 0.6, 0.1, 0.55], *flags) == [9, 1, 1, 9, 1, 3]
    build = partial(build_pruner, SearchConfig.build({}))
    assert [build(epochs=epochs).rungs for epochs in (1, 2, 9, 100)] == [[], [1], [4], [50]]
    assert build_pruner(SearchConfig.build({"pruner_epochs": 2}), epochs=20).rungs == [2, 6, 18]


def test_hyperband_spreads_trials_over_brackets_with_different_first_rungs(epochs_of):
    ends = epochs_of("hyperband", [1 - number / 100 for number in range(30)])
    assert {1, 3, 9} <= set(ends)
    build = partial(build_pruner, SearchConfig.build({"pruner": "hyperband"}))
    assert [build(epochs=epochs).rungs for epochs in (1, 2, 9, 100)] == [[], [1], [1, 3], [11, 33, 99]]


def test_patience_stops_a_trial_that_has_stopped_improving(epochs_of):
    rising, falling = [0.1 * epoch for epoch in range(9)], [0.5, 0.6, 0.55, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert epochs_of("patience", [rising, falling]) == [9, 5]
    assert epochs_of("patience", [falling], "--pruner_patience", "5") == [8]


def test_pruner_of_searched_epochs_goes_by_the_most_of_them(epochs_of):
    text = "recipe: smoke\nspace: {epochs: [3, 9], learning_rate: {low: 1e-4, high: 0.1, log: true}}\n"
    assert epochs_of("median", [0.5, 0.6, 0.1], "--pruner_trials", "2", text=text) == [9, 9, 4]
