"""The cache of compiled functions: what a second process reuses, and what happens to entries that it must not."""

import json
import os
import subprocess
import sys
import time

import pytest

from pipeline.runtime import compilation_cache
from pipeline.runtime.compilation_cache import (
    DIGESTS,
    FLAGS,
    describe_compilation_cache,
    limit_compilation_cache,
    use_compilation_cache,
)
from pipeline.runtime.files import cache_folder
from tests.support.paths import ROOT

COMPILE = """
import os
from pipeline.runtime.compilation_cache import use_compilation_cache
use_compilation_cache(os.environ)
import tensorflow as tf
square = tf.function(lambda x: tf.reduce_sum(tf.math.erf(x) * x), jit_compile=True)
print(float(square(tf.range(1000.0) / 1000)))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the cache's folder for this processor, in a home folder with a space in its name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "my cache"))
    return use_compilation_cache({})


def start_compiling():
    return subprocess.Popen([sys.executable, "-c", COMPILE], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def compile_function():
    with start_compiling() as process:
        output = process.communicate()[0]
    assert process.returncode == 0
    return output


def write_entry(folder, name, *, parts=(1, 2, 3), size=100):
    path = folder / f"{name}.pb"
    path.write_bytes(b"".join(bytes([number << 3 | 2, size]) + bytes(size) for number in parts))
    return path


@pytest.mark.slow
def test_entry_that_two_processes_write_at_once_is_reused_and_compiled_again_once_damaged(folder):
    with start_compiling() as one, start_compiling() as other:
        first = one.communicate()[0]
        assert other.communicate()[0] == first
    assert one.returncode == other.returncode == 0
    [entry] = folder.glob("*.pb")
    written = entry.stat()
    assert compile_function() == first
    assert entry.stat().st_mtime_ns == written.st_mtime_ns, "the second process has compiled nothing"
    assert compilation_cache._is_complete(entry)
    entry.write_bytes(entry.read_bytes()[:-100])
    assert compile_function() == first
    assert entry.stat().st_size == written.st_size


def test_folder_is_private_and_named_in_quotes(folder):
    environ = {}
    assert use_compilation_cache(environ) == folder
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    assert f'--tf_xla_persistent_cache_directory="{folder}"' in environ[FLAGS]


@pytest.mark.parametrize("content", [b"", bytes(500), b"\x0a\x05abc", os.urandom(3000)])
def test_incomplete_entry_is_removed(folder, content):
    entry = folder / "xla_compile_cache__1__2.pb"
    entry.write_bytes(content)
    use_compilation_cache({})
    assert not entry.exists()


def test_entry_changed_after_its_check_is_removed(folder):
    sound, changed = (write_entry(folder, name) for name in ("sound", "changed"))
    use_compilation_cache({})
    assert set(json.loads((folder / DIGESTS).read_text())) == {"sound.pb", "changed.pb"}
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    use_compilation_cache({})
    assert sound.exists() and not changed.exists()


def test_entry_from_before_the_last_start_of_the_system_is_removed_unless_checked(folder):
    checked = write_entry(folder, "checked")
    use_compilation_cache({})
    new = write_entry(folder, "new")
    for path in (checked, new):
        os.utime(path, (1e9, 1e9))
    use_compilation_cache({})
    assert checked.exists() and not new.exists()


@pytest.mark.parametrize("limit", [limit_compilation_cache, lambda folder: use_compilation_cache({})])
def test_entries_not_read_for_longest_are_removed_when_there_are_too_many(folder, monkeypatch, limit):
    entries = [write_entry(folder, str(number)) for number in range(4)]
    use_compilation_cache({})
    # Linux changes the time of a file's last reading once a day
    days_ago = time.time() - 3 * 24 * 3600
    for number, path in enumerate(entries):
        os.utime(path, (days_ago - 10 * number, days_ago - 100))
    monkeypatch.setattr(compilation_cache, "MAX_BYTES", 2 * entries[0].stat().st_size)
    limit(folder)
    assert [path.exists() for path in entries] == [True, True, False, False]


def test_folder_of_another_version_is_removed_once_unused(folder):
    used, unused = folder.with_name("used"), folder.with_name("unused")
    for other in (used, unused):
        other.mkdir()
        (other / DIGESTS).write_text("{}")
    os.utime(unused / DIGESTS, (1e9, 1e9))
    use_compilation_cache({})
    assert used.exists() and not unused.exists()


def test_other_processors_have_other_folders(folder, monkeypatch):
    monkeypatch.setattr(compilation_cache, "instructions", lambda: "fpu avx")
    assert use_compilation_cache({}) != folder
    monkeypatch.setattr(compilation_cache, "instructions", lambda: "")
    environ = {}
    assert use_compilation_cache(environ) is None and not environ


def test_cache_is_not_used_without_room(folder, monkeypatch):
    monkeypatch.setattr(compilation_cache, "FREE_BYTES", 1 << 62)
    environ = {}
    assert use_compilation_cache(environ) is None and not environ


def test_cache_is_not_used_where_it_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    environ = {}
    assert use_compilation_cache(environ) is None and not environ


def test_description_counts_entries_of_all_processors(folder):
    write_entry(folder, "a")
    other = cache_folder("compiled", "other")
    other.mkdir()
    write_entry(other, "b")
    assert describe_compilation_cache() == "2 compiled functions (0.0 MB)"
