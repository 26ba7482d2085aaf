"""Retraining the finalists, evaluating the winner, and measuring latencies; trainings are scripted."""

import mlflow
import pytest

from pipeline.runtime.errors import ClusterLost, SearchFailed
from pipeline.search.attributes import FINAL, WINNER
from pipeline.search.finalists import FinalistTraining, measure_latencies
from pipeline.search.results import leaderboard, summarize
from pipeline.search.study import Study
from pipeline.tracking.study_run import open_study_run
from pipeline.tracking.tags import RunOutcome, Tag, TrialOutcome
from tests.support.scripted import (
    DISCRETE,
    RecordingConsole,
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


@pytest.fixture
def final(tmp_path, monkeypatch):
    """Return a function that runs the final of a study of both depths, and resumes it where a test calls it again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(
        answer=train, text=TWO, *flags, name="mine", slots=1, interrupts=lambda: 0, runs=None, guessing_accuracy=0.0
    ):
        run.study = open_study(tmp_path, make_search(tmp_path, text, *flags), name=name)
        while (proposal := run.study.ask()) is not None:
            accuracy = max(ACCURACY.get(proposal.params["depth"], [0.1]))
            run.study.complete(proposal.number, [accuracy, 100.0][: len(run.study.search.directions)])
        run.runs = runs or getattr(run, "runs", None) or RecordingRuns()
        run.executor = ScriptedExecutor(answer, slots)
        console = RecordingConsole()
        run.lines = console.lines
        context = search_context(
            run.study,
            run.executor,
            runs=run.runs,
            interrupts=interrupts,
            console=console,
            guessing_accuracy=guessing_accuracy,
        )
        return FinalistTraining(context).run()

    return run


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
    kept = {"rank": 2, "params": {"depth": 2}, "seed": 2, "run_id": winner.run.run_id}
    assert final.study.get_attr(WINNER) == kept | figures
    assert final.lines[-1].startswith(
        "winner    d2: val_accuracy 0.8200 over 3 seed(s); test accuracy 70.00% of seed 2"
    )


def test_only_the_winner_is_registered_and_the_terminal_shows_the_registration(final):
    final(train, TWO, "--register_as", "best")
    winner = final.executor.started[-1]
    assert winner.config.register_as == "best"
    assert final.lines[-1] == f"registry  the model of {winner.run.run_id}"


def test_winner_is_named_and_described_in_its_own_run(final):
    final()
    winner = final.study.get_attr(WINNER)
    (name, description) = final.runs.presented.pop(winner["run_id"])
    assert final.runs.children[winner["run_id"]]["name"] == f"final {winner['rank']} d2 seed 2"
    assert name == "winner d2 seed 2"
    assert "test accuracy of 70.0 %" in description
    assert not final.runs.presented, "there is one winner"


def test_final_at_chance_fails_and_does_not_evaluate_the_test_set(final):
    with pytest.raises(SearchFailed, match=r"best mean val_accuracy is 82.0 %, and guessing reaches up to 83.0 %"):
        final(guessing_accuracy=0.83)
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
    assert [child["name"] for child in parents.values()] == ["final 1 d1", "final 2 d2"]
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
    assert [child["name"] for child in final.runs.children.values()].count("final 1 d1") == 1
    assert runs.keys() <= final.runs.children.keys()


def test_training_whose_weights_are_missing_is_repeated(final, tmp_path):
    final(lambda job: [trial_result(job, TrialOutcome.CRASHED, "gone")] if job.role == "winner" else train(job))
    next((tmp_path / "cache").rglob("2-1.weights.npz")).unlink()
    final()
    assert [(job.role, job.config.depth, job.config.seed) for job in final.executor.started] == [
        ("final", 2, 1),
        ("winner", 2, 2),
    ]


def test_value_whose_weights_are_missing_does_not_count_if_its_training_fails_now(final, tmp_path):
    final(lambda job: [trial_result(job, TrialOutcome.CRASHED, "gone")] if job.role == "winner" else train(job))
    next((tmp_path / "cache").rglob("2-2.weights.npz")).unlink()

    def answer(job):
        return [trial_result(job, TrialOutcome.OOM, "no memory")] if job.role == "final" else train(job)

    assert final(answer)["val_accuracy_mean"] == pytest.approx(0.81)
    assert final.executor.started[-1].config.seed == 1


def test_kill_in_the_first_training_opens_no_second_run_of_a_finalist(final):
    def killed(job):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        final(killed)
    final()
    names = [child["name"] for child in final.runs.children.values() if child["parent"] is None]
    assert names == ["final 1 d1", "final 2 d2"]


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
    assert "final 2 seed 2  d2  raised: ValueError: no" in final.lines
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
    assert final(answer, interrupts=lambda: int("final 2 seed 2  d2  crashed: gone" in final.lines)) is None
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
    assert states["final 1 d1"] == ("FAILED", "raised")
    assert states["final 2 d2"] == ("FINISHED", "finished")
    assert states["final 2 d2 seed 2"] == ("FAILED", "crashed")


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


FOUR = "recipe: smoke\nspace: {kernel_size: [1, 3, 5], depth: [1, 2]}\nsampler: grid\n"
FRONT = {0, 2}  # of these accuracies and sizes
TRIALS = [(0.5, 100.0), (0.4, 200.0), (0.8, 300.0), (0.7, 400.0)]


def timed(job):
    return [trial_result(job, latency_ms=10.0 + job.config.depth)]


@pytest.fixture
def searched(tmp_path):
    """Return a function that opens a study of four trials, and the context of a search of it."""

    def open_it(answer=timed, *flags, interrupts=lambda: 0):
        study = open_study(tmp_path, make_search(tmp_path, FOUR, *flags))
        two = len(study.search.directions) > 1
        for accuracy, size in TRIALS[len(study.trials()) :]:
            proposal = study.ask()
            study.set_trial_attrs(proposal.number, {"parameters": size, "run_id": f"run {proposal.number}"})
            study.complete(proposal.number, [accuracy, size][: 1 + two])
        return search_context(study, ScriptedExecutor(answer, 2), interrupts=interrupts)

    return open_it


@pytest.mark.parametrize("flags", [[], ["--metric", "val_accuracy,parameters"]])
def test_latencies_of_the_pareto_front_are_measured_one_at_a_time_and_once(searched, flags):
    context = searched(timed, *flags)
    measure_latencies(context)
    assert [job.role for job in context.executor.started] == ["latency"] * 2
    assert context.executor.most == 1
    assert context.runs.measured.keys() == {f"run {number}" for number in FRONT}
    board = leaderboard(context.study).set_index("number")
    assert set(board.index[board["latency_ms"].notna()]) == set(board.index[board["pareto"]]) == FRONT
    measure_latencies(context)
    assert len(context.executor.started) == 2


def test_summary_shows_measured_latencies(searched):
    context = searched()
    measure_latencies(context)
    rows = [line.split() for line in summarize(context.study)[1:]]
    assert rows[0] == ["trial", "val_accuracy", "kernel_size", "depth", "parameters", "latency_ms"]
    assert rows[1] == ["t002", "0.8000", "3", "1", "300", "11.00"]
    assert rows[2] == ["t003", "0.7000", "3", "2", "400"]


def test_summary_of_two_metrics_shows_the_pareto_front(searched):
    context = searched(timed, "--metric", "val_accuracy,parameters")
    assert [line.split()[0] for line in summarize(context.study)[2:4]] == ["t002", "t000"]


def test_measured_latency_replaces_the_trials_own(searched):
    context = searched()
    proposal = context.study.ask()
    context.study.set_trial_attrs(proposal.number, {"latency_ms": 99.0, "parameters": 1.0, "run_id": "run 4"})
    context.study.complete(proposal.number, [0.1])
    before = leaderboard(context.study).set_index("number")["latency_ms"]
    assert before[proposal.number] == 99.0
    measure_latencies(context)
    assert leaderboard(context.study).set_index("number")["latency_ms"][proposal.number] == 11.0


def test_latency_that_cannot_be_measured_is_reported_and_the_others_are_measured(searched):
    context = searched(
        lambda job: [trial_result(job, TrialOutcome.CRASHED, "killed")] if job.config.kernel_size == 1 else timed(job)
    )
    measure_latencies(context)
    assert context.console.lines == ["t000  latency not measured: crashed: killed"]
    assert context.runs.measured.keys() == {"run 2"}


def test_interrupted_search_measures_no_latency(searched):
    context = searched(interrupts=lambda: 1)
    measure_latencies(context)
    assert context.executor.started == []
