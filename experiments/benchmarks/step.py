"""The training step of the stock example, of this project and of PyTorch, taking turns: `make bench`.

Each side is a process of its own, since what they differ in is partly decided before an import. In every round each
side trains one step on the same batch; a ratio is the median over the rounds. Where other programs share the cores,
trust the ratio of processor time, not that of the clock.
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
PROJECT = HERE.parent.parent

Turn = dict[str, float]  # seconds, processor_seconds and loss of one step


class Side:
    """A process that trains a step when it is told to."""

    def __init__(self, name: str, command: Sequence[str], model: dict[str, int]) -> None:
        self.name = name
        self.turns: list[Turn] = []
        self._process = subprocess.Popen(
            [*command, json.dumps(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": str(PROJECT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        self.told = self._ask("start")

    def step(self) -> None:
        self.turns.append(self._ask("step"))

    def peak(self) -> float:
        """Operations a second of a large matrix product in this side's precision, the best of a few."""
        return self._ask("peak")["flops"]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _ask(self, what: str) -> dict:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"{self.name} ended with code {self._process.wait()}; run {self._process.args} to see why"
            )
        return json.loads(answer)


def sides(model: dict[str, int], torch_python: str) -> list[Side]:
    """The stock example first, which all are compared with; PyTorch where `torch_python` has it."""
    keras = [sys.executable, str(HERE / "keras_side.py")]
    found = [
        Side("Keras example as it stands", [*keras, "plain"], model),
        Side("the same, oneDNN and memory kept", [*keras, "stock"], model),
        Side("this project, float32", [*keras, "float32"], model),
    ]
    bfloat16 = found[-1].told["auto_precision"] != "float32"
    if bfloat16:
        found.append(Side("this project, precision=auto", [*keras, "auto"], model))
    ways = ["eager", "channels_last", "compile"]
    if bfloat16:  # else minutes a step
        ways += ["bfloat16", "compile bfloat16"]
    for way in ways if torch_python else ():
        try:
            found.append(Side(f"PyTorch {way}", [torch_python, str(HERE / "torch_side.py"), way], model))
        except RuntimeError as error:  # no PyTorch, or no compiler for it
            print(f"left out: {error}", file=sys.stderr)
    return found


def operations(batch: int, filters: int, depth: int, kernel_size: int, patch_size: int) -> float:
    """Of a step on 32x32 images, two a multiply-add: forward, by the weights and, but for the stem, by the input."""
    positions = batch * (32 // patch_size) ** 2
    block = filters * filters + kernel_size**2 * filters
    return 2.0 * positions * (3 * depth * block + 2 * 3 * patch_size**2 * filters)


def ratio(side: Side, first: Side, of: str) -> float:
    """How many times as much the first side takes, by the median of the rounds."""
    return statistics.median(a[of] / b[of] for a, b in zip(first.turns, side.turns, strict=True))


def main() -> None:
    """Run the sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"batch": 128, "filters": 256, "depth": 8, "kernel_size": 5, "patch_size": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--torch_python", default=sys.executable, help="a Python that has PyTorch; '' leaves it out")
    options = vars(parser.parse_args())
    rounds, torch_python = options.pop("rounds"), options.pop("torch_python")
    found = sides(options, torch_python)
    try:
        for _ in range(rounds):
            for side in found:
                side.step()
        peaks: dict[str, float] = {}  # by precision
        for side in found:
            peaks[side.told["precision"]] = max(side.peak(), peaks.get(side.told["precision"], 0.0))
    finally:
        for side in found:
            side.end()
    report(found, peaks, options)


def report(found: list[Side], peaks: dict[str, float], model: dict[str, int]) -> None:
    """Print what came of it as Markdown."""
    first = found[0]
    print(f"{model}, float32 peak {peaks['float32'] / 1e9:.0f} Gflop/s; {first.told['device']}\n")
    print(
        "| side | images/s | ratio | ratio of processor time | share of the peak | loss of the last step | versions |"
    )
    print("|---|---|---|---|---|---|---|")
    for side in found:
        seconds = statistics.median(turn["seconds"] for turn in side.turns)
        loss = side.turns[-1]["loss"]
        print(
            f"| {side.name} | {model['batch'] / seconds:.1f} | {ratio(side, first, 'seconds'):.2f} "
            f"| {ratio(side, first, 'processor_seconds'):.2f} "
            f"| {operations(**model) / seconds / peaks[side.told['precision']]:.0%} "
            f"| {loss:.6f} ({loss - first.turns[-1]['loss']:+.1e}) | {side.told['versions']} |"
        )


if __name__ == "__main__":
    main()
