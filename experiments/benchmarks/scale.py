"""Time and memory of a run as images, filters and pixels grow: `python experiments/benchmarks/scale.py`.

Every row is a run of its own, `python -m pipeline train` with a small network on made JPEG files; the speed is the
second epoch's, since the first one compiles. Memory is the most that its processes held at once for themselves (RssAnon
of /proc, so Linux only): pages of the data's cache that are mapped into memory are the system's, which takes them back
when it needs them.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

PROJECT = Path(__file__).parents[2]
CLASSES = 4
SMALL = {"filters": 16, "depth": 2, "kernel_size": 5, "patch_size": 4, "batch_size": 50, "epochs": 2}
ROWS = (  # images, side in pixels, what differs from SMALL
    (2_000, 32, {}),
    (8_000, 32, {}),
    (32_000, 32, {}),
    (2_000, 32, {"filters": 128}),
    (2_000, 224, {"patch_size": 14}),
    (8_000, 224, {"patch_size": 14}),
    (32_000, 224, {"patch_size": 14}),
)


def main() -> None:
    """Print a line a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", choices=range(1, len(ROWS) + 1), help="only these of the table")
    rows = parser.parse_args().rows or range(1, len(ROWS) + 1)
    print("| images | pixels | filters | decoded, GB | reading them first, s | training, images/s | memory held, GB |")
    print("|---|---|---|---|---|---|---|")
    for images, side, changes in (ROWS[row - 1] for row in rows):
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder) / "images", images, side)
            reading, speed, held = run(Path(folder), SMALL | changes)
        filters = (SMALL | changes)["filters"]
        decoded = images * side * side * 3 / 1e9
        print(
            f"| {images:,} | {side} | {filters} | {decoded:.2f} | {reading:.1f} | {speed:,.0f} | {held:.2f} |",
            flush=True,
        )


def make(folder: Path, images: int, side: int) -> None:
    """JPEG files of blurred noise, a folder a class."""
    random = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True)
    for number in range(images):
        noise = Image.fromarray(random.integers(0, 256, (8, 8, 3)).astype(np.uint8))
        noise.resize((side, side)).save(folder / str(number % CLASSES) / f"{number}.jpg", quality=80)


def run(folder: Path, model: dict[str, int]) -> tuple[float, float, float]:
    """Seconds to the line on data, images a second in the last epoch, and the most memory in GB."""
    words = [word for name, value in model.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "pipeline", "train", "digits", "--dataset", str(folder / "images"), *words]
    environ = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, cwd=PROJECT) as process:
        memory = Memory(process.pid)
        assert process.stdout
        said = {}
        for line in process.stdout:
            said[line.split()[0] if line.strip() else ""] = (time.perf_counter() - began, line)
    speed = re.search(r"([\d,]+) images/s", said["epoch"][1])
    assert process.returncode == 0 and speed
    return said["data"][0], float(speed[1].replace(",", "")), memory.most / 1e9


class Memory(threading.Thread):
    """Looks ten times a second at what a process and those it started hold, until the first has ended."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._process = psutil.Process(pid)
        self.start()

    def run(self) -> None:
        while self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE:
            try:
                tree = [self._process, *self._process.children(recursive=True)]
                self.most = max(self.most, sum(map(held, tree)))
            except psutil.NoSuchProcess:
                continue
            time.sleep(0.1)


def held(process: psutil.Process) -> int:
    """Bytes that a process holds for itself."""
    try:
        text = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # it has just ended
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", text)
    return 1024 * int(found[1]) if found else 0


if __name__ == "__main__":
    main()
