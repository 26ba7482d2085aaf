"""Unusual and invalid input: used as users expect, or refused in one line before any work starts."""

import io
import json
import math
import os
import sqlite3
import struct
import subprocess
import sys
import zipfile
import zlib
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Annotated, get_args, get_origin

import annotated_types
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.commands import main
from pipeline.config.recipe import parse_training, read_recipe, to_yaml
from pipeline.config.search import SearchConfig
from pipeline.config.training import DataConfig, TrainingConfig
from pipeline.config.yaml_file import MAX_BYTES, MAX_DEPTH
from pipeline.data.dataset import load_dataset
from pipeline.data.npz import read_npz
from pipeline.data.read_images import read_batch
from pipeline.runtime.errors import UsageError
from pipeline.search.distributions import bounds
from pipeline.search.space import parse_search
from tests.support.image_files import image_folder, random_image
from tests.support.paths import ROOT

KINDS = ("train", "search")
SLOW_TO_IMPORT = {"tensorflow", "keras", "mlflow", "pandas", "matplotlib", "sklearn", "sqlalchemy"}
# Characters of the longest error message
MAX_MESSAGE = 2100
# The same in each run, so that a change is judged by what it changes
few_examples = settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def is_one_line(error):
    return str(error).isprintable() and 0 < len(str(error)) < MAX_MESSAGE


def read_or_refuse(read, *arguments, **named):
    """Return what is read, or None if it is refused, which must be in one line."""
    try:
        return read(*arguments, **named)
    except UsageError as error:
        message = error
    assert is_one_line(message)
    return None


def files_below(folder):
    return sorted(os.path.join(where, name) for where, _, names in os.walk(folder) for name in names)


# Numbers at and beyond their bounds, for every setting that exists


def numbers(model):
    """Yield (setting, kind, metadata) of every number among a model's settings, the numbers of a pair included."""
    for name, field in model.model_fields.items():
        for kind in get_args(field.annotation) or (field.annotation,):
            if kind in (int, float):
                yield name, kind, field.metadata
            elif get_origin(kind) is Annotated:
                side, *metadata = get_args(kind)
                yield name, side, [bound for each in metadata for bound in each.metadata]
            elif get_origin(kind) is tuple and get_origin(get_args(kind)[0]) is Annotated:
                side, *metadata = get_args(get_args(kind)[0])
                yield name, side, [bound for each in metadata for bound in each.metadata]


def bound_values(kind, metadata):
    """Yield (last valid value, first invalid value) of each bound."""
    step = (
        (lambda value, way: value + way) if kind is int else (lambda value, way: math.nextafter(value, way * math.inf))
    )
    for bound in metadata:
        match bound:
            case annotated_types.Ge(ge=end):
                yield kind(end), step(kind(end), -1)
            case annotated_types.Gt(gt=end):
                yield step(kind(end), 1), kind(end)
            case annotated_types.Le(le=end):
                yield kind(end), step(kind(end), 1)
            case annotated_types.Lt(lt=end):
                yield step(kind(end), -1), kind(end)


NUMBERS = [(model, *number) for model in (TrainingConfig, SearchConfig) for number in numbers(model)]
NO_NUMBERS = ["nan", ".nan", "inf", "-inf", "1e400", "", " ", "١", "½", "0x10", "1,000", "\0", "\ud800", "9" * 5000]


@pytest.mark.parametrize(("model", "name", "kind", "metadata"), NUMBERS, ids=[number[1] for number in NUMBERS])
def test_number_is_accepted_at_its_bounds_and_refused_beyond(model, name, kind, metadata):
    ends = list(bound_values(kind, metadata))
    assert len(ends) == 2, f"{name} needs a lower and an upper bound"
    for within, beyond in ends:
        for spelt in (within, repr(within)):
            assert model.build({name: spelt})
        for spelt in (beyond, repr(beyond), *NO_NUMBERS, math.nan, math.inf, 10**400, 1 << 20_000):
            with pytest.raises(UsageError, match=rf"^{name} must be ") as refused:
                model.build({name: spelt})
            assert is_one_line(refused.value)


# Settings and command lines of any kind

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=5), st.dates()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SCALARS, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([*TrainingConfig.model_fields, *SearchConfig.model_fields])


@few_examples
@given(st.dictionaries(NAMES | st.text(max_size=15), VALUES, max_size=4))
def test_config_of_any_values_is_exact_or_refused_in_one_line(values):
    if config := read_or_refuse(TrainingConfig.build, values):
        assert TrainingConfig.build({name: config.text(name) for name in TrainingConfig.model_fields}) == config
        assert TrainingConfig.build(yaml.safe_load(to_yaml(config))) == config


FLAGS = st.sampled_from([f"--{name}" for name in (*TrainingConfig.model_fields, *SearchConfig.model_fields)])
WORDS = st.one_of(
    FLAGS,
    st.builds("{}={}".format, FLAGS, st.text(max_size=8)),
    st.sampled_from(
        "smoke 1 -1 1e400 true none -- - --= -h3 --- @x [/b] %s $(id) ;rm ../.. a\nb \x1b[31m \udce9".split(" ")
    ),
    st.text(max_size=8),
    st.integers().map(str),
)


@few_examples
@given(st.sampled_from([parse_training, parse_search]), st.just("smoke") | WORDS, st.lists(WORDS, max_size=6))
def test_any_command_line_is_parsed_or_refused_in_one_line(read, first, words):
    wants_help = {"-h", "--help"} & {first, *words}
    output = io.StringIO()
    with redirect_stderr(output), redirect_stdout(output):
        try:
            read_or_refuse(read, [first, *words])
        except SystemExit as ended:
            code = ended.code
        else:
            code = None
    assert (code == 0 and wants_help) or (code is None and output.getvalue() == "")


@pytest.mark.parametrize(
    "words", [["--depth", "3", "4"], ["--depth=3", "4"], ["--depth", "-1", "4"], ["4", "--depth=3"], ["4"]]
)
def test_word_that_belongs_to_no_setting_is_refused(words):
    with pytest.raises(UsageError, match="settings are given as --name value, got '4'"):
        parse_training(["smoke", *words])


# Files of settings


def bomb(levels=9):
    """Return YAML of which each line expands to nine times the line before."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, levels)]
    return "\n".join(lines)


YAML_FILES = {
    "an anchor bomb": (bomb(), "aliases are not read: *a0, in line 2"),
    "a bomb of merges": ("&a {<<: &b {<<: *a}}", "aliases are not read: *a, in line 1"),
    "a list that holds itself": ("depth: &a [*a]", "aliases are not read: *a, in line 1"),
    "10 MB of text": (f"dataset: {'x' * 10_000_000}", f"at most {MAX_BYTES:,} bytes"),
    "a comment of 10 MB": ("# " + "x" * 10_000_000, f"at most {MAX_BYTES:,} bytes"),
    "as many brackets as fit": ("[" * MAX_BYTES, f"nested more than {MAX_DEPTH} deep, in line 1"),
    "as many dashes as fit": ("- " * (MAX_BYTES // 2), f"nested more than {MAX_DEPTH} deep, in line 1"),
    "as many values as fit": (f"depth: [{'1,' * (MAX_BYTES // 2 - 10)}]", "depth must be a whole number"),
    "a tab": ("depth: 3\n\tepochs: 3", "found a tab character that violates indentation, in line 2, column 1"),
    "a key twice": ("depth: 3\ndepth: 4", "depth is given twice, in line 2, column 1"),
    "a key twice within": ("{depth: {a: 1, a: 2}}", "a is given twice"),
    "a call": ("depth: !!python/object/apply:os.mkdir [ran]", "tags are not read: tag:yaml.org,2002:python/"),
    "a class": ("depth: !!python/name:os.system", "tags are not read: tag:yaml.org,2002:python/"),
    "a tag that does not fit": (
        "depth: !!bool maybe",
        "tags are not read: tag:yaml.org,2002:bool, in line 1, column 8",
    ),
    "a day": ("depth: 2001-01-01", "depth must be a whole number from 1 to 256, got '2001-01-01'"),
    "5000 digits": ("depth: " + "9" * 5000, "depth must be a whole number"),
    "20,000 bits": ("depth: 0x" + "f" * 5000, "depth must be a whole number"),
    "two documents": ("depth: 3\n---\ndepth: 4", "expected a single document"),
    "no lines": ("just text", "must be 'setting: value' lines, got str"),
    "no text": (b"\xff\xff\xff", "is not YAML"),
    "a zero byte": ("depth\0: 3", "is not YAML"),
    "an escape sequence": ('"\\e[31m": 3', r"unknown setting '\x1b[31m'"),
    "half a character": ('dataset: "\\ud800"', "found invalid Unicode character escape code, in line 1"),
}


def write_file(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("content", "message"), YAML_FILES.values(), ids=YAML_FILES)
def test_invalid_settings_file_prints_one_line_and_exits_with_2(tmp_path, monkeypatch, capsys, kind, content, message):
    monkeypatch.chdir(tmp_path)
    path = write_file(tmp_path / "mine.yaml", content)
    assert main.run([kind, path]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == "" and line.startswith("error: ") and is_one_line(line)
    assert path in line and (message in line or kind == "search")
    assert files_below(tmp_path) == [path]


@pytest.mark.parametrize(
    "name",
    ["with spaces.yaml", "it's.yaml", 'a "b".yaml', "a\nb.yaml", "; rm -rf *.yaml", "$(id) [b] %s.yaml", "é日.yml"],
)
@pytest.mark.parametrize("read", [parse_training, parse_search])
def test_settings_file_with_an_unusual_name_is_read(tmp_path, read, name):
    path = write_file(tmp_path / name, "depth: 2" if read is parse_training else "recipe: smoke\nspace: {depth: [1]}")
    assert read([path])
    assert read([os.fsdecode(path.encode())])


def test_settings_file_whose_name_is_not_utf_8_is_read_and_named_as_text(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.yaml")
    write_file(Path(path), "depth: 2")
    recipe, *_ = parse_training([path])
    assert recipe == rf"{tmp_path}/caf\udce9.yaml"


@pytest.mark.parametrize(
    "name",
    ["", "a" * 300, "a" * 300 + ".yaml", "~nobody-of-this-name/a.yaml", "a\0b", "a\0b.yaml", "/", ".yaml", "../x"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_name_of_a_missing_settings_file_is_refused(capsys, kind, name):
    assert main.run([kind, name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (line.startswith("error: ") and is_one_line(line) and "baseline" in line) or "smoke" in line


def test_settings_file_in_utf_16_is_read(tmp_path):
    assert read_recipe(write_file(tmp_path / "mine.yaml", "depth: 2".encode("utf-16"))) == {"depth": "2"}


def test_yaml_error_does_not_show_a_password(tmp_path):
    path = write_file(tmp_path / "mine.yaml", "storage: postgresql://me:secret@host/db: [")
    with pytest.raises(UsageError) as refused:
        parse_search([path])
    assert "secret" not in str(refused.value)


LINES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["depth: 2", "depth: *a", "a: &a [*a]", "<<: *a", "- 1", "? [1]", "!!set {a}", "...", "---", "\t", "%YAML 9"]
    ),
    st.builds("{}: {}".format, NAMES, st.text(max_size=10)),
)


@few_examples
@given(content=st.binary(max_size=60) | st.lists(LINES, max_size=6).map("\n".join))
def test_settings_file_of_any_content_is_read_or_refused_in_one_line(tmp_path, content):
    path = tmp_path / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    for read in (read_recipe, lambda name: parse_search([name])):
        read_or_refuse(read, str(path))


NUMBER = st.one_of(
    st.integers(-2, 300),
    st.floats(),
    st.sampled_from(["1e-3", "0.1", 0.1, 0.5, 1e-300, 1e300, 10**400, "none", True, 2**32]),
)
DRAWN = st.one_of(
    st.lists(NUMBER, max_size=4),
    st.fixed_dictionaries({"low": NUMBER, "high": NUMBER}, optional={"step": NUMBER, "log": st.booleans() | NUMBER}),
    VALUES,
)


@few_examples
@given(
    space=st.dictionaries(
        st.sampled_from([*TrainingConfig.model_fields]) | st.text(max_size=5), DRAWN, min_size=1, max_size=3
    ),
    more=st.dictionaries(NAMES | st.sampled_from(["enqueue", "recipe"]), VALUES | NUMBER, max_size=2),
)
def test_search_file_of_any_space_has_valid_bounds_or_is_refused_in_one_line(tmp_path, space, more):
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump({"recipe": "smoke", "space": space} | more, allow_unicode=True), "utf-8", "replace")
    if search := read_or_refuse(parse_search, [str(path)]):
        for setting, of in search.space.items():
            for value in bounds(of):
                assert getattr(search.config({setting: value}), setting) == search.snap({setting: value})[setting]


def test_refusal_of_settings_imports_no_slow_package(tmp_path):
    """One process refuses the whole table, then prints what it has imported."""
    commands = [[write_file(tmp_path / f"{n}.yaml", content)] for n, (content, _) in enumerate(YAML_FILES.values())]
    commands += [
        [],
        [""],
        ["smok"],
        ["smoke", "--depth", "0"],
        ["smoke", "--dpeth", "1"],
        ["smoke", "--depth", "3", "4"],
        ["smoke", "--cluster", "auto"],
    ]
    token = write_file(tmp_path / "token", "0" * 64)
    os.chmod(token, 0o644)
    code = (
        "import json, sys; from pipeline.commands.main import run\n"
        "codes = {run([command, *words]) for words in json.load(sys.stdin) for command in ('train', 'search')}\n"
        "print(json.dumps([sorted(codes), sorted(sys.modules)]))"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"RAY_AUTH_TOKEN_PATH": str(token)},
        cwd=ROOT,
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
    )
    codes, imported = json.loads(completed.stdout)
    assert codes == [2] and not SLOW_TO_IMPORT & set(imported)
    assert len(completed.stderr.splitlines()) == 2 * len(commands)


# Folders of images


def load(path, **changed):
    settings = {"dataset": str(path), "validation_fraction": 0.2} | changed
    return load_dataset(DataConfig().model_copy(update=settings), seed=0)


def png_header(width, height):
    """Return a PNG whose header states a size, followed by a few bytes of compressed zeros."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


def truncated_jpeg():
    whole = io.BytesIO()
    random_image(0, size=(99, 99)).save(whole, "JPEG")
    return whole.getvalue()[:700]


NO_IMAGE = "not a JPEG, PNG, TIFF, GIF, WebP, BMP or PNM image"
IMAGE_FILES = {
    "50,000 x 50,000 pixels": (lambda file: file.write_bytes(png_header(50_000, 50_000)), "decompression bomb"),
    "no pixels": (
        lambda file: file.write_bytes(png_header(0, 0)),
        NO_IMAGE,
    ),
    "a truncated JPEG": (lambda file: file.write_bytes(truncated_jpeg()), "truncated"),
    "text": (lambda file: file.write_text("hello"), NO_IMAGE),
    "nothing": (lambda file: file.touch(), "the file is empty"),
    "a link to itself": (lambda file: file.symlink_to(file.name), "Too many levels of symbolic links"),
    "a link to nowhere": (lambda file: file.symlink_to("gone"), "No such file or directory"),
    "another size": (
        lambda file: random_image(9, size=(9, 9)).save(file, "PNG"),
        "give image_size to resize all to it",
    ),
}


@pytest.mark.parametrize(("make", "message"), IMAGE_FILES.values(), ids=IMAGE_FILES)
def test_unusable_image_is_named_in_one_line_and_leaves_no_cache(tmp_path, cache, capsys, make, message):
    folder = image_folder(tmp_path / "my pets; 'all'")
    make(folder / "cat" / "odd one's.jpg")
    assert main.run(["train", "smoke", "--dataset", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert is_one_line(line) and message in line and "odd one's.jpg" in line
    assert [file for file in files_below(cache / "convmixer" / "data") if not file.endswith(".lock")] == []


def test_folder_named_like_an_image_belongs_to_its_class(tmp_path):
    folder = image_folder(tmp_path / "pets")
    image_folder(folder / "cat" / "more.png", classes=["x.jpg"])
    loaded = load(folder)
    assert loaded.classes == ("cat", "dog") and len(loaded.train.labels) == 12


@pytest.mark.parametrize(
    "path", ["a" * 300, "a/" * 2040, "a\0b", "~nobody-of-this-name/x", "/dev/null", "loop", "loop.npz", "pipe.npz", " "]
)
def test_path_that_is_no_dataset_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("loop.npz").symlink_to("loop.npz")
    os.mkfifo("pipe.npz")
    with pytest.raises(UsageError, match="^dataset must be digits") as refused:
        load(path)
    assert is_one_line(refused.value)


def test_dataset_path_that_mlflow_cannot_log_is_refused(tmp_path):
    folder = image_folder(tmp_path / os.fsdecode(b"caf\xe9"))
    with pytest.raises(UsageError, match=r"must be UTF-8 text: got .*caf\\udce9; rename"):
        load(folder)
    assert main.run(["train", "smoke", "--dataset", str(folder)]) == 2


CONTENTS = st.sampled_from(
    ["good", "other", b"", b"hello", truncated_jpeg(), png_header(50_000, 50_000), "link", "folder"]
)
FILE_NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..")
)


@few_examples
@given(
    classes=st.lists(FILE_NAMES, min_size=1, max_size=3, unique=True),
    odd=st.dictionaries(
        st.builds(bytes.__add__, FILE_NAMES, st.sampled_from([b".png", b".JPG", b""])), CONTENTS, max_size=2
    ),
)
def test_any_image_folder_is_loaded_or_refused_in_one_line(tmp_path_factory, classes, odd):
    folder = image_folder(tmp_path_factory.mktemp("any"), classes)
    for name, content in odd.items():
        path = os.path.join(os.fsencode(folder), classes[0], name)
        if os.path.lexists(path):
            continue
        if content == "folder":
            os.mkdir(path)
        elif content == "link":
            os.symlink(name, path)
        elif isinstance(content, str):
            random_image(7, size=(6, 5) if content == "good" else (3, 3)).save(os.fsdecode(path), "PNG")
        else:
            Path(os.fsdecode(path)).write_bytes(content)
    if loaded := read_or_refuse(load, folder):
        assert len(loaded.classes) >= 2 and all(name.isprintable() for name in loaded.classes)


def test_images_larger_than_cache_and_memory_are_refused_before_decoding(tmp_path, cache, monkeypatch):
    cache.write_text("a file in the cache's place")
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(
        UsageError, match="must fit in the cache or in memory: they take .* or give a smaller image_size"
    ):
        load(image_folder(tmp_path / "pets"), image_size=(64, 64))


# Files of arrays, .npz


def good_npz():
    content = io.BytesIO()
    images, labels = np.arange(240, dtype=np.uint8).reshape(8, 6, 5), np.arange(8) % 2
    np.savez(content, x_train=images, y_train=labels, x_test=images[:4], y_test=labels[:4])
    return content.getvalue()


GOOD = good_npz()


class FolderMaker:
    """An object whose unpickling makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_npz_with_pickled_objects_is_refused_without_unpickling(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with np.load(io.BytesIO(GOOD)) as arrays:
        np.savez("bad.npz", **{**arrays, "y_train": np.array([FolderMaker()] * 8, object)})
    assert main.run(["train", "smoke", "--dataset", "bad.npz"]) == 2
    assert "holds Python objects, not numbers" in capsys.readouterr().err
    assert not Path("ran").exists()


def flag_members(content, *, encrypted=False, method=None):
    """Return an archive whose members are marked as encrypted, or as compressed by an unknown method."""
    changed = bytearray(content)
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = changed.find(signature)
        while place >= 0:
            changed[place + flags] |= encrypted
            changed[place + flags + 2] = method or changed[place + flags + 2]
            place = changed.find(signature, place + 4)
    return bytes(changed)


def npz_with_header(header):
    """Return an archive whose x_train.npy has this header and three bytes of data."""
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(GOOD)) as archive, zipfile.ZipFile(content, "w") as changed:
        for name in archive.namelist():
            array = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + b"abc"
            changed.writestr(name, array if name == "x_train.npy" else archive.read(name))
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        flag_members(GOOD, encrypted=True),
        flag_members(GOOD, method=99),
        npz_with_header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 6, 5)}\n"),
        npz_with_header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 6, 5)}\n"),
        npz_with_header(b"{'descr': 'O', 'fortran_order': False, 'shape': (8, 6, 5)}\n"),
        npz_with_header(b"__import__('os').mkdir('ran')\n"),
        npz_with_header(b"(" * 60_000),
        b"",
        # a pickle
        b"\x80\x04N.",
    ],
)
def test_file_that_is_no_npz_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    Path("bad.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"^an \.npz data set needs plain arrays: bad\.npz cannot be read") as refused:
        read_npz(Path("bad.npz"))
    assert is_one_line(refused.value) and "allow_pickle" not in str(refused.value)
    assert not Path("ran").exists()


@few_examples
@given(
    changes=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4), cut=st.integers(0, 99)
)
def test_damaged_npz_is_read_or_refused_in_one_line(tmp_path, changes, cut):
    content = bytearray(GOOD)
    for place, byte in changes:
        content[place] = byte
    (tmp_path / "any.npz").write_bytes(content[: len(content) - cut])
    read_or_refuse(read_npz, tmp_path / "any.npz")


@few_examples
@given(
    st.sampled_from(["PNG", "JPEG", "BMP", "WEBP"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
)
def test_damaged_image_is_an_error_of_that_file_only(tmp_path_factory, kind, changes):
    content = io.BytesIO()
    random_image(3).save(content, kind)
    changed = bytearray(content.getvalue())
    for place, byte in changes:
        changed[int(place * (len(changed) - 1))] = byte
    file = tmp_path_factory.mktemp("any") / "a.png"
    file.write_bytes(changed)
    batch = read_batch([str(file)], (6, 5, 3), "stretch")
    assert len(batch.errors) <= 1 and batch.images.shape == (1, 6, 5, 3)


# File systems


def run_in_own_mounts(script, *arguments):
    """Run a shell script in a mount namespace of its own, and return it completed."""
    command = ["unshare", "--map-root-user", "--mount", "sh", "-ec", script, "sh", *map(str, arguments), sys.executable]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def mounts(tmp_path_factory):
    """Return run_in_own_mounts; skip the test if mounting is not allowed, as in most containers."""
    try:
        completed = run_in_own_mounts('mount -t tmpfs none "$1"', tmp_path_factory.mktemp("trial"))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    if completed.returncode:
        pytest.skip(f"no file system can be mounted here: {completed.stderr.strip()}")
    return run_in_own_mounts


LOAD = """
import logging, sys
logging.basicConfig(format="%(message)s")
from pipeline.config.training import DataConfig
from pipeline.data.dataset import load_dataset
dataset = load_dataset(DataConfig(dataset=sys.argv[1], validation_fraction=0.2), seed=0)
print(dataset.fingerprint, type(dataset.train.images).__name__)
"""


def test_images_on_a_full_disk_are_decoded_into_memory_and_leave_no_partial_file(mounts, tmp_path, cache):
    folder = image_folder(tmp_path / "pets", size=(99, 99))
    cache.mkdir()
    script = 'mount -t tmpfs -o size=64k none "$1"; "$4" -c "$3" "$2"; find "$1" -type f ! -name "*.lock"'
    completed = mounts(script, cache, folder, LOAD)
    assert completed.stdout.split() == [load(folder).fingerprint, "ndarray"], completed.stderr
    (warning,) = completed.stderr.splitlines()
    assert warning.startswith("images are decoded into memory: ") and "No space left on device" in warning


def test_read_only_image_folder_is_loaded(mounts, tmp_path):
    folder = image_folder(tmp_path / "pets")
    completed = mounts('mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; "$3" -c "$2" "$1"', folder, LOAD)
    assert completed.stdout.split() == [load(folder).fingerprint, "memmap"], completed.stderr


@pytest.mark.parametrize("command", ["train", "search"])
def test_read_only_cache_is_refused_before_any_work(mounts, cache, command):
    cache.mkdir()
    script = 'mount -t tmpfs -o ro none "$1"; "$3" -m pipeline "$2" smoke'
    completed = mounts(script, cache, command)
    assert (completed.returncode, completed.stdout) == (2, "")
    (line,) = completed.stderr.splitlines()
    assert line.startswith("error: the cache must be writable") and "Read-only file system" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_cache_of_another_user_is_refused(cache, monkeypatch):
    (cache / "convmixer").mkdir(parents=True)
    (cache / "convmixer").chmod(0o700)
    # that user may write to the tracking store
    (cache / "store").mkdir(mode=0o777)
    (cache / "store").chmod(0o777)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{cache}/store/mlflow.db")
    for parent in (cache, *cache.parents[:3]):  # pytest's own folders
        parent.chmod(parent.stat().st_mode | 0o011)
    code = (
        # all that is imported later, as that user may not read Python's own files
        "import os, sys; from pipeline.commands import train; from pipeline.commands.main import run\n"
        "from PIL import PngImagePlugin; import pipeline.tracking.project_run\n"
        "from pipeline.config.recipe import parse_training; parse_training(['smoke'])\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.exit(run(['train', 'smoke']))"
    )
    completed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert completed.returncode == 2 and "Permission denied" in completed.stderr, completed.stderr
    assert len(completed.stderr.splitlines()) == 1


@pytest.mark.slow
def test_cache_that_fills_up_in_training_loses_the_checkpoint_and_not_the_run(mounts, tmp_path, cache):
    cache.mkdir()
    database = tmp_path / "mlflow.db"
    train_it = '"$3" -m pipeline train smoke --filters 64 --depth 4'
    script = f'mount -t tmpfs -o size=200k none "$1"; export MLFLOW_TRACKING_URI="$2"; {train_it}'
    completed = mounts(script, cache, f"sqlite:///{database}")
    assert completed.returncode == 0, completed.stderr
    assert "the checkpoint could not be written: No space left on device" in completed.stderr
    assert "Traceback" not in completed.stderr
    with closing(sqlite3.connect(database)) as store, store:
        assert store.execute("select status from runs").fetchall() == [("FINISHED",)]
