"""What becomes of a command that cannot be carried out."""

import os
import sys

from pipeline.errors import UsageError
from pipeline.lifetime.ancestors import OPENED

REFUSED = 2  # the exit code


def refuse(error: UsageError) -> int:
    """Say why, in the run that `mlflow run` opened too; returns the exit code."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    if OPENED in os.environ:
        from pipeline.lifetime.ownership import refused

        refused(str(error))
    return REFUSED
