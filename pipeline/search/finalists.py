"""The finalists of a search: its best configurations, retrained with several seeds, and the winner's evaluation."""

import shutil
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

from pipeline.config.training import SEEDS, TrainingConfig
from pipeline.runtime.errors import SearchFailed
from pipeline.runtime.files import cache_folder, private_folder
from pipeline.runtime.text import percent, short_settings, trial_name
from pipeline.search.attributes import FINAL, LATENCIES, RUN_ID, WINNER
from pipeline.search.description import describe_winner
from pipeline.search.executors.base import TrialJob, TrialResult, should_retry
from pipeline.search.results import pareto_trials, trials_dataframe
from pipeline.search.session import SearchContext
from pipeline.tracking.tags import Role, RunRef, Tag, TrialOutcome


@dataclass
class _Finalist:
    """A configuration and its trainings, as the study's attribute `final` keeps them."""

    rank: int  # among the trials, from 1
    params: dict[str, object]
    run_id: str  # of the run above those of its trainings
    values: dict[str, float]  # best validation accuracy or loss by seed, as text since JSON has no other keys
    runs: dict[str, str]  # run ids by seed


class FinalistTraining:
    """Retrains the best configurations of a study, and evaluates the one with the best mean on the test images.

    A finalist has a run, and each of its trainings a run below it. What has been trained is kept in the study, so that
    a resumed search trains only what is missing.
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
        self._metric = next(name for name in self._study.search.settings.metric if name.startswith("val_"))
        self._best = max if self._metric == "val_accuracy" else min

    def run(self) -> dict[str, float] | None:
        """Train what is missing, and evaluate the winner.

        Returns:
            The winner's figures, or None if the search was asked to stop or no training succeeded.
        """
        finalists = self._load_finalists()
        if not finalists:
            return None
        private_folder("finals", self._weights_folder.name)
        try:
            self._train(finalists)
        except BaseException:
            # The cluster is lost, say
            for finalist in finalists:
                self._runs.end_child(finalist.run_id, TrialOutcome.STOPPED)
            raise
        for finalist in finalists:
            self._close_run(finalist)
        trained = [finalist for finalist in finalists if finalist.values]
        if self._context.interrupts() or not trained:
            return None
        winner = self._best(trained, key=lambda finalist: mean(finalist.values.values()))
        self._check_against_chance(mean(winner.values.values()))
        return self._evaluate_winner(winner)

    def _check_against_chance(self, value: float) -> None:
        """Raise SearchFailed if the best mean accuracy is no better than guessing, before the test set is evaluated."""
        guessing = self._context.guessing_accuracy
        if self._metric == "val_accuracy" and value <= guessing:
            raise SearchFailed(
                f"nothing beats chance: the best mean val_accuracy is {percent(value)}, and guessing reaches up to "
                f"{percent(guessing)}; the test set was not evaluated; try more epochs, a smaller batch_size or a "
                "smaller batch_norm_momentum"
            )

    def _load_finalists(self) -> list[_Finalist]:
        """Return the finalists that the study keeps, or choose them; none if the search was asked to stop."""
        kept = self._study.get_attr(FINAL)
        if kept:
            return [_Finalist(**finalist) for finalist in kept]
        best = self._study.ranked()[: self._study.search.settings.final_top]
        finalists = []
        for rank, trial in enumerate(best, start=1):
            params = self._study.search.snap(trial.params)
            tags = {Tag.TRIAL_NUMBER: str(trial.number)}
            run = self._context.start_child(f"final {rank} {short_settings(params)}", role=Role.FINAL, tags=tags)
            if run is None:
                return []
            finalists.append(_Finalist(rank, params, run.run_id, {}, {}))
        self._keep(finalists)
        return finalists

    def _train(self, finalists: list[_Finalist]) -> None:
        """Train each finalist with each seed, unless that was done and its weights are there."""
        first_seed, seeds = self._study.search.base.seed, self._study.search.settings.final_seeds
        queue = [
            (finalist, seed)
            for finalist in finalists
            for seed in ((first_seed + offset) % SEEDS for offset in range(seeds))
            if str(seed) not in finalist.values or not self._weights_file(finalist, seed).exists()
        ]
        total = len(queue)
        if queue:
            self._context.console.print(
                "", f"final     the best {len(finalists)}, {seeds} seed(s) each: {total} to train"
            )
        running: dict[int, tuple[_Finalist, int, RunRef]] = {}
        while running or (queue and not self._context.interrupts()):
            while queue and self._context.executor.free() and not self._context.interrupts():
                finalist, seed = queue[0]
                run = self._start_run(finalist, seed)
                if run is None:
                    break
                del queue[0]
                # A value without weights is of no use: the winner is evaluated with them
                finalist.values.pop(str(seed), None)
                job = self._job(finalist, seed, run, "final")
                running[job.number] = (finalist, seed, run)
                self._context.executor.start(job, minutes=None)
            for event in self._context.wait_for_events():
                if isinstance(event, TrialResult):
                    finalist, seed, run = running.pop(event.number)
                    if self._on_training_end(finalist, seed, run, event):
                        self._keep(finalists)
                    elif self._should_retry(self._weights_file(finalist, seed).name, event):
                        queue.append((finalist, seed))
            done = total - len(queue) - len(running)
            self._context.console.progress(done, total, f"final: {done} of {total} trainings, {len(running)} running")

    def _start_run(self, finalist: _Finalist, seed: int) -> RunRef | None:
        """Open the run of a training; None if the search was asked to stop before."""
        name = f"final {finalist.rank} {short_settings(finalist.params)} seed {seed}"
        tags = {Tag.FINAL_RANK: str(finalist.rank)}
        return self._context.start_child(name, role=Role.FINAL, tags=tags, parent=finalist.run_id)

    def _on_training_end(self, finalist: _Finalist, seed: int, run: RunRef, result: TrialResult) -> bool:
        """Record and print the result of a training, and return whether it has finished."""
        self._close_child(run.run_id, result)
        name = f"final {finalist.rank} seed {seed}  {short_settings(finalist.params)}"
        if result.outcome is not TrialOutcome.FINISHED:
            self._context.console.print(f"{name}  {result.outcome}: {result.reason}")
            return False
        value = result.metrics[f"best_{self._metric}"]
        finalist.values[str(seed)], finalist.runs[str(seed)] = value, run.run_id
        self._context.console.print(f"{name}  {self._metric} {value:.4f}  {result.metrics['seconds']:.1f} s")
        return True

    def _close_run(self, finalist: _Finalist) -> None:
        """Log a finalist's mean and standard deviation, and close its run."""
        if self._context.interrupts():
            outcome = TrialOutcome.STOPPED
        elif not finalist.values:
            outcome = TrialOutcome.RAISED
        else:
            outcome = TrialOutcome.FINISHED
            self._runs.log_child_metrics(finalist.run_id, _mean_and_sd(self._metric, finalist))
        self._runs.end_child(finalist.run_id, outcome)

    def _evaluate_winner(self, winner: _Finalist) -> dict[str, float] | None:
        """Evaluate the winner's best seed on the test images, once, in the run that trained it."""
        seed = self._best(winner.values, key=lambda seed: winner.values[seed])
        run = RunRef(self._runs.tracking_uri, winner.runs[seed])
        while True:
            result = self._context.run_job(self._job(winner, int(seed), run, "winner"))
            if not self._should_retry("winner", result):
                return self._on_winner_end(winner, seed, result)
            try:
                self._context.executor.free()
            except BaseException:
                # The cluster is lost, so that there is nothing to retry on
                self._close_child(run.run_id, result)
                raise
            self._context.console.print(f"the winner is evaluated again: {result.outcome}: {result.reason}")

    def _on_winner_end(self, winner: _Finalist, seed: str, result: TrialResult) -> dict[str, float] | None:
        """Record and print the winner's figures, and return them; None if its evaluation failed."""
        console = self._context.console
        self._close_child(winner.runs[seed], result)
        if result.outcome is not TrialOutcome.FINISHED:
            console.print(f"the winner could not be evaluated: {result.outcome}: {result.reason}")
            return None
        figures = dict(result.metrics) | _mean_and_sd(self._metric, winner)
        run_id = winner.runs[seed]
        kept = {"rank": winner.rank, "params": winner.params, "seed": int(seed), "run_id": run_id, **figures}
        self._study.set_attr(WINNER, kept)
        self._runs.present_child(
            run_id,
            name=f"winner {short_settings(winner.params)} seed {seed}",
            description=describe_winner(kept, metric=self._metric, seeds=len(winner.values)),
        )
        # After the attribute was set: without both, everything would be trained again
        shutil.rmtree(self._weights_folder, ignore_errors=True)
        console.print(
            f"winner    {short_settings(winner.params)}: {self._metric} {mean(winner.values.values()):.4f} over "
            f"{len(winner.values)} seed(s); test accuracy {figures['test_accuracy']:.2%} of seed {seed}, "
            f"run {winner.runs[seed]}"
        )
        if self._study.search.base.register_as:
            console.print(f"registry  {self._runs.describe_registration(winner.runs[seed])}")
        return figures

    def _should_retry(self, name: str, result: TrialResult) -> bool:
        """Count how something ended, and return whether it should be tried again."""
        retry = should_retry(result, attempt=self._attempts[name] + 1, node_losses=self._node_losses[name])
        if result.outcome is TrialOutcome.LOST:
            self._node_losses[name] += 1
        else:
            self._attempts[name] += 1
        return retry and not self._context.interrupts()

    def _job(self, finalist: _Finalist, seed: int, run: RunRef, role: Literal["final", "winner"]) -> TrialJob:
        """Return the job that trains or evaluates a finalist with a seed."""
        # Negative numbers, apart from those of trials
        self._last_number -= 1
        config: TrainingConfig = self._study.search.config(finalist.params).model_copy(update={"seed": seed})
        return TrialJob(self._last_number, config, run, role, weights=self._weights_file(finalist, seed))

    def _weights_file(self, finalist: _Finalist, seed: int) -> Path:
        return self._weights_folder / f"{finalist.rank}-{seed}.weights.npz"

    def _close_child(self, run_id: str, result: TrialResult) -> None:
        self._runs.end_trial(run_id, result.outcome, reason=result.reason, output_tail=result.output_tail)

    def _keep(self, finalists: list[_Finalist]) -> None:
        """Keep in the study what has been trained."""
        self._study.set_attr(FINAL, [vars(finalist) for finalist in finalists])


def _mean_and_sd(metric: str, finalist: _Finalist) -> dict[str, float]:
    """Return the mean of a finalist's values and, of two or more, their standard deviation."""
    values = list(finalist.values.values())
    figures = {f"{metric}_mean": mean(values)}
    if len(values) > 1:
        figures[f"{metric}_sd"] = stdev(values)
    return figures


def measure_latencies(context: SearchContext) -> None:
    """Measure the latency of the trials on the Pareto front that have none, one after the other while no other runs.

    The study keeps the latencies, and the trials' runs show them.
    """
    study = context.study
    latencies: dict[str, float] = study.get_attr(LATENCIES) or {}
    run_ids = trials_dataframe(study).set_index("number")[RUN_ID]
    for number in pareto_trials(study):
        if str(number) in latencies or context.interrupts():
            continue
        trial = next(trial for trial in study.trials() if trial.number == number)
        run_id = str(run_ids[number])
        run = RunRef(context.runs.tracking_uri, run_id)
        result = context.run_job(TrialJob(-1, study.search.config(trial.params), run, "latency"))
        if result.outcome is TrialOutcome.FINISHED:
            latencies[str(number)] = result.metrics["latency_ms"]
            study.set_attr(LATENCIES, latencies)
            context.runs.log_child_metrics(run_id, {"latency_ms": latencies[str(number)]})
        elif not context.interrupts():
            context.console.print(f"{trial_name(number, {})}  latency not measured: {result.outcome}: {result.reason}")
