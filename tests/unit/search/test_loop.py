"""The search loop: what it does with the events of trials, and when it ends; trials are scripted, the study is real."""

from contextlib import contextmanager
from dataclasses import replace

import mlflow
import pytest
from optuna.trial import TrialState

from pipeline.runtime.errors import SearchFailed, Unavailable
from pipeline.search import loop
from pipeline.search.attributes import SEARCHED_SECONDS
from pipeline.search.coordination import LockLease
from pipeline.search.loop import SearchLoop
from pipeline.search.study import Study
from pipeline.tracking.study_run import open_study_run
from pipeline.tracking.tags import RunOutcome, Tag, TrialOutcome
from tests.support.scripted import (
    CONTINUOUS,
    DISCRETE,
    RecordingConsole,
    RecordingRuns,
    ScriptedExecutor,
    epoch_report,
    make_search,
    open_study,
    search_context,
    successful_trial,
    trial_result,
)


def crash(job, reason="killed by SIGSEGV"):
    return [trial_result(job, TrialOutcome.CRASHED, reason)]


def in_turn(*answers):
    """Return an executor's answer: one for each job in turn, the last one for all further jobs."""
    left = list(answers)
    return lambda job: (left.pop(0) if len(left) > 1 else left[0])(job)


def well(job):
    return successful_trial(job, 0.3, 0.5)


@pytest.fixture
def drive(tmp_path):
    """Return a function that runs a search with scripted trials, and resumes it where a test calls it again."""

    def drive_it(answer, text=CONTINUOUS, *flags, slots=1, interrupts=lambda: 0, runs=None):
        search = make_search(tmp_path, text, *flags)
        drive_it.study = open_study(tmp_path, search)
        drive_it.study.requeue_stale()
        drive_it.runs = runs or RecordingRuns()
        drive_it.executor = drive_it.executor_of(answer, slots)
        drive_it.console, drive_it.heartbeats = RecordingConsole(), []
        context = search_context(
            drive_it.study,
            drive_it.executor,
            runs=drive_it.runs,
            interrupts=interrupts,
            heartbeat=lambda: drive_it.heartbeats.append(1),
            console=drive_it.console,
        )
        return SearchLoop(context).run()

    drive_it.executor_of = ScriptedExecutor
    return drive_it


def states(study):
    return [trial.state.name for trial in study.trials()]


# to its end


def test_loop_trains_each_proposal_and_keeps_its_value_and_figures(drive):
    assert drive(well, DISCRETE, "--trials", "3", "--epochs", "7") == "its 3 trials are done"
    assert len(drive.executor.started) == 3
    for job, trial in zip(drive.executor.started, drive.study.ranked(), strict=True):
        assert (job.role, job.config.epochs, job.weights) == ("trial", 7, None)
        assert (job.config.kernel_size, job.config.depth) == (trial.params["kernel_size"], trial.params["depth"])
        assert (trial.values, trial.intermediate_values) == ([0.5], {1: 0.3, 2: 0.5})
        assert trial.user_attrs == {
            "run_id": job.run.run_id,
            "parameters": 100.0,
            "epochs": 2.0,
            "seconds": 4.0,
            "outcome": "finished",
        }
    assert drive.heartbeats


def test_loop_fills_every_slot_and_starts_no_trial_beyond_the_budget(drive):
    drive(well, CONTINUOUS, "--trials", "5", slots=3)
    assert drive.executor.most == 3
    assert len(drive.executor.started) == 5


def test_trial_has_a_run_of_its_own_that_is_named_numbered_and_closed(drive):
    drive(well, DISCRETE + "enqueue: [{kernel_size: 5, depth: 2}]", "--trials", "2")
    assert drive.runs.children["run 0"]["name"] == "t000 k5 d2"
    assert [child["tags"] for child in drive.runs.children.values()] == [
        {Tag.TRIAL_NUMBER: "0"},
        {Tag.TRIAL_NUMBER: "1"},
    ]
    assert drive.runs.closed == {"run 0": TrialOutcome.FINISHED, "run 1": TrialOutcome.FINISHED}


def test_line_of_a_trial_has_value_epochs_seconds_best_and_budget(drive):
    drive(well, DISCRETE + "enqueue: [{kernel_size: 5, depth: 2}]", "--trials", "1", "--final_top", "0")
    assert drive.console.lines == [
        "t000 k5 d2                val_accuracy 50.00 %  2 epochs  4.0 s  best so far 50.00 % (t000)  [1 of 1]",
    ]


def test_run_of_a_trial_is_described(drive):
    drive(in_turn(well, lambda job: [trial_result(job, TrialOutcome.OOM, "no memory")]), CONTINUOUS, "--trials", "2")
    first, second = (drive.runs.presented[run]["description"] for run in ("run 0", "run 1"))
    assert "`val_accuracy` 50.00 %, at the best of 2 epochs" in first
    assert "**oom** after epoch 0 of 2: no memory" in second


def test_infeasible_and_duplicate_trials_have_a_line_each_that_says_so(drive):
    text = (
        "recipe: smoke\nspace: {kernel_size: [3, 9], patch_size: [1, 4]}\nenqueue: [{kernel_size: 9, patch_size: 4}]\n"
    )
    drive(well, text, "--trials", "50", "--sampler", "random")
    lines = {line.split()[0]: line for line in drive.console.lines}
    assert lines.keys() == {f"t{trial.number:03d}" for trial in drive.study.trials()}, "none is passed over in silence"
    assert lines["t000"].startswith("t000 k9 p4                infeasible, not trained: kernel_size must")
    duplicates = [trial for trial in drive.study.trials() if "duplicate_of" in trial.user_attrs]
    assert duplicates, "four configurations, drawn at random"
    for trial in duplicates:
        same = trial.user_attrs["duplicate_of"]
        why = "not trained again" if same else "which is infeasible"
        assert lines[f"t{trial.number:03d}"].endswith(f"  the same as t{same:03d}, {why}")


def test_time_left_includes_the_final(drive, monkeypatch):
    monkeypatch.setattr(loop, "final_seconds", lambda study, record, *, slots: 60.0 * record.n_missing() / slots)
    drive(well, CONTINUOUS, "--trials", "2", "--final_top", "1", "--final_seeds", "3", slots=2)
    assert drive.console.lines[-1].endswith("[2 of 2, about 2 min left]")


def test_progress_counts_the_epochs_of_running_trials(drive):
    drive(lambda job: successful_trial(job, 0.1, 0.2), CONTINUOUS, "--trials", "2", "--epochs", "2")
    done, of, words = zip(*drive.console.positions, strict=True)
    assert list(done) == [0.5, 1.0, 1.0, 1.5, 2.0, 2.0] and set(of) == {2}
    assert words[0].startswith("0 of 2 trials, 1 running") and words[-1].startswith("2 of 2 trials, 0 running")


def test_trial_with_folds_has_the_mean_of_all_of_them_and_counts_their_epochs(drive):
    def means(job):
        reports = [epoch_report(job, 3, 0.75), epoch_report(job, 6, 0.5)]
        figures = {"best_val_accuracy": 0.5, "best_val_loss": 1.0, "epochs": 5.0, "seconds": 4.0}
        return [*reports, trial_result(job, **figures)]

    flags = ["--trials", "1", "--epochs", "3", "--folds", "2", "--final_top", "0"]
    drive(means, DISCRETE + "enqueue: [{kernel_size: 5, depth: 2}]", *flags)
    assert "val_accuracy 50.00 %  6 epochs" in drive.console.lines[0], "not the best of the means on the way"
    assert drive.study.trials()[0].intermediate_values == {3: 0.75, 6: 0.5}
    done, _, _ = zip(*drive.console.positions, strict=True)
    assert done[0] == 0.5


def test_epochs_of_a_running_trial_with_folds_count_against_the_budget(drive):
    drive(lambda job: [epoch_report(job, 3, 0.5), trial_result(job, TrialOutcome.OOM)], CONTINUOUS, "--trials", "1")
    assert drive.study.epochs_trained() == 3


def test_line_of_a_failed_trial_has_its_reason(drive):
    drive(
        in_turn(lambda job: [trial_result(job, TrialOutcome.RAISED, "ValueError: no")], well),
        CONTINUOUS,
        "--trials",
        "1",
    )
    assert "no val_accuracy  0 epochs  raised: ValueError: no  [0 of 1]" in drive.console.lines[0]


def test_exhausted_space_ends_the_search_before_its_budget(drive):
    assert drive(well, DISCRETE, "--trials", "50", slots=2) == "every configuration that fits the images has been tried"
    assert len(drive.executor.started) == drive.study.n_finished() == 6


def test_resumed_search_trains_only_what_is_left_of_the_budget(drive):
    drive(well, CONTINUOUS, "--trials", "2")
    assert drive(well, CONTINUOUS, "--trials", "3") == "its 3 trials are done"
    assert len(drive.executor.started) == 1
    assert drive(well, CONTINUOUS, "--trials", "3") == "its 3 trials are done"
    assert drive.executor.started == []


def test_hours_count_over_all_drivers_of_the_study(drive, monkeypatch):
    clock = iter(range(0, 10**6, 600))  # every look at the clock is ten minutes later
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    assert drive(well, CONTINUOUS, "--hours", "2") == "its 2 hours are over"
    done = drive.study.n_finished()
    assert 0 < done < 12
    assert drive.study.get_attr(SEARCHED_SECONDS) >= 3600
    drive.study.set_attr(SEARCHED_SECONDS, 7200.0)
    assert drive(well, CONTINUOUS, "--hours", "2") == "its 2 hours are over"
    assert drive.executor.started == []
    assert drive(well, CONTINUOUS, "--hours", "3") == "its 3 hours are over"
    assert drive.study.n_finished() > done


def test_target_ends_the_search(drive):
    answer = in_turn(well, lambda job: successful_trial(job, 0.8))
    assert drive(answer, CONTINUOUS, "--target", "0.75").startswith("t001 has reached the target of val_accuracy")
    assert drive.study.n_finished() == 2


def test_loop_says_every_ten_minutes_what_is_known_so_far(tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 20))
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    study, console, told = (
        open_study(tmp_path, make_search(tmp_path, CONTINUOUS, "--trials", "9")),
        RecordingConsole(),
        [],
    )
    context = search_context(study, ScriptedExecutor(well), runs=RecordingRuns(), console=console)
    SearchLoop(context, on_status=lambda: told.append(study.n_finished())).run()
    assert 1 < len(told) < 9
    assert sum(line.startswith("so far ") for line in console.lines) == len(told)


def test_trial_minutes_are_passed_to_the_executor(drive):
    drive(well, CONTINUOUS, "--trials", "1", "--trial_minutes", "1.5")
    assert drive.executor.minutes == [1.5]


# what trials do


def test_trial_beyond_a_limit_costs_no_budget_and_is_told_as_infeasible(drive):
    reason = "latency_ms must be at most max_latency_ms=2, got 3.00"
    answer = in_turn(lambda job: [trial_result(job, TrialOutcome.INFEASIBLE, reason, latency_ms=3.0)], well)
    assert drive(answer, DISCRETE, "--trials", "1", "--max_latency_ms", "2") == "its 1 trials are done"
    first, second = [trial for trial in drive.study.trials() if trial.state.is_finished()]
    assert (first.state.name, first.user_attrs["infeasible"], second.state.name) == ("PRUNED", reason, "COMPLETE")
    assert [job.max_latency_ms for job in drive.executor.started] == [2.0, 2.0]
    assert f"infeasible: {reason}" in drive.console.lines[0]


def test_pruned_trial_is_stopped_once_and_recorded_as_pruned(drive):
    good = lambda job: successful_trial(job, 0.5, 0.6, 0.7)  # noqa: E731
    drive(in_turn(good, good, lambda job: successful_trial(job, 0.1, 0.1, 0.1)), CONTINUOUS, *_pruning("3"))
    assert states(drive.study) == ["COMPLETE", "COMPLETE", "PRUNED"]
    last = drive.study.trials()[2]
    assert last.intermediate_values == {1: 0.1, 2: 0.1}
    assert last.constraints == {"trainable": 0.0}
    assert list(drive.runs.closed.values())[2] is TrialOutcome.PRUNED


def test_trial_is_not_pruned_after_its_last_epoch(drive):
    answer = in_turn(well, lambda job: successful_trial(job, 0.1, 0.1))
    flags = ["--trials", "2", "--epochs", "2", "--pruner", "median", "--pruner_trials", "1", "--pruner_epochs", "2"]
    drive(answer, CONTINUOUS, *flags)
    assert states(drive.study) == ["COMPLETE"] * 2


def test_trial_that_finishes_before_it_is_pruned_is_complete(drive, monkeypatch):
    pruned = []
    monkeypatch.setattr(ScriptedExecutor, "prune", lambda self, number: pruned.append(number))
    good = lambda job: successful_trial(job, 0.5, 0.6, 0.7)  # noqa: E731
    drive(in_turn(good, good, lambda job: successful_trial(job, 0.1, 0.1, 0.1)), CONTINUOUS, *_pruning("3"))
    assert pruned == [2]  # once, though it went on to a third epoch
    assert states(drive.study) == ["COMPLETE"] * 3


def _pruning(trials):
    return ["--trials", trials, "--epochs", "3", "--pruner", "median", "--pruner_trials", "2", "--pruner_epochs", "2"]


@pytest.mark.parametrize(
    ("outcome", "violation"), [(TrialOutcome.DIVERGED, 0), (TrialOutcome.OOM, 1), (TrialOutcome.TIMEOUT, 1)]
)
def test_diverged_trial_costs_budget_and_oom_or_timeout_also_violates_the_constraint(drive, outcome, violation):
    drive(
        in_turn(lambda job: [epoch_report(job, 1, 0.4), trial_result(job, outcome, "why")], well),
        CONTINUOUS,
        "--trials",
        "2",
    )
    first = drive.study.trials()[0]
    assert (first.state, first.constraints) == (TrialState.PRUNED, {"trainable": float(violation)})
    assert first.user_attrs["outcome"] == str(outcome)
    assert len(drive.executor.started) == 2


def test_crashed_trial_is_retried_and_costs_no_budget(drive):
    drive(in_turn(crash, well), CONTINUOUS, "--trials", "2")
    first, second = drive.executor.started[:2]
    assert first.config == second.config and first.run != second.run
    assert states(drive.study) == ["FAIL", "COMPLETE", "COMPLETE"]


def test_configuration_that_always_crashes_is_tried_three_times_and_the_search_goes_on(drive):
    bad = {"kernel_size": 5, "depth": 2}

    def answer(job):
        return crash(job) if (job.config.kernel_size, job.config.depth) == (5, 2) else well(job)

    text = DISCRETE + "enqueue: [{kernel_size: 5, depth: 2}]"
    assert drive(answer, text, "--trials", "50") == "every configuration that fits the images has been tried"
    assert len(drive.executor.started) == 3 + 5
    assert [trial.params for trial in drive.study.trials()[:3]] == [bad] * 3


def test_crash_of_the_last_trial_of_the_budget_is_retried(drive):
    assert drive(in_turn(well, crash, well), CONTINUOUS, "--trials", "2") == "its 2 trials are done"
    assert states(drive.study) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert drive.study.n_finished() == 2


def test_crash_of_the_last_configuration_of_a_space_is_retried(drive):
    def answer(job):
        return crash(job) if job.number == 5 else well(job)

    drive(answer, DISCRETE, "--trials", "50", "--sampler", "grid", slots=2)
    assert drive.study.n_finished() == 6


def test_crash_that_is_not_retryable_and_exception_are_not_retried(drive):
    dead = lambda job: [trial_result(job, TrialOutcome.CRASHED, "gone", retryable=False)]  # noqa: E731
    drive(
        in_turn(dead, lambda job: [trial_result(job, TrialOutcome.RAISED, "ValueError: no")], well),
        CONTINUOUS,
        "--trials",
        "1",
    )
    rates = [job.config.learning_rate for job in drive.executor.started]
    assert len(set(rates)) == 3
    assert states(drive.study) == ["FAIL", "FAIL", "COMPLETE"]


def test_trial_that_external_signals_keep_stopping_is_abandoned(drive):
    stranger = lambda job: [trial_result(job, TrialOutcome.STOPPED, "by SIGTERM", retryable=True)]  # noqa: E731

    def answer(job):
        return stranger(job) if job.number < 3 else well(job)

    drive(answer, CONTINUOUS, "--trials", "1")
    rates = [job.config.learning_rate for job in drive.executor.started]
    assert len(set(rates[:3])) == 1 and rates[3] != rates[0]
    with pytest.raises(SearchFailed, match="by SIGTERM"):
        drive(stranger, CONTINUOUS, "--trials", "9")


def lost(job):
    return [epoch_report(job, 1, 0.4), trial_result(job, TrialOutcome.LOST, "its node was lost", retryable=True)]


def test_trial_that_lost_its_node_is_requeued_four_times_and_is_no_failure(drive):
    assert drive(in_turn(lost, lost, lost, lost, well), CONTINUOUS, "--trials", "1") == "its 1 trials are done"
    assert len({str(job.config) for job in drive.executor.started}) == 1
    assert states(drive.study) == ["FAIL"] * 4 + ["COMPLETE"]
    assert next(iter(drive.runs.closed.values())) is TrialOutcome.LOST


def test_configuration_that_loses_five_nodes_is_abandoned_with_the_reason_and_the_search_goes_on(drive):
    def answer(job):
        return lost(job) if (job.config.kernel_size, job.config.depth) == (5, 2) else well(job)

    text = DISCRETE + "enqueue: [{kernel_size: 5, depth: 2}]"
    assert drive(answer, text, "--trials", "50") == "every configuration that fits the images has been tried"
    assert states(drive.study)[:5] == ["FAIL"] * 5 and drive.study.n_finished() == 5
    assert sum("node lost: its node was lost  " in line for line in drive.console.lines) == 4
    assert "its node was lost; this configuration has lost 5 nodes and is not tried again" in drive.console.lines[4]


def test_node_losses_are_counted_over_restarts_of_the_driver_and_apart_from_crashes(drive):
    def answer(job):
        return [] if job.number == 4 else crash(job) if job.number == 2 else lost(job)

    presses = lambda: int(len(drive.executor.started) == 5)  # noqa: E731
    drive(answer, CONTINUOUS, "--trials", "1", interrupts=presses)  # lost, lost, crashed, lost, stopped
    drive(in_turn(lost, lost, well), CONTINUOUS, "--trials", "1")
    rates = [job.config.learning_rate for job in drive.executor.started]
    assert rates[0] == rates[1] != rates[2], "its fifth loss is the last"


def test_loss_of_every_node_under_three_configurations_ends_the_search(drive):
    with pytest.raises(SearchFailed, match="3 trials in a row failed with the same cause: its node was lost"):
        drive(lost, CONTINUOUS, "--trials", "50")
    assert len(drive.executor.started) == 3 * 5


def test_loop_without_a_free_slot_waits_for_one(drive):
    waits = []

    class Joining(ScriptedExecutor):
        def free(self):
            return 0 if len(waits) < 3 else super().free()

        def events(self, timeout):
            waits.append(timeout)
            return super().events(timeout)

    drive.executor_of = Joining
    assert drive(well, CONTINUOUS, "--trials", "1") == "its 1 trials are done"
    assert len(waits) >= 3


# failing


def raising(*reasons):
    return [lambda job, reason=reason: [trial_result(job, TrialOutcome.RAISED, reason)] for reason in reasons]


def test_three_consecutive_failures_with_one_cause_end_the_search(drive):
    with pytest.raises(SearchFailed, match="3 trials in a row failed with the same cause: OSError: disk full"):
        drive(in_turn(*raising("OSError: disk full")), CONTINUOUS, "--trials", "50")
    assert len(drive.executor.started) == 3


@pytest.mark.parametrize(
    "reason",
    [
        "MlflowException: Run with id={id} not found",
        "RuntimeEnvSetupError: node {id}-12ab-34cd is full",
        "UsageError: on gpu-{number}: dataset must hold the same images on every node: got {id}",
    ],
)
def test_cause_is_the_same_whichever_run_and_host_it_names(drive, reason):
    def answer(job):
        told = trial_result(job, TrialOutcome.RAISED, reason.format(id=f"{job.number:x}".zfill(32), number=job.number))
        return [replace(told, slot=f"gpu-{job.number} CPU 1 of 1")]

    with pytest.raises(SearchFailed, match="3 trials in a row failed with the same cause: "):
        drive(answer, CONTINUOUS, "--trials", "50")
    assert len(drive.executor.started) == 3


def test_loss_of_a_node_between_failures_with_one_cause_is_no_success(drive):
    answer = in_turn(*raising("a", "a"), lost, *raising("a"))
    with pytest.raises(SearchFailed, match="3 trials in a row failed with the same cause: a"):
        drive(answer, CONTINUOUS, "--trials", "50")
    assert len(drive.executor.started) == 4


def test_running_trials_end_before_a_failed_search_does(drive):
    def answer(job):
        return successful_trial(job, *[0.1] * 9) if job.number == 0 else raising("no")[0](job)

    with pytest.raises(SearchFailed):
        drive(answer, CONTINUOUS, "--trials", "50", "--pruner", "none", slots=2)
    assert states(drive.study) == ["COMPLETE", "FAIL", "FAIL", "FAIL"]


def test_machine_on_which_every_trial_crashes_ends_the_search(drive):
    with pytest.raises(SearchFailed, match="SIGSEGV"):
        drive(crash, CONTINUOUS, "--trials", "50")
    assert len({job.config.learning_rate for job in drive.executor.started}) == 3


@pytest.mark.parametrize(
    "answers",
    [
        raising("a", "b", "a", "b", "c"),
        raising(*[f"learning_rate={rate}" for rate in (0.123456789, 0.234567891, 0.345678912)]),
        [*raising("a", "a"), well, *raising("a", "a")],
        [*raising("a", "a"), lambda job: [trial_result(job, TrialOutcome.OOM, "why")], *raising("a", "a")],
    ],
    ids=["three causes", "three fractions", "a success between", "memory between"],
)
def test_failures_with_different_causes_or_with_a_success_between_do_not_end_the_search(drive, answers):
    assert drive(in_turn(*answers, well), CONTINUOUS, "--trials", "4") == "its 4 trials are done"


# asked to stop


def test_first_interrupt_stops_trials_and_a_resumed_search_trains_them_again(drive):
    presses = []

    def answer(job):
        if job.number == 1:
            presses.append(1)
            return [epoch_report(job, 1, 0.1)]  # and on and on
        return well(job)

    why = drive(answer, CONTINUOUS, "--trials", "3", interrupts=lambda: len(presses))
    assert why == "it was asked to stop"
    assert set(drive.executor.stops) == {False}
    assert states(drive.study) == ["COMPLETE", "FAIL", "WAITING"]
    stopped = drive.executor.started[1].config
    drive(well, CONTINUOUS, "--trials", "3")
    assert drive.executor.started[0].config == stopped
    assert drive.study.n_finished() == 3


def test_second_interrupt_kills_trials(drive):
    presses = []

    def answer(job):
        presses.extend([1, 1])
        return []

    drive(answer, CONTINUOUS, interrupts=lambda: len(presses))
    assert set(drive.executor.stops) == {True}


def test_no_trial_starts_after_an_interrupt(drive):
    assert drive(well, CONTINUOUS, interrupts=lambda: 1) == "it was asked to stop"
    assert drive.executor.started == []


def test_configuration_whose_run_cannot_be_opened_before_an_interrupt_is_queued_again(drive):
    presses = []

    class Away(RecordingRuns):
        def start_child(self, *given, **more):
            presses.append(1)
            raise Unavailable("no answer")

    assert drive(well, CONTINUOUS, interrupts=lambda: len(presses), runs=Away()) == "it was asked to stop"
    assert states(drive.study) == ["FAIL", "WAITING"]
    assert drive.executor.started == []


# other drivers


@pytest.fixture
def others_running(monkeypatch):
    """Share the study with other drivers, which run one trial more than this one does, until the test lets it end."""
    trials = [1]
    monkeypatch.setattr(Study, "shared", True)
    monkeypatch.setattr(Study, "n_running", lambda study: len(study._running) + len(trials))
    monkeypatch.setattr(loop, "PAUSE_SECONDS", 0)
    return trials


def test_configuration_that_was_claimed_while_the_lock_was_lost_is_queued_again(drive, monkeypatch):
    leases = [LockLease(lost=True)]

    @contextmanager
    def locked(study):
        yield leases.pop() if leases else LockLease()

    monkeypatch.setattr(Study, "locked", locked)
    drive(well, CONTINUOUS, "--trials", "1")
    assert states(drive.study) == ["FAIL", "COMPLETE"]
    assert drive.executor.started[0].number == 1 and len(drive.runs.children) == 1
    assert drive.study.trials()[0].params == drive.study.trials()[1].params


def test_driver_stays_while_another_one_runs_the_last_trial_and_leaves_after_it(drive, others_running, monkeypatch):
    waits = []

    def events(executor, timeout, of=ScriptedExecutor.events):
        happened = of(executor, timeout)
        waits.append(len(happened))
        if len(waits) == 10:
            others_running.clear()
        return happened

    monkeypatch.setattr(ScriptedExecutor, "events", events)
    assert drive(well, CONTINUOUS, "--trials", "1") == "its 1 trials are done"
    assert waits[:9] == [0] * 9 and drive.study.n_finished() == 1


def test_driver_that_was_asked_to_stop_does_not_wait_for_the_others(drive, others_running, monkeypatch):
    def events(executor, timeout):
        raise AssertionError("it waits")

    monkeypatch.setattr(ScriptedExecutor, "events", events)
    assert drive(well, CONTINUOUS, interrupts=lambda: 1) == "it was asked to stop"


# other metrics


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("val_loss", [0.25]),
        ("val_accuracy,parameters", [0.5, 100.0]),
        ("parameters,val_loss", [100.0, 0.25]),
        ("epoch_seconds,val_accuracy", [2.0, 0.5]),
        ("val_accuracy,latency_ms", [0.5, 7.0]),
        ("val_accuracy,val_loss", [0.5, 0.25]),
        ("val_balanced_accuracy", [0.375]),
        ("val_macro_f1,parameters", [0.125, 100.0]),
    ],
)
def test_trial_is_recorded_with_the_searchs_metrics_in_their_order(drive, metric, values):
    drive(
        lambda job: successful_trial(job, 0.5, 0.4, loss=0.25, latency_ms=7.0),
        CONTINUOUS,
        "--trials",
        "1",
        "--metric",
        metric,
    )
    assert drive.executor.started[0].latency == ("latency_ms" in metric)
    assert drive.study.trials()[0].values == values
    curves = {"val_loss": "0.2500", "val_balanced_accuracy": "37.50 %", "val_macro_f1": "12.50 %"}
    monitor = drive.study.search.monitor
    assert f"{monitor} {curves.get(monitor, '50.00 %')}" in drive.console.lines[0]


def test_search_with_two_metrics_prunes_no_trial(drive):
    def answer(job):
        return successful_trial(job, *[0.9 - job.number / 20] * 9)

    drive(answer, CONTINUOUS, "--trials", "12", "--metric", "val_accuracy,parameters")
    assert states(drive.study) == ["COMPLETE"] * 12


# in MLflow


def test_runs_of_trials_in_mlflow_show_their_outcomes(drive, store):
    runs = open_study_run("mine", known=None, trials=0)
    out_of_memory = lambda job: [trial_result(job, TrialOutcome.OOM, "no memory")]  # noqa: E731
    good = lambda job: successful_trial(job, 0.5, 0.6, 0.7)  # noqa: E731
    worse = lambda job: successful_trial(job, 0.1, 0.1, 0.1)  # noqa: E731
    drive(in_turn(good, good, out_of_memory, crash, good, worse), CONTINUOUS, *_pruning("5"), runs=runs)
    runs.close(RunOutcome.FINISHED, "")
    experiment = mlflow.get_experiment_by_name("mine").experiment_id
    found = mlflow.MlflowClient().search_runs([experiment], order_by=["attributes.start_time"])
    children = [run for run in found if run.info.run_id != runs.id]
    children.sort(key=lambda run: int(run.data.tags[Tag.TRIAL_NUMBER]))
    assert [(run.info.status, run.data.tags[Tag.TRIAL_STATE]) for run in children] == [
        ("FINISHED", "finished"),
        ("FINISHED", "finished"),
        ("FAILED", "oom"),
        ("FAILED", "crashed"),
        ("FINISHED", "finished"),
        ("KILLED", "pruned"),
    ]
    assert {run.data.tags[Tag.PARENT_RUN_ID] for run in children} == {runs.id}
    assert [trial.user_attrs["run_id"] for trial in drive.study.trials()] == [run.info.run_id for run in children]
