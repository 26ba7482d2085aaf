"""The cache of decoded data sets."""

import os
import resource
import subprocess
import sys
import time

import numpy as np
import pytest

from pipeline.data import cache
from pipeline.data.cache import (
    DIGEST_DTYPE,
    UNUSED_DAYS,
    DecodedImages,
    cache_key,
    cached_data_sets,
    load_cached,
    resize_key,
)
from pipeline.runtime.files import lock
from tests.support.paths import ROOT

KEY = cache_key("a data set")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "convmixer" / "data" / KEY


def decode(allocate, side=4):
    images = allocate((6, side, side, 3))
    images[:] = np.arange(6)[:, None, None, None]
    digests, labels = np.arange(6).astype(DIGEST_DTYPE), np.arange(6) % 2
    files = np.array([b"%d.png" % number for number in range(6)])
    return DecodedImages(images, digests, labels, files, ("cat", "dog"), (6, 0, 0))


def fail_to_decode(allocate):
    pytest.fail("decoded again")


def assert_decoded(decoded):
    assert decoded.images[:, 0, 0, 0].tolist() == list(range(6)) and decoded.classes == ("cat", "dog")
    assert decoded.sizes == (6, 0, 0) and decoded.labels.tolist() == [0, 1] * 3
    assert decoded.files.tolist() == [b"0.png", b"1.png", b"2.png", b"3.png", b"4.png", b"5.png"]


def test_load_cached_the_second_time_maps_read_only_without_decoding():
    assert_decoded(load_cached(KEY, decode))
    again = load_cached(KEY, fail_to_decode)
    assert_decoded(again)
    with pytest.raises(ValueError, match="read-only"):
        again.images[0] = 1


@pytest.mark.parametrize("name", ["images.npy", "digests.npy", "labels.npy", "files.npy", "metadata.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "noise"])
def test_load_cached_with_damaged_file_builds_the_cache_again(folder, name, damage):
    load_cached(KEY, decode)
    file = folder / name
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes({"cut": content[:-5], "empty": b"", "noise": os.urandom(len(content))}[damage])
    assert_decoded(load_cached(KEY, decode))
    assert file.read_bytes() == content


def start_process(code):
    script = f"import os, signal\nfrom tests.unit.data.test_cache import *\n{code}"
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def decode_slowly(allocate):
    os.write(1, b"decoding\n")
    time.sleep(0.5)
    return decode(allocate)


def test_load_cached_in_two_processes_at_once_decodes_once(folder):
    both = [start_process("assert_decoded(load_cached(KEY, decode_slowly))") for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0] and sorted(outputs) == ["", "decoding\n"]
    assert sorted(os.listdir(folder.parent)) == [KEY, f"{KEY}.lock"]


def test_load_cached_after_a_killed_build_removes_its_leftovers(folder):
    process = start_process(
        "load_cached(KEY, lambda allocate: (decode(allocate), os.kill(os.getpid(), signal.SIGKILL)))"
    )
    process.communicate(timeout=60)
    assert process.returncode == -9 and len(os.listdir(folder.parent)) == 2  # lock, unfinished folder
    load_cached(cache_key("another data set"), decode)
    assert not list(folder.parent.glob("*.building-*"))
    assert_decoded(load_cached(KEY, decode))


def test_load_cached_keeps_the_folder_of_a_build_in_progress(folder):
    def decode_while_another_is_built(allocate):
        load_cached(cache_key("another data set"), decode)
        assert len(list(folder.parent.glob("*.building-*"))) == 1
        return decode(allocate)

    assert_decoded(load_cached(KEY, decode_while_another_is_built))


def test_load_cached_after_a_decoding_error_leaves_no_unfinished_folder(folder):
    with pytest.raises(ZeroDivisionError):
        load_cached(KEY, lambda allocate: (decode(allocate), 1 / 0))
    assert os.listdir(folder.parent) == [f"{KEY}.lock"]


def test_load_cached_without_a_writable_cache_decodes_into_memory_with_one_warning(folder, caplog):
    folder.parents[1].write_text("a file in the folder's place")
    assert_decoded(load_cached(KEY, decode))
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "into memory" in caplog.text


def test_load_cached_on_a_full_disk_decodes_into_memory_without_sigbus(folder, caplog):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limit[1]))  # stands for a disk that takes 64 KiB
    try:
        decoded = load_cached(KEY, lambda allocate: decode(allocate, side=100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert_decoded(decoded)
    assert "File too large" in caplog.text and os.listdir(folder.parent) == [f"{KEY}.lock"]


def let_pass(folder, days):
    """Make a cached data set as old as if it had last been opened so many days ago."""
    then = time.time() - days * 24 * 3600
    os.utime(folder, (then, then))


def test_load_cached_that_decodes_removes_what_was_not_opened_for_long(folder):
    other = cache_key("another data set")
    for days, is_kept in ((UNUSED_DAYS - 1, True), (UNUSED_DAYS + 1, False)):
        mapped = load_cached(KEY, decode)
        let_pass(folder, days)
        load_cached(other, decode)
        load_cached(cache_key("a third data set", days), decode)
        assert folder.exists() is is_kept and (folder.parent / other).exists()
    assert_decoded(mapped)  # a process that has it open keeps it
    assert_decoded(load_cached(KEY, decode))


def test_load_cached_keeps_what_was_built_long_ago_and_opened_since(folder):
    load_cached(KEY, decode)
    let_pass(folder, UNUSED_DAYS + 1)
    load_cached(KEY, fail_to_decode)
    load_cached(cache_key("another data set"), decode)
    load_cached(KEY, fail_to_decode)


def test_cached_data_sets_keeps_none_from_being_removed(folder):
    """A report looks through all of them for pictures."""
    load_cached(KEY, decode)
    let_pass(folder, UNUSED_DAYS + 1)
    assert len(list(cached_data_sets())) == 1
    load_cached(cache_key("another data set"), decode)
    assert not folder.exists()


def test_load_cached_does_not_remove_what_another_process_has_locked(folder):
    load_cached(KEY, decode)
    let_pass(folder, UNUSED_DAYS + 1)
    with lock(folder.with_name(f"{KEY}.lock")):
        load_cached(cache_key("another data set"), decode)
    load_cached(KEY, fail_to_decode)


def test_load_cached_removes_nothing_but_data_sets(folder):
    load_cached(KEY, decode)
    kept = folder.with_name("notes")
    kept.mkdir()
    let_pass(kept, UNUSED_DAYS + 1)
    load_cached(cache_key("another data set"), decode)
    assert kept.exists()


def test_load_cached_opens_and_decodes_where_no_time_can_be_set_and_nothing_removed(folder, caplog, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("read-only")

    load_cached(KEY, decode)
    let_pass(folder, UNUSED_DAYS + 1)
    monkeypatch.setattr(cache.os, "utime", refuse)
    monkeypatch.setattr(cache, "try_lock", refuse)
    assert_decoded(load_cached(KEY, fail_to_decode))
    assert_decoded(load_cached(cache_key("another data set"), decode))
    assert folder.exists() and not caplog.records


def test_resize_key_of_stretched_images_is_their_size_alone():
    """So that what is cached stays, where nothing is resized or as before."""
    assert [resize_key(None, resize) for resize in ("stretch", "crop")] == [None, None]
    assert resize_key((4, 6), "stretch") == (4, 6)
    assert len({resize_key((4, 6), resize) for resize in ("stretch", "crop", "pad")}) == 3


def test_cache_key_depends_on_every_part_and_on_the_format(monkeypatch):
    keys = {cache_key("a", 1), cache_key("a", 2), cache_key("a", "1"), cache_key("a1")}
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    assert len(keys | {cache_key("a", 1)}) == 5
