"""YAML files of settings: finding and reading them, and what is refused."""

import pytest

from pipeline.config import yaml_file
from pipeline.config.yaml_file import MAX_BYTES, MAX_DEPTH, choices, find, names, read_file
from pipeline.runtime.errors import UsageError


@pytest.fixture
def folder(tmp_path):
    for name in ("b.yaml", "a.yaml", "c.txt"):
        (tmp_path / name).write_text("depth: 3\n")
    return tmp_path


def test_names_are_those_of_the_yaml_files_in_order(folder):
    assert names(folder) == ["a", "b"]
    assert choices(folder) == "a, b, or the path of a .yaml file"


def test_find_takes_a_name_or_a_path(folder, monkeypatch):
    assert find("a", folder=folder, kind="recipe") == folder / "a.yaml"
    monkeypatch.setenv("HOME", str(folder))
    assert find("~/b.yaml", folder=folder / "elsewhere", kind="recipe") == folder / "b.yaml"


def test_find_refuses_what_does_not_exist_with_the_choices(folder):
    with pytest.raises(UsageError, match=r"^recipe must be one of a, b, or the path of a \.yaml file, got 'aa'; did"):
        find("aa", folder=folder, kind="recipe")
    with pytest.raises(UsageError, match=r"^search must be one of a, b, .*: there is no /nowhere/a\.yaml$"):
        find("/nowhere/a.yaml", folder=folder, kind="search")


def test_find_without_the_folder_of_a_checkout_says_where_the_files_are(tmp_path):
    missing = tmp_path / "site-packages" / "experiments" / "recipes"
    assert choices(missing) == "the path of a .yaml file"
    with pytest.raises(UsageError, match=r"^the recipe files come with the repository .* in a checkout .*'digits'$"):
        find("digits", folder=missing, kind="recipe")


def read(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return read_file(path, kind="recipe")


def test_read_file_returns_text_lists_and_mappings(tmp_path):
    assert read(tmp_path, "a: 010\nb: [x, 2.5]\nc: {d: null, e: yes}\n# f: 1\ng: 'h'\n1: 1:30\n") == {
        "a": "010",
        "b": ["x", "2.5"],
        "c": {"d": "null", "e": "yes"},
        "g": "h",
        "1": "1:30",
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n...\n"])
def test_read_file_without_lines_returns_no_settings(tmp_path, text):
    assert read(tmp_path, text) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x\n", r"is not YAML for settings: aliases are not read: \*x, in line 2, column 4$"),
        ("a: 1\na: 2\n", "is not YAML for settings: a is given twice, in line 2, column 1$"),
        ("a: {b: 1, b: 2}\n", "b is given twice, in line 1, column 11$"),
        (f"a: {'[' * MAX_DEPTH}", f"nested more than {MAX_DEPTH} deep, in line 1"),
        ("a: !!int 3\n", "tags are not read: tag:yaml.org,2002:int, in line 1, column 4$"),
        ("a: !!python/object/apply:os.getcwd []\n", "tags are not read: "),
        ("[a]: 1\n", "is not YAML for settings: "),
        ("a: [\n", "is not YAML for settings: "),
        ("- a\n", "^a recipe must be 'setting: value' lines, got list in /"),
        ("a\n", "^a recipe must be 'setting: value' lines, got str in /"),
        (f"a: {'x' * MAX_BYTES}\n", f"^a recipe must have at most {MAX_BYTES:,} bytes, got more in /"),
    ],
)
def test_read_file_refuses_in_one_line_with_the_place(tmp_path, text, message):
    with pytest.raises(UsageError, match=message) as refused:
        read(tmp_path, text)
    assert "\n" not in str(refused.value) and "mine.yaml" in str(refused.value)


def test_read_file_takes_brackets_up_to_the_limit(tmp_path):
    depth = MAX_DEPTH - 1  # the mapping of the lines is one more
    assert read(tmp_path, f"a: {'[' * depth}{']' * depth}\n")["a"] is not None


def test_read_file_refuses_what_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="^a search must be readable: /.*: Is a directory$"):
        yaml_file.read_file(tmp_path, kind="search")
