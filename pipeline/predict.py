"""The classes of images in files, by a model that a run has logged: `python -m pipeline.predict models:/NAME@champion`.

MLflow and TensorFlow take seconds to import, so they come after the command line has been accepted.
"""

import os
import sys
from collections.abc import Sequence

from pipeline.door import exit_code, leave
from pipeline.lifetime.ancestors import watched
from pipeline.lifetime.interrupt import stoppable
from pipeline.machine.processor import prefer_onednn
from pipeline.machine.quiet import quiet
from pipeline.predicting import asked
from pipeline.predicting.found import find

PROGRAM = "python -m pipeline.predict"


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code: 0, 1 for a full disk, 2 for input that cannot be used."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    prefer_onednn()
    return exit_code(lambda: _predict(arguments))


def _predict(arguments: Sequence[str]) -> None:
    what = asked.from_command_line(arguments, program=PROGRAM, description=str(__doc__))
    with stoppable(), watched():
        found = find(what.images)
        from pipeline.logged_model import refuse_missing

        refuse_missing(what.model)
        with quiet():
            from pipeline.predicting.predicting import predict
        for line in predict(what, found):
            print(line)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
