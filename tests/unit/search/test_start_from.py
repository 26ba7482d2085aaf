"""Starting from older studies: which of their trials count, how they are marked, and what is refused."""

import optuna
import pytest

from pipeline.search.attributes import DEFINITION, IMPORTED_FROM
from pipeline.search.results import leaderboard
from pipeline.search.start_from import definition, read_older_studies
from tests.support.errors import usage_error
from tests.support.scripted import make_search, open_study

OLD = "recipe: smoke\nepochs: 4\nspace: {depth: [1, 2, 3], kernel_size: [1, 3], flip: [true, false]}\n"


@pytest.fixture
def old(tmp_path):
    """A study `old` of three complete trials, a pruned and a failed one, with depth 1, 2, 3, 1, 2 and kernel size 3."""
    enqueue = ", ".join(f"{{depth: {depth}, kernel_size: 3, flip: {flip}}}" for depth, flip in [
        (1, "true"), (2, "true"), (3, "true"), (1, "false"), (2, "false")
    ])  # fmt: skip
    search = make_search(tmp_path, OLD + f"enqueue: [{enqueue}]\n")
    study = open_study(tmp_path, search, name="old")
    study.set_attr(DEFINITION, definition(search, "digits-1"))
    for value in (0.5, 0.6, 0.7, None, None):
        trial = study.ask()
        study.report(trial.number, 1, 0.4)
        study.set_trial_attrs(trial.number, {"epochs": 4.0, "run_id": f"r{trial.number}"})
        if value:
            study.complete(trial.number, [value])
        elif trial.params["depth"] == 1:
            study.prune(trial.number)
        else:
            study.fail(trial.number, retry=False)
    return f"sqlite:///{tmp_path}/optuna.db"


@pytest.fixture
def start(tmp_path, old):
    """Returns a study that starts from `old`, and the lines that say so."""

    def started(text=OLD, source="old", *flags, data="digits-1"):
        search = make_search(tmp_path, text, "--start_from", source, *flags)
        older = read_older_studies(search, url=old, data_fingerprint=data)
        study = open_study(tmp_path, search, name="new")
        return study, study.import_trials(older)

    return started


def test_finished_trials_are_imported_marked_and_not_counted(start):
    study, lines = start()
    assert lines == ["4 trials of old"]
    assert [trial.state.name for trial in study.trials()] == ["COMPLETE"] * 3 + ["PRUNED"]
    assert [trial.user_attrs[IMPORTED_FROM] for trial in study.trials()] == [f"old t{n:03d}" for n in range(4)]
    assert study.trials()[3].intermediate_values == {1: 0.4}
    assert study.n_finished() == study.epochs_trained() == 0
    assert study.best().values == [0.7]
    table = leaderboard(study)
    assert table["imported_from"].tolist() == ["old t002", "old t001", "old t000", "old t003"]
    assert table["run_id"].tolist() == ["r2", "r1", "r0", "r3"]


def test_imported_configuration_is_not_trained_again(start):
    study, _ = start(OLD, "old", "--sampler", "grid")
    proposals = []
    while proposal := study.ask():
        proposals.append(tuple(proposal.params.values()))
        study.complete(proposal.number, [0.1])
    assert len(proposals) == 12 - 4 and (3, 3, True) not in proposals and (2, 3, False) in proposals


def test_imported_configuration_that_the_file_enqueues_is_not_trained_again_either(start):
    study, _ = start(OLD + "enqueue: [{depth: 3, kernel_size: 3, flip: true}]\n")
    proposal = study.ask()
    assert proposal.params != {"depth": 3, "kernel_size": 3, "flip": True}
    assert study.trials()[0].user_attrs["duplicate_of"] == 3 and study.best().number == 3


def test_duplicates_and_trials_that_others_continue_are_not_imported(start, old):
    older = optuna.load_study(study_name="old", storage=old)
    complete, stopped = (older.trials[number] for number in (2, 3))
    common = {"distributions": complete.distributions, "constraints": {"trainable": 0.0}}
    duplicate = {"values": [0.7], "params": complete.params, "user_attrs": {"duplicate_of": 2}}
    continuation = {"values": [0.65], "params": stopped.params, "user_attrs": {"continues": 3}}
    for trial in (duplicate, continuation):
        older.add_trial(optuna.create_trial(state=optuna.trial.TrialState.COMPLETE, **trial, **common))
    study, lines = start()
    assert lines == ["4 trials of old"]
    assert [trial.user_attrs[IMPORTED_FROM] for trial in study.trials()] == [f"old t{n:03d}" for n in (0, 1, 2, 6)]
    assert [trial.state.name for trial in study.trials()] == ["COMPLETE"] * 4


def test_configuration_that_an_older_study_has_trained_twice_is_imported_once(start, old):
    older = optuna.load_study(study_name="old", storage=old)
    # as by two drivers that both believed to hold the lock
    older.add_trial(optuna.create_trial(values=[0.7], **{name: getattr(older.trials[2], name) for name in (
        "params", "distributions", "constraints"
    )}))  # fmt: skip
    study, _ = start()
    assert [trial.user_attrs[IMPORTED_FROM] for trial in study.trials()] == [f"old t{n:03d}" for n in range(4)]


def test_trials_beyond_the_limits_of_the_new_search_are_left_out(start, old):
    # by depth 378, 594 and 810 parameters
    study, lines = start(OLD, "old", "--max_parameters", "500")
    reason = "parameters must be at most max_parameters: 500, got 594"
    assert lines == [f"4 trials of old; 2 of them left out, the first because {reason}"]
    assert {trial.params["depth"] for trial in study.trials()} == {1}


def test_trial_whose_network_was_measured_as_too_slow_is_left_out(start):
    study, _ = start(OLD, "old", "--max_latency_ms", "2")
    fast, slow = ({"latency_ms": value} for value in (1.5, 3.5))
    trial = optuna.trial.create_trial(values=[0.5])
    for costs, reason in ((fast, None), (slow, "latency_ms must be at most max_latency_ms: 2.0, got 3.50")):
        trial.user_attrs = costs
        assert study._why_not_imported({"depth": 1, "kernel_size": 3, "flip": True}, trial) == reason


def test_study_is_imported_once(start):
    assert start()[1] and not start()[1]


def test_trials_outside_of_the_space_or_with_other_settings_are_left_out_with_the_reason(start):
    study, lines = start(OLD.replace("depth: [1, 2, 3]", "depth: [2, 3]"))
    assert lines == ["2 trials of old; 2 others left out, the first because depth=1 is not in the space"]
    assert {trial.params["depth"] for trial in study.trials()} == {2, 3}


def test_space_may_hold_settings_that_were_fixed_and_the_other_way_round(start):
    text = "recipe: smoke\nkernel_size: 3\nspace: {depth: {low: 1, high: 4}, epochs: [2, 4], flip: [true, false]}\n"
    study, lines = start(text)
    assert lines == ["4 trials of old"]
    assert study.trials()[2].params == {"depth": 3, "epochs": 4, "flip": True}


def test_storage_with_one_study_or_a_name_behind_it_is_a_source_too(start, old):
    assert start(OLD, old)[1] == ["4 trials of old"]
    assert start(OLD, f"{old}#old")[1] == ["4 trials of old"]


@pytest.mark.parametrize(
    ("text", "source", "data", "message"),
    [
        (OLD, "odl", "digits-1", "start_from must name a study, or a storage as URL#STUDY: old there, got 'odl'"),
        (OLD, "sqlite:////no/such.db", "digits-1", "start_from must name a study in a storage that exists, got sqlite"),
        (OLD, "old", "digits-2", "start_from must name studies of the same images: digits-2 here, got digits-1 of old"),
        (
            OLD.replace("epochs: 4", "epochs: 5"),
            "old",
            "digits-1",
            "start_from must name studies with trials of this space, got none in old: epochs is 4 there and 5 here",
        ),
        (OLD, "postgresql://me:secret@host/studies", "digits-1", "start_from must hold no password"),
    ],
)
def test_study_that_cannot_be_compared_is_refused_with_the_reason(start, text, source, data, message):
    refused = usage_error(start, text, source, data=data)
    assert message in refused and "secret" not in refused


def test_study_with_another_metric_is_refused(start):
    refused = usage_error(start, OLD, "old", "--metric", "val_loss")
    assert refused.startswith(
        "start_from must name studies of the same metric: ['val_loss'] here, got ['val_accuracy']"
    )


def test_study_of_another_program_is_refused(start, old):
    optuna.create_study(study_name="theirs", storage=old)
    assert "start_from must name a study of this program's searches" in usage_error(start, OLD, "theirs")
