"""Tests of counting test set accesses."""

from datetime import UTC, datetime

from pipeline.tracking.tags import Tag
from pipeline.tracking.test_set_access import access_count, access_tags


def test_access_count_counts_each_access_once_also_two_at_once():
    tags = access_tags({}, by="a", run_id="a", tested=False)
    one, other = (access_tags(tags, by=by, run_id="a", tested=True) for by in ("b", "c"))
    assert (tags[Tag.TEST_SET_ACCESSES], one[Tag.TEST_SET_ACCESSES]) == ("1", "2")
    assert datetime.fromisoformat(tags[f"{Tag.TEST_SET_ACCESS}.a"]).tzinfo == UTC
    assert access_count(tags | one | other, run_id="a", tested=True) == 3
    again = access_tags(tags | one, by="b", run_id="a", tested=True)
    assert access_count(tags | one | again, run_id="a", tested=True) == 2


def test_access_count_without_tags_counts_a_test_accuracy():
    assert access_count({Tag.TEST_SET_ACCESSES: "7"}, run_id="a", tested=True) == 1
    assert access_count({}, run_id="a", tested=False) == 0
