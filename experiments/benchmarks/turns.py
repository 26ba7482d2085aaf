"""What each side of a benchmark does when it is told to: start, a step, the peak; its answers are lines of JSON."""

import json
import sys
import time
from collections.abc import Callable

SIDE = 2048  # of the matrices whose product shows the peak


def take_turns(told: dict[str, str], step: Callable[[], float], product: Callable[[], float]) -> None:
    """Answer until the driver ends this process.

    Args:
        told: what the driver should know of this side.
        step: trains a step and returns its loss, when the device is done with it.
        product: multiplies two matrices and returns how many operations that were, when the device is done.
    """
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is not an answer
    for line in sys.stdin:
        if line.strip() == "start":
            step(), step()  # compiled, and memory taken
            answer: dict = told
        elif line.strip() == "step":
            began, processor = time.perf_counter(), time.process_time()
            loss = step()
            answer = {
                "seconds": time.perf_counter() - began,
                "processor_seconds": time.process_time() - processor,
                "loss": loss,
            }
        else:
            answer = {"flops": max(_rate(product) for _ in range(40))}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _rate(product: Callable[[], float]) -> float:
    began = time.perf_counter()
    operations = product()
    return operations / (time.perf_counter() - began)
