"""Grouping runs by their settings and data."""

from math import isnan

import pytest

from pipeline.evaluation.report.groups import choose_metric, differing_settings, group_runs, parse_settings
from tests.support.leaderboard_rows import EMPTY_RECORD


def make_record(run_id, name="a", *, accuracy=0.5, state="finished", fingerprint="d0", recipe="", **params):
    return EMPTY_RECORD._replace(
        id=run_id,
        name=name,
        state=state,
        fingerprint=fingerprint,
        recipe=recipe,
        params={"dataset": "digits"} | params,
        metrics={"test_accuracy": accuracy},
    )


def group(*runs, metric="test_accuracy"):
    return group_runs(runs, {run.id: parse_settings(run) for run in runs}, metric)


def run_ids(groups):
    return [[run.id for run in group.runs] for group in groups]


def test_parse_settings_gives_one_spelling_of_equal_values():
    runs = [
        make_record("1", learning_rate="1e-3", flip="True"),
        make_record("2", learning_rate="0.001", flip="true", seed="1"),
    ]
    assert run_ids(group(*runs)) == [["1", "2"]]


def test_parse_settings_of_another_version_are_the_parameters_as_logged():
    assert parse_settings(make_record("1", depth="-3"))["depth"] == "-3"


def test_group_runs_ignores_the_seed_and_settings_that_change_no_result():
    runs = [
        make_record("b", seed="2"),
        make_record("a", seed="10"),
        make_record("c", checkpoint_minutes="3"),
        make_record("d", seed="3", steps_per_execution="16", data_on="device"),
        make_record("e", depth="3"),
    ]
    assert run_ids(group(*runs)) == [["c", "b", "d", "a"], ["e"]]


def test_group_runs_keeps_the_folds_of_a_run_apart():
    folds = [make_record(number, f"fold {number}", folds="2")._replace(role="fold") for number in "12"]
    assert sorted(run_ids(group(*folds))) == [["1"], ["2"]]


def test_group_runs_separates_data_by_fingerprint_and_not_by_path():
    runs = [
        make_record("1", fingerprint="d0"),
        make_record("2", fingerprint="d1"),
        make_record("3", dataset="/else/where", seed="1"),
    ]
    assert sorted(run_ids(group(*runs))) == [["1", "3"], ["2"]]


def test_group_runs_puts_unfinished_runs_in_a_group_of_their_own_at_the_end():
    better = make_record("2", accuracy=0.9, state="running"), make_record("3", accuracy=0.8, state="failed")
    groups = group(make_record("1", accuracy=0.4), *better)
    assert run_ids(groups) == [["1"], ["2", "3"]]
    assert [group.state for group in groups] == ["finished", "running, failed"]


def test_group_runs_counts_a_repeated_seed_once_unless_unfinished():
    runs = [make_record("newest", seed="1"), make_record("before", seed="1"), make_record("other", seed="2")]
    assert run_ids(group(*runs)) == [["newest", "other"]]
    assert run_ids(group(*[run._replace(state="running") for run in runs])) == [["before", "newest", "other"]]


def test_group_runs_supersedes_the_older_run_of_a_seed_in_any_order():
    old, new = make_record("old", accuracy=0.5), make_record("new", accuracy=0.4)
    groups = group(old._replace(start_time=1), new._replace(start_time=2))
    assert run_ids(groups) == [["new"]] and [run.id for run in groups[0].superseded] == ["old"]
    assert groups[0].values("test_accuracy").tolist() == [0.4]


def test_mean_metric_includes_the_latency_of_a_superseded_trial():
    trial, final = make_record("trial"), make_record("final")
    timed = trial._replace(start_time=1, metrics=trial.metrics | {"latency_ms": 3.0})
    groups = group(final._replace(start_time=2), timed)
    assert run_ids(groups) == [["final"]] and groups[0].mean_metric("latency_ms") == 3.0


def test_group_runs_orders_by_the_best_mean():
    runs = (
        make_record("1", accuracy=0.9),
        make_record("2", accuracy=0.5, seed="1"),
        make_record("3", accuracy=0.8, depth="2"),
    )
    assert run_ids(group(*runs)) == [["3"], ["1", "2"]]


@pytest.mark.parametrize(
    ("names", "recipe", "expected"),
    [
        (["final 1 k3 seed 0", "final 1 k3 seed 1"], "", "final 1 k3"),
        (["my own"], "digits", "my own"),
        (["first", "second"], "digits", "digits"),
        (["winner t003 k3 seed 0"], "", "winner t003 k3"),
        (["seed 3"], "", "seed 3"),
    ],
)
def test_group_name_is_the_common_run_name_without_seed_or_the_recipe(names, recipe, expected):
    runs = [make_record(str(seed), name, seed=str(seed), recipe=recipe) for seed, name in enumerate(names)]
    assert group(*runs)[0].name == expected


def of_search(record, role, *, winner=False, **fields):
    return record._replace(role=role, study="mine", is_winner=winner, **fields)


def test_group_runs_ranks_trials_apart_from_finals_of_their_search():
    finals = [of_search(make_record(f"f{seed}", seed=str(seed), accuracy=0.8), "final") for seed in range(2)]
    same, lucky = (of_search(make_record(f"t{depth}", accuracy=0.9, depth=depth), "trial") for depth in ("5", "2"))
    killed = of_search(make_record("t3", accuracy=0.99, depth="3", state="pruned"), "trial")
    same = same._replace(params={"dataset": "digits"})
    groups = group(*finals, same, lucky, killed)
    assert run_ids(groups) == [["f0", "f1"], ["t2"], ["t3"]]
    assert [each.is_ranked_apart for each in groups] == [False, True, True]
    assert [run.id for run in groups[0].superseded] == ["t5"], "the finals say more of its settings than it does"
    assert [each.kind for each in groups] == ["final", "trial", "trial"]


def test_group_runs_ranks_trials_of_a_search_without_finals_with_other_runs():
    groups = group(make_record("plain", accuracy=0.8), of_search(make_record("t2", accuracy=0.9, depth="2"), "trial"))
    assert run_ids(groups) == [["t2"], ["plain"]] and not groups[0].is_ranked_apart


def test_group_runs_puts_the_winner_first_only_among_the_finals_of_its_search():
    winner = of_search(make_record("w", accuracy=0.8), "final", winner=True)
    other = of_search(make_record("f", accuracy=0.9, depth="2"), "final")
    assert run_ids(group(winner, other)) == [["w"], ["f"]]
    assert group(winner, other)[0].kind == "winner"
    assert run_ids(group(winner, other, make_record("plain", accuracy=0.85, depth="3"))) == [["f"], ["plain"], ["w"]]


def test_group_of_a_superseded_winner_is_the_winners():
    winner = of_search(make_record("w", accuracy=0.8), "final", winner=True)
    (found,) = group(winner, of_search(make_record("again"), "final", start_time=1))
    assert run_ids([found]) == [["again"]] and found.kind == "winner" and found.study == "mine"


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([{"depth": "2", "flip": "true"}, {"depth": "3", "flip": "true"}], ["a depth=2", "a depth=3"]),
        (
            [{"depth": "2", "filters": "8"}, {"depth": "2", "filters": "16"}, {"depth": "3", "filters": "8"}],
            ["a filters=16, depth=2", "a filters=8, depth=2", "a filters=8, depth=3"],
        ),
        ([{"fingerprint": "d1"}, {"fingerprint": "d2"}], ["a data=d1", "a data=d2"]),
        ([{"depth": "2"}, {"depth": "3", "name": "b"}], ["a", "b"]),
    ],
)
def test_groups_of_one_name_get_the_fewest_settings_that_tell_them_apart(records, expected):
    runs = [make_record(str(number), **record) for number, record in enumerate(records)]
    assert sorted(each.name for each in group(*runs)) == expected


def test_groups_that_differ_in_nothing_but_their_state_keep_their_name():
    names = [each.name for each in group(make_record("1"), make_record("2", state="running"))]
    assert names == ["a", "a"]


def test_metric_value_falls_back_to_the_last_accuracy_for_unfinished_runs_only():
    metrics = {"val_accuracy": 0.7}
    groups = group(
        make_record("1", state="running")._replace(metrics=metrics),
        make_record("2")._replace(metrics=metrics),
        metric="best_val_accuracy",
    )
    values = {group.runs[0].id: group.values("best_val_accuracy")[0] for group in groups}
    assert values["1"] == 0.7 and isnan(values["2"])


def test_differing_settings_leaves_out_equal_ones():
    groups = group(
        make_record("1", depth="2", learning_rate="1e-3"), make_record("2", depth="3", learning_rate="0.001", seed="4")
    )
    table = differing_settings(groups)
    assert list(table) == ["depth"] and sorted(table["depth"]) == ["2", "3"]


def test_choose_metric_prefers_test_accuracy_if_half_of_the_runs_have_it():
    tested, untested = make_record("1"), make_record("2")._replace(metrics={"best_val_accuracy": 0.5})
    assert choose_metric([tested, untested]) == "test_accuracy"
    assert choose_metric([tested, untested, untested]) == "best_val_accuracy"


def test_choose_metric_is_what_all_runs_monitor():
    tested, untested = ({"test_loss": 0.5, "test_accuracy": 0.5}, {"best_val_loss": 0.5})
    by_loss, other = (make_record(run, monitor="val_loss")._replace(metrics=tested) for run in "12")
    assert choose_metric([by_loss, other]) == "test_loss"
    assert choose_metric([by_loss._replace(metrics=untested)]) == "best_val_loss"
    assert choose_metric([by_loss, make_record("3")]) == "test_accuracy"


def test_groups_by_loss_have_the_lowest_first():
    low, high = (make_record(run, depth=run)._replace(metrics={"test_loss": float(run)}) for run in "12")
    assert [each.runs[0].id for each in group(high, low, metric="test_loss")] == ["1", "2"]


@pytest.mark.parametrize("name", ["winner t003 k3 seed 0", "final 2 t003 k3 seed 1", "final t003 k3"])
def test_group_name_of_a_search_s_final_has_no_place(name):
    assert group(of_search(make_record("1", name), "final"))[0].name == "t003 k3"


def measured(record, role, *, accuracy=None, winner=False, **metrics):
    metrics = metrics if accuracy is None else {"best_val_accuracy": accuracy, **metrics}
    return of_search(record, role, winner=winner, metrics=metrics)


FINALS = [
    measured(make_record("a0", "final t001 d2 seed 0", depth="2"), "final", accuracy=0.8),
    measured(make_record("a1", "final t001 d2 seed 1", depth="2", seed="1"), "final", accuracy=0.7),
    measured(make_record("b0", "final t000 d1 seed 0", depth="1"), "final", accuracy=0.6),
]
REFIT = measured(make_record("r", depth="2", seed="0", refit="true"), "final", winner=True, test_accuracy=0.9)


def test_refit_of_a_search_s_winner_joins_its_finals_and_leaves_their_validation_accuracy():
    best, other = group(*FINALS, REFIT._replace(test_set_accesses=1), metric="best_val_accuracy")
    assert (best.kind, best.traits, run_ids([best])) == ("winner", ["refit"], [["a0", "a1"]])
    assert best.values("best_val_accuracy").tolist() == [0.8, 0.7] and best.mean_metric("test_accuracy") == 0.9
    assert best.test_set_accesses == 1 and (other.kind, other.traits) == ("final", [])


def test_refit_without_its_finals_is_a_group_of_its_own():
    (alone,) = group(REFIT)
    assert (run_ids([alone]), alone.traits, alone.kind) == ([["r"]], ["refit"], "winner")


def test_ensemble_is_ranked_by_its_validation_accuracy_and_has_the_settings_that_it_logged():
    ensemble = measured(make_record("e", "ensemble of 2 finalists", seed="0"), "ensemble", val_accuracy=0.75)
    best, second, _ = group(*FINALS, ensemble, metric="best_val_accuracy")
    assert run_ids([best, second]) == [["e"], ["a0", "a1"]] or run_ids([second, best]) == [["e"], ["a0", "a1"]]
    found = best if best.runs[0].id == "e" else second
    assert found.traits == ["ensemble"] and found.settings == {"dataset": "digits"}
    assert found.values("best_val_accuracy").tolist() == [0.75]


def test_group_without_the_metric_comes_last():
    refit = make_record("r", refit="true")._replace(metrics={"test_accuracy": 0.99})
    validated = [make_record(str(seed), seed=str(seed))._replace(metrics={"best_val_accuracy": 0.5}) for seed in (0, 1)]
    assert run_ids(group(refit, *validated, metric="best_val_accuracy")) == [["0", "1"], ["r"]]


def test_models_of_a_group_are_each_named_once():
    models = ("weights from models:/m-1 of run abc", "taught by models:/m-2")
    runs = [make_record(str(seed), seed=str(seed))._replace(models=models) for seed in (0, 1)]
    (one,) = group(*runs)
    assert one.models == list(models)
