"""Cleaning class names."""

import pytest

from pipeline.data.class_names import clean_class_name, clean_class_names
from pipeline.runtime.errors import UsageError


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("cat", "cat"),
        ("cafe\u0301", "caf\u00e9"),
        (" tea\u00a0", "tea"),
        ("b\nc", r"b\nc"),
        ("caf\udce9", r"caf\udce9"),
        ("日本", "日本"),
    ],
)
def test_clean_class_name_is_composed_stripped_and_printable(name, clean):
    assert clean_class_name(name) == clean


def test_clean_class_names_are_sorted_and_lead_to_the_names_given():
    assert list(clean_class_names(["tea", "cafe\u0301"], place="x").items()) == [
        ("caf\u00e9", "cafe\u0301"),
        ("tea", "tea"),
    ]


@pytest.mark.parametrize(
    "names",
    [("cat", "cat "), ("caf\u00e9", "cafe\u0301"), ("b\t", "b"), ("b\nc", r"b\nc"), ("a\udcff", r"a\udcff")],
)
def test_clean_class_names_that_become_one_are_refused(names):
    with pytest.raises(UsageError, match=r"^class names must differ in more than .* in /data are both .*; rename one"):
        clean_class_names(names, place="/data")


def test_clean_class_names_without_visible_characters_are_refused():
    with pytest.raises(UsageError, match=r"needs a name that can be seen, got '\\u3000' in /data"):
        clean_class_names(["cat", "\u3000"], place="/data")


def test_clean_class_names_warns_of_names_that_differ_by_case(caplog):
    assert list(clean_class_names(["cat", "Cat", "dog"], place="/data")) == ["Cat", "cat", "dog"]
    assert "/data has classes whose names differ by case alone: Cat, cat" in caplog.text
