"""Which runs are one recipe."""

from math import isnan

import pytest

from pipeline.evaluation.report.groups import differing_settings, group_runs, settings_of, usual_metric
from tests.support.leaderboard_rows import EMPTY_RECORD


def run(run_id, name="a", *, accuracy=0.5, state="finished", fingerprint="d0", recipe="", **params):
    return EMPTY_RECORD._replace(
        id=run_id,
        name=name,
        state=state,
        fingerprint=fingerprint,
        recipe=recipe,
        params={"dataset": "digits"} | params,
        metrics={"test_accuracy": accuracy},
    )


def grouped(*runs, metric="test_accuracy"):
    return group_runs(runs, {one.id: settings_of(one) for one in runs}, metric)


def ids(found):
    return [[one.id for one in recipe.runs] for recipe in found]


def test_a_value_is_one_however_a_person_spelled_it():
    runs = [run("1", learning_rate="1e-3", flip="True"), run("2", learning_rate="0.001", flip="true", seed="1")]
    assert ids(grouped(*runs)) == [["1", "2"]]


def test_a_recipe_is_all_settings_but_the_seed_and_what_changes_no_result():
    runs = [run("b", seed="2"), run("a", seed="10"), run("c", checkpoint_minutes="3"), run("d", depth="3")]
    assert ids(grouped(*runs)) == [["c", "b", "a"], ["d"]]


def test_runs_on_different_data_are_different_recipes_and_the_same_data_may_lie_elsewhere():
    runs = [run("1", fingerprint="d0"), run("2", fingerprint="d1"), run("3", dataset="/else/where", seed="1")]
    assert sorted(ids(grouped(*runs))) == [["1", "3"], ["2"]]


def test_what_has_not_finished_is_apart_and_last():
    better = run("2", accuracy=0.9, state="running"), run("3", accuracy=0.8, state="failed")
    found = grouped(run("1", accuracy=0.4), *better)
    assert ids(found) == [["1"], ["2", "3"]]
    assert [recipe.state for recipe in found] == ["finished", "running, failed"]


def test_a_run_again_with_the_same_seed_is_no_further_seed():
    runs = [run("newest", seed="1"), run("before", seed="1"), run("other", seed="2")]
    assert ids(grouped(*runs)) == [["newest", "other"]]
    assert ids(grouped(*[one._replace(state="running") for one in runs])) == [["before", "newest", "other"]]


def test_the_newest_counts_in_whatever_order_they_are_named():
    old, new = run("old", accuracy=0.5), run("new", accuracy=0.4)
    found = grouped(old._replace(start_time=1), new._replace(start_time=2))
    assert ids(found) == [["new"]] and [one.id for one in found[0].repeats] == ["old"]
    assert found[0].values("test_accuracy").tolist() == [0.4]


def test_a_finalist_has_the_latency_of_its_trial():
    trial, final = run("trial"), run("final")
    found = grouped(
        final._replace(start_time=2), trial._replace(start_time=1, metrics=trial.metrics | {"latency_ms": 3.0})
    )
    assert ids(found) == [["final"]] and found[0].figure("latency_ms") == 3.0


def test_the_best_mean_is_first():
    found = grouped(run("1", accuracy=0.9), run("2", accuracy=0.5, seed="1"), run("3", accuracy=0.8, depth="2"))
    assert ids(found) == [["3"], ["1", "2"]]


@pytest.mark.parametrize(
    ("names", "recipe", "expected"),
    [
        (["final 1 k3 seed 0", "final 1 k3 seed 1"], "", "final 1 k3"),
        (["my own"], "digits", "my own"),
        (["first", "second"], "digits", "digits"),
        (["seed 3"], "", "seed 3"),
    ],
)
def test_a_recipe_is_called_what_its_runs_are_called_without_their_seed(names, recipe, expected):
    runs = [run(str(seed), name, seed=str(seed), recipe=recipe) for seed, name in enumerate(names)]
    assert grouped(*runs)[0].name == expected


def test_of_a_run_that_goes_on_the_last_accuracy_stands_for_the_best_and_of_a_finished_one_it_does_not():
    figures = {"val_accuracy": 0.7}
    found = grouped(
        run("1", state="running")._replace(metrics=figures),
        run("2")._replace(metrics=figures),
        metric="best_val_accuracy",
    )
    values = {recipe.runs[0].id: recipe.values("best_val_accuracy")[0] for recipe in found}
    assert values["1"] == 0.7 and isnan(values["2"])


def test_settings_of_another_version_are_taken_as_they_stand():
    assert settings_of(run("1", depth="-3"))["depth"] == "-3"


def test_only_settings_that_differ_are_told():
    found = grouped(run("1", depth="2", learning_rate="1e-3"), run("2", depth="3", learning_rate="0.001", seed="4"))
    table = differing_settings(found)
    assert list(table) == ["depth"] and sorted(table["depth"]) == ["2", "3"]


def test_test_accuracy_ranks_where_half_of_the_runs_have_it():
    tested, untested = run("1"), run("2")._replace(metrics={"best_val_accuracy": 0.5})
    assert usual_metric([tested, untested]) == "test_accuracy"
    assert usual_metric([tested, untested, untested]) == "best_val_accuracy"
