"""The worker side of step.py: answer its requests `start`, `step` and `peak`, one line of JSON each."""

import json
import sys
import time
from collections.abc import Callable

# side of the square matrices whose product measures the peak
MATRIX_SIDE = 2048
# the peak is the best of so many products
PRODUCTS = 40


def answer_requests(properties: dict[str, str], train_step: Callable[[], float], multiply: Callable[[], float]) -> None:
    """Answer requests from standard input until step.py kills this process.

    Args:
        properties: The answer to `start`: versions, precision and device.
        train_step: Trains one step, waits for the device and returns the loss.
        multiply: Multiplies two matrices, waits for the device and returns the number of operations.
    """
    answers = sys.stdout
    # Libraries print to standard output too, which must carry answers only.
    sys.stdout = sys.stderr
    for line in sys.stdin:
        request = line.strip()
        if request == "start":
            # The first steps compile the model and allocate memory.
            train_step()
            train_step()
            answer: dict = properties
        elif request == "step":
            started, cpu_started = time.perf_counter(), time.process_time()
            loss = train_step()
            answer = {
                "seconds": time.perf_counter() - started,
                "processor_seconds": time.process_time() - cpu_started,
                "loss": loss,
            }
        else:
            answer = {"flops": max(_operations_per_second(multiply) for _ in range(PRODUCTS))}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _operations_per_second(multiply: Callable[[], float]) -> float:
    started = time.perf_counter()
    operations = multiply()
    return operations / (time.perf_counter() - started)
