"""What dashboards show of a study beside its trials: the names of its metrics, and a note in optuna-dashboard."""

import warnings
from hashlib import blake2b

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage

from pipeline.runtime.errors import UsageError
from pipeline.search.attributes import NOTE

# System attributes in which optuna-dashboard keeps a study's note, as its function `save_note` writes them
NOTE_VERSION, NOTE_TEXT = "dashboard:note_ver", "dashboard:note_str:"
MAX_NOTE = 2045  # characters of a part; here a note has one part


def name_metrics(study: optuna.Study, metrics: list[str]) -> None:
    """Name the values of a study's trials.

    Raises:
        UsageError: The study has been searched by other metrics.
    """
    known = study.metric_names
    if known is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(metrics)
    elif known != metrics:
        raise UsageError(
            f"metric must stay {','.join(known)} in the study {study.study_name}, which was begun with it, got "
            f"{','.join(metrics)}; name another study"
        )


def set_note(storage: BaseStorage, study_id: int, text: str) -> None:
    """Set the note of a study in optuna-dashboard, in Markdown, unless a person has written another one."""
    system = storage.get_study_system_attrs(study_id)
    parts = sorted(name for name in system if name.startswith(NOTE_TEXT))
    there, text = "".join(system[part] for part in parts), text[:MAX_NOTE]
    own = storage.get_study_user_attrs(study_id).get(NOTE, [])
    if there == text or (there and _digest(there) not in own):
        return
    # Both, as a kill may come before the note itself is written
    storage.set_study_user_attr(study_id, NOTE, [_digest(there), _digest(text)])
    storage.set_study_system_attr(study_id, f"{NOTE_TEXT}0", text)
    storage.set_study_system_attr(study_id, NOTE_VERSION, system.get(NOTE_VERSION, 0) + 1)


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()
