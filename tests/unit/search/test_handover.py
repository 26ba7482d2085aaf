"""What a search hands over: a refit of its winner, or the ensemble of its finalists; trainings are scripted."""

import numpy as np
import pytest

from pipeline.runtime.errors import UsageError
from pipeline.search.attributes import ENSEMBLE, TESTED, WINNER
from pipeline.search.study import Study
from pipeline.tracking.tags import Role, Tag, TrialOutcome
from pipeline.training.checkpoint import read_weights, write_weights
from tests.support.scripted import make_search, successful_trial, trial_result

# validation accuracy by depth and seed: the best mean is depth 2's
ACCURACY = {1: [0.90, 0.70], 2: [0.88, 0.86]}
TWO = "recipe: smoke\nspace: {depth: [1, 2]}\nsampler: grid\nfinal_top: 2\nfinal_seeds: 2\n"
BETTER = {"val_accuracy": 0.95, "winner_val_accuracy": 0.88, "p_value": 0.01, "parameters": 200.0}
NOISE = BETTER | {"p_value": 0.2}
WORSE = BETTER | {"val_accuracy": 0.80}


def answer_with(ensemble=BETTER):
    """Return what trains networks, which leave weights of their own, and measures an ensemble as given."""

    def answer(job):
        config = job.config
        if job.role == "final":
            write_weights(job.weights, [np.full(2, 10 * config.depth + config.seed, np.float32)])
            if config.refit:
                return successful_trial(job, 0.0)
            return successful_trial(job, ACCURACY[config.depth][config.seed])
        arrays = [float(array[0]) for array in read_weights(job.weights)]
        if job.members:
            assert arrays == [10 * member.depth + member.seed for member in job.members]
            assert job.members[0] == config
        if job.role == "ensemble":
            return [trial_result(job, **ensemble)]
        return [trial_result(job, test_accuracy=0.7)]

    return answer


train = answer_with()


@pytest.fixture
def finish(final):
    """Return a function that runs a search with flags to its end, and resumes it where a test calls it again."""

    def run(*flags, ensemble=BETTER, answer=None, **more):
        return final(answer or answer_with(ensemble), TWO, *flags, **more)

    return run


def roles(final):
    return [("refit" if job.config.refit else job.role) for job in final.executor.started]


def test_refit_trains_the_winner_once_more_and_is_what_is_tested_and_registered(finish, final):
    winner = finish("--refit", "true", "--register_as", "best")
    assert roles(final) == ["final"] * 4 + ["refit", "refit"]
    refit, tested = final.executor.started[-2:]
    assert (refit.role, tested.role) == ("final", "winner") and refit.weights == tested.weights
    assert (refit.config.depth, refit.config.seed, refit.config.epochs) == (2, 0, tested.config.epochs)
    assert tested.config.register_as == "best"
    assert winner["run_id"] == refit.run.run_id == tested.run.run_id
    assert final.study.get_attr(TESTED) == [winner["run_id"]]
    # what the search reports is still of validation
    assert winner["val_accuracy_mean"] == pytest.approx(0.87)
    child = final.runs.children[winner["run_id"]]
    assert (child["name"], child["role"]) == ("final t001 d2 seed 0, refit", Role.FINAL)
    presented = final.runs.presented[winner["run_id"]]
    assert presented["name"] == "winner t001 d2 seed 0, refit"
    assert "trained once more on training and validation images, test accuracy 70.00 %" in presented["description"]
    assert "--refit true" in presented["description"]
    (line,) = [line for line in final.lines if line.startswith("winner ")]
    assert "test accuracy 70.00 % of seed 0, trained once more on training and validation images, run" in line


def test_refit_of_a_finished_search_is_trained_later_and_not_twice(finish, final):
    first = finish()
    second = finish("--refit", "true")
    assert roles(final) == ["refit", "refit"]
    assert final.study.get_attr(TESTED) == [first["run_id"], second["run_id"]]
    assert any("as another model of the winner is handed over: model 2" in line for line in final.lines)
    assert final.runs.presented[first["run_id"]]["name"] == "final t001 d2 seed 0"
    assert finish("--refit", "true") == second and roles(final) == []


def test_refit_is_not_trained_again_where_a_further_seed_of_the_same_winner_is_its_best(finish, final):
    def answer(job):
        is_third = job.role == "final" and job.config.seed == 2
        return successful_trial(job, 0.5 + job.config.depth / 5) if is_third else answer_with()(job)

    first = finish("--refit", "true")
    second = finish("--refit", "true", "--final_seeds", "3", answer=answer)
    assert [job.config.seed for job in final.executor.started] == [2, 2]
    assert (second["run_id"], second["seed"], second["seeds"]) == (first["run_id"], 0, 3)
    assert final.study.get_attr(TESTED) == [first["run_id"]]


def test_winner_that_was_trained_anew_by_other_data_is_tested_again_and_the_search_says_why(finish, final):
    finish(data_fingerprint="a")
    finish(data_fingerprint="b")
    why = "the test set is evaluated again, as the winner was trained anew by other code or data: model 2 of this study"
    assert why in final.lines


def killed_when_setting(monkeypatch, key):
    set_attr = Study.set_attr
    monkeypatch.setattr(
        Study, "set_attr", lambda self, name, value: 1 / 0 if name == key else set_attr(self, name, value)
    )


@pytest.mark.parametrize("killed_at", [TESTED, WINNER])
def test_refit_of_a_search_that_was_killed_after_it_is_not_repeated(finish, final, monkeypatch, killed_at):
    with monkeypatch.context() as patched:
        killed_when_setting(patched, killed_at)
        with pytest.raises(ZeroDivisionError):
            finish("--refit", "true")
    finish("--refit", "true")
    assert [job.role for job in final.executor.started] == ["winner"]
    assert len(final.study.get_attr(TESTED)) == 1


def test_refit_that_fails_leaves_the_test_set_alone(finish, final):
    def answer(job):
        return [trial_result(job, TrialOutcome.DIVERGED, "gone")] if job.config.refit else answer_with()(job)

    assert finish("--refit", "true", answer=answer) is None
    assert final.study.get_attr(TESTED) is None
    assert "the winner could not be refitted: diverged: gone" in final.lines


def test_ensemble_beside_is_measured_on_validation_and_never_tested(finish, final):
    winner = finish("--ensemble", "beside")
    assert roles(final) == ["final"] * 4 + ["ensemble", "winner"]
    measured, tested = final.executor.started[-2:]
    # the winner's first
    assert [(member.depth, member.seed) for member in measured.members] == [(2, 0), (1, 0)]
    assert measured.metric == "val_accuracy" and not tested.members
    assert final.study.get_attr(TESTED) == [winner["run_id"]] != [measured.run.run_id]
    child = final.runs.children[measured.run.run_id]
    assert (child["name"], child["role"], child["parent"]) == ("ensemble of 2 finalists", Role.ENSEMBLE, None)
    assert child["tags"] == {Tag.ENSEMBLE: "t001 seed 0, t000 seed 0"}
    verdict = "val_accuracy 95.00 %, the winner's network alone 88.00 %: better beyond noise (p = 0.01)"
    verdict += ", logged beside the winner"
    assert f"ensemble  t001 seed 0, t000 seed 0: {verdict}; run {measured.run.run_id}" in final.lines
    assert verdict in final.runs.presented[measured.run.run_id]["description"]


def test_ensemble_is_of_the_winners_seed_as_another_one_may_split_the_data_otherwise(finish, final):
    def answer(job):
        # the best of depth 1 is seed 0, that of depth 2, the winner, seed 1
        if job.role == "final" and job.config.depth == 2:
            answer_with()(job)
            return successful_trial(job, [0.86, 0.88][job.config.seed])
        return answer_with()(job)

    finish("--ensemble", "beside", answer=answer)
    (measured,) = [job for job in final.executor.started if job.role == "ensemble"]
    assert [(member.depth, member.seed) for member in measured.members] == [(2, 1), (1, 1)]
    assert final.study.get_attr(ENSEMBLE)["networks"] == ["t001 seed 1", "t000 seed 1"]
    # the weights of the same networks are trained again where they are gone
    finish("--ensemble", "replace", answer=answer)
    assert [(job.role, job.config.depth, job.config.seed) for job in final.executor.started] == [
        ("final", 2, 1),
        ("final", 1, 1),
        ("ensemble", 2, 1),
        ("winner", 2, 1),
    ]


def test_finalist_without_a_network_of_the_winners_seed_is_not_in_the_ensemble(finish, final):
    def answer(job):
        is_gone = job.role == "final" and (job.config.depth, job.config.seed) == (1, 0)
        return [trial_result(job, TrialOutcome.DIVERGED, "gone")] if is_gone else answer_with()(job)

    assert finish("--ensemble", "replace", answer=answer)["model"] == "training"
    assert "ensemble" not in roles(final)


def test_ensemble_that_is_better_replaces_the_winner_where_it_is_asked_for(finish, final):
    winner = finish("--ensemble", "replace")
    assert roles(final) == ["final"] * 4 + ["ensemble", "winner"]
    measured, tested = final.executor.started[-2:]
    assert tested.members == measured.members and tested.run == measured.run
    assert (winner["model"], winner["networks"], winner["run_id"]) == ("ensemble", 2, tested.run.run_id)
    assert final.study.get_attr(TESTED) == [tested.run.run_id]
    presented = final.runs.presented[tested.run.run_id]
    assert presented["name"] == "winner ensemble of 2 finalists" and presented[Tag.WINNER] == tested.run.run_id
    assert any(line.endswith(f"of the ensemble of 2 finalists, run {tested.run.run_id}") for line in final.lines)
    assert finish("--ensemble", "replace") == winner and roles(final) == []


@pytest.mark.parametrize("ensemble", [NOISE, WORSE], ids=["noise", "worse"])
def test_ensemble_that_is_not_better_beyond_noise_leaves_the_winner_its_place(finish, final, ensemble):
    winner = finish("--ensemble", "replace", ensemble=ensemble)
    assert (winner["model"], winner["params"]) == ("training", {"depth": 2})
    assert final.study.get_attr(TESTED) == [winner["run_id"]]
    assert any("not better beyond noise" in line for line in final.lines)


def test_ensemble_of_a_finished_search_trains_the_networks_again_whose_weights_are_gone(finish, final):
    first = finish()
    second = finish("--ensemble", "beside")
    assert roles(final) == ["final", "final", "ensemble"]
    assert sum("are gone: it is trained again" in line for line in final.lines) == 2
    assert second["run_id"] == first["run_id"] and final.study.get_attr(TESTED) == [first["run_id"]]


@pytest.mark.parametrize("killed_at", [TESTED, WINNER])
def test_ensemble_of_a_search_that_was_killed_after_it_is_not_measured_again(finish, final, monkeypatch, killed_at):
    with monkeypatch.context() as patched:
        killed_when_setting(patched, killed_at)
        with pytest.raises(ZeroDivisionError):
            finish("--ensemble", "replace")
    winner = finish("--ensemble", "replace")
    assert roles(final) == ["winner"] and winner["model"] == "ensemble"
    assert len(final.study.get_attr(TESTED)) == 1


def test_ensemble_that_was_killed_while_it_was_measured_goes_on_in_its_run(finish, final):
    def kill(job):
        if job.role == "ensemble":
            raise KeyboardInterrupt
        return answer_with()(job)

    with pytest.raises(KeyboardInterrupt):
        finish("--ensemble", "beside", answer=kill)
    finish("--ensemble", "beside")
    assert roles(final) == ["ensemble", "winner"]
    assert [child["role"] for child in final.runs.children.values()].count(Role.ENSEMBLE) == 1
    assert final.study.get_attr(ENSEMBLE)["metrics"]["val_accuracy"] == 0.95


def test_ensemble_of_one_trained_configuration_is_none(finish, final):
    def answer(job):
        is_other = job.role == "final" and job.config.depth == 1
        return [trial_result(job, TrialOutcome.DIVERGED, "gone")] if is_other else answer_with()(job)

    assert finish("--ensemble", "replace", answer=answer)["model"] == "training"
    assert "ensemble  none, as no other configuration has a network of seed 0" in final.lines


def test_refit_and_an_ensemble_beside_it_are_both_made(finish, final):
    winner = finish("--refit", "true", "--ensemble", "beside")
    assert roles(final) == ["final"] * 4 + ["ensemble", "refit", "refit"]
    assert winner["model"] == "refit" and final.study.get_attr(TESTED) == [winner["run_id"]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ensemble", "replace", "--refit", "true"], "ensemble must be none or beside with refit"),
        (["--ensemble", "beside", "--final_top", "1"], "final_top must be at least 2 with ensemble=beside"),
        (["--refit", "true", "--final_top", "0"], "final_top must be at least 1 with refit"),
        (["--refit", "true", "--early_stopping_epochs", "3"], "early_stopping_epochs must be none with refit"),
    ],
)
def test_search_refuses_what_cannot_be_handed_over(tmp_path, flags, message):
    with pytest.raises(UsageError, match=message):
        make_search(tmp_path, TWO, *flags)


def test_trials_of_a_search_with_refit_are_validated(tmp_path):
    spec = make_search(tmp_path, TWO, "--refit", "true")
    assert spec.refit and not spec.base.refit and not spec.config({"depth": 2}).refit
    assert spec.fingerprint("data") == make_search(tmp_path, TWO).fingerprint("data")
