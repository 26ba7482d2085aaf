"""Checkpoint files: complete or recognized as corrupt, whatever happened while they were written."""

import errno
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from pipeline.runtime.errors import CorruptCheckpoint
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Checkpoint, TrainingState, checkpoint_files, read_checkpoint, write_checkpoint
from tests.support.paths import ROOT


def make_checkpoint(epoch=1, value=1.0):
    variables = [np.full((2, 3), value, np.float32), np.array(7, np.int64)]
    history = {"loss": [0.1 + 0.2] * epoch}
    return Checkpoint(
        "abc", {"depth": 8, "clip_norm": None}, "f00d", TrainingState(epoch, history, variables, variables[:1])
    )


def test_read_checkpoint_returns_what_was_written_to_the_last_bit(tmp_path):
    written = make_checkpoint(3, value=np.nextafter(np.float32(1), np.float32(2)))
    read = read_checkpoint(write_checkpoint(tmp_path / "run", written))
    assert (read.run_id, read.settings, read.fingerprint) == ("abc", {"depth": 8, "clip_norm": None}, "f00d")
    assert (read.state.epoch, read.state.history) == (3, {"loss": [0.30000000000000004] * 3})
    for was, now in zip(written.state.variables, read.state.variables, strict=True):
        assert (was.dtype, was.shape, was.tobytes()) == (now.dtype, now.shape, now.tobytes())
    assert len(read.state.best_weights) == 1


def test_read_checkpoint_of_many_variables_keeps_their_order(tmp_path):
    variables = [np.array(number) for number in range(1200)]
    read = read_checkpoint(write_checkpoint(tmp_path, Checkpoint("abc", {}, "", TrainingState(1, {}, variables, []))))
    assert [int(number) for number in read.state.variables] == list(range(1200))


def test_write_checkpoint_keeps_the_newest_two(tmp_path):
    for epoch in (9, 10, 11):
        write_checkpoint(tmp_path, make_checkpoint(epoch))
    assert [read_checkpoint(path).state.epoch for path in checkpoint_files(tmp_path)] == [11, 10]
    assert len(list(tmp_path.iterdir())) == 2


def test_write_checkpoint_creates_files_that_only_their_owner_can_read(tmp_path):
    path = write_checkpoint(tmp_path / "run", make_checkpoint())
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize("bytes_left", [0, 10, 64, 200, -1])
def test_read_checkpoint_of_a_truncated_file_raises_corrupt_checkpoint(tmp_path, bytes_left):
    path = write_checkpoint(tmp_path, make_checkpoint())
    path.write_bytes(path.read_bytes()[:bytes_left])
    with pytest.raises(CorruptCheckpoint, match="is damaged"):
        read_checkpoint(path)


def test_read_checkpoint_of_a_file_with_one_changed_bit_raises_corrupt_checkpoint(tmp_path):
    path = write_checkpoint(tmp_path, make_checkpoint())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match="is damaged"):
        read_checkpoint(path)


def archive(**arrays):
    """Return the bytes of an .npz archive."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def zip_of(name, content, **fields):
    """Return a ZIP archive of one file, with fields of its headers overwritten: {offset in the local header: bytes}."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr(name, content)
    content = bytearray(file.getvalue())
    for offset, value in fields.items():
        at = int(offset.removeprefix("at_"))
        for signature, start in ((b"PK\3\4", at), (b"PK\1\2", at + 2)):
            place = content.find(signature) + start
            content[place : place + len(value)] = value
    return bytes(content)


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npy_header(header):
    """Return an .npy file whose header says anything."""
    return b"\x93NUMPY\1\0" + struct.pack("<H", 118) + header.ljust(117) + b"\n" + b"x" * 100


def metadata(**changes):
    """Return the metadata of a checkpoint with changes, as its array."""
    whole = {"run_id": "abc", "settings": {}, "fingerprint": "f00d", "epoch": 1, "history": {"loss": [0.5]}}
    return np.frombuffer(json.dumps(whole | changes).encode(), np.uint8)


def bad_deflate():
    content = bytearray(zip_of("metadata.npy", npy(metadata())))
    start = content.find(b"PK\3\4") + 30 + len("metadata.npy")
    content[start : start + 20] = b"\xff" * 20
    return bytes(content)


class Unpickled:
    """Says so where it is unpickled."""

    def __reduce__(self):
        return (exit, ("unpickled",))


ODD_FILES = {
    "nothing": b"",
    "no archive": b"no zip",
    "a pickle": pickle.dumps(Unpickled()),
    "an archive of pickles": zip_of("metadata.npy", npy(np.array([Unpickled()], dtype=object))),
    "one array": npy(np.zeros(3)),
    "an encrypted archive": zip_of("metadata.npy", npy(metadata()), at_6=b"\1\0"),
    "an unknown compression": zip_of("metadata.npy", npy(metadata()), at_8=b"\x63\0"),
    "a damaged stream": bad_deflate(),
    "8 TB": zip_of(
        "metadata.npy", npy_header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (8000000000000,), }")
    ),
    "code in a header": zip_of("metadata.npy", npy_header(b"__import__('os').system('id')")),
    "no metadata": archive(variable000000=np.zeros(1)),
    "metadata of floats": archive(metadata=np.zeros(3)),
    "a list": archive(metadata=np.frombuffer(b"[]", np.uint8)),
    "lists in lists": archive(metadata=np.frombuffer(b"[" * 200_000, np.uint8)),
    "an epoch of text": archive(metadata=metadata(epoch="x")),
    "an epoch of true": archive(metadata=metadata(epoch=True)),
    "no epoch": archive(metadata=metadata(epoch=0, history={})),
    "a history that is a list": archive(metadata=metadata(history=[1])),
    "a history of text": archive(metadata=metadata(history={"loss": ["x"]})),
    "a history of two epochs": archive(metadata=metadata(history={"loss": [0.5, 0.4]})),
    "settings that are a list": archive(metadata=metadata(settings=[1])),
    "a run that is a number": archive(metadata=metadata(run_id=5)),
    "an unheard key": archive(metadata=metadata(unheard=5)),
    "a variable of text": archive(metadata=metadata(), variable000000=np.array(["text"])),
}


@pytest.mark.parametrize("content", ODD_FILES.values(), ids=ODD_FILES)
def test_read_checkpoint_of_another_file_with_a_valid_digest_raises_corrupt_checkpoint(tmp_path, content):
    path = tmp_path / "epoch-000001.checkpoint"
    path.write_bytes(hashlib.sha256(content).hexdigest().encode() + content)
    with pytest.raises(CorruptCheckpoint, match="is not a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_write_checkpoint_with_a_full_disk_leaves_the_one_before_and_no_part(tmp_path, monkeypatch, step):
    write_checkpoint(tmp_path, make_checkpoint(1))

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(os, step, full)
        write_checkpoint(tmp_path, make_checkpoint(2))
    assert [read_checkpoint(path).state.epoch for path in checkpoint_files(tmp_path)] == [1]
    assert len(list(tmp_path.iterdir())) == 1


def test_write_checkpoint_removes_the_part_that_a_killed_process_left(tmp_path):
    write_checkpoint(tmp_path, make_checkpoint(1))
    (tmp_path / "tmpabc.part").write_bytes(b"half")
    assert len(checkpoint_files(tmp_path)) == 1
    write_checkpoint(tmp_path, make_checkpoint(2))
    assert not list(tmp_path.glob("*.part"))


def test_checkpoint_files_without_a_folder_is_empty(tmp_path):
    assert checkpoint_files(tmp_path / "none") == []


WEIGHTS = [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((), np.float32), *[np.ones(1, np.float16)] * 11]


def test_read_weights_returns_order_shape_and_type_as_written(tmp_path):
    checkpoint.write_weights(tmp_path / "a", WEIGHTS)
    for one, same in zip(checkpoint.read_weights(tmp_path / "a"), WEIGHTS, strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (same.dtype, same.shape, same.tobytes())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0


def test_read_weights_with_objects_does_not_unpickle_them(tmp_path):
    np.savez(tmp_path / "a.npz", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        checkpoint.read_weights(tmp_path / "a.npz")


FILL_DISK = """
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


def test_write_weights_with_a_full_disk_raises_and_keeps_the_old_file(tmp_path):
    script = 'mount -t tmpfs -o size=64k none "$1"; "$3" -c "$2" "$1"'
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-ec", script]
    command = [*unshare, "sh", str(tmp_path), FILL_DISK, sys.executable]
    try:
        completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    if "mount" in completed.stderr or "unshare" in completed.stderr:
        pytest.skip(f"no file system can be mounted here: {completed.stderr.strip()}")
    assert completed.stdout.strip() == "No space left on device 1000 ['a']", completed.stderr
