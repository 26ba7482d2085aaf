"""Measuring the latencies of trials; the measurements are scripted."""

import pytest

from pipeline.search.latencies import measure_latencies
from pipeline.search.results import leaderboard, summarize
from pipeline.tracking.tags import TrialOutcome
from tests.support.scripted import ScriptedExecutor, make_search, open_study, search_context, trial_result

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
    _, title, *table = summarize(context.study)
    assert title == "the best 4 of 4 trials, a single training each:"
    rows = [line.split() for line in table]
    assert rows[0] == ["trial", "val_accuracy", "kernel_size", "depth", "parameters", "latency_ms"]
    assert rows[1] == ["t002", "80.00", "%", "3", "1", "300", "11.00"]
    assert rows[2] == ["t003", "70.00", "%", "3", "2", "400"]


def test_summary_of_two_metrics_shows_the_pareto_front(searched):
    context = searched(timed, "--metric", "val_accuracy,parameters")
    _, title, _, *rows = summarize(context.study)
    assert title == "the 2 on the Pareto front of 4 trials, a single training each:"
    assert [line.split()[0] for line in rows[:2]] == ["t002", "t000"]


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
