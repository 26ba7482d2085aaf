"""The loop of a search: propose configurations, run their trials, and record the results until the budget is spent."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.config.monitor import DIRECTIONS, sign
from pipeline.runtime.errors import SearchFailed
from pipeline.runtime.text import count, format_duration, format_metric, short_settings, trial_name
from pipeline.search.attributes import FIGURES, OUTCOME, RESUMED_AFTER, RUN_ID
from pipeline.search.budget import share_spent, why_spent
from pipeline.search.description import describe_status, describe_training
from pipeline.search.executors.base import MAX_NODE_LOSSES, EpochReport, TrialJob, TrialResult, should_retry
from pipeline.search.proposals import TrialProposal
from pipeline.search.session import SearchContext
from pipeline.search.time_estimate import final_record, final_seconds
from pipeline.tracking.tags import Role, RunRef, Tag, TrialOutcome

# Failures in a row with the same cause, after which the configurations are not to blame
MAX_CONSECUTIVE_FAILURES = 3
# The id of a run, a node or data in a message; not the digits of a fraction
ID = re.compile(r"(?<![\w.])[0-9a-f]{8,}(-[0-9a-f]{4,})*\b", re.IGNORECASE)
# Between two proposals that a driver asks for in vain while others run trials: each takes the lock that all share
PAUSE_SECONDS = 3.0
# Between two lines on what is known so far
STATUS_SECONDS = 600.0


@dataclass
class _RunningTrial:
    """A trial that has been started."""

    proposal: TrialProposal
    run: RunRef
    name: str
    epochs: int
    values: list[float] = field(default_factory=list)  # of the monitored metric, one an epoch or a fold
    epoch: int = 0  # after which the last value was
    pruned: bool = False


class SearchLoop:
    """Runs the trials of a study; holds no device and imports no TensorFlow.

    Args:
        context: What it shares with the rest of the search.
        on_status: Called whenever the terminal is told what is known so far, every `STATUS_SECONDS`.
    """

    def __init__(self, context: SearchContext, *, on_status: Callable[[], None] = lambda: None) -> None:
        self._on_status = on_status
        self._next_status = time.monotonic() + STATUS_SECONDS
        self._context, self._study, self._search = context, context.study, context.study.search
        self._running: dict[int, _RunningTrial] = {}
        # Causes by configuration, since the last trial that did not fail
        self._causes: dict[str, str] = {}
        self._failure: str | None = None
        # Whether all configurations have been tried, as far as is known while trials run
        self._exhausted = False
        # Why the last claim brought no configuration, and before when none is to be made, on time.monotonic()
        self._end_reason: str | None = None
        self._pause_until = 0.0
        self._monitor = self._search.monitor
        self._record = final_record(context)
        self._slots = 1  # the most trials at a time so far
        self._study.on_skipped = self._print_skipped
        self._began = time.monotonic()
        self._searched_before = self._study.searched_seconds()

    def run(self) -> str:
        """Run trials until none is left to run, and return why: the budget, the space or an interrupt.

        Raises:
            SearchFailed: several trials in a row failed with the same cause; the running ones have ended.
        """
        while True:
            reason = self._fill_slots()
            if reason and not self._running and not self._others_run():
                if self._failure:
                    raise SearchFailed(self._failure)
                return reason
            for event in self._context.wait_for_events():
                if isinstance(event, EpochReport):
                    self.on_report(event)
                else:
                    self.on_trial_end(event)
            self._show_progress()
            if time.monotonic() >= self._next_status:
                self._next_status = time.monotonic() + STATUS_SECONDS
                self._context.console.print(*describe_status(self._study, self.searched_seconds()))
                self._on_status()
            if self._context.notify:
                self._context.notify.tick(seconds=self.searched_seconds())

    def searched_seconds(self) -> float:
        """Return for how long the study has been searched, by this driver and those before it."""
        return self._searched_before + time.monotonic() - self._began

    def on_report(self, report: EpochReport) -> None:
        """Record the metrics of an epoch, and prune the trial if the study says so."""
        trial = self._running[report.number]
        trial.epoch = report.epoch
        # A trial whose checkpoint is gone starts again at the first epoch
        trial.values[report.epoch - 1 :] = [report.metrics[self._monitor]]
        may_end = not trial.pruned and self._study.report(report.number, report.epoch, trial.values[-1])
        # after its last epoch it is complete
        if may_end and report.epoch < trial.epochs:
            trial.pruned = True
            self._context.executor.prune(report.number)

    def on_trial_end(self, result: TrialResult) -> None:
        """Record the result of a trial in the study and in MLflow, and print it."""
        trial = self._running.pop(result.number)
        self._exhausted = False
        retry = should_retry(result, attempt=trial.proposal.attempt, node_losses=trial.proposal.node_losses)
        if result.outcome is TrialOutcome.LOST and not retry:
            reason = f"{result.reason}; this configuration has lost {MAX_NODE_LOSSES} nodes and is not tried again"
            result = replace(result, retryable=False, reason=reason)
        self._context.runs.end_trial(
            trial.run.run_id, result.outcome, reason=result.reason, output_tail=result.output_tail
        )
        self._context.runs.present_child(
            trial.run.run_id,
            description=describe_training(self._study, trial.proposal.params, result, epochs=trial.epochs),
        )
        figures: dict[str, object] = {name: result.metrics[name] for name in FIGURES if name in result.metrics}
        self._study.set_trial_attrs(result.number, figures | {OUTCOME: str(result.outcome)})
        if self._search.settings.max_latency_ms is not None and "latency_ms" in result.metrics:
            self._study.record_latency(result.number, result.metrics["latency_ms"])
        self._tell(result, retry=retry)
        if self._context.notify:
            self._context.notify.trial_ended(result.number)
        self._study.record_searched_seconds(self.searched_seconds())
        self._context.console.print(self._describe(trial, result))
        self._check_failures(trial, result)

    def _fill_slots(self) -> str | None:
        """Start trials in the free slots.

        Returns:
            Why no further trial may start, or None if only a free slot is missing.
        """
        while (reason := self._why_stop()) is None and self._context.executor.free():
            proposal = self._claim() if time.monotonic() >= self._pause_until else None
            if proposal is None:
                return self._end_reason
            self._start(proposal)
        return reason

    def _claim(self) -> TrialProposal | None:
        """Return a configuration within the budget that no other driver trains, or None and set the reason."""
        while True:
            with self._study.locked() as lease:
                if self._study.shared:
                    # A trial of another driver may have died meanwhile, and its configuration be queued again
                    self._exhausted = False
                self._end_reason = self._why_end()
                proposal = None if self._end_reason else self._study.ask()
                if proposal is None and not self._end_reason:
                    self._exhausted = True
                    self._end_reason = self._why_end()
            if proposal is None:
                if self._study.shared:
                    self._pause_until = time.monotonic() + PAUSE_SECONDS
                return None
            if not lease.lost:
                return proposal
            # Another driver may have held the lock at the same time and have been given the same configuration
            self._study.requeue(proposal.number)

    def _others_run(self) -> bool:
        """Return whether another driver runs a trial, which may die and then be this one's to train again."""
        return self._study.shared and self._why_stop() is None and self._study.n_running() > 0

    def _why_stop(self) -> str | None:
        """Return why this driver should start no further trial, or None."""
        if self._failure:
            return self._failure
        return "it was asked to stop" if self._context.interrupts() else None

    def _why_end(self) -> str | None:
        """Return why the search should start no further trial, or None."""
        if reason := why_spent(self._study, seconds=self.searched_seconds()):
            return reason
        if self._exhausted:
            if self._study.space.is_enumerable():
                return "every configuration that fits the images has been tried"
            return "no further configuration that fits the images was found"
        return None

    def _start(self, proposal: TrialProposal) -> None:
        """Start the trial of a configuration, in an MLflow run of its own."""
        name = trial_name(proposal.number, proposal.params)
        tags = {Tag.TRIAL_NUMBER: str(proposal.number)}
        if proposal.values:
            tags[Tag.CONTINUES] = trial_name(proposal.root, {})
        run = self._context.start_child(name, role=Role.TRIAL, tags=tags)
        if run is None:
            self._study.requeue(proposal.number)
            return
        self._study.set_trial_attrs(proposal.number, {RUN_ID: run.run_id})
        config = self._search.config(proposal.params)
        known = [*proposal.values]
        self._running[proposal.number] = _RunningTrial(
            proposal, run, name, config.total_epochs, known, epoch=len(known)
        )
        self._slots = max(self._slots, len(self._running))
        latency = "latency_ms" in self._search.settings.metric
        job = TrialJob(
            proposal.number,
            config,
            run,
            "trial",
            latency=latency,
            **self._study.checkpoints(proposal),
            max_latency_ms=self._search.settings.max_latency_ms,
            max_memory_mb=self._search.settings.max_memory_mb,
        )
        self._context.executor.start(job, minutes=self._search.settings.trial_minutes)

    def _tell(self, result: TrialResult, *, retry: bool) -> None:
        """Tell the study how a trial ended."""
        number = result.number
        match result.outcome:
            case TrialOutcome.FINISHED:
                self._study.complete(number, self._values(result))
            case TrialOutcome.PRUNED | TrialOutcome.DIVERGED:
                self._study.prune(number)
            case TrialOutcome.INFEASIBLE:
                self._study.refuse(number, result.reason)
            case TrialOutcome.OOM | TrialOutcome.TIMEOUT:
                # Similar configurations would not do better
                self._study.prune(number, violation=True)
            case TrialOutcome.LOST if retry:
                self._study.requeue(number, node_lost=True)
            case TrialOutcome.STOPPED if not _is_external_signal(result):
                self._study.requeue(number)
            case _:
                self._study.fail(number, retry=retry)

    def _values(self, result: TrialResult) -> list[float]:
        """Return a value for each metric of the study: one of the best epoch, or a cost."""
        trained = result.metrics["epochs"] - result.metrics.get(RESUMED_AFTER, 0)
        known = {**result.metrics, "epoch_seconds": result.metrics["seconds"] / trained}
        return [known[f"best_{name}" if name in DIRECTIONS else name] for name in self._search.settings.metric]

    def _check_failures(self, trial: _RunningTrial, result: TrialResult) -> None:
        """Set the failure that ends the search if several configurations in a row have failed with the same cause."""
        abandoned = result.outcome is TrialOutcome.LOST and not result.retryable
        failed = result.outcome in {TrialOutcome.RAISED, TrialOutcome.CRASHED}
        if failed or abandoned or _is_external_signal(result):
            # By configuration, since its retries say nothing new
            self._causes[short_settings(trial.proposal.params)] = _cause(result)
            last = list(self._causes.values())[-MAX_CONSECUTIVE_FAILURES:]
            if len(last) == MAX_CONSECUTIVE_FAILURES and len(set(last)) == 1:
                self._failure = (
                    f"{MAX_CONSECUTIVE_FAILURES} trials in a row failed with the same cause: {result.reason}"
                )
        elif result.outcome not in {TrialOutcome.STOPPED, TrialOutcome.LOST}:
            self._causes.clear()

    def _describe(self, trial: _RunningTrial, result: TrialResult) -> str:
        """Return the line that the terminal shows of a trial that has ended."""
        monitor = self._monitor
        # after each fold there is a mean of those so far
        values = trial.values[-1:] if self._search.base.folds else trial.values
        parts = [
            f"{trial.name:<24}"
            + (f"  continues {trial_name(trial.proposal.root, {})}" if trial.proposal.values else ""),
            f"{monitor} {format_metric(monitor, max(values, key=lambda value: sign(monitor) * value))}"
            if values
            else f"no {monitor}",
            count(trial.epoch, "epoch"),
        ]
        if (seconds := result.metrics.get("seconds")) is not None:
            parts.append(f"{seconds:.1f} s")
        if result.outcome is not TrialOutcome.FINISHED:
            # The end of a pruned or a stopped trial was asked for, so that its reason says nothing new
            expected = result.outcome in {TrialOutcome.PRUNED, TrialOutcome.STOPPED}
            parts.append(str(result.outcome) if expected or not result.reason else f"{result.outcome}: {result.reason}")
        if best := self._study.best():
            value = format_metric(self._search.settings.metric[0], best.values[0])
            parts.append(f"best so far {value} ({trial_name(best.number, {})})")
        finished, trials = self._study.n_finished(), self._search.settings.trials
        budget = ", ".join([f"{finished} of {trials}", *self._time_left(finished)])
        return "  ".join([*parts, f"[{budget}]"])

    def _show_progress(self) -> None:
        """Move the progress bar: finished trials, and the epochs of the running ones as fractions of a trial."""
        finished, trials = self._study.n_finished(), self._search.settings.trials
        done = finished + sum(trial.epoch / trial.epochs for trial in self._running.values())
        parts = [f"{finished} of {trials} trials", f"{len(self._running)} running", *self._time_left(done)]
        self._context.console.progress(done, trials, ", ".join(parts))

    def _print_skipped(self, number: int, params: Mapping[str, Any], reason: str) -> None:
        """Print why a trial trains nothing, as the numbers of the others would seem to jump."""
        self._context.console.print(f"{trial_name(number, params):<24}  {reason}")

    def _time_left(self, done: float) -> list[str]:
        """Return about how long the search will go on, its final included, as no part or one part of a line."""
        if not done or self._context.interrupts():
            return []
        share = share_spent(self._study, seconds=self.searched_seconds(), finished=done)
        seconds = self.searched_seconds() / share * (1 - share)
        seconds += final_seconds(self._study, self._record, slots=self._slots)
        return [f"about {format_duration(seconds)} left"] if seconds >= 1 else []


def _is_external_signal(result: TrialResult) -> bool:
    """Return whether a trial was stopped by a signal that its driver did not send."""
    return result.outcome is TrialOutcome.STOPPED and result.retryable


def _cause(result: TrialResult) -> str:
    """Return the reason of a failure without what differs where one cause hits all: ids, and which of several hosts."""
    host = re.escape(result.slot.partition(" ")[0])
    reason = re.sub(rf"\b{host}\b", "...", result.reason) if host else result.reason
    return ID.sub("...", reason)
