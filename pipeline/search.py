"""A study of many trials, from a search's name to a winner: `python -m pipeline.search kernel-patch-depth --trials 50`.

MLflow takes seconds to import, so it comes after search and data have been accepted.
"""

import os
import sys
from collections.abc import Sequence

from pipeline import space
from pipeline.cache import refuse_unwritable
from pipeline.door import exit_code, leave
from pipeline.loading import load_data
from pipeline.machine.processor import prefer_onednn
from pipeline.study_storage import check_environment

PROGRAM = "python -m pipeline.search"


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code: 0, 1 for a failed search, 2 for bad input, 130 for a stopped one."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it is a thread, and forks come after it
    prefer_onednn()
    return exit_code(lambda: _search(arguments))


def _search(arguments: Sequence[str]) -> int:
    check_environment(os.environ)
    search = space.from_command_line(arguments, program=PROGRAM, description=str(__doc__))
    refuse_unwritable()
    data = load_data(search.base)
    space.check(search, image_shape=data.image_shape, training_images=len(data.train))
    from pipeline.study.searching import carry_out

    return carry_out(search, data)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
