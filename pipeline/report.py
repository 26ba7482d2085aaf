"""Finished runs, compared on one page: `python -m pipeline.report "my experiment"`.

What is compared is named as an experiment, a study, run ids with commas between, or an MLflow filter such as
"params.depth = '8' and metrics.test_accuracy > 0.9" in the experiment that the command runs in. The page, report.html,
needs nothing beside it; leaderboard.csv and leaderboard.md hold its first table. MLflow takes seconds to import, so it
comes after the command line has been accepted; TensorFlow is not needed.
"""

import logging
import os
import sys
from collections.abc import Sequence

from pipeline.errors import UsageError
from pipeline.lifetime.ancestors import watched
from pipeline.lifetime.interrupt import Stopped, stoppable
from pipeline.refusal import refuse
from pipeline.reporting import asked
from pipeline.store_urls import hide_credentials

PROGRAM = "python -m pipeline.report"


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code: 0, or 2 for input that cannot be used."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        hide_credentials(os.environ)
        what = asked.from_command_line(arguments, program=PROGRAM, description=str(__doc__))
        with stoppable(), watched():
            from pipeline.reporting.writing import write

            for line in write(what):
                print(line)
    except UsageError as error:
        return refuse(error)
    except Stopped as stopped:
        print(f"stopped by {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
