"""Weights come back as they were, and a full disk is one clear error."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import weights

ROOT = Path(__file__).parent.parent
SOME = [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((), np.float32), *[np.ones(1, np.float16)] * 11]


def test_weights_come_back_in_their_order_shape_and_type(tmp_path):
    weights.write(tmp_path / "a", SOME)
    for one, same in zip(weights.read(tmp_path / "a"), SOME, strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (same.dtype, same.shape, same.tobytes())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0


def test_arrays_that_hold_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        weights.read(tmp_path / "a.npz")


FILL = """
import sys, numpy as np
from pathlib import Path
from pipeline import weights
folder = Path(sys.argv[1])
weights.write(folder / "a", [np.ones(1000, np.float32)])
try:
    weights.write(folder / "a", [np.ones(100_000, np.float32)])
except OSError as error:
    print(error.strerror, len(weights.read(folder / "a")[0]), [path.name for path in folder.iterdir()])
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
