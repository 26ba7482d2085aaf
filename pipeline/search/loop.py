"""The loop of a search: ask the study, start trials in free slots, heed what comes back, until the budget is spent."""

import re
import time
from dataclasses import dataclass, field, replace

from pipeline.runtime.errors import SearchFailed
from pipeline.runtime.text import format_duration, short_settings, trial_name
from pipeline.search import attributes
from pipeline.search.executors.base import MAX_NODE_LOSSES, EpochReport, TrialJob, TrialResult, should_retry
from pipeline.search.session import SearchContext
from pipeline.search.study import TrialProposal
from pipeline.tracking.tags import Role, RunRef, Tag, TrialOutcome

MAX_CONSECUTIVE_FAILURES = 3  # failures in a row with one cause, after which it is not the configuration's fault
ID = re.compile(r"(?<![\w.])[0-9a-f]{8,}(-[0-9a-f]{4,})*\b", re.IGNORECASE)  # of a run, a node, data; no fraction
PAUSE_SECONDS = 3.0  # between two looks of a driver that waits for others: each takes the lock that all share
USED_UP = "every configuration that fits the images has been tried"
FOUND_NO_MORE = "no further configuration that fits the images was found"


@dataclass
class _Running:
    """A trial on its way."""

    proposal: TrialProposal
    run: RunRef
    name: str
    epochs: int
    values: list[float] = field(default_factory=list)  # validation accuracy or loss, one an epoch
    pruned: bool = False


class SearchLoop:
    """Runs the trials of a study; holds no device and no TensorFlow."""

    def __init__(self, session: SearchContext) -> None:
        self._session, self._study, self._search = session, session.study, session.study.search
        self._running: dict[int, _Running] = {}
        self._causes: dict[str, str] = {}  # by configuration, of the failures since the last trial that did not fail
        self._used_up = False  # the space, as far as is known while trials run
        self._ending: str | None = None  # why the last claim was none
        self._pause_until = 0.0  # with claims, on time.monotonic()
        self._curve = next(
            name for name in self._search.settings.metric if name.startswith("val_")
        )  # known at every epoch
        self._failing: str | None = None
        self._began = time.monotonic()
        self._searched = float(self._study.get_attr(attributes.SEARCHED_SECONDS) or 0)

    def search(self) -> str:
        """Run trials until nothing is left to do; returns why: the budget, the space or the person.

        Raises:
            Failing: so many trials in a row failed for one reason; running ones have ended.
        """
        while True:
            ending = self._fill()
            if ending and not self._running and not self._waits():
                if self._failing:
                    raise SearchFailed(self._failing)
                return ending
            for event in self._session.events():
                if isinstance(event, EpochReport):
                    self._heed(event)
                else:
                    self._end(event)
            self._show_progress()

    def _fill(self) -> str | None:
        """Start trials in free slots; returns why no further one may begin, None where there is only no slot."""
        while (ending := self._why_stop()) is None and self._session.executor.free():
            proposal = self._claim() if time.monotonic() >= self._pause_until else None
            if proposal is None:
                return self._ending
            self._start(proposal)
        return ending

    def _claim(self) -> TrialProposal | None:
        """A configuration within the budget that nobody else trains; None, and why, where there is none."""
        with self._study.alone() as held:
            self._used_up &= not self._study.shared  # unless a trial of another driver has died meanwhile
            self._ending = self._why_end()
            proposal = None if self._ending else self._study.ask()
            if proposal is None and not self._ending:
                self._used_up = True
                self._ending = self._why_end()
        if proposal is None:
            self._pause_until = time.monotonic() + PAUSE_SECONDS * self._study.shared
        elif held.lost:  # then another driver may have had it at the same time
            self._study.requeue(proposal.number)
            return self._claim()
        return proposal

    def _waits(self) -> bool:
        """Whether a trial of another driver is on its way, which may die and be this one's to train again."""
        return self._study.shared and self._why_stop() is None and self._study.running() > 0

    def _why_stop(self) -> str | None:
        """Why this driver should begin nothing more, or None."""
        return self._failing or ("it was asked to stop" if self._session.interrupts() else None)

    def _why_end(self) -> str | None:
        """Why the search should begin no further trial, or None."""
        settings = self._search.settings
        if self._study.n_finished() + self._study.running() >= settings.trials:
            return f"its {settings.trials} trials are done"
        if settings.hours is not None and self.searched_seconds() >= 3600 * settings.hours:
            return f"its {settings.hours:g} hours are over"
        if self._used_up:
            return USED_UP if self._study.counted() else FOUND_NO_MORE
        return None

    def searched_seconds(self) -> float:
        """How long the study has been searched, by this driver and those before it."""
        return self._searched + time.monotonic() - self._began

    def _start(self, proposal: TrialProposal) -> None:
        name = trial_name(proposal.number, proposal.params)
        run = self._session.start_child(name, role=Role.TRIAL, tags={Tag.TRIAL_NUMBER: str(proposal.number)})
        if run is None:
            self._study.requeue(proposal.number)
            return
        self._study.annotate(proposal.number, {attributes.RUN_ID: run.run_id})
        config = self._search.config(proposal.params)
        self._running[proposal.number] = _Running(proposal, run, name, config.epochs)
        latency = "latency_ms" in self._search.settings.metric
        job = TrialJob(proposal.number, config, run, "trial", latency=latency)
        self._session.executor.start(job, minutes=self._search.settings.trial_minutes)

    def _heed(self, report: EpochReport) -> None:
        trial = self._running[report.number]
        trial.values.append(report.metrics[self._curve])
        if not trial.pruned and self._study.report(report.number, report.epoch, trial.values[-1]):
            trial.pruned = True
            self._session.executor.prune(report.number)

    def _end(self, ended: TrialResult) -> None:
        trial = self._running.pop(ended.number)
        self._used_up = False
        if ended.outcome is TrialOutcome.LOST and not _again(trial, ended):
            reason = f"{ended.reason}; this configuration has lost {MAX_NODE_LOSSES} and is not tried again"
            ended = replace(ended, retryable=False, reason=reason)
        self._session.runs.end_trial(
            trial.run.run_id, ended.outcome, reason=ended.reason, output_tail=ended.output_tail
        )
        figures = {name: ended.metrics[name] for name in attributes.FIGURES if name in ended.metrics}
        self._study.annotate(ended.number, figures | {attributes.OUTCOME: str(ended.outcome)})
        self._tell(trial, ended)
        self._study.set_attr(
            attributes.SEARCHED_SECONDS,
            max(self.searched_seconds(), self._study.get_attr(attributes.SEARCHED_SECONDS) or 0),
        )
        self._session.say(self._line(trial, ended))
        if ended.outcome in {TrialOutcome.RAISED, TrialOutcome.CRASHED} or _external_signal(ended) or _abandoned(ended):
            self._causes[short_settings(trial.proposal.params)] = _cause(ended)  # retries say nothing new
            last = list(self._causes.values())[-MAX_CONSECUTIVE_FAILURES:]
            if len(last) == MAX_CONSECUTIVE_FAILURES and len(set(last)) == 1:
                self._failing = f"{MAX_CONSECUTIVE_FAILURES} trials in a row failed with the same cause: {ended.reason}"
        elif ended.outcome not in {TrialOutcome.STOPPED, TrialOutcome.LOST}:
            self._causes.clear()

    def _tell(self, trial: _Running, ended: TrialResult) -> None:
        number = ended.number
        match ended.outcome:
            case TrialOutcome.FINISHED:
                self._study.complete(number, self._values(ended))
            case TrialOutcome.PRUNED | TrialOutcome.DIVERGED:
                self._study.prune(number)
            case TrialOutcome.OOM | TrialOutcome.TIMEOUT:  # the like of it would not do better
                self._study.prune(number, violation=True)
            case TrialOutcome.LOST if not _abandoned(ended):
                self._study.requeue(number, lost=True)
            case TrialOutcome.STOPPED if not _external_signal(ended):
                self._study.requeue(number)
            case _:
                self._study.fail(number, again=_again(trial, ended))

    def _values(self, ended: TrialResult) -> list[float]:
        """What the study is about: the best epoch's value, and the cost where that is a second metric."""
        metrics = ended.metrics
        found = {f"best_{name}": metrics[f"best_{name}"] for name in ("val_accuracy", "val_loss")}
        found = {name.removeprefix("best_"): value for name, value in found.items()} | dict(metrics)
        found["epoch_seconds"] = metrics["seconds"] / metrics["epochs"]
        return [found[metric] for metric in self._search.settings.metric]

    def _line(self, trial: _Running, ended: TrialResult) -> str:
        """What became of a trial, for the terminal."""
        metric = self._curve
        pick = max if metric == "val_accuracy" else min
        epochs, seconds = len(trial.values), ended.metrics.get("seconds")
        parts = [f"{trial.name:<24}"]
        parts.append(f"{metric} {pick(trial.values):.4f}" if trial.values else f"no {metric}")
        parts.append(f"{epochs} epoch{'s' * (epochs != 1)}")
        parts += [f"{seconds:.1f} s"] if seconds is not None else []
        if ended.outcome is not TrialOutcome.FINISHED:
            told = (
                "" if ended.outcome in {TrialOutcome.PRUNED, TrialOutcome.STOPPED} else ended.reason
            )  # which was asked for
            parts.append(f"{ended.outcome}{': ' * bool(told)}{told}")
        if best := self._study.best():
            parts.append(f"best {best.values[0]:.4f} (t{best.number:03d})")
        spent, trials = self._study.n_finished(), self._search.settings.trials
        return "  ".join([*parts, f"[{', '.join([f'{spent}/{trials}', *self._left(spent)])}]"])

    def _show_progress(self) -> None:
        """Move the bar: trials that are done, and what the running ones have of theirs."""
        spent, trials = self._study.n_finished(), self._search.settings.trials
        done = spent + sum(len(trial.values) / trial.epochs for trial in self._running.values())
        parts = [f"{spent} of {trials} trials", f"{len(self._running)} running", *self._left(done)]
        self._session.progress(done, trials, ", ".join(parts))

    def _left(self, done: float) -> list[str]:
        """About how long it will go on, in words, where anything is done and anything left."""
        if not done or self._session.interrupts():
            return []
        seconds = self.searched_seconds() / done * max(0, self._search.settings.trials - done)
        return [f"about {format_duration(seconds)} left"] if seconds >= 1 else []


def _again(trial: _Running, ended: TrialResult) -> bool:
    return should_retry(ended, attempt=trial.proposal.attempt, node_losses=trial.proposal.node_losses)


def _external_signal(ended: TrialResult) -> bool:
    """Whether a trial was stopped by a signal that did not come from its driver."""
    return ended.outcome is TrialOutcome.STOPPED and ended.retryable


def _abandoned(ended: TrialResult) -> bool:
    """Whether a trial has lost a node, and its configuration so many before that it is to blame."""
    return ended.outcome is TrialOutcome.LOST and not ended.retryable


def _cause(ended: TrialResult) -> str:
    """The reason of a failure without what differs where one fault hits all: ids, and the host among several."""
    host = re.escape(ended.slot.partition(" ")[0])
    return ID.sub("...", re.sub(rf"\b{host}\b", "...", ended.reason) if host else ended.reason)
