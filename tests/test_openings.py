"""How often test images have been looked at is counted, whoever looks and whatever becomes of it."""

from pipeline.openings import opening, openings


def test_each_look_counts_once_two_at_once_too():
    tags = opening({}, by="a", run_id="a", tested=False)
    one, other = (opening(tags, by=by, run_id="a", tested=True) for by in ("b", "c"))
    assert (tags["test_opened"], one["test_opened"]) == ("1", "2")
    assert openings(tags | one | other, run_id="a", tested=True) == 3
    again = opening(tags | one, by="b", run_id="a", tested=True)
    assert openings(tags | one | again, run_id="a", tested=True) == 2


def test_a_test_accuracy_without_a_tag_is_a_look_and_neither_is_none():
    assert openings({"test_opened": "7"}, run_id="a", tested=True) == 1
    assert openings({}, run_id="a", tested=False) == 0
