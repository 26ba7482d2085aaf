"""A logged model, understood: `python -m pipeline.evaluate runs:/<id>/model`.

It says how well the model's probabilities are calibrated, and how much accuracy noise, blur, lost contrast and JPEG
cost, on the test images of its own data set or on any other with the same classes. The results lie in the MLflow run
that trained the model, under evaluation/<dataset>-<split>; evaluating the same again replaces them. Each look at the
test images of the training data is counted there, and told in reports. TensorFlow and MLflow take seconds to import,
so they come after the command line has been accepted.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial

from pipeline.cache import refuse_unwritable
from pipeline.data import refuse_missing
from pipeline.door import exit_code, leave
from pipeline.evaluation import asked
from pipeline.lifetime.ancestors import watched
from pipeline.lifetime.interrupt import stoppable
from pipeline.machine.processor import prefer_onednn
from pipeline.machine.quiet import quiet
from pipeline.scratch import temporary_files

PROGRAM = "python -m pipeline.evaluate"


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code: 0, 1 for a full disk, 2 for input that cannot be used."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    prefer_onednn()
    return exit_code(lambda: _evaluate(arguments))


def _evaluate(arguments: Sequence[str]) -> None:
    what = asked.from_command_line(arguments, program=PROGRAM, description=str(__doc__))
    if what.settings.dataset is not None:
        refuse_missing(what.settings.dataset)
    refuse_unwritable()
    with stoppable(), watched(), temporary_files("evaluations"):
        from pipeline.evaluation.preparing import prepared

        with prepared(what) as ready:
            with quiet():
                from pipeline.evaluation.evaluating import evaluate
            for line in evaluate(ready, report=partial(print, flush=True)):
                print(line, flush=True)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
