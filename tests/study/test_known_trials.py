"""What a driver reads of its study again, and when."""

import pytest
from optuna.storages import RDBStorage
from scripted import RANGE, made_search, opened


@pytest.fixture
def read(monkeypatch):
    """Ids of the trials that were read from the database, a set a query; None for all."""
    queries = []
    get = RDBStorage._get_trials

    def noted(self, study_id, states, included_trial_ids, trial_id_greater_than):
        found = get(self, study_id, states, included_trial_ids, trial_id_greater_than)
        queries.append({trial.number for trial in found})
        return found

    monkeypatch.setattr(RDBStorage, "_get_trials", noted)
    return queries


@pytest.fixture
def study(tmp_path):
    return lambda: opened(tmp_path, made_search(tmp_path, RANGE))


def test_unfinished_trials_are_read_again_only_where_they_have_changed(study, read):
    mine = study()
    first, _second = mine.ask(), mine.ask()
    mine.trials()
    read.clear()
    mine.report(first.number, 1, 0.5)
    assert mine.trials()[first.number].intermediate_values == {1: 0.5}
    mine.trials()
    assert read == [{first.number}]


def test_what_this_process_writes_it_sees_at_once(study):
    mine = study()
    asked = mine.ask()
    mine.annotate(asked.number, {"parameters": 7})
    mine.complete(asked.number, [0.5])
    (trial,) = mine.trials()
    assert (trial.state.name, trial.values, trial.user_attrs, trial.params) == (
        "COMPLETE",
        [0.5],
        {"parameters": 7},
        asked.params,
    )
    mine.put_back(mine.ask().number)
    assert [trial.state.name for trial in mine.trials()] == ["COMPLETE", "FAIL", "WAITING"]
    assert [trial.state.name for trial in study().trials()] == ["COMPLETE", "FAIL", "WAITING"]


def test_what_others_write_is_seen_after_a_refresh(study):
    mine, other = study(), study()
    other.complete(other.ask().number, [0.5])
    assert mine.trials() == []
    mine.refresh()
    assert [trial.values for trial in mine.trials()] == [[0.5]]
    asked = other.ask()
    mine.refresh()
    assert [trial.state.name for trial in mine.trials()] == ["COMPLETE", "RUNNING"]
    other.complete(asked.number, [0.6])
    mine.refresh()
    assert [trial.values for trial in mine.trials()] == [[0.5], [0.6]]
