"""The end of a search: the best configurations again with several seeds, and one look at the test images."""

import shutil
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from statistics import mean, stdev

from pipeline.config.training import SEEDS, TrainingConfig
from pipeline.runtime.files import cache_folder, private_folder
from pipeline.runtime.text import short_settings, trial_name
from pipeline.search.attributes import FINAL, LATENCIES, RUN_ID, WINNER
from pipeline.search.executors.base import TrialJob, TrialResult, should_retry
from pipeline.search.results import pareto_table, trials_dataframe
from pipeline.search.session import SearchContext
from pipeline.tracking.tags import Role, RunRef, Tag, TrialOutcome


@dataclass
class _Finalist:
    """A configuration and its training with each seed."""

    rank: int  # among the trials, from 1
    params: dict[str, object]
    run_id: str
    values: dict[str, float]  # best validation accuracy or loss by seed, as text: JSON has no other keys
    runs: dict[str, str]  # run ids by seed


class FinalistTraining:
    """Retrains the best configurations of a study under one run each, and measures the one with the best mean."""

    def __init__(self, session: SearchContext) -> None:
        self._session, self._study, self._runs = session, session.study, session.runs
        name = blake2b(self._study.name.encode(), digest_size=16).hexdigest()  # a study's own may be `../..`
        self._weights = cache_folder("finals", name)
        self._numbers = 0
        self._deaths: Counter[str] = Counter()  # of the process of a training or a measuring, by name
        self._losses: Counter[str] = Counter()  # of its node
        self._metric = next(name for name in self._study.search.settings.metric if name.startswith("val_"))
        self._best = max if self._metric == "val_accuracy" else min

    def run(self) -> dict[str, float] | None:
        """Train what is left to train and measure the winner; None if it was asked to stop or nothing went well."""
        finalists = self._finalists()
        if not finalists:
            return None
        private_folder("finals", self._weights.name)
        try:
            self._train(finalists)
        except BaseException:  # the cluster is lost, say
            for finalist in finalists:
                self._runs.end_child(finalist.run_id, TrialOutcome.STOPPED)
            raise
        for finalist in finalists:
            self._close(finalist)
        whole = [finalist for finalist in finalists if finalist.values]
        if self._session.interrupts() or not whole:
            return None
        return self._measure(self._best(whole, key=lambda finalist: mean(finalist.values.values())))

    def _close(self, finalist: _Finalist) -> None:
        trained = TrialOutcome.FINISHED if finalist.values else TrialOutcome.RAISED
        outcome = TrialOutcome.STOPPED if self._session.interrupts() else trained
        if outcome is TrialOutcome.FINISHED:
            self._runs.log_child_metrics(finalist.run_id, _spread(self._metric, finalist))
        self._runs.end_child(finalist.run_id, outcome)

    def _finalists(self) -> list[_Finalist]:
        noted = self._study.get_attr(FINAL)
        if noted:
            return [_Finalist(**finalist) for finalist in noted]
        top = self._study.ranked()[: self._study.search.settings.final_top]
        finalists = []
        for rank, trial in enumerate(top, start=1):
            params = self._study.search.exact(trial.params)
            tags = {Tag.TRIAL_NUMBER: str(trial.number)}
            run = self._session.start_child(f"final {rank} {short_settings(params)}", role=Role.FINAL, tags=tags)
            if run is None:
                return []
            finalists.append(_Finalist(rank, params, run.run_id, {}, {}))
        self._note(finalists)
        return finalists

    def _train(self, finalists: list[_Finalist]) -> None:
        todo = [
            (finalist, seed)
            for finalist in finalists
            for seed in self._seeds()
            if str(seed) not in finalist.values or not self._file(finalist, seed).exists()
        ]
        running: dict[int, tuple[_Finalist, int, RunRef]] = {}
        many = len(todo)
        if todo:
            self._session.say(
                f"\nfinal     the best {len(finalists)}, {len(self._seeds())} seed(s) each: {len(todo)} to train"
            )
        while running or (todo and not self._session.interrupts()):
            while todo and self._session.executor.free() and not self._session.interrupts():
                finalist, seed = todo[0]
                run = self._run(finalist, seed)
                if run is None:
                    break
                del todo[0]
                finalist.values.pop(str(seed), None)  # it has lost its weights
                job = self._job(finalist, seed, run)
                running[job.number] = (finalist, seed, run)
                self._session.executor.start(job, minutes=None)
            for event in self._session.events():
                if isinstance(event, TrialResult):
                    finalist, seed, run = running.pop(event.number)
                    if self._end(finalist, seed, run, event):
                        self._note(finalists)
                    elif self._again(self._file(finalist, seed).name, event):
                        todo.append((finalist, seed))
            done = many - len(todo) - len(running)
            self._session.progress(done, many, f"final: {done} of {many} trainings, {len(running)} running")

    def _again(self, name: str, ended: TrialResult) -> bool:
        """Count how something ended; returns whether that was an accident which deserves another try."""
        again = should_retry(ended, attempt=self._deaths[name] + 1, node_losses=self._losses[name])
        (self._losses if ended.outcome is TrialOutcome.LOST else self._deaths)[name] += 1
        return again and not self._session.interrupts()

    def _seeds(self) -> list[int]:
        first = self._study.search.base.seed
        return [(first + number) % SEEDS for number in range(self._study.search.settings.final_seeds)]

    def _run(self, finalist: _Finalist, seed: int) -> RunRef | None:
        name = f"final {finalist.rank} {short_settings(finalist.params)} seed {seed}"
        return self._session.start_child(
            name, role=Role.FINAL, tags={Tag.FINAL_RANK: str(finalist.rank)}, parent=finalist.run_id
        )

    def _job(self, finalist: _Finalist, seed: int, run: RunRef) -> TrialJob:
        self._numbers -= 1  # apart from the trials' own
        return TrialJob(self._numbers, self._config(finalist, seed), run, "final", weights=self._file(finalist, seed))

    def _end(self, finalist: _Finalist, seed: int, run: RunRef, ended: TrialResult) -> bool:
        """Take leave of a training; returns whether it has ended well."""
        self._runs.end_trial(run.run_id, ended.outcome, reason=ended.reason, output_tail=ended.output_tail)
        name = f"final {finalist.rank} seed {seed}  {short_settings(finalist.params)}"
        if ended.outcome is not TrialOutcome.FINISHED:
            self._session.say(f"{name}  {ended.outcome}: {ended.reason}")
            return False
        value = ended.metrics[f"best_{self._metric}"]
        finalist.values[str(seed)], finalist.runs[str(seed)] = value, run.run_id
        self._session.say(f"{name}  {self._metric} {value:.4f}  {ended.metrics['seconds']:.1f} s")
        return True

    def _measure(self, winner: _Finalist) -> dict[str, float] | None:
        """Open the test set for the winner's best seed, once, in the run that trained it."""
        seed = self._best(winner.values, key=lambda seed: winner.values[seed])
        run = RunRef(self._runs.tracking_uri, winner.runs[seed])
        weights = self._file(winner, int(seed))
        while True:
            self._numbers -= 1
            job = TrialJob(self._numbers, self._config(winner, int(seed)), run, "winner", weights=weights)
            ended = self._session.alone(job)
            if not self._again("winner", ended):
                return self._result(winner, seed, ended)
            try:
                self._session.executor.free()
            except BaseException:  # the cluster is lost
                self._runs.end_trial(run.run_id, ended.outcome, reason=ended.reason, output_tail=ended.output_tail)
                raise
            self._session.say(f"the winner is measured again: {ended.outcome}: {ended.reason}")

    def _result(self, winner: _Finalist, seed: str, ended: TrialResult) -> dict[str, float] | None:
        self._runs.end_trial(winner.runs[seed], ended.outcome, reason=ended.reason, output_tail=ended.output_tail)
        if ended.outcome is not TrialOutcome.FINISHED:
            self._session.say(f"the winner could not be measured: {ended.outcome}: {ended.reason}")
            return None
        figures = dict(ended.metrics) | _spread(self._metric, winner)
        self._study.set_attr(WINNER, {"rank": winner.rank, "params": winner.params, "seed": int(seed), **figures})
        shutil.rmtree(self._weights, ignore_errors=True)  # after the note: without both, all would be trained again
        self._session.say(
            f"winner    {short_settings(winner.params)}: {self._metric} {mean(winner.values.values()):.4f} over "
            f"{len(winner.values)} seed(s); test accuracy {figures['test_accuracy']:.2%} of seed {seed}, "
            f"run {winner.runs[seed]}"
        )
        if self._study.search.base.register_as:
            self._session.say(f"registry  {self._runs.describe_registration(winner.runs[seed])}")
        return figures

    def _config(self, finalist: _Finalist, seed: int) -> TrainingConfig:
        return self._study.search.config(finalist.params).model_copy(update={"seed": seed})

    def _file(self, finalist: _Finalist, seed: int) -> Path:
        return self._weights / f"{finalist.rank}-{seed}.weights.npz"

    def _note(self, finalists: list[_Finalist]) -> None:
        self._study.set_attr(FINAL, [vars(finalist) for finalist in finalists])


def _spread(metric: str, finalist: _Finalist) -> dict[str, float]:
    """Mean and, of two or more seeds, standard deviation."""
    values = list(finalist.values.values())
    return {f"{metric}_mean": mean(values)} | ({f"{metric}_sd": stdev(values)} if len(values) > 1 else {})


def measure_latencies(session: SearchContext) -> None:
    """Time the members of the Pareto front that have not been; the study keeps it, their runs show it."""
    study = session.study
    found: dict[str, float] = study.get_attr(LATENCIES) or {}
    trials = trials_dataframe(study).set_index("number")
    for number in pareto_table(study):
        if str(number) in found or session.interrupts():
            continue
        trial = next(trial for trial in study.trials() if trial.number == number)
        run_id = str(trials.loc[number, RUN_ID])
        job = TrialJob(-1, study.search.config(trial.params), RunRef(session.runs.tracking_uri, run_id), "latency")
        ended = session.alone(job)
        if ended.outcome is TrialOutcome.FINISHED:
            found[str(number)] = ended.metrics["latency_ms"]
            study.set_attr(LATENCIES, found)
            session.runs.log_child_metrics(run_id, {"latency_ms": found[str(number)]})
        elif not session.interrupts():
            session.say(f"{trial_name(number, {})}  latency not measured: {ended.outcome}: {ended.reason}")
