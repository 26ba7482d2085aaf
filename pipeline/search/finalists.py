"""The finalists of a search: its best configurations, retrained with several seeds, and the winner's evaluation."""

import shutil
import time
from collections import Counter
from collections.abc import Collection
from hashlib import blake2b
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import SearchFailed
from pipeline.runtime.files import cache_folder, private_folder
from pipeline.runtime.text import count, format_duration, format_metric, percent, trial_name
from pipeline.search.attributes import TESTED, WINNER
from pipeline.search.description import describe_finalist, describe_former_winner, describe_training, describe_winner
from pipeline.search.executors.base import EpochReport, TrialJob, TrialResult, should_retry
from pipeline.search.final_record import Finalist
from pipeline.search.session import SearchContext
from pipeline.search.time_estimate import final_record
from pipeline.tracking.tags import Role, RunRef, Tag, TrialOutcome


class FinalistTraining:
    """Retrains the best configurations of a study, and evaluates the one with the best mean on the test images.

    A finalist has a run, and each of its trainings a run below it. What has been trained is kept in the study, so that
    a search that is resumed or extended trains only what is missing, and evaluates only another winner.
    """

    def __init__(self, context: SearchContext) -> None:
        self._context, self._study, self._runs = context, context.study, context.runs
        # A digest, as a study's own name may be `../..`
        digest = blake2b(self._study.name.encode(), digest_size=16).hexdigest()
        self._weights_folder = cache_folder("finals", digest)
        self._last_number = 0
        # Ends of processes and losses of nodes, by what ran: the weights' name of a training, or "winner"
        self._attempts: Counter[str] = Counter()
        self._node_losses: Counter[str] = Counter()
        self._metric = self._study.search.curve
        self._best = max if self._metric == "val_accuracy" else min
        self._record = final_record(context)
        self._seeds = self._record.seeds
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
            return self._confirm(winner | {"trials": trials})
        finalists = self._load_finalists()
        if not finalists:
            return None
        private_folder("finals", self._weights_folder.name)
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
        return self._conclude(winning, finalists, trials=trials)

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
        """Train what is missing, and return the finalist with the best mean; its weights are there if it needs them.

        Returns:
            None if the search was asked to stop or no training succeeded.
        """
        self._train(finalists)
        while not self._context.interrupts():
            compared = self._record.compared(finalists)
            if not compared:
                return None
            winning = self._best(compared, key=lambda finalist: mean(finalist.known(self._seeds).values()))
            seed = self._best_seed(winning)
            weights = self._weights_file(winning, seed)
            if self._is_evaluated(winning) or weights.exists() or weights in self._finished:
                return winning
            self._context.console.print(
                f"the weights of {_training_name(winning.trial, winning.params, seed)} are gone: it is trained again"
            )
            # A value without weights is of no use: the winner is evaluated with them
            del winning.values[str(seed)]
            self._train([winning])
        return None

    def _train(self, finalists: Collection[Finalist]) -> None:
        """Train each finalist with each seed with which it has not been trained."""
        queue = [
            (finalist, seed)
            for finalist in finalists
            for seed in self._seeds
            if str(seed) not in finalist.values and self._weights_file(finalist, seed) not in self._failed
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
                job = self._job(finalist, seed, run, "final")
                running[job.number], shares[job.number] = (finalist, seed, run), 0.0
                self._context.executor.start(job, minutes=None)
            for event in self._context.wait_for_events():
                if isinstance(event, EpochReport):
                    shares[event.number] = event.epoch / self._epochs(running[event.number][0])
                else:
                    finalist, seed, run = running.pop(event.number)
                    del shares[event.number]
                    weights = self._weights_file(finalist, seed)
                    if self._on_training_end(finalist, seed, run, event):
                        self._finished.add(weights)
                    elif self._should_retry(weights.name, event):
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
            _training_name(finalist.trial, finalist.params, seed),
            role=Role.FINAL,
            tags=tags,
            parent=finalist.run_id,
        )

    def _on_training_end(self, finalist: Finalist, seed: int, run: RunRef, result: TrialResult) -> bool:
        """Record and print the result of a training, and return whether it has finished."""
        self._close_child(run.run_id, result)
        name = _training_name(finalist.trial, finalist.params, seed)
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
                self._runs.log_child_metrics(finalist.run_id, _mean_and_sd(self._metric, standing))
                description = describe_finalist(self._study, standing, metric=self._metric)
                self._runs.present_child(finalist.run_id, description=description)
            self._runs.end_child(finalist.run_id, outcome)
            finalist.is_closed = outcome is TrialOutcome.FINISHED
        if not stopped:
            self._record.keep()

    def _check_against_chance(self, value: float) -> None:
        """Raise SearchFailed if the best mean accuracy is no better than guessing, before the test set is evaluated."""
        guessing = self._context.guessing_accuracy
        if self._metric == "val_accuracy" and value <= guessing:
            raise SearchFailed(
                f"nothing beats chance: the best mean val_accuracy is {percent(value)}, and guessing reaches up to "
                f"{percent(guessing)}; the test set was not evaluated; try more epochs, a smaller batch_size or a "
                "smaller batch_norm_momentum"
            )

    def _is_evaluated(self, finalist: Finalist) -> bool:
        """Return whether a finalist is the winner that was evaluated last."""
        winner = self._study.get_attr(WINNER)
        return bool(winner) and winner["digest"] == finalist.digest

    def _best_seed(self, finalist: Finalist) -> int:
        values = finalist.known(self._seeds)
        return int(self._best(values, key=lambda seed: values[seed]))

    def _conclude(self, winning: Finalist, finalists: Collection[Finalist], *, trials: int) -> dict[str, Any] | None:
        """Evaluate the winner on the test images, unless it has been, and return what the study keeps of it."""
        standings = [finalist.standing(self._seeds) for finalist in self._record.compared(finalists)]
        final = {
            "question": self._record.question([finalist.digest for finalist in finalists]),
            "standings": sorted(standings, key=lambda one: one["mean"], reverse=self._best is max),
            "metric": self._metric,
            "trials": trials,
            "seeds": len(winning.known(self._seeds)),
            **_mean_and_sd(self._metric, winning.standing(self._seeds)),
        }
        if self._is_evaluated(winning):
            return self._confirm(self._study.get_attr(WINNER) | final)
        seed = self._best_seed(winning)
        result = self._evaluate(winning, seed)
        if result is None:
            return None
        winner: dict[str, Any] = {
            "trial": winning.trial,
            "params": winning.params,
            "digest": winning.digest,
            "final_run_id": winning.run_id,
            "seed": seed,
            "run_id": winning.runs[str(seed)],
            **result.metrics,
            **final,
        }
        former: dict[str, Any] | None = self._study.get_attr(WINNER)
        if former and former["run_id"] != winner["run_id"]:
            self._runs.present_child(
                former["run_id"],
                name=_training_name(former["trial"], former["params"], former["seed"]),
                description=describe_former_winner(self._study, former),
                tags={Tag.WINNER: winner["run_id"]},
            )
        self._present(winner)
        # After the presentation, which a search that was killed in between repeats
        self._study.set_attr(WINNER, winner)
        # After the attribute was set: without both, the winner would be trained again
        shutil.rmtree(self._weights_folder, ignore_errors=True)
        self._print_winner(winner)
        return winner

    def _confirm(self, winner: dict[str, Any]) -> dict[str, Any]:
        """Keep that the winner that was evaluated before has won again, and return it."""
        if winner != self._study.get_attr(WINNER):
            self._present(winner)
            self._study.set_attr(WINNER, winner)
            shutil.rmtree(self._weights_folder, ignore_errors=True)
            self._context.console.print("the winner is the same as before; the test set was not evaluated again")
        self._print_winner(winner)
        return winner

    def _present(self, winner: dict[str, Any]) -> None:
        """Name and describe the winner's run in MLflow."""
        self._runs.present_child(
            winner["run_id"],
            name=f"winner {trial_name(winner['trial'], winner['params'])} seed {winner['seed']}",
            description=describe_winner(self._study, winner),
            tags={Tag.WINNER: winner["run_id"]},
        )

    def _print_winner(self, winner: dict[str, Any]) -> None:
        console, value = self._context.console, winner[f"{self._metric}_mean"]
        result = format_metric(self._metric, value, winner.get(f"{self._metric}_sd"))
        mean_of = f" (mean of {winner['seeds']} seeds)" if winner["seeds"] > 1 else ""
        console.print(
            f"winner    {trial_name(winner['trial'], winner['params'])}: {self._metric} {result}{mean_of}; test "
            f"accuracy {format_metric('accuracy', winner['test_accuracy'])} of seed {winner['seed']}, run "
            f"{winner['run_id']}"
        )
        if self._study.search.base.register_as:
            console.print(f"registry  {self._runs.describe_registration(winner['run_id'])}")

    def _evaluate(self, winner: Finalist, seed: int) -> TrialResult | None:
        """Evaluate the winner's best seed on the test images, in the run that trained it; None if that failed."""
        run = RunRef(self._runs.tracking_uri, winner.runs[str(seed)])
        tested = self._study.get_attr(TESTED) or []
        if run.run_id not in tested:
            if tested:
                former = self._study.get_attr(WINNER) or {}
                is_other = former.get("params") != winner.params
                why = "another configuration wins" if is_other else "the winner was trained anew by other code or data"
                self._context.console.print(
                    f"the test set is evaluated again, as {why}: model {len(tested) + 1} of this study"
                )
            # Before it begins, so that one that is killed counts
            self._study.set_attr(TESTED, [*tested, run.run_id])
        while True:
            result = self._context.run_job(self._job(winner, seed, run, "winner"))
            if not self._should_retry("winner", result):
                break
            try:
                self._context.executor.free()
            except BaseException:
                # The cluster is lost, so that there is nothing to retry on
                self._close_child(run.run_id, result)
                raise
            self._context.console.print(f"the winner is evaluated again: {result.outcome}: {result.reason}")
        self._close_child(run.run_id, result)
        if result.outcome is TrialOutcome.FINISHED:
            return result
        self._context.console.print(f"the winner could not be evaluated: {result.outcome}: {result.reason}")
        return None

    def _should_retry(self, name: str, result: TrialResult) -> bool:
        """Count how something ended, and return whether it should be tried again."""
        retry = should_retry(result, attempt=self._attempts[name] + 1, node_losses=self._node_losses[name])
        if result.outcome is TrialOutcome.LOST:
            self._node_losses[name] += 1
        else:
            self._attempts[name] += 1
        return retry and not self._context.interrupts()

    def _job(self, finalist: Finalist, seed: int, run: RunRef, role: Literal["final", "winner"]) -> TrialJob:
        """Return the job that trains or evaluates a finalist with a seed."""
        # Negative numbers, apart from those of trials
        self._last_number -= 1
        config: TrainingConfig = self._study.search.config(finalist.params).model_copy(update={"seed": seed})
        return TrialJob(
            self._last_number,
            config,
            run,
            role,
            weights=self._weights_file(finalist, seed),
            max_memory_mb=self._study.search.settings.max_memory_mb,
        )

    def _epochs(self, finalist: Finalist) -> int:
        return self._study.search.config(finalist.params).epochs

    def _weights_file(self, finalist: Finalist, seed: int) -> Path:
        return self._weights_folder / f"{finalist.digest}-{seed}.weights.npz"

    def _close_child(self, run_id: str, result: TrialResult) -> None:
        self._runs.end_trial(run_id, result.outcome, reason=result.reason, output_tail=result.output_tail)


def _training_name(trial: int, params: dict[str, Any], seed: int) -> str:
    """Return the name of a finalist's training."""
    return f"final {trial_name(trial, params)} seed {seed}"


def _shared_settings(config: TrainingConfig) -> dict[str, str]:
    """Return as text the settings that all trainings of a finalist share, as far as they are known before."""
    settings = {name: config.text(name) for name in TrainingConfig.model_fields if name != "seed"}
    return {name: value for name, value in settings.items() if value != "auto"}


def _mean_and_sd(metric: str, standing: dict[str, Any]) -> dict[str, float]:
    """Return the mean of a finalist's values and, of two or more, their standard deviation."""
    figures = {f"{metric}_mean": standing["mean"]}
    return figures if standing["sd"] is None else figures | {f"{metric}_sd": standing["sd"]}
