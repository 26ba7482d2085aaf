"""Whose latency is measured after a search, and where it stands then; the measuring is scripted."""

import pytest
from scripted import Runs, Scripted, ended, made_search, opened

from pipeline.study.latencies import measure_latencies
from pipeline.study.session import Session
from pipeline.study.study_report import leaderboard, summary
from pipeline.workers.jobs import Outcome

FOUR = "recipe: smoke\nspace: {kernel_size: [1, 3, 5], depth: [1, 2]}\nsampler: grid\n"
FRONT = {0, 2}  # of these accuracies and sizes
TRIALS = [(0.5, 100.0), (0.4, 200.0), (0.8, 300.0), (0.7, 400.0)]


def timed(job):
    return [ended(job, latency_ms=10.0 + job.config.depth)]


@pytest.fixture
def searched(tmp_path):
    """Opens a study of four trials, and a driver's session with it."""

    def open_it(answer=timed, *flags, interrupts=lambda: 0):
        study = opened(tmp_path, made_search(tmp_path, FOUR, *flags))
        two = len(study.search.directions) > 1
        for accuracy, size in TRIALS[len(study.trials()) :]:
            asked = study.ask()
            study.annotate(asked.number, {"parameters": size, "run_id": f"run {asked.number}"})
            study.complete(asked.number, [accuracy, size][: 1 + two])
        said = []
        session = Session(study, Runs(), Scripted(answer, 2), interrupts, beat=lambda: None, say=said.append)
        return session, said

    return open_it


@pytest.mark.parametrize("flags", [[], ["--metric", "val_accuracy,parameters"]])
def test_the_members_of_the_pareto_front_are_timed_one_at_a_time_and_once(searched, flags):
    session, _ = searched(timed, *flags)
    measure_latencies(session)
    assert [job.role for job in session.executor.started] == ["latency"] * 2
    assert session.executor.most == 1
    assert session.runs.measured.keys() == {f"run {number}" for number in FRONT}
    board = leaderboard(session.study).set_index("number")
    assert set(board.index[board["latency_ms"].notna()]) == set(board.index[board["pareto"]]) == FRONT
    measure_latencies(session)
    assert len(session.executor.started) == 2


def test_the_terminal_shows_a_latency_where_there_is_one(searched):
    session, _ = searched()
    measure_latencies(session)
    rows = [line.split() for line in summary(session.study)[1:]]
    assert rows[0] == ["trial", "val_accuracy", "kernel_size", "depth", "parameters", "latency_ms"]
    assert rows[1] == ["t002", "0.8000", "3", "1", "300", "11.00"]
    assert rows[2] == ["t003", "0.7000", "3", "2", "400"]


def test_of_two_metrics_the_terminal_shows_the_pareto_front(searched):
    session, _ = searched(timed, "--metric", "val_accuracy,parameters")
    assert [line.split()[0] for line in summary(session.study)[2:4]] == ["t002", "t000"]


def test_what_a_trial_saw_among_others_gives_way_to_what_is_measured_alone(searched):
    session, _ = searched()
    asked = session.study.ask()
    session.study.annotate(asked.number, {"latency_ms": 99.0, "parameters": 1.0, "run_id": "run 4"})
    session.study.complete(asked.number, [0.1])
    before = leaderboard(session.study).set_index("number")["latency_ms"]
    assert before[asked.number] == 99.0
    measure_latencies(session)
    assert leaderboard(session.study).set_index("number")["latency_ms"][asked.number] == 11.0


def test_one_that_cannot_be_timed_is_told_and_the_others_are(searched):
    session, said = searched(
        lambda job: [ended(job, Outcome.CRASHED, "killed")] if job.config.kernel_size == 1 else timed(job)
    )
    measure_latencies(session)
    assert said == ["t000  latency not measured: crashed: killed"]
    assert session.runs.measured.keys() == {"run 2"}


def test_a_stopped_search_is_not_timed(searched):
    session, _ = searched(interrupts=lambda: 1)
    measure_latencies(session)
    assert session.executor.started == []
