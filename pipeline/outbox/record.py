"""What a run tells MLflow, as plain data that can be kept in a file and sent later."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["batch", "dataset", "files", "model", "end", "version", "others"]
Fill = Callable[[Path], None]  # puts files into a folder


@dataclass
class Record:
    """One thing that a run tells.

    The body of a `batch` holds metrics, as [name, value, milliseconds since the epoch, step], params and tags; `once`:
    a metric has one point a step; `of_model`: the metrics are the logged model's too. A `dataset` is an MLflow data set
    with its context. `files` and `model` have their files in a folder; a model has a name. A `version` is the served
    model's in the registry, under the name `register_as`, with tags. An `end` holds status, end_time in milliseconds,
    tags, and `process`, the tags of the process whose end it is, or none; `if_open` leaves the status of a run that is
    closed. `others` are the records that another process has left of this run.
    """

    kind: Kind
    run_id: str
    body: Mapping[str, Any] = field(default_factory=dict)
    files: Path | None = None  # a folder
    path: Path | None = None  # where it is kept; None: in memory alone
    tried: bool = False  # whether it may have arrived, its answer being lost

    def joins(self, other: "Record") -> bool:
        """Whether both can be sent in one call."""
        if not self.kind == other.kind == "batch":
            return False
        return all(self.body.get(key) == other.body.get(key) for key in ("once", "of_model")) and (
            self.run_id == other.run_id
        )
