"""The file that training goes on from: whole or known not to be, whatever happened while it was written."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from pipeline.runtime.errors import CorruptCheckpoint
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Checkpoint, TrainingState, checkpoint_files, read_checkpoint, write_checkpoint
from tests.support.paths import ROOT


def made(epoch=1, value=1.0):
    variables = [np.full((2, 3), value, np.float32), np.array(7, np.int64)]
    history = {"loss": [0.1 + 0.2] * epoch}
    return Checkpoint(
        "abc", {"depth": 8, "clip_norm": None}, "f00d", TrainingState(epoch, history, variables, variables[:1])
    )


def test_what_is_read_is_what_was_written_to_the_last_bit(tmp_path):
    written = made(3, value=np.nextafter(np.float32(1), np.float32(2)))
    found = read_checkpoint(write_checkpoint(tmp_path / "run", written))
    assert (found.run_id, found.settings, found.fingerprint) == ("abc", {"depth": 8, "clip_norm": None}, "f00d")
    assert (found.state.epoch, found.state.history) == (3, {"loss": [0.30000000000000004] * 3})
    for was, now in zip(written.state.variables, found.state.variables, strict=True):
        assert (was.dtype, was.shape, was.tobytes()) == (now.dtype, now.shape, now.tobytes())
    assert len(found.state.best_weights) == 1


def test_more_than_ten_variables_keep_their_order(tmp_path):
    many = [np.array(number) for number in range(1200)]
    found = read_checkpoint(write_checkpoint(tmp_path, Checkpoint("abc", {}, "", TrainingState(1, {}, many, []))))
    assert [int(number) for number in found.state.variables] == list(range(1200))


def test_the_newest_two_are_kept_newest_first(tmp_path):
    for epoch in (9, 10, 11):
        write_checkpoint(tmp_path, made(epoch))
    assert [read_checkpoint(path).state.epoch for path in checkpoint_files(tmp_path)] == [11, 10]
    assert len(list(tmp_path.iterdir())) == 2


def test_files_are_for_their_owner_alone(tmp_path):
    path = write_checkpoint(tmp_path / "run", made())
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize("bytes_left", [0, 10, 64, 200, -1])
def test_a_file_that_was_cut_short_is_known(tmp_path, bytes_left):
    path = write_checkpoint(tmp_path, made())
    path.write_bytes(path.read_bytes()[:bytes_left])
    with pytest.raises(CorruptCheckpoint, match="is damaged"):
        read_checkpoint(path)


def test_a_file_of_which_one_bit_was_changed_is_known(tmp_path):
    path = write_checkpoint(tmp_path, made())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match="is damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"no zip", "pickled"])
def test_a_file_with_a_good_digest_and_something_else_in_it_is_known(tmp_path, content):
    path = tmp_path / "epoch-000001.checkpoint"
    if content == "pickled":
        np.savez(path, about=np.array([{"run_id": 1}], dtype=object), allow_pickle=True)
        content = path.with_suffix(".checkpoint.npz").read_bytes()
    path.write_bytes(bytes(64) + content)
    with open(path, "r+b") as file:
        file.seek(64)
        digest = checkpoint._digest(file)
        file.seek(0)
        file.write(digest)
    with pytest.raises(CorruptCheckpoint, match="is not a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_is_full_leaves_the_last_good_one_and_nothing_else(tmp_path, monkeypatch, step):
    write_checkpoint(tmp_path, made(1))

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(os, step, full)
        write_checkpoint(tmp_path, made(2))
    assert [read_checkpoint(path).state.epoch for path in checkpoint_files(tmp_path)] == [1]
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_kill_in_mid_write_left_is_no_checkpoint_and_goes_with_the_next(tmp_path):
    write_checkpoint(tmp_path, made(1))
    (tmp_path / "tmpabc.part").write_bytes(b"half")
    assert len(checkpoint_files(tmp_path)) == 1
    write_checkpoint(tmp_path, made(2))
    assert not list(tmp_path.glob("*.part"))


def test_no_folder_holds_no_checkpoint(tmp_path):
    assert checkpoint_files(tmp_path / "none") == []


SOME = [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((), np.float32), *[np.ones(1, np.float16)] * 11]


def test_weights_come_back_in_their_order_shape_and_type(tmp_path):
    checkpoint.write_weights(tmp_path / "a", SOME)
    for one, same in zip(checkpoint.read_weights(tmp_path / "a"), SOME, strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (same.dtype, same.shape, same.tobytes())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0


def test_arrays_that_hold_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        checkpoint.read_weights(tmp_path / "a.npz")


FILL = """
import sys, numpy as np
from pathlib import Path
from pipeline.training import checkpoint
folder = Path(sys.argv[1])
checkpoint.write_weights(folder / "a", [np.ones(1000, np.float32)])
try:
    checkpoint.write_weights(folder / "a", [np.ones(100_000, np.float32)])
except OSError as error:
    print(error.strerror, len(checkpoint.read_weights(folder / "a")[0]), [path.name for path in folder.iterdir()])
"""


def test_a_full_disk_is_one_clear_error_and_what_was_there_stays(tmp_path):
    script = 'mount -t tmpfs -o size=64k none "$1"; "$3" -c "$2" "$1"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-ec", script, "sh", str(tmp_path), FILL, sys.executable]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.stdout.strip() == "No space left on device 1000 ['a']", done.stderr
