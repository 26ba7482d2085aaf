"""Processes of gpu.py: commands of the project within a time limit, in a store and a cache of their own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml
from own_store import with_store

ROOT = Path(__file__).parents[2]
# between two readings of the device's memory
SAMPLE_SECONDS = 0.2
# until memory of an ended process has been given back
SETTLE_SECONDS = 10.0
# by which memory in use may differ, for other programs
TOLERANCE_MIB = 64
MIB = 2**20


class OutOfTime(Exception):
    """The time of a part is over."""


class CommandFailed(Exception):
    """A command of the project has ended otherwise than expected; the message is its last line."""


@dataclass(frozen=True)
class Session:
    """What a part needs to run.

    Attributes:
        folder: For results, the store and the cache.
        dataset: The images.
        is_small: Whether networks and data are to be tiny.
        measured: What has been measured by an earlier command.
        deadline: On time.monotonic.
    """

    folder: Path
    dataset: str
    is_small: bool
    measured: frozenset[str]
    deadline: float

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    def worker(self, *arguments: str) -> Iterator[dict[str, Any]]:
        """Run a Python script and yield each line that it prints, which is JSON."""
        with self.running([sys.executable, *arguments]) as process:
            assert process.stdout
            for line in process.stdout:
                yield json.loads(line)
            self.check(process, process.wait(), "see the lines above")

    def command(self, *arguments: str, may_fail: bool = False) -> list[str]:
        """Run a command of the project to its end and return the lines that it printed.

        Raises:
            CommandFailed: Its exit code is not 0, and it may not fail.
            OutOfTime: It was still running at the deadline.
        """
        with self.running([sys.executable, "-m", "pipeline", *arguments]) as process:
            assert process.stdout
            lines = process.stdout.read().splitlines()
            code = process.wait()
            self.check(process, 0 if may_fail else code, lines[-1] if lines else "no output")
        return lines

    def check(self, process: subprocess.Popen[str], code: int, last_line: str) -> None:
        """Raise OutOfTime or CommandFailed if a process has not ended well."""
        if time.monotonic() >= self.deadline:
            raise OutOfTime
        if code:
            raise CommandFailed(f"exit code {code}: {last_line}")

    @contextmanager
    def running(self, command: list[str]) -> Iterator[subprocess.Popen[str]]:
        """Context manager: run a process in a group of its own, which is killed at the deadline and at the end."""
        environment = with_store(self.tracking_uri, PYTHONPATH=str(ROOT), XDG_CACHE_HOME=str(self.folder / "cache"))
        errors = self.folder / "output.txt"
        with open(errors, "a") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        timer = threading.Timer(max(0.0, self.deadline - time.monotonic()), kill_tree, [process.pid])
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            kill_tree(process.pid)
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]


def kill_tree(pid: int) -> None:
    """Kill a process and all that it has started: trials lead process groups of their own."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)


def used_mib() -> int | None:
    """Return the memory in use on the first GPU that this process may use, in MiB; None without a GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    try:
        pynvml.nvmlInit()
        if visible.isdecimal():
            device = pynvml.nvmlDeviceGetHandleByIndex(int(visible))
        else:
            device = pynvml.nvmlDeviceGetHandleByUUID(visible)
        return int(pynvml.nvmlDeviceGetMemoryInfo(device).used) // MIB
    except pynvml.NVMLError:
        return None


class MemoryWatch:
    """Context manager: what a GPU's memory in use was before a block, at most in it, and after it."""

    def __enter__(self) -> "MemoryWatch":
        self.before = self.peak = used_mib() or 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        if used_mib() is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def figures(self) -> dict[str, Any]:
        """Return the figures once memory has been given back, or has not within SETTLE_SECONDS; none without a GPU."""
        if used_mib() is None:
            return {}
        until = time.monotonic() + SETTLE_SECONDS
        while (after := used_mib() or 0) > self.before + TOLERANCE_MIB and time.monotonic() < until:
            time.sleep(SAMPLE_SECONDS)
        is_back = after <= self.before + TOLERANCE_MIB
        return {"before_mib": self.before, "peak_mib": self.peak, "after_mib": after, "given_back": is_back}

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, used_mib() or 0)
