"""One run, from a recipe's name to a result in MLflow: `python -m pipeline.train digits --depth 6`.

TensorFlow and MLflow take seconds to import, so they come after settings and data have been accepted.
"""

import logging
import os
import sys
from collections.abc import Sequence

from pipeline import config as settings
from pipeline.errors import Diverged, UsageError
from pipeline.interrupt import Stopped
from pipeline.loading import load_data
from pipeline.processor import prefer_onednn
from pipeline.quiet import quiet

PROGRAM = "python -m pipeline.train"


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code: 0, 1 for a run that failed, 2 for input that cannot be used."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up lines; its errors come as exceptions
    prefer_onednn()
    try:
        recipe, config = settings.from_command_line(arguments, program=PROGRAM, description=str(__doc__))
        data = load_data(config)
        settings.check(config, image_shape=data.image_shape, training_images=len(data.train))
        with quiet():
            from pipeline.run import train
        train(recipe, config, data)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"stopped by {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
