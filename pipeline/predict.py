"""The classes of images in files, by a model that a run has logged: `python -m pipeline.predict models:/NAME@champion`.

MLflow and TensorFlow take seconds to import, so they come after the command line has been accepted.
"""

import errno
import logging
import os
import sys
from collections.abc import Sequence

from pipeline.errors import UsageError
from pipeline.lifetime.ancestors import watched
from pipeline.lifetime.interrupt import Stopped, stoppable
from pipeline.machine.processor import prefer_onednn
from pipeline.machine.quiet import quiet
from pipeline.predicting import asked
from pipeline.predicting.found import find
from pipeline.printable import one_line
from pipeline.refusal import refuse
from pipeline.store_urls import bound_waiting, hide_credentials

PROGRAM = "python -m pipeline.predict"


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code: 0, 1 for a full disk, 2 for input that cannot be used."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    prefer_onednn()
    try:
        hide_credentials(os.environ)
        bound_waiting(os.environ)
        what = asked.from_command_line(arguments, program=PROGRAM, description=str(__doc__))
        with stoppable(), watched():
            found = find(what.images)
            from pipeline.logged_model import refuse_missing

            refuse_missing(what.model)
            with quiet():
                from pipeline.predicting.predicting import predict
            for line in predict(what, found):
                print(line)
    except UsageError as error:
        return refuse(error)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        print(f"error: the disk is full: {one_line(error)}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"stopped by {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
