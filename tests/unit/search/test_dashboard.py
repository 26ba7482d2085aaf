"""What dashboards show of a study: metrics by name, and a note of optuna-dashboard that a person may replace."""

import optuna
import pytest
from optuna.trial import TrialState

from pipeline.runtime.errors import UsageError
from pipeline.search.dashboard import MAX_NOTE, NOTE_TEXT, NOTE_VERSION
from tests.support.scripted import DISCRETE, SMALL, make_search, open_study


@pytest.fixture
def opened(tmp_path):
    """Return a function that opens the same study, and Optuna's own view of it."""

    def open_it(text=SMALL, *flags):
        study = open_study(tmp_path, make_search(tmp_path, text, *flags))
        return study, optuna.load_study(study_name="mine", storage=f"sqlite:///{tmp_path}/optuna.db")

    return open_it


def note(study):
    attrs = study._storage.get_study_system_attrs(study._study_id)
    return attrs.get(f"{NOTE_TEXT}0"), attrs.get(NOTE_VERSION)


@pytest.mark.parametrize("metrics", ["val_loss", "val_accuracy,parameters"])
def test_metrics_of_a_study_have_names(opened, metrics):
    _, study = opened(SMALL, "--metric", metrics)
    assert study.metric_names == metrics.split(",")


def test_study_with_another_metric_is_refused(opened):
    opened(SMALL, "--metric", "val_accuracy")
    with pytest.raises(UsageError, match="metric must stay val_accuracy in the study mine, .* got val_loss; name"):
        opened(SMALL, "--metric", "val_loss")


def test_note_is_replaced_by_the_next_one_and_its_version_grows(opened):
    mine, study = opened()
    assert note(study) == (None, None)
    mine.set_note("first")
    mine.set_note("first")
    assert note(study) == ("first", 1)
    mine, _ = opened()
    mine.set_note("second" + MAX_NOTE * "x")
    text, version = note(study)
    assert (text[:7], len(text), version) == ("secondx", MAX_NOTE, 2)


def test_note_of_a_person_stays(opened):
    mine, study = opened()
    mine.set_note("first")
    study._storage.set_study_system_attr(study._study_id, f"{NOTE_TEXT}0", "mine")
    mine.set_note("second")
    assert note(study) == ("mine", 1)


def test_infeasible_trials_violate_a_constraint_and_say_why(opened):
    text = "recipe: smoke\nspace: {kernel_size: [3, 9], patch_size: [1, 4]}\n"
    mine, study = opened(text + "enqueue: [{kernel_size: 9, patch_size: 4}]\n")
    mine.ask()
    infeasible, *_ = study.trials
    assert infeasible.state == TrialState.PRUNED
    assert infeasible.constraints == {"trainable": 1.0}
    assert infeasible.user_attrs["infeasible"].startswith("kernel_size must")


def test_default_importances_are_those_of_the_feasible_trials_that_have_finished(opened):
    mine, study = opened(DISCRETE, "--sampler", "grid")
    for value in (0.1, 0.2, 0.3, 0.4, 0.5):
        mine.complete(mine.ask().number, [value])
    before = optuna.importance.get_param_importances(study)
    mine.prune(mine.ask().number, violation=True)
    assert len(study.trials) == 6
    assert optuna.importance.get_param_importances(study) == before
