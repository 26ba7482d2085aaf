"""Measure time and memory of a run as images, pixels and filters grow: `python experiments/benchmarks/scale.py`.

Every row is a run of `python -m pipeline train` with a small network on random JPEG files. The speed is that of the
second epoch, because the first one compiles the step. Memory is the most that the processes of a run held at once for
themselves (RssAnon of /proc, so on Linux only). Pages of the image cache that are mapped into memory are not counted,
because the system takes them back when it needs memory.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from own_store import with_store
from PIL import Image

ROOT = Path(__file__).parents[2]
CLASSES = 4
BASE = {"filters": 16, "depth": 2, "kernel_size": 5, "patch_size": 4, "batch_size": 50, "epochs": 2}
# images, side in pixels, settings that differ from BASE
ROWS: tuple[tuple[int, int, dict[str, int]], ...] = (
    (2_000, 32, {}),
    (8_000, 32, {}),
    (32_000, 32, {}),
    (2_000, 32, {"filters": 128}),
    (2_000, 224, {"patch_size": 14}),
    (8_000, 224, {"patch_size": 14}),
    (32_000, 224, {"patch_size": 14}),
)
SAMPLING_SECONDS = 0.1


def main() -> None:
    """Print a row per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", choices=range(1, len(ROWS) + 1), help="only these rows")
    rows = parser.parse_args().rows or range(1, len(ROWS) + 1)
    print("| images | pixels | filters | decoded, GB | start and reading, s | training, images/s | memory held, GB |")
    print("|---|---|---|---|---|---|---|")
    for images, side, changes in (ROWS[row - 1] for row in rows):
        settings = BASE | changes
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder) / "images", images, side)
            seconds_to_data, images_per_second, memory = train(Path(folder), settings)
        decoded = images * side * side * 3 / 1e9
        print(
            f"| {images:,} | {side} | {settings['filters']} | {decoded:.2f} | {seconds_to_data:.1f} "
            f"| {images_per_second:,.0f} | {memory:.2f} |",
            flush=True,
        )


def write_images(folder: Path, images: int, side: int) -> None:
    """Write JPEG files of blurred noise, in a folder per class."""
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True)
    for index in range(images):
        noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8))
        noise.resize((side, side)).save(folder / str(index % CLASSES) / f"{index}.jpg", quality=80)


def train(folder: Path, settings: dict[str, int]) -> tuple[float, float, float]:
    """Train on the images in a folder.

    Returns:
        Seconds until the images have been read, images per second in the last epoch, and the most memory in GB.
    """
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "pipeline", "train", "digits", "--dataset", str(folder / "images"), *flags]
    environment = with_store(
        f"sqlite:///{folder}/mlflow.db", XDG_CACHE_HOME=str(folder / "cache"), PYTHONPATH=str(ROOT)
    )
    started = time.perf_counter()
    # the last line that begins with each word, and the seconds until it was printed
    output: dict[str, tuple[float, str]] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder) as process:
        monitor = MemoryMonitor(process.pid)
        assert process.stdout
        for line in process.stdout:
            if line.strip():
                output[line.split()[0]] = (time.perf_counter() - started, line)
    speed = re.search(r"([\d,]+) images/s", output["epoch"][1])
    assert process.returncode == 0 and speed
    return output["data"][0], float(speed[1].replace(",", "")), monitor.peak_bytes / 1e9


class MemoryMonitor(threading.Thread):
    """Track the most memory that a process and its children hold, until the process ends."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._process = psutil.Process(pid)
        self.start()

    def run(self) -> None:
        while self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE:
            try:
                processes = [self._process, *self._process.children(recursive=True)]
                self.peak_bytes = max(self.peak_bytes, sum(map(anonymous_bytes, processes)))
            except psutil.NoSuchProcess:
                continue
            time.sleep(SAMPLING_SECONDS)


def anonymous_bytes(process: psutil.Process) -> int:
    """Return the memory that a process holds for itself, in bytes; 0 if it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    match = re.search(r"RssAnon:\s+(\d+) kB", status)
    return 1024 * int(match[1]) if match else 0


if __name__ == "__main__":
    main()
