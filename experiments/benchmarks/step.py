"""Compare the training step of the Keras example, of this project and of PyTorch: `make bench`.

Each variant runs in a worker process of its own, because some of what distinguishes them is decided before TensorFlow
is imported. In every round each worker trains one step on the same batch; a ratio is the median over the rounds. Where
other programs share the cores, trust the ratio of processor time rather than that of wall-clock time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SHAPE = {"batch": 128, "filters": 256, "depth": 8, "kernel_size": 5, "patch_size": 2}

StepCost = dict[str, float]  # seconds, processor_seconds and loss of one step


class Worker:
    """A process that trains one step per request; see step_worker.py."""

    def __init__(self, name: str, command: Sequence[str], shape: dict[str, int]) -> None:
        self.name = name
        self.steps: list[StepCost] = []
        self._process = subprocess.Popen(
            [*command, json.dumps(shape)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        self.properties = self._request("start")

    def train_step(self) -> None:
        self.steps.append(self._request("step"))

    def measure_peak(self) -> float:
        """Return the operations per second of a large matrix product in this worker's precision."""
        return self._request("peak")["flops"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _request(self, name: str) -> dict:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            code = self._process.wait()
            raise RuntimeError(f"{self.name} exited with code {code}; run {self._process.args!r} to see why")
        return json.loads(answer)


def start_workers(shape: dict[str, int], torch_python: str) -> list[Worker]:
    """Start a worker per variant: the Keras example first, as the baseline of the ratios.

    Args:
        shape: Batch size, filters, depth, kernel_size and patch_size.
        torch_python: A Python with PyTorch, or an empty string to leave PyTorch out.
    """
    keras = [sys.executable, str(HERE / "step_keras.py")]
    workers = [
        Worker("Keras example as it stands", [*keras, "example"], shape),
        Worker("the same, oneDNN and memory kept", [*keras, "onednn"], shape),
        Worker("this project, float32", [*keras, "float32"], shape),
    ]
    has_bfloat16 = workers[-1].properties["auto_precision"] != "float32"
    torch_variants = ["eager", "channels_last", "compile"]
    if has_bfloat16:
        workers.append(Worker("this project, precision=auto", [*keras, "auto"], shape))
        # Without bfloat16 instructions a step of these takes minutes.
        torch_variants += ["bfloat16", "compile bfloat16"]
    for variant in torch_variants if torch_python else ():
        command = [torch_python, str(HERE / "step_torch.py"), variant]
        try:
            workers.append(Worker(f"PyTorch {variant}", command, shape))
        except RuntimeError as error:
            # This Python has no PyTorch, or torch.compile finds no compiler.
            print(f"skipped: {error}", file=sys.stderr)
    return workers


def operations_per_step(batch: int, filters: int, depth: int, kernel_size: int, patch_size: int) -> float:
    """Return the floating-point operations of a training step on 32x32 images, two per multiply-add.

    Each convolution is counted three times: the forward pass, the gradient with respect to the weights and the gradient
    with respect to the input, which the stem does not need.
    """
    positions = batch * (32 // patch_size) ** 2
    block = filters * filters + kernel_size**2 * filters
    return 2.0 * positions * (3 * depth * block + 2 * 3 * patch_size**2 * filters)


def speedup(worker: Worker, baseline: Worker, cost: str) -> float:
    """Return how many times as much the baseline needs of a cost, as the median over the rounds."""
    rounds = zip(baseline.steps, worker.steps, strict=True)
    return statistics.median(base[cost] / own[cost] for base, own in rounds)


def print_table(workers: list[Worker], peaks: dict[str, float], shape: dict[str, int]) -> None:
    """Print the results as a Markdown table."""
    baseline = workers[0]
    print(f"{shape}, float32 peak {peaks['float32'] / 1e9:.0f} Gflop/s; {baseline.properties['device']}\n")
    print("| variant | images/s | ratio | ratio of CPU time | share of the peak | loss of the last step | versions |")
    print("|---|---|---|---|---|---|---|")
    for worker in workers:
        seconds = statistics.median(step["seconds"] for step in worker.steps)
        loss = worker.steps[-1]["loss"]
        peak = peaks[worker.properties["precision"]]
        print(
            f"| {worker.name} | {shape['batch'] / seconds:.1f} | {speedup(worker, baseline, 'seconds'):.2f} "
            f"| {speedup(worker, baseline, 'processor_seconds'):.2f} "
            f"| {operations_per_step(**shape) / seconds / peak:.0%} "
            f"| {loss:.6f} ({loss - baseline.steps[-1]['loss']:+.1e}) | {worker.properties['versions']} |"
        )


def main() -> None:
    """Run all workers and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--torch_python", default=sys.executable, help="a Python with PyTorch; '' leaves PyTorch out")
    options = vars(parser.parse_args())
    rounds, torch_python = options.pop("rounds"), options.pop("torch_python")
    workers = start_workers(options, torch_python)
    try:
        for _ in range(rounds):
            for worker in workers:
                worker.train_step()
        peaks: dict[str, float] = {}  # operations per second, by precision
        for worker in workers:
            precision = worker.properties["precision"]
            peaks[precision] = max(worker.measure_peak(), peaks.get(precision, 0.0))
    finally:
        for worker in workers:
            worker.close()
    print_table(workers, peaks, options)


if __name__ == "__main__":
    main()
