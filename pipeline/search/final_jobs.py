"""The jobs of a search's final: numbered apart from trials, repeated after a crash, their weights on this machine."""

from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from pipeline.config.training import TrainingConfig
from pipeline.runtime.files import cache_folder, private_folder
from pipeline.search.executors.base import EpochReport, TrialJob, TrialResult, should_retry
from pipeline.search.final_record import Finalist
from pipeline.search.session import SearchContext
from pipeline.tracking.tags import RunRef, TrialOutcome

FinalRole = Literal["final", "ensemble", "winner"]

KIND = "finals"  # the folder's name in the cache


class FinalJobs:
    """Builds the jobs of a final, runs those that run alone, and decides which are tried again.

    Attributes:
        weights_folder: Where trainings leave their weights until the winner has been evaluated.
    """

    def __init__(self, context: SearchContext) -> None:
        self._context = context
        # A digest, as a study's own name may be `../..`
        digest = blake2b(context.study.name.encode(), digest_size=16).hexdigest()
        self.weights_folder = cache_folder(KIND, digest)
        self._last_number = 0
        # Ends of processes and losses of nodes, by what ran: the weights' name of a training, or "winner"
        self._attempts: Counter[str] = Counter()
        self._node_losses: Counter[str] = Counter()

    def make_weights_folder(self) -> None:
        """Make the folder of the weights, which only this user can read."""
        private_folder(KIND, self.weights_folder.name)

    def config(self, finalist: Finalist, seed: int, *, refit: bool = False) -> TrainingConfig:
        """Return the settings of a finalist's training with a seed, or of its refit."""
        config: TrainingConfig = self._context.study.search.config(finalist.params)
        changes = {"seed": seed} | ({"refit": True, "folds": None} if refit else {})
        return config.model_copy(update=changes)

    def weights_file(self, finalist: Finalist, seed: int, *, refit: bool = False) -> Path:
        """Return the file for the weights of a finalist's training with a seed, or of its refit."""
        return self.weights_folder / f"{finalist.digest}-{seed}{'-refit' * refit}.weights.npz"

    def job(
        self,
        config: TrainingConfig,
        run: RunRef,
        role: FinalRole,
        weights: Path,
        members: tuple[TrainingConfig, ...] = (),
    ) -> TrialJob:
        """Return a job; see `TrialJob`."""
        # Negative numbers, apart from those of trials
        self._last_number -= 1
        search = self._context.study.search
        return TrialJob(
            self._last_number,
            config,
            run,
            role,
            weights=weights,
            members=members,
            metric=search.monitor,
            max_memory_mb=search.settings.max_memory_mb,
        )

    def run(self, name: str, build: Callable[[], TrialJob], *, again: str, failed: str) -> TrialResult | None:
        """Run a job alone until it has finished, and return its result; None if it fails.

        Args:
            name: Counts its attempts.
            build: Returns the job of the next attempt.
            again: What is said of another attempt: `the winner is evaluated again`.
            failed: What is said of the last one.
        """
        while True:
            job = build()
            result = self._run_once(name, job)
            if not self.should_retry(name, result):
                break
            try:
                self._context.executor.free()
            except BaseException:
                # The cluster is lost, so that there is nothing to retry on
                self.close_run(job.run.run_id, result)
                raise
            self._context.console.print(f"{again}: {result.outcome}: {result.reason}")
        self.close_run(job.run.run_id, result)
        if result.outcome is TrialOutcome.FINISHED:
            return result
        self._context.console.print(f"{failed}: {result.outcome}: {result.reason}")
        return None

    def should_retry(self, name: str, result: TrialResult) -> bool:
        """Count how something ended, and return whether it should be tried again."""
        retry = should_retry(result, attempt=self._attempts[name] + 1, node_losses=self._node_losses[name])
        if result.outcome is TrialOutcome.LOST:
            self._node_losses[name] += 1
        else:
            self._attempts[name] += 1
        return retry and not self._context.interrupts()

    def close_run(self, run_id: str, result: TrialResult) -> None:
        """Close the run of a job that has ended."""
        self._context.runs.end_trial(run_id, result.outcome, reason=result.reason, output_tail=result.output_tail)

    def _run_once(self, name: str, job: TrialJob) -> TrialResult:
        self._context.executor.start(job, minutes=None)
        while True:
            for event in self._context.wait_for_events():
                if isinstance(event, TrialResult):
                    return event
                if isinstance(event, EpochReport):
                    epochs = job.config.epochs
                    self._context.console.progress(event.epoch, epochs, f"{name}: epoch {event.epoch} of {epochs}")
