"""Retraining the finalists and evaluating the winner; trainings are scripted."""

import mlflow
import pytest

from pipeline.runtime.errors import ClusterLost, SearchFailed
from pipeline.search.attributes import FINAL, TESTED, WINNER
from pipeline.search.finalists import FinalistTraining
from pipeline.search.study import Study
from pipeline.tracking.study_run import open_study_run
from pipeline.tracking.tags import RunOutcome, Tag, TrialOutcome
from tests.support.scripted import (
    DISCRETE,
    RecordingRuns,
    ScriptedExecutor,
    make_search,
    open_study,
    search_context,
    successful_trial,
    trial_result,
)

# validation accuracy by depth and seed: the best single seed is depth 1's, the best mean depth 2's
ACCURACY = {1: [0.95, 0.50, 0.50], 2: [0.80, 0.82, 0.84]}
TWO = "recipe: smoke\nspace: {depth: [1, 2]}\nsampler: grid\nfinal_top: 2\nfinal_seeds: 3\n"


def train(job):
    """Leave weights as a training does; evaluate a winner."""
    if job.role == "winner":
        assert job.weights.read_text() == weights_of(job)
        return [trial_result(job, test_accuracy=0.7, latency_ms=3.0)]
    job.weights.write_text(weights_of(job))
    return successful_trial(job, ACCURACY[job.config.depth][job.config.seed], loss=float(job.config.seed))


def weights_of(job):
    return f"depth {job.config.depth} seed {job.config.seed}"


def roles(final):
    return [job.role for job in final.executor.started]


def test_finalists_are_trained_with_each_seed_and_only_the_winner_by_mean_is_tested_once(final):
    figures = final()
    jobs = final.executor.started
    assert roles(final) == ["final"] * 6 + ["winner"]
    assert {(job.config.depth, job.config.seed) for job in jobs[:6]} == {(d, s) for d in (1, 2) for s in (0, 1, 2)}
    assert len({job.number for job in jobs}) == 7 and all(job.number < 0 for job in jobs)  # apart from trials
    winner = jobs[-1]
    assert (winner.config.depth, winner.config.seed) == (2, 2)  # its best seed, in the run that trained it
    assert winner.run == next(job.run for job in jobs if (job.config.depth, job.config.seed) == (2, 2))
    assert figures["test_accuracy"] == 0.7
    assert figures["val_accuracy_mean"] == pytest.approx(0.82)
    assert figures["val_accuracy_sd"] == pytest.approx(0.02)
    kept = final.study.get_attr(WINNER)
    assert kept == figures
    assert (kept["trial"], kept["params"], kept["seed"], kept["seeds"]) == (1, {"depth": 2}, 2, 3)
    assert (kept["run_id"], kept["trials"]) == (winner.run.run_id, 2)
    assert [(one["trial"], one["mean"]) for one in kept["standings"]] == [
        (1, pytest.approx(0.82)),
        (0, pytest.approx(0.65)),
    ]
    assert final.lines[-1] == (
        "winner    t001 d2: val_accuracy 82.00 ± 2.00 % (mean of 3 seeds); test accuracy 70.00 % of seed 2, run "
        + winner.run.run_id
    )


def test_only_the_winner_is_registered_and_the_terminal_shows_the_registration(final):
    final(train, TWO, "--register_as", "best")
    winner = final.executor.started[-1]
    assert winner.config.register_as == "best"
    assert final.lines[-1] == f"registry  the model of {winner.run.run_id}"


def test_winner_is_named_tagged_and_described_in_its_own_run(final):
    final()
    run_id = final.study.get_attr(WINNER)["run_id"]
    presented = final.runs.presented[run_id]
    assert final.runs.children[run_id]["name"] == "final t001 d2 seed 2"
    assert presented["name"] == "winner t001 d2 seed 2"
    assert presented[Tag.WINNER] == run_id
    assert "test accuracy 70.00 %" in presented["description"] and "best of 2 finalists" in presented["description"]
    assert [run for run, shown in final.runs.presented.items() if Tag.WINNER in shown] == [run_id]


def test_finalists_and_their_trainings_are_described(final):
    final()
    children = final.runs.children
    finalist = next(run_id for run_id, child in children.items() if child["name"] == "final t000 d1")
    assert "mean `val_accuracy` of 65.00 ± 25.98 % with 3 seeds" in final.runs.presented[finalist]["description"]
    training = next(run_id for run_id, child in children.items() if child["name"] == "final t000 d1 seed 1")
    description = final.runs.presented[training]["description"]
    assert "`val_accuracy` 50.00 %, at the best of 1 epoch" in description
    assert "--depth 1 --seed 1" in description


def test_finalist_has_the_parameters_that_its_trainings_share(final):
    final()
    finalists = [run_id for run_id, child in final.runs.children.items() if child["parent"] is None]
    assert final.runs.params.keys() == set(finalists)
    assert [final.runs.params[run_id]["depth"] for run_id in finalists] == ["1", "2"]
    assert all("seed" not in params and "auto" not in params.values() for params in final.runs.params.values())


def test_final_at_chance_fails_and_does_not_evaluate_the_test_set(final):
    with pytest.raises(SearchFailed, match=r"best mean val_accuracy is 82.00 %, and guessing reaches up to 83.00 %"):
        final(guessing=0.83)
    assert all(job.role == "final" for job in final.executor.started)
    assert final.study.get_attr(WINNER) is None
    assert not [run_id for run_id in final.runs.children if run_id not in final.runs.closed | final.runs.finished]


def test_final_top_limits_the_finalists(final):
    final(train, TWO, "--final_top", "1", "--final_seeds", "2")
    assert [job.config.depth for job in final.executor.started] == [1, 1, 1]


def test_one_seed_has_a_mean_and_no_standard_deviation(final):
    figures = final(train, TWO, "--final_seeds", "1")
    assert figures["val_accuracy_mean"] == 0.95 and "val_accuracy_sd" not in figures


def test_two_seeds_have_a_standard_deviation(final):
    assert final(train, TWO, "--final_seeds", "2")["val_accuracy_sd"] == pytest.approx(0.014142, abs=1e-6)


def test_finalists_use_every_slot(final):
    final(slots=4)
    assert final.executor.most == 4


def test_trainings_have_runs_below_the_run_of_their_finalist(final):
    final()
    children = final.runs.children
    parents = {run_id: child for run_id, child in children.items() if child["parent"] is None}
    assert [child["name"] for child in parents.values()] == ["final t000 d1", "final t001 d2"]
    assert {child["role"] for child in children.values()} == {"final"}
    assert [child["parent"] for child in children.values() if child["parent"]] == [
        parent for parent in parents for _ in range(3)
    ]
    assert final.runs.finished == dict.fromkeys(parents, TrialOutcome.FINISHED)
    assert [measured["val_accuracy_mean"] for measured in final.runs.measured.values()] == pytest.approx([0.65, 0.82])


def test_resumed_final_trains_only_what_is_missing(final):
    def killed(job):
        if len(final.executor.started) == 5:
            raise KeyboardInterrupt  # no clean-up at all
        return train(job)

    with pytest.raises(KeyboardInterrupt):
        final(killed)
    runs = dict(final.runs.children)
    done = [(job.config.depth, job.config.seed) for job in final.executor.started[:4]]
    assert final()["test_accuracy"] == 0.7
    again = [(job.config.depth, job.config.seed) for job in final.executor.started]
    assert roles(final) == ["final", "final", "winner"]
    assert not set(again[:2]) & set(done)
    assert [child["name"] for child in final.runs.children.values()].count("final t000 d1") == 1
    assert runs.keys() <= final.runs.children.keys()


def never_evaluated(job):
    return [trial_result(job, TrialOutcome.CRASHED, "gone")] if job.role == "winner" else train(job)


def weights(tmp_path, depth, seed):
    """Return the file that holds the weights of a training."""
    files = (tmp_path / "cache").rglob("*.weights.npz")
    return next(file for file in files if file.read_text() == f"depth {depth} seed {seed}")


def test_training_of_the_winner_whose_weights_are_missing_is_repeated(final, tmp_path):
    final(never_evaluated)
    weights(tmp_path, 2, 2).unlink()
    weights(tmp_path, 2, 1).unlink()  # only the best seed is evaluated
    final()
    assert [(job.role, job.config.depth, job.config.seed) for job in final.executor.started] == [
        ("final", 2, 2),
        ("winner", 2, 2),
    ]
    assert "the weights of final t001 d2 seed 2 are gone: it is trained again" in final.lines


def test_value_whose_weights_are_missing_does_not_count_if_its_training_fails_now(final, tmp_path):
    final(never_evaluated)
    weights(tmp_path, 2, 2).unlink()

    def answer(job):
        return [trial_result(job, TrialOutcome.OOM, "no memory")] if job.role == "final" else train(job)

    assert final(answer)["val_accuracy_mean"] == pytest.approx(0.81)
    assert roles(final) == ["final", "winner"]
    assert final.executor.started[-1].config.seed == 1


def test_kill_in_the_first_training_opens_no_second_run_of_a_finalist(final):
    def killed(job):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        final(killed)
    final()
    names = [child["name"] for child in final.runs.children.values() if child["parent"] is None]
    assert names == ["final t000 d1", "final t001 d2"]


def test_kill_after_the_evaluation_repeats_the_evaluation_and_no_training(final, monkeypatch):
    with monkeypatch.context() as killed:
        set_attr = Study.set_attr
        killed.setattr(
            Study, "set_attr", lambda self, key, value: 1 / 0 if key == WINNER else set_attr(self, key, value)
        )
        with pytest.raises(ZeroDivisionError):
            final()
    final()
    assert roles(final) == ["winner"]


def test_same_final_trains_and_evaluates_nothing_again(final):
    first = final()
    assert final() == first
    assert roles(final) == []


MORE = {**ACCURACY, 3: [0.40, 0.60, 0.50], 4: [0.96, 0.94, 0.95]}


@pytest.fixture
def by_depth(final, monkeypatch):
    """Return a function that runs the final of a study that has a trial of each of these depths."""
    monkeypatch.setitem(globals(), "ACCURACY", MORE)
    text = "recipe: smoke\nspace: {depth: {low: 1, high: 9}}\nfinal_top: 2\nfinal_seeds: 3\n"

    def run(*depths, answer=train, flags=(), **more):
        return final(answer, text, *flags, depths=depths, **more)

    return run


def test_final_after_more_trials_trains_only_new_finalists_and_opens_the_test_set_for_no_old_winner(by_depth, final):
    first = by_depth(1, 2)
    second = by_depth(1, 2, 3)  # a trial of 0.6, which is no finalist
    assert roles(final) == []
    assert (second["trials"], second["run_id"]) == (3, first["run_id"])
    assert "the winner is the same as before; the test set was not evaluated again" in final.lines
    assert "among 3 trials" in final.runs.presented[first["run_id"]]["description"]
    assert final.study.get_attr(TESTED) == [first["run_id"]]


def test_another_winner_is_evaluated_and_the_former_one_loses_its_name(by_depth, final):
    first = by_depth(1, 2)
    second = by_depth(1, 2, 4)
    # depth 4 takes the place of depth 2, whose finals still count
    assert [(job.role, job.config.depth) for job in final.executor.started] == [("final", 4)] * 3 + [("winner", 4)]
    assert second["params"] == {"depth": 4}
    assert [one["trial"] for one in second["standings"]] == [2, 1, 0]
    former, winner = final.runs.presented[first["run_id"]], final.runs.presented[second["run_id"]]
    assert former["name"] == "final t001 d2 seed 2" and winner["name"].startswith("winner t002 d4 seed ")
    assert "| **former winner** | of the search among 2 trials: " in former["description"]
    assert former[Tag.WINNER] == winner[Tag.WINNER] == second["run_id"]
    assert final.study.get_attr(TESTED) == [first["run_id"], second["run_id"]]
    (line,) = [line for line in final.lines if "test set" in line]
    assert line == "the test set is evaluated again, as another configuration wins: model 2 of this study"


def test_former_finalist_that_is_no_longer_among_the_best_trials_may_still_win(by_depth, final):
    first = by_depth(1, 2)
    losing = {1: [0.95, 0.5, 0.5], 2: [0.8, 0.82, 0.84], 4: [0.96, 0.1, 0.1]}

    def answer(job):
        if job.role == "final":
            job.weights.write_text(weights_of(job))
            return successful_trial(job, losing[job.config.depth][job.config.seed])
        return train(job)

    assert by_depth(1, 2, 4, answer=answer)["run_id"] == first["run_id"]
    assert roles(final) == ["final"] * 3


@pytest.mark.parametrize(
    ("changed", "value"),
    [("data_fingerprint", "other"), ("training_code_digest", lambda: "other")],
)
def test_final_of_other_data_or_another_code_is_trained_again(final, monkeypatch, changed, value):
    first = final()
    if changed == "training_code_digest":
        monkeypatch.setattr("pipeline.search.final_record.training_code_digest", value)
        second = final()
    else:
        second = final(data_fingerprint=value)
    assert roles(final) == ["final"] * 6 + ["winner"]
    assert second["run_id"] != first["run_id"]
    assert final.lines[1].endswith(" 3 seeds each: 6 trainings to go, as earlier ones were of other code or data")
    (line,) = [line for line in final.lines if "test set" in line]
    assert line.startswith("the test set is evaluated again, as the winner was trained anew by other code or data: ")
    assert final.study.get_attr(TESTED) == [first["run_id"], second["run_id"]]


def test_final_with_another_seed_more_trains_that_seed_alone_and_evaluates_no_old_winner(final):
    first = final(train, TWO, "--final_seeds", "2")  # depth 2 wins
    assert first["params"] == {"depth": 2}
    second = final(train, TWO, "--final_seeds", "3")
    assert [(job.role, job.config.seed) for job in final.executor.started] == [("final", 2)] * 2
    assert final.lines[1].endswith(" 3 seeds each: 2 trainings to go, 4 known from before")
    assert (second["run_id"], second["seeds"]) == (first["run_id"], 3)
    assert second["val_accuracy_mean"] == pytest.approx(0.82)


@pytest.mark.parametrize("killed_at", ["first training", "evaluation", "presentation"])
def test_kill_in_the_final_of_more_trials_loses_nothing(by_depth, final, monkeypatch, killed_at):
    first = by_depth(1, 2)

    def answer(job):
        if (killed_at, job.role) in {("first training", "final"), ("evaluation", "winner")}:
            raise KeyboardInterrupt  # no clean-up at all
        return train(job)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        if killed_at == "presentation":
            patched.setattr(RecordingRuns, "present_child", raise_at_winner(RecordingRuns.present_child))
        by_depth(1, 2, 4, answer=answer)
    assert final.study.get_attr(WINNER)["run_id"] == first["run_id"], "until there is another"
    second = by_depth(1, 2, 4)
    assert [job.config.depth for job in final.executor.started if job.role == "final"] == (
        [4] * 3 if killed_at == "first training" else []
    )
    assert final.runs.presented[first["run_id"]]["name"] == "final t001 d2 seed 2"
    assert final.runs.presented[second["run_id"]]["name"].startswith("winner t002 d4")
    assert final.study.get_attr(TESTED) == [first["run_id"], second["run_id"]]


def raise_at_winner(present_child):
    """Return a method that is killed when it names a winner."""

    def killed(runs, run_id, *, name=None, **shown):
        if name and name.startswith("winner t002"):
            raise KeyboardInterrupt
        present_child(runs, run_id, name=name, **shown)

    return killed


def test_weights_are_removed_when_the_winner_is_known(final, tmp_path):
    final()
    assert not list((tmp_path / "cache").rglob("*.weights.npz"))


def test_failed_seed_does_not_fail_the_final(final):
    def answer(job):
        if job.role == "final" and (job.config.depth, job.config.seed) == (2, 2):
            return [trial_result(job, TrialOutcome.RAISED, "ValueError: no")]
        return train(job)

    figures = final(answer)
    assert figures["val_accuracy_mean"] == pytest.approx(0.81)
    assert (final.executor.started[-1].config.depth, final.executor.started[-1].config.seed) == (2, 1)
    assert "final t001 d2 seed 2  raised: ValueError: no" in final.lines
    assert roles(final) == ["final"] * 6 + ["winner"], "an exception would be raised again"


def failing(outcome, many, *, role="final"):
    """Return an answer by which depth 2 with seed 2, or the winner, fails so often before it succeeds."""
    met = []

    def answer(job):
        if (job.role, job.config.depth, job.config.seed) == (role, 2, 2) and len(met) < many:
            met.append(job)
            return [trial_result(job, outcome, "gone", retryable=True)]
        return train(job)

    return answer


@pytest.mark.parametrize(("outcome", "many"), [(TrialOutcome.CRASHED, 2), (TrialOutcome.LOST, 4)])
def test_training_that_crashed_or_lost_its_node_is_retried(final, outcome, many):
    assert final(failing(outcome, many))["val_accuracy_mean"] == pytest.approx(0.82)
    assert roles(final) == ["final"] * (6 + many) + ["winner"]
    assert list(final.runs.closed.values()).count(outcome) == many, "each try has a run of its own"
    assert list(final.runs.finished.values()) == [TrialOutcome.FINISHED] * 2


@pytest.mark.parametrize(("outcome", "many"), [(TrialOutcome.CRASHED, 3), (TrialOutcome.LOST, 5)])
def test_training_that_always_crashes_or_loses_its_node_is_abandoned(final, outcome, many):
    assert final(failing(outcome, 99))["val_accuracy_mean"] == pytest.approx(0.81)
    assert roles(final) == ["final"] * (5 + many) + ["winner"]


@pytest.mark.parametrize(("outcome", "many"), [(TrialOutcome.CRASHED, 2), (TrialOutcome.LOST, 4)])
def test_evaluation_that_crashed_or_lost_its_node_is_retried(final, outcome, many):
    assert final(failing(outcome, many, role="winner"))["test_accuracy"] == 0.7
    assert roles(final) == ["final"] * 6 + ["winner"] * (many + 1)
    assert f"the winner is evaluated again: {outcome}: gone" in final.lines


def test_evaluation_that_is_lost_with_the_whole_cluster_is_not_retried(final, monkeypatch):
    answer = failing(TrialOutcome.LOST, 99, role="winner")

    def free(executor):
        if executor.started and executor.started[-1].role == "winner":
            raise ClusterLost("cluster must keep its head node")
        return executor.slots - len(executor._running)

    monkeypatch.setattr(ScriptedExecutor, "free", free)
    with pytest.raises(ClusterLost):
        final(answer)
    assert roles(final) == ["final"] * 6 + ["winner"]
    assert final.runs.closed[final.executor.started[-1].run.run_id] is TrialOutcome.LOST


def test_crashed_training_is_not_retried_after_an_interrupt(final):
    answer = failing(TrialOutcome.CRASHED, 99)
    assert final(answer, interrupts=lambda: int("final t001 d2 seed 2  crashed: gone" in final.lines)) is None
    assert roles(final) == ["final"] * 6


def test_crashed_evaluation_is_not_retried_after_an_interrupt(final):
    def interrupts():
        return int(roles(final)[-1:] == ["winner"] and not final.executor._running)

    assert final(failing(TrialOutcome.CRASHED, 99, role="winner"), interrupts=interrupts) is None
    assert roles(final) == ["final"] * 6 + ["winner"]


def test_lost_cluster_leaves_no_run_open(final):
    def answer(job):
        if len(final.executor.started) == 3:
            raise ClusterLost("cluster must keep its head node")
        return train(job)

    with pytest.raises(ClusterLost):
        final(answer)
    assert list(final.runs.finished.values()) == [TrialOutcome.STOPPED] * 2
    assert final()["test_accuracy"] == 0.7
    assert roles(final) == ["final"] * 4 + ["winner"]


def test_finalist_whose_every_seed_failed_is_closed_as_failed(final):
    def answer(job):
        return [trial_result(job, TrialOutcome.OOM, "no memory")] if job.config.depth == 2 else train(job)

    assert final(answer)["test_accuracy"] == 0.7
    assert list(final.runs.finished.values()) == [TrialOutcome.FINISHED, TrialOutcome.RAISED]


def test_final_whose_every_training_failed_has_no_winner(final):
    assert final(lambda job: [trial_result(job, TrialOutcome.OOM, "no memory")]) is None
    assert roles(final) == ["final"] * 6
    assert list(final.runs.finished.values()) == [TrialOutcome.RAISED] * 2


def test_evaluation_that_always_crashes_is_reported_and_its_run_closed(final):
    def answer(job):
        return [trial_result(job, TrialOutcome.CRASHED, "killed by SIGKILL")] if job.role == "winner" else train(job)

    assert final(answer) is None
    assert final.lines[-1] == "the winner could not be evaluated: crashed: killed by SIGKILL"
    assert final.runs.closed[final.executor.started[-1].run.run_id] is TrialOutcome.CRASHED
    assert final.study.get_attr(WINNER) is None
    assert roles(final) == ["final"] * 6 + ["winner"] * 3
    assert final()["test_accuracy"] == 0.7
    assert roles(final) == ["winner"]


def test_interrupt_ends_the_final_without_a_winner_and_leaves_no_run_open(final):
    presses = []

    def answer(job):
        if len(final.executor.started) == 3:
            presses.append(1)
            return []
        return train(job)

    assert final(answer, interrupts=lambda: len(presses)) is None
    assert roles(final) == ["final"] * 3
    assert list(final.runs.finished.values()) == [TrialOutcome.STOPPED] * 2
    assert len(final.study.get_attr(FINAL)[0]["values"]) == 2
    final()
    assert roles(final) == ["final"] * 4 + ["winner"]


def test_final_whose_loss_is_not_below_guessing_fails(final):
    with pytest.raises(SearchFailed, match=r"best mean val_loss is 1.0000, and guessing has 0.9000; the test set was"):
        final(train, TWO, "--metric", "val_loss", guessing=0.9)
    assert final(train, TWO, "--metric", "val_loss", guessing=1.1)["val_loss_mean"] == 1.0


def test_winner_by_loss_has_the_lowest(final):
    figures = final(train, TWO, "--metric", "val_loss")
    assert figures["val_loss_mean"] == 1.0  # seeds 0, 1 and 2 have their number for a loss
    assert final.executor.started[-1].config.seed == 0


@pytest.mark.parametrize("metric", ["val_accuracy,parameters", "parameters,val_accuracy", "epoch_seconds,val_accuracy"])
def test_final_uses_the_validation_metric_of_two(final, metric):
    assert final(train, TWO, "--metric", metric)["val_accuracy_mean"] == pytest.approx(0.82)


def test_study_without_a_complete_trial_has_no_final(final, tmp_path):
    study = open_study(tmp_path, make_search(tmp_path, DISCRETE))
    assert FinalistTraining(search_context(study, ScriptedExecutor(train))).run() is None


def test_failed_evaluation_leaves_no_run_open_in_mlflow(final, store):
    runs = open_study_run("mine", known=None, trials=0)

    def answer(job):
        if job.role == "winner":
            return [trial_result(job, TrialOutcome.CRASHED, "killed by SIGKILL")]
        if job.config.depth == 1:
            return [trial_result(job, TrialOutcome.OOM, "no memory")]
        return train(job)

    final(answer, runs=runs)
    runs.close(RunOutcome.FINISHED, "")
    found = mlflow.MlflowClient().search_runs([mlflow.get_experiment_by_name("mine").experiment_id])
    states = {run.info.run_name: (run.info.status, run.data.tags.get(Tag.TRIAL_STATE)) for run in found}
    assert [name for name, (status, _) in states.items() if status == "RUNNING"] == []
    assert states["final t000 d1"] == ("FAILED", "raised")
    assert states["final t001 d2"] == ("FINISHED", "finished")
    assert states["final t001 d2 seed 2"] == ("FAILED", "crashed")


def test_name_of_a_study_cannot_lead_to_another_folder(final, tmp_path):
    precious = tmp_path / "cache" / "precious"
    precious.mkdir(parents=True)
    assert final(name="../../precious")["test_accuracy"] == 0.7
    assert precious.is_dir()  # a final removes its weights' folder at the end


def test_seeds_beyond_the_last_wrap_around(final):
    def answer(job):
        return [trial_result(job, test_accuracy=0.7)] if job.role == "winner" else successful_trial(job, 0.5, loss=1.0)

    final(answer, TWO, "--seed", str(2**32 - 2), "--final_top", "1")
    assert [job.config.seed for job in final.executor.started[:3]] == [2**32 - 2, 2**32 - 1, 0]
