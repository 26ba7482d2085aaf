"""Events of a search, for those who are to be notified: new best trials, a budget that is nearly spent, and its end."""

import time

from pipeline.config.monitor import describe_test
from pipeline.notifications.events import Kind
from pipeline.runtime.text import format_metric, trial_name
from pipeline.search.attributes import BUDGET_SAID, WINNER
from pipeline.search.budget import share_spent
from pipeline.search.study import Study
from pipeline.tracking.run_events import RunEvents
from pipeline.tracking.tags import RunOutcome

NEARLY_SPENT = 0.9  # of the budget
BEST_SECONDS = 60.0  # between two messages on a new best trial; the last of several in between is sent after it


class SearchEvents:
    """Sends what happens to a study.

    Args:
        study: The study.
        events: Of the study's run.
        best_seconds: Between two messages on a new best trial.
    """

    def __init__(
        self,
        study: Study,
        events: RunEvents,
        *,
        best_seconds: float = BEST_SECONDS,
    ) -> None:
        self._study, self._events, self._best_seconds = study, events, best_seconds
        self._new_best = False
        self._best_after = time.monotonic()  # when the next message on a new best trial may be sent
        self._has_said_budget = False

    def beat(self) -> None:
        """Take note that epochs or trials have ended."""
        self._events.beat()

    def trial_ended(self, number: int) -> None:
        """Take note of a trial that has ended: it may be the best of several."""
        if len(self._study.search.directions) > 1:
            # there is no best of two metrics
            return
        ranked = self._study.ranked()
        # the first one is the best of one
        if len(ranked) > 1 and ranked[0].number == number:
            self._new_best = True

    def tick(self, *, seconds: float) -> None:
        """Send what is due; to be called about once a second.

        Args:
            seconds: For how long the study has been searched.
        """
        if self._new_best and time.monotonic() >= self._best_after:
            self._new_best, self._best_after = False, time.monotonic() + self._best_seconds
            self._send_best()
        if self._has_said_budget:
            return
        spent = share_spent(self._study, seconds=seconds, finished=self._study.n_finished())
        if NEARLY_SPENT <= spent < 1:
            self._has_said_budget = True
            self._send_budget(spent)

    def ended(self, outcome: RunOutcome, reason: str) -> None:
        """Send how the search has ended; where it has finished, with its winner or its best trial."""
        if outcome is RunOutcome.FINISHED:
            self._send_result()
        else:
            kind: Kind = "stopped" if outcome is RunOutcome.STOPPED else "failed"
            self._events.send(kind, f"{kind}: {reason}", reason=reason)

    def _send_result(self) -> None:
        winner = self._study.get_attr(WINNER)
        if winner:
            metrics = {name: value for name, value in winner.items() if isinstance(value, float)}
            name = trial_name(winner["trial"], winner["params"])
            tested = describe_test(self._study.search.monitor, winner)
            self._events.send("finished", f"finished: winner {name}, {tested}", metrics=metrics)
        else:
            self._events.send("finished", f"finished: {self._describe_best() or 'no trial has finished'}")

    def _send_best(self) -> None:
        best = self._study.best()
        if best:
            values = dict(zip(self._study.search.settings.metric, best.values, strict=True))
            done = f"{self._study.n_finished()} of {self._study.search.settings.trials} trials are done"
            self._events.send("new_best", f"new best: {self._describe_best()}; {done}", metrics=values)

    def _describe_best(self) -> str:
        best = self._study.best()
        if best is None:
            return ""
        values = zip(self._study.search.settings.metric, best.values, strict=True)
        shown = ", ".join(f"{metric} {format_metric(metric, value)}" for metric, value in values)
        return f"{trial_name(best.number, best.params)}, {shown}"

    def _send_budget(self, spent: float) -> None:
        """Send that the budget is nearly spent, once for each budget, whatever drivers and resumptions there are."""
        settings = self._study.search.settings
        limits = [f"{settings.trials} trials"]
        if settings.hours is not None:
            limits.append(f"{settings.hours:g} hours")
        if settings.max_epochs_total is not None:
            limits.append(f"{settings.max_epochs_total:,} epochs")
        budget = " or ".join(limits)
        if self._study.get_attr(BUDGET_SAID) != budget:
            self._study.set_attr(BUDGET_SAID, budget)
            best = self._describe_best() or "none yet"
            self._events.send("budget", f"{100 * spent:.0f} % of its {budget} are spent; best so far: {best}")
