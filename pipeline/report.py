"""Finished runs, compared on one page: `python -m pipeline.report "my experiment"`.

What is compared is named as an experiment, a study, run ids with commas between, or an MLflow filter such as
"params.depth = '8' and metrics.test_accuracy > 0.9" in the experiment that the command runs in. The page, report.html,
needs nothing beside it; leaderboard.csv and leaderboard.md hold its first table. MLflow takes seconds to import, so it
comes after the command line has been accepted; TensorFlow is not needed.
"""

import sys
from collections.abc import Sequence

from pipeline.door import exit_code, leave
from pipeline.lifetime.ancestors import watched
from pipeline.lifetime.interrupt import stoppable
from pipeline.reporting import asked

PROGRAM = "python -m pipeline.report"


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code: 0, or 2 for input that cannot be used."""
    return exit_code(lambda: _report(arguments))


def _report(arguments: Sequence[str]) -> None:
    what = asked.from_command_line(arguments, program=PROGRAM, description=str(__doc__))
    with stoppable(), watched():
        from pipeline.reporting.writing import write

        for line in write(what):
            print(line)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
