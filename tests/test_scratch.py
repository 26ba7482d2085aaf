"""What a killed driver left is removed by the next; what a live one uses is not."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.cache import private_folder
from pipeline.scratch import scratch, temporary_files

ROOT = Path(__file__).parent.parent
HOLD = """
import sys
from pipeline.scratch import scratch
with scratch("trials") as folder:
    (folder / "output.txt").write_text("text")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_folder_is_gone_with_its_driver_and_that_of_a_killed_one_with_the_next():
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        its = Path(other.stdout.readline().strip())
        with scratch("trials") as mine:
            assert mine != its and (its / "output.txt").exists(), "it lives"
        assert not mine.exists()
        other.send_signal(signal.SIGKILL)
    assert its.exists()
    with scratch("trials") as mine:
        assert list(private_folder("trials").iterdir()) == [mine]


def test_temporary_files_lie_in_it_and_elsewhere_again_after_it():
    before = tempfile.gettempdir()
    with temporary_files("runs"), tempfile.NamedTemporaryFile() as file:
        assert Path(file.name).is_relative_to(private_folder("runs"))
    assert tempfile.gettempdir() == before
    assert list(private_folder("runs").iterdir()) == []
