"""A trial that is killed while a search with rungs trains it goes on from its last checkpoint, here and on Ray."""

import mlflow
import pytest

from pipeline.search.attributes import RESUMED_AFTER
from pipeline.search.executors.local import LocalExecutor
from pipeline.search.executors.ray_executor import RayExecutor
from pipeline.search.executors.slots import Slot
from pipeline.search.executors.trial import train_trial
from pipeline.search.loop import SearchLoop
from pipeline.tracking.tags import RunRef
from tests.support.misbehaving import train_until_killed
from tests.support.scripted import RecordingRuns, make_search, mlflow_store, open_study, search_context

TEXT = """recipe: smoke
train_examples: 400
epochs: 8
schedule: one_cycle
ema_momentum: 0.9
pruner: asha
pruner_epochs: 2
pruner_factor: 2
final_top: 0
trials: 1
space: {depth: [2]}
"""


class Runs(RecordingRuns):
    """Opens real runs for the trials of a study."""

    def start_child(self, name, *, role, tags, parent=None):
        run = mlflow.MlflowClient().create_run(mlflow.get_experiment_by_name("mine").experiment_id)
        return RunRef(mlflow.get_tracking_uri(), run.info.run_id)


def here(trial_function):
    return LocalExecutor([Slot("CPU", None, 1, None)], trial_function=trial_function)


def on_ray(trial_function):
    return RayExecutor("local", fingerprint=None, trials_per_gpu=1, trials=1, trial_function=trial_function)


def trained(folder, executor):
    """Run a search of one configuration with real trainings, and return its study."""
    folder.mkdir()
    study = open_study(folder, make_search(folder, TEXT))
    with executor:
        SearchLoop(search_context(study, executor, runs=Runs())).run()
    return study


@pytest.mark.slow
@pytest.mark.parametrize("executor", [here, on_ray])
def test_killed_trial_goes_on_from_its_last_rung_with_the_same_values(tmp_path, monkeypatch, executor):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with mlflow_store(tmp_path):
        study = trained(tmp_path / "killed", executor(train_until_killed))
        whole = trained(tmp_path / "whole", here(train_trial))
    killed, again = study.trials()
    (expected,) = whole.trials()
    assert [trial.state.name for trial in study.trials()] == ["FAIL", "COMPLETE"]
    assert sorted(killed.intermediate_values) == [1, 2, 3]
    assert again.user_attrs[RESUMED_AFTER] == 2 and RESUMED_AFTER not in expected.user_attrs
    assert again.intermediate_values == expected.intermediate_values and again.values == expected.values
    assert study.epochs_trained() == 3 + 6
