"""One run, from a recipe's name to a result in MLflow: `python -m pipeline.train digits --depth 6`.

TensorFlow and MLflow take seconds to import, so they come after settings and data have been accepted; but where a run
is to go on, or `mlflow run` has opened one, MLflow is asked before the data are read.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline import config as settings
from pipeline.cache import refuse_unwritable
from pipeline.door import exit_code, leave
from pipeline.lifetime.ancestors import OPENED, watched
from pipeline.lifetime.interrupt import stoppable
from pipeline.loading import load_data
from pipeline.machine.hosts import refuse_several
from pipeline.machine.processor import prefer_onednn
from pipeline.machine.quiet import quiet
from pipeline.scratch import temporary_files

if TYPE_CHECKING:
    from pipeline.resume import Resumption

PROGRAM = "python -m pipeline.train"


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code: 0, 1 for a run that failed, 2 for input that cannot be used."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up lines; its errors come as exceptions
    prefer_onednn()
    return exit_code(lambda: _train(arguments))


def _train(arguments: Sequence[str]) -> None:
    with stoppable(), watched():
        typed = settings.from_command_line(arguments, program=PROGRAM, description=str(__doc__))
        with _opened(typed) as resumption:
            _begin(typed, resumption)


def _begin(typed: settings.Typed, resumption: "Resumption | None") -> None:
    config = resumption.config if resumption else typed.config
    refuse_unwritable()
    refuse_several(os.environ)
    data = load_data(config)
    settings.check(config, image_shape=data.image_shape, training_images=len(data.train))
    if resumption:
        resumption.check(data.fingerprint)
    with temporary_files("runs"):
        with quiet():
            from pipeline.run import train
        train(typed.recipe, config, data, resumption)


@contextmanager
def _opened(typed: settings.Typed) -> "Iterator[Resumption | None]":
    """The run that is to go on, if one is; the run that `mlflow run` opened does not stay open if nothing begins."""
    if typed.resume is None and OPENED not in os.environ:
        yield None
        return
    from pipeline import resume

    with resume.opened(typed.resume, typed.given) as resumption:
        yield resumption


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
