"""Trials of older studies with which a search starts: those that its own trials would repeat."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url

from pipeline.config.effective import effective
from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import count, printable, shown
from pipeline.runtime.urls import mask_password
from pipeline.search.attributes import DEFINITION, DUPLICATE_OF, TRAINABLE
from pipeline.search.distributions import contains, snap_to_step
from pipeline.search.promotion import continued_trials
from pipeline.search.space import SearchSpec
from pipeline.search.storage import open_storage


class OlderTrial(NamedTuple):
    """A trial of an older study whose result a trial of this search would repeat."""

    params: dict[str, Any]  # settings of this search's space
    trial: FrozenTrial
    origin: str  # the study and the trial's number in it


class OlderStudy(NamedTuple):
    """What of an older study a search starts with."""

    source: str  # as the setting names it
    trials: list[OlderTrial]
    summary: str  # of how many trials were taken, and why the others were not


def definition(search: SearchSpec, data_fingerprint: str) -> dict[str, Any]:
    """Return what a study keeps of its search, so that a later one can start from it."""
    return {
        "data": data_fingerprint,
        "metric": list(search.settings.metric),
        "base": search.base.model_dump(mode="json"),
    }


def read_older_studies(search: SearchSpec, *, url: str, data_fingerprint: str) -> list[OlderStudy]:
    """Return the comparable trials of the studies that `start_from` names.

    Args:
        search: the search.
        url: of its own storage, where a study is looked for that is given by its name.
        data_fingerprint: of its data.

    Raises:
        UsageError: there is no such study, it is one of other images or metrics, or none of its trials is comparable.
    """
    return [_read(search, source, url, data_fingerprint) for source in search.settings.start_from or ()]


def _read(search: SearchSpec, source: str, url: str, data_fingerprint: str) -> OlderStudy:
    study = _open_study(source, url)
    kept = study.user_attrs.get(DEFINITION)
    if kept is None:
        raise UsageError(f"start_from must name a study of this program's searches, got {shown(source)}")
    for what, mine, others in (
        ("images", data_fingerprint, kept["data"]),
        ("metric", list(search.settings.metric), kept["metric"]),
    ):
        if mine != others:
            raise UsageError(f"start_from must name studies of the same {what}: {mine} here, got {others} of {source}")
    found: list[OlderTrial] = []
    reasons: list[str] = []
    trials = study.get_trials(deepcopy=False)
    # the results of these are those of other trials, or have become so
    superseded = continued_trials(trials) | {trial.number for trial in trials if DUPLICATE_OF in trial.user_attrs}
    for trial in trials:
        if trial.state not in {TrialState.COMPLETE, TrialState.PRUNED} or trial.number in superseded:
            continue
        if trial.state == TrialState.PRUNED and trial.constraints.get(TRAINABLE, 0.0) > 0:
            continue
        params = {name: snap_to_step(trial.distributions[name], value) for name, value in trial.params.items()}
        try:
            drawn = _as_drawn(search, TrainingConfig.build(kept["base"] | params))
        except UsageError as error:
            reasons.append(str(error))
        else:
            found.append(OlderTrial(drawn, trial, f"{printable(study.study_name)} t{trial.number:03d}"))
    if not found:
        why = f": {reasons[0]}" if reasons else ", as it has no finished trial"
        raise UsageError(f"start_from must name studies with trials of this space, got none in {source}{why}")
    summary = f"{count(len(found), 'trial')} of {printable(study.study_name)}"
    if reasons:
        summary += f"; {count(len(reasons), 'other')} left out, the first because {reasons[0]}"
    return OlderStudy(source, found, summary)


def _as_drawn(search: SearchSpec, config: TrainingConfig) -> dict[str, Any]:
    """Return the settings that a trial of a search draws to train as another search's did.

    Raises:
        UsageError: it cannot; the message is a part of a sentence.
    """
    params = search.drawn(dict(config))
    for setting, value in params.items():
        if not contains(search.space[setting], value):
            raise UsageError(f"{setting}={config.text(setting)} is not in the space")
    mine, other = effective(search.config(params)), effective(config)
    for setting in TrainingConfig.model_fields:
        # the images are the same, wherever they lie
        if setting != "dataset" and getattr(mine, setting) != getattr(other, setting):
            raise UsageError(f"{setting} is {other.text(setting)} there and {mine.text(setting)} here")
    return params


def _open_study(source: str, url: str) -> optuna.Study:
    """Return the study of a name in the storage at `url`, or of a URL, which may end with `#` and a name."""
    address, _, name = source.partition("#") if "://" in source else (url, "", source)
    backend = make_url(address)
    if backend.get_backend_name() == "sqlite" and backend.database and not Path(backend.database).exists():
        # Optuna would create it
        raise UsageError(f"start_from must name a study in a storage that exists, got {mask_password(source)}")
    storage = open_storage(address)
    names: Sequence[str] = optuna.get_all_study_names(storage)
    chosen = name or (names[0] if len(names) == 1 else "")
    if chosen not in names:
        known = ", ".join(map(printable, names[:10])) or "none"
        raise UsageError(f"start_from must name a study, or a storage as URL#STUDY: {known} there, got {shown(source)}")
    return optuna.load_study(study_name=chosen, storage=storage)
