"""The finalists of a search: its best configurations, retrained with several seeds."""

import time
from collections.abc import Collection
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.config.monitor import sign
from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import SearchFailed
from pipeline.runtime.text import count, format_duration, format_metric, trial_name
from pipeline.search.attributes import WINNER
from pipeline.search.description import describe_finalist, describe_training, training_name
from pipeline.search.executors.base import EpochReport, TrialResult
from pipeline.search.final_jobs import FinalJobs
from pipeline.search.final_record import Finalist, mean_and_sd
from pipeline.search.handover import Handover
from pipeline.search.session import SearchContext
from pipeline.search.time_estimate import final_record
from pipeline.tracking.tags import Role, RunRef, Tag, TrialOutcome


class FinalistTraining:
    """Retrains the best configurations of a study, and hands over the one with the best mean.

    A finalist has a run, and each of its trainings a run below it. What has been trained is kept in the study, so that
    a search that is resumed or extended trains only what is missing, and evaluates only another winner.
    """

    def __init__(self, context: SearchContext) -> None:
        self._context, self._study, self._runs = context, context.study, context.runs
        self._jobs = FinalJobs(context)
        self._metric = self._study.search.monitor
        self._record = final_record(context)
        self._seeds = self._record.seeds
        self._handover = Handover(context, self._jobs, self._record)
        # Weights of the trainings of this search that have finished, and of those that are not tried again in it
        self._finished: set[Path] = set()
        self._failed: set[Path] = set()

    def known_winner(self) -> dict[str, Any] | None:
        """Return the winner if it is known already: the finalists and the seeds are those that it was chosen by."""
        winner = self._study.get_attr(WINNER)
        best = [self._record.digest(params) for _, params in self._best_configurations()]
        return winner if winner and winner["question"] == self._record.question(best) else None

    def run(self) -> dict[str, Any] | None:
        """Train what is missing, and evaluate the winner unless it is the one that was evaluated before.

        Returns:
            The winner, or None if the search was asked to stop or no training succeeded.
        """
        # Other drivers may add trials meanwhile, among which this winner is not chosen
        trials = self._study.n_finished()
        if winner := self.known_winner():
            return self._handover.confirm(winner | {"trials": trials})
        finalists = self._load_finalists()
        if not finalists:
            return None
        self._jobs.make_weights_folder()
        try:
            winning = self._train_and_choose(finalists)
        except BaseException:
            # The cluster is lost, say
            self._close_runs(finalists, stopped=True)
            raise
        self._close_runs(finalists, stopped=bool(self._context.interrupts()))
        if self._context.interrupts() or winning is None:
            return None
        self._check_against_chance(mean(winning.known(self._seeds).values()))
        return self._handover.conclude(winning, finalists, trials=trials)

    def _best_configurations(self) -> list[tuple[int, dict[str, Any]]]:
        """Return the numbers and the settings of the trials whose configurations are to be retrained, best first."""
        best = self._study.ranked()[: self._study.search.settings.final_top]
        return [(trial.number, self._study.search.snap(trial.params)) for trial in best]

    def _load_finalists(self) -> list[Finalist]:
        """Return the best configurations, with what is known of them; none if the search was asked to stop."""
        finalists = []
        for number, params in self._best_configurations():
            finalist = self._record.find(params)
            if finalist is None:
                name = f"final {trial_name(number, params)}"
                run = self._context.start_child(name, role=Role.FINAL, tags={Tag.TRIAL_NUMBER: str(number)})
                if run is None:
                    return []
                finalist = Finalist(number, params, self._record.digest(params), run.run_id)
                self._runs.log_child_params(run.run_id, _shared_settings(self._study.search.config(params)))
                self._record.add(finalist)
                self._record.keep()
            finalists.append(finalist)
        return finalists

    def _train_and_choose(self, finalists: Collection[Finalist]) -> Finalist | None:
        """Train what is missing, and return the finalist with the best mean; the weights that are needed are there.

        Returns:
            None if the search was asked to stop or no training succeeded.
        """
        self._train(finalists)
        while not self._context.interrupts():
            compared = self._record.compared(finalists)
            if not compared:
                return None
            winning = self._record.winning(compared)
            seed = self._record.best_seed(winning)
            missing = [one for one in self._handover.needed(winning, finalists) if not self._has_weights(one, seed)]
            if not missing:
                return winning
            for finalist in missing:
                self._context.console.print(
                    f"the weights of {training_name(finalist.trial, finalist.params, seed)} are gone: it is trained "
                    "again"
                )
                # A value without weights is of no use: the winner is evaluated with them
                del finalist.values[str(seed)]
            self._train(missing)
        return None

    def _has_weights(self, finalist: Finalist, seed: int) -> bool:
        """Return whether the weights of a finalist's training are there, or were when it was trained."""
        weights = self._jobs.weights_file(finalist, seed)
        return weights.exists() or weights in self._finished

    def _train(self, finalists: Collection[Finalist]) -> None:
        """Train each finalist with each seed with which it has not been trained."""
        queue = [
            (finalist, seed)
            for finalist in finalists
            for seed in self._seeds
            if str(seed) not in finalist.values and self._jobs.weights_file(finalist, seed) not in self._failed
        ]
        total = len(queue)
        if queue:
            self._announce(finalists, total)
        running: dict[int, tuple[Finalist, int, RunRef]] = {}
        shares: dict[int, float] = {}  # of its epochs that a running training has finished
        began = time.monotonic()
        while running or (queue and not self._context.interrupts()):
            while queue and self._context.executor.free() and not self._context.interrupts():
                finalist, seed = queue[0]
                run = self._start_run(finalist, seed)
                if run is None:
                    break
                del queue[0]
                finalist.is_closed = False
                weights = self._jobs.weights_file(finalist, seed)
                job = self._jobs.job(self._jobs.config(finalist, seed), run, "final", weights)
                running[job.number], shares[job.number] = (finalist, seed, run), 0.0
                self._context.executor.start(job, minutes=None)
            for event in self._context.wait_for_events():
                if isinstance(event, EpochReport):
                    shares[event.number] = event.epoch / self._epochs(running[event.number][0])
                else:
                    finalist, seed, run = running.pop(event.number)
                    del shares[event.number]
                    weights = self._jobs.weights_file(finalist, seed)
                    if self._on_training_end(finalist, seed, run, event):
                        self._finished.add(weights)
                    elif self._jobs.should_retry(weights.name, event):
                        queue.append((finalist, seed))
                    else:
                        self._failed.add(weights)
            ended = total - len(queue) - len(running)
            parts = [f"final: {ended} of {count(total, 'training')}", f"{len(running)} running"]
            if done := ended + sum(shares.values()):
                left = (time.monotonic() - began) / done * (total - done)
                parts += [f"about {format_duration(left)} left"] if left >= 1 else []
            self._context.console.progress(done, total, ", ".join(parts))

    def _announce(self, finalists: Collection[Finalist], total: int) -> None:
        kept = sum(len(finalist.known(self._seeds)) for finalist in finalists)
        parts = [count(total, "training") + " to go", *([f"{kept} known from before"] if kept else [])]
        if self._record.is_outdated(finalists):
            parts.append("as earlier ones were of other code or data")
        self._context.console.print(
            "",
            f"final     the best {count(len(finalists), 'configuration')} with {count(len(self._seeds), 'seed')} each: "
            + ", ".join(parts),
        )

    def _start_run(self, finalist: Finalist, seed: int) -> RunRef | None:
        """Open the run of a training; None if the search was asked to stop before."""
        tags = {Tag.TRIAL_NUMBER: str(finalist.trial)}
        return self._context.start_child(
            training_name(finalist.trial, finalist.params, seed),
            role=Role.FINAL,
            tags=tags,
            parent=finalist.run_id,
        )

    def _on_training_end(self, finalist: Finalist, seed: int, run: RunRef, result: TrialResult) -> bool:
        """Record and print the result of a training, and return whether it has finished."""
        self._jobs.close_run(run.run_id, result)
        name = training_name(finalist.trial, finalist.params, seed)
        description = describe_training(self._study, finalist.params, result, epochs=self._epochs(finalist), seed=seed)
        self._runs.present_child(run.run_id, description=description)
        if result.outcome is not TrialOutcome.FINISHED:
            self._context.console.print(f"{name}  {result.outcome}: {result.reason}")
            return False
        value = result.metrics[f"best_{self._metric}"]
        finalist.values[str(seed)], finalist.runs[str(seed)] = value, run.run_id
        self._record.keep()
        self._context.console.print(
            f"{name}  {self._metric} {format_metric(self._metric, value)}  {result.metrics['seconds']:.1f} s"
        )
        return True

    def _close_runs(self, finalists: Collection[Finalist], *, stopped: bool) -> None:
        """Log the means and standard deviations of the finalists, and close their runs."""
        # One of an earlier final may have been trained again
        others = [finalist for finalist in self._record.compared(finalists) if finalist not in finalists]
        for finalist in [*finalists, *others]:
            if finalist.is_closed:
                continue
            if stopped:
                outcome = TrialOutcome.STOPPED
            elif not finalist.known(self._seeds):
                outcome = TrialOutcome.RAISED
            else:
                outcome = TrialOutcome.FINISHED
                standing = finalist.standing(self._seeds)
                self._runs.log_child_metrics(finalist.run_id, mean_and_sd(self._metric, standing))
                description = describe_finalist(self._study, standing, metric=self._metric)
                self._runs.present_child(finalist.run_id, description=description)
            self._runs.end_child(finalist.run_id, outcome)
            finalist.is_closed = outcome is TrialOutcome.FINISHED
        if not stopped:
            self._record.keep()

    def _check_against_chance(self, value: float) -> None:
        """Raise SearchFailed if the best mean is no better than guessing, before the test set is evaluated."""
        metric, guessing = self._metric, self._context.guessing
        if guessing is not None and sign(metric) * value <= sign(metric) * guessing:
            reached = "reaches up to" if sign(metric) > 0 else "has"
            raise SearchFailed(
                f"nothing beats chance: the best mean {metric} is {format_metric(metric, value)}, and guessing "
                f"{reached} {format_metric(metric, guessing)}; the test set was not evaluated; try more epochs, a "
                "smaller batch_size or a smaller batch_norm_momentum"
            )

    def _epochs(self, finalist: Finalist) -> int:
        return self._study.search.config(finalist.params).total_epochs


def _shared_settings(config: TrainingConfig) -> dict[str, str]:
    """Return as text the settings that all trainings of a finalist share, as far as they are known before."""
    settings = {name: config.text(name) for name in TrainingConfig.model_fields if name != "seed"}
    return {name: value for name, value in settings.items() if value != "auto"}
