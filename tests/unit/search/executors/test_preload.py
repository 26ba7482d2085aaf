"""What a fork server imports before it starts the first trial."""

import sys

from pipeline.search.executors import preload
from pipeline.search.executors.trial import PRELOADED_MODULES


def test_preload_is_the_module_of_the_fork_server_and_imports_what_a_trial_needs():
    assert (preload.__name__,) == PRELOADED_MODULES
    assert set(preload.MODULES) < sys.modules.keys()
    assert {"tensorflow", "keras", "mlflow", "pipeline.training.fit"} < sys.modules.keys()
