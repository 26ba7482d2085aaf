"""The record of finals: what counts as the same training, and what is missing."""

import pytest

from pipeline.search import final_record
from pipeline.search.final_record import Finalist, FinalRecord
from tests.support.scripted import make_search, open_study

TEXT = "recipe: smoke\nspace: {depth: [1, 2]}\nfinal_top: 2\nfinal_seeds: 3\n"


@pytest.fixture
def study(tmp_path):
    return open_study(tmp_path, make_search(tmp_path, TEXT))


def open_record(study, *, metric="val_accuracy", data_fingerprint="data"):
    return FinalRecord(study, metric=metric, data_fingerprint=data_fingerprint)


def add(record, depth, **values):
    """Add the finalist of a depth with values by seed, as `s0=0.5`."""
    by_seed = {seed.removeprefix("s"): value for seed, value in values.items()}
    finalist = Finalist(depth, {"depth": depth}, record.digest({"depth": depth}), f"run-{depth}", values=by_seed)
    record.add(finalist)
    return finalist


def complete_trials(study, *accuracies):
    for accuracy in accuracies:
        study.complete(study.ask().number, [accuracy])


def test_standing_is_of_the_seeds_that_are_asked_for():
    finalist = Finalist(7, {"depth": 1}, "digest", "run", values={"0": 0.5, "1": 0.7, "9": 0.1})
    standing = finalist.standing([0, 1, 2])
    assert (standing["seeds"], standing["mean"]) == (2, pytest.approx(0.6))
    assert standing["sd"] == pytest.approx(0.2 / 2**0.5)
    assert finalist.standing([9])["sd"] is None


def test_kept_finalist_is_found_again_by_its_configuration(study):
    record = open_record(study)
    finalist = add(record, 1, s0=0.5)
    assert open_record(study).find({"depth": 1}) is None, "it has not been kept"
    record.keep()
    assert open_record(study).find({"depth": 1}) == finalist
    assert open_record(study).find({"depth": 2}) is None


@pytest.mark.parametrize("other", [{"data_fingerprint": "others"}, {"metric": "val_loss"}])
def test_finalist_of_other_data_or_another_metric_does_not_count(study, other):
    record = open_record(study)
    add(record, 1, s0=0.5)
    record.keep()
    assert open_record(study, **other).find({"depth": 1}) is None


def test_finalist_of_another_code_does_not_count_and_is_outdated(study, monkeypatch):
    record = open_record(study)
    add(record, 1, s0=0.5)
    record.keep()
    monkeypatch.setattr(final_record, "training_code_digest", lambda: "another")
    now = open_record(study)
    assert now.find({"depth": 1}) is None
    assert now.is_outdated([add(now, 1)])
    assert not now.is_outdated([add(now, 2)])


def test_digest_depends_on_settings_and_not_on_the_seed_or_where_the_data_lie(tmp_path):
    def digest(*flags, name="one"):
        (tmp_path / name).mkdir(exist_ok=True)
        study = open_study(tmp_path / name, make_search(tmp_path, TEXT, *flags))
        return open_record(study).digest({"depth": 1})

    plain = digest()
    assert digest("--seed", "5", name="seed") == digest("--checkpoint_minutes", "3", name="minutes") == plain
    assert digest("--epochs", "3", name="epochs") != plain


def test_compared_are_these_finalists_and_earlier_ones_with_all_seeds(study):
    record = open_record(study)
    whole = add(record, 1, s0=0.5, s1=0.6, s2=0.7)
    part = add(record, 2, s0=0.9)
    assert record.seeds == [0, 1, 2]
    assert record.compared([]) == [whole]
    assert record.compared([part]) == [whole, part]


def test_n_missing_leaves_out_what_the_best_trials_have_been_trained_with(study):
    record = open_record(study)
    assert record.n_missing() == 6, "of the two finalists that there will be"
    complete_trials(study, 0.5, 0.9)
    depths = [study.search.snap(trial.params)["depth"] for trial in study.ranked()]
    add(record, depths[0], s0=0.5, s2=0.5)
    assert record.n_missing() == 4


def test_question_is_the_same_for_the_same_finalists_in_any_order(study):
    record = open_record(study)
    assert record.question(["b", "a"]) == record.question(["a", "b"]) != record.question(["a"])
