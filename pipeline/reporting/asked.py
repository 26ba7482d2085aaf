"""What a report is to compare, as typed: which runs, by which metric, and where it is written."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from pipeline.command_line import parse_after
from pipeline.settings import Settings

RUNS = "an experiment, a study, run ids with commas between, or an MLflow filter"


class ReportSettings(Settings):
    """The settings of a report."""

    metric: Literal["auto", "test_accuracy", "best_val_accuracy"] = Field(
        "auto", description="what ranks; auto: test_accuracy where at least half of the runs have it"
    )
    folder: str = Field(
        "reports", min_length=1, max_length=4096, description="where the report is written, in a folder of its own"
    )
    rows: int = Field(50, ge=1, le=1000, description="recipes of one data set on the page; the CSV file holds them all")


class Asked(NamedTuple):
    """What was typed."""

    runs: str
    settings: ReportSettings


def from_command_line(arguments: Sequence[str], *, program: str, description: str) -> Asked:
    """What to compare, and how.

    Raises:
        UsageError: nothing is named, or a setting is unknown or breaks its rule.
    """
    runs, given = parse_after(
        "runs", RUNS, arguments, program=program, description=description, settings=ReportSettings.build({})
    )
    return Asked(runs, ReportSettings.build(given))
