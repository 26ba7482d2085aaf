"""What a search hands over: the winner's best network, its refit, or the ensemble of the finalists; tested once."""

import hashlib
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pipeline.config.monitor import describe_test
from pipeline.config.training import TrainingConfig
from pipeline.runtime.text import count, format_metric, trial_name
from pipeline.search.attributes import ENSEMBLE, TESTED, WINNER
from pipeline.search.description import (
    describe_ensemble,
    describe_former_winner,
    describe_winner,
    ensemble_line,
    handed_over_name,
    tested_words,
    training_name,
)
from pipeline.search.executors.base import TrialResult
from pipeline.search.final_jobs import FinalJobs
from pipeline.search.final_record import Finalist, FinalRecord, mean_and_sd
from pipeline.search.session import SearchContext
from pipeline.tracking.tags import Role, RunRef, Tag
from pipeline.training.checkpoint import read_weights, write_weights

# p-value below which a difference is beyond noise
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class _Model:
    """A model that a search may hand over."""

    kind: Literal["training", "refit", "ensemble"]
    digest: str  # of all that decides it
    run_id: str
    config: TrainingConfig  # an ensemble's: the winner's
    weights: Path
    members: tuple[TrainingConfig, ...] = ()


class Handover:
    """Chooses the model that a search hands over, evaluates it on the test images, and keeps and presents it.

    What has been trained and compared is kept in the study, so that a search that is resumed does none of it twice.
    """

    def __init__(self, context: SearchContext, jobs: FinalJobs, record: FinalRecord) -> None:
        self._context, self._study, self._runs = context, context.study, context.runs
        self._jobs, self._record = jobs, record
        self._metric = self._study.search.monitor

    def needed(self, winning: Finalist, finalists: Collection[Finalist]) -> list[Finalist]:
        """Return the finalists whose network of the winner's best seed is needed to hand over the winner."""
        members = self._members(winning, finalists)
        if members and not self._is_compared(members):
            return members
        if self._study.search.refit or self._is_evaluated("training", winning.digest):
            return []
        return [winning]

    def conclude(self, winning: Finalist, finalists: Collection[Finalist], *, trials: int) -> dict[str, Any] | None:
        """Evaluate what is handed over on the test images, unless it has been, and return what the study keeps of it.

        Returns:
            None if the search was asked to stop, or the evaluation has failed.
        """
        final = {
            "question": self._record.question([finalist.digest for finalist in finalists]),
            "standings": self._record.sorted_standings(finalists),
            "metric": self._metric,
            "trials": trials,
            "seeds": len(winning.known(self._record.seeds)),
            **mean_and_sd(self._metric, winning.standing(self._record.seeds)),
        }
        model = self._choose(winning, finalists)
        if model is None or self._context.interrupts():
            return None
        if self._is_evaluated(model.kind, model.digest):
            return self.confirm(self._study.get_attr(WINNER) | final)
        result = self._evaluate(model, winning)
        if result is None:
            return None
        winner: dict[str, Any] = {
            "trial": winning.trial,
            "params": winning.params,
            "digest": model.digest,
            "model": model.kind,
            "networks": max(1, len(model.members)),
            "final_run_id": winning.run_id,
            "seed": self._record.best_seed(winning),
            "run_id": model.run_id,
            **result.metrics,
            **final,
        }
        former: dict[str, Any] | None = self._study.get_attr(WINNER)
        if former and former["run_id"] != winner["run_id"]:
            self._runs.present_child(
                former["run_id"],
                name=handed_over_name(former),
                description=describe_former_winner(self._study, former),
                tags={Tag.WINNER: winner["run_id"]},
            )
        self._present(winner)
        # After the presentation, which a search that was killed in between repeats
        self._study.set_attr(WINNER, winner)
        # After the attribute was set: without both, the winner would be trained again
        shutil.rmtree(self._jobs.weights_folder, ignore_errors=True)
        self._print(winner)
        return winner

    def confirm(self, winner: dict[str, Any]) -> dict[str, Any]:
        """Keep that what was evaluated before has won again, and return it."""
        if winner != self._study.get_attr(WINNER):
            self._present(winner)
            self._study.set_attr(WINNER, winner)
            shutil.rmtree(self._jobs.weights_folder, ignore_errors=True)
            self._context.console.print("the winner is the same as before; the test set was not evaluated again")
        self._print(winner)
        return winner

    def _choose(self, winning: Finalist, finalists: Collection[Finalist]) -> _Model | None:
        """Return what is handed over, trained and compared as far as that is missing; None if that has failed."""
        if members := self._members(winning, finalists):
            ensemble = self._compare(members)
            if ensemble is None:
                return None
            if ensemble["is_better"] and self._study.search.settings.ensemble == "replace":
                return self._ensemble_model(members, ensemble["run_id"])
        elif self._study.search.settings.ensemble != "none":
            seed = self._record.best_seed(winning)
            self._context.console.print(f"ensemble  none, as no other configuration has a network of seed {seed}")
        seed = self._record.best_seed(winning)
        if self._study.search.refit:
            return self._refit(winning, seed)
        weights = self._jobs.weights_file(winning, seed)
        config = self._jobs.config(winning, seed)
        return _Model("training", winning.digest, winning.runs[str(seed)], config, weights)

    # The refit

    def _refit(self, winning: Finalist, seed: int) -> _Model | None:
        """Train the winner once more on training and validation images, unless it has been; None if that has failed."""
        config = self._jobs.config(winning, seed, refit=True)
        weights = self._jobs.weights_file(winning, seed, refit=True)
        if self._is_evaluated("refit", winning.digest):
            # also where another seed is the best by now: it is not evaluated again
            return _Model("refit", winning.digest, self._study.get_attr(WINNER)["run_id"], config, weights)
        run_id = winning.refits.get(str(seed))
        if run_id is None or not weights.exists():
            name = f"{training_name(winning.trial, winning.params, seed)}, refit"
            tags = {Tag.TRIAL_NUMBER: str(winning.trial)}
            run = self._context.start_child(name, role=Role.FINAL, tags=tags, parent=winning.run_id)
            if run is None:
                return None
            self._context.console.print(
                f"refit     {trial_name(winning.trial, winning.params)} seed {seed}: trained once more, for "
                f"{count(config.epochs, 'epoch')} on training and validation images"
            )
            result = self._jobs.run(
                weights.name,
                partial(self._jobs.job, config, run, "final", weights),
                again="the winner is refitted again",
                failed="the winner could not be refitted",
            )
            if result is None:
                return None
            winning.refits[str(seed)] = run_id = run.run_id
            self._record.keep()
        return _Model("refit", winning.digest, run_id, config, weights)

    # The ensemble

    def _members(self, winning: Finalist, finalists: Collection[Finalist]) -> list[Finalist]:
        """Return the finalists that are the ensemble, the winner first; none if there is to be none.

        All are networks of the winner's best seed: the seed may split the data, and a network of another one may have
        been trained on what the ensemble is measured on.
        """
        if self._study.search.settings.ensemble == "none":
            return []
        seed = str(self._record.best_seed(winning))
        others = [one for one in finalists if one is not winning and seed in one.values]
        return [winning, *others] if others else []

    def _compare(self, members: list[Finalist]) -> dict[str, Any] | None:
        """Return what the study keeps of the ensemble, compared with the winner; None if that has failed."""
        known: dict[str, Any] | None = self._study.get_attr(ENSEMBLE)
        if known and self._is_compared(members):
            self._context.console.print(ensemble_line(self._study, known))
            return known
        seed = self._record.best_seed(members[0])
        names = [training_name(one.trial, {}, seed).removeprefix("final ") for one in members]
        # one that was interrupted goes on in its run
        run_id = known["run_id"] if known and known["digest"] == self._ensemble_digest(members) else None
        if run_id is None:
            run = self._context.start_child(
                f"ensemble of {len(members)} finalists",
                role=Role.ENSEMBLE,
                tags={Tag.ENSEMBLE: ", ".join(names)},
            )
            if run is None:
                return None
            run_id = run.run_id
        ensemble: dict[str, Any] = {"digest": self._ensemble_digest(members), "run_id": run_id, "networks": names}
        self._study.set_attr(ENSEMBLE, ensemble | {"metrics": {}, "is_better": False})
        model = self._ensemble_model(members, run_id)
        self._write_weights(members, seed, model.weights)
        result = self._run_ensemble(model, "ensemble", "measured")
        if result is None:
            return None
        ensemble |= {"metrics": dict(result.metrics), "is_better": self._is_better(result.metrics)}
        self._study.set_attr(ENSEMBLE, ensemble)
        self._runs.present_child(run_id, description=describe_ensemble(self._study, ensemble))
        self._context.console.print(ensemble_line(self._study, ensemble))
        return ensemble

    def _is_compared(self, members: list[Finalist]) -> bool:
        """Return whether an ensemble has been compared with the winner, and its weights are there if it is tested."""
        known, digest = self._study.get_attr(ENSEMBLE), self._ensemble_digest(members)
        if not known or known["digest"] != digest or not known["metrics"]:
            return False
        is_tested = known["is_better"] and self._study.search.settings.ensemble == "replace"
        return not is_tested or self._is_evaluated("ensemble", digest) or self._ensemble_file(digest).exists()

    def _ensemble_model(self, members: list[Finalist], run_id: str) -> _Model:
        digest = self._ensemble_digest(members)
        seed = self._record.best_seed(members[0])
        configs = tuple(self._jobs.config(one, seed) for one in members)
        return _Model("ensemble", digest, run_id, configs[0], self._ensemble_file(digest), configs)

    def _ensemble_digest(self, members: list[Finalist]) -> str:
        seed = self._record.best_seed(members[0])
        networks = "/".join(f"{one.digest}-{seed}" for one in members)
        return hashlib.sha256(networks.encode()).hexdigest()[:20]

    def _ensemble_file(self, digest: str) -> Path:
        return self._jobs.weights_folder / f"ensemble-{digest}.weights.npz"

    def _write_weights(self, members: list[Finalist], seed: int, path: Path) -> None:
        """Write the weights of an ensemble's networks into one file, one network's after another's."""
        files = (self._jobs.weights_file(one, seed) for one in members)
        write_weights(path, [array for file in files for array in read_weights(file)])

    def _is_better(self, metrics: Mapping[str, float]) -> bool:
        """Return whether an ensemble is better than the winner's network, beyond noise."""
        mean, alone = metrics[self._metric], metrics[f"winner_{self._metric}"]
        return self._record.is_better(mean, alone) and metrics["p_value"] < SIGNIFICANCE

    # The test set

    def _is_evaluated(self, kind: str, digest: str) -> bool:
        """Return whether a model is the one that was evaluated last."""
        winner = self._study.get_attr(WINNER)
        return bool(winner) and (winner["model"], winner["digest"]) == (kind, digest)

    def _evaluate(self, model: _Model, winning: Finalist) -> TrialResult | None:
        """Evaluate a model on the test images, in its run; None if that failed."""
        tested = self._study.get_attr(TESTED) or []
        if model.run_id not in tested:
            if tested:
                former = self._study.get_attr(WINNER) or {}
                if former.get("params") != winning.params:
                    why = "another configuration wins"
                elif former.get("model") != model.kind:
                    why = "another model of the winner is handed over"
                else:
                    why = "the winner was trained anew by other code or data"
                self._context.console.print(
                    f"the test set is evaluated again, as {why}: model {len(tested) + 1} of this study"
                )
            # Before it begins, so that one that is killed counts
            self._study.set_attr(TESTED, [*tested, model.run_id])
        if model.kind == "ensemble":
            return self._run_ensemble(model, "winner", "evaluated")
        run = RunRef(self._runs.tracking_uri, model.run_id)
        return self._jobs.run(
            "winner",
            partial(self._jobs.job, model.config, run, "winner", model.weights),
            again="the winner is evaluated again",
            failed="the winner could not be evaluated",
        )

    def _run_ensemble(self, model: _Model, role: Literal["ensemble", "winner"], done: str) -> TrialResult | None:
        run = RunRef(self._runs.tracking_uri, model.run_id)
        return self._jobs.run(
            role,
            partial(self._jobs.job, model.config, run, role, model.weights, model.members),
            again=f"the ensemble is {done} again",
            failed=f"the ensemble could not be {done}",
        )

    # What people see

    def _present(self, winner: dict[str, Any]) -> None:
        """Name and describe the run of the model that is handed over."""
        self._runs.present_child(
            winner["run_id"],
            name=f"winner {handed_over_name(winner).removeprefix('final ')}",
            description=describe_winner(self._study, winner),
            tags={Tag.WINNER: winner["run_id"]},
        )

    def _print(self, winner: dict[str, Any]) -> None:
        console, value = self._context.console, winner[f"{self._metric}_mean"]
        result = format_metric(self._metric, value, winner.get(f"{self._metric}_sd"))
        mean_of = f" (mean of {winner['seeds']} seeds)" if winner["seeds"] > 1 else ""
        console.print(
            f"winner    {trial_name(winner['trial'], winner['params'])}: {self._metric} {result}{mean_of}; "
            f"{describe_test(self._metric, winner)} of {tested_words(winner)}, run {winner['run_id']}"
        )
        if self._study.search.base.register_as:
            console.print(f"registry  {self._runs.describe_registration(winner['run_id'])}")
