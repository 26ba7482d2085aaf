"""Trial functions that crash, hang, exit or report, for the tests of executors; imports nothing slow."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.search.executors.trial import train_trial


def call_by_run_id(job, context):
    """Train if the job has a tracking server; else call the function of this module that the run id names."""
    if job.run.tracking_uri:
        return train_trial(job, context)
    return globals().get(job.run.run_id, score_learning_rate)(job, context)


def train_until_killed(job, context):
    """Train, and be killed after the third epoch of the first try."""
    report = context.report

    def report_and_die(epoch, metrics):
        report(epoch, metrics)
        if epoch == 3 and not job.resume:
            # the node of a cluster looks for new checkpoints a few times a second
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)

    context.report = report_and_die
    train_trial(job, context)


def save_checkpoint(job, context):
    """Go on from the checkpoint of epoch 1, and save one after epoch 2."""
    first = job.checkpoints / "epoch-000001.checkpoint"
    (job.checkpoints / "epoch-000002.checkpoint").write_bytes(first.read_bytes() + b" and more")


def segfault(job, context):
    import ctypes

    print("about to read address 0")
    ctypes.string_at(0)


def kill_itself(job, context):
    os.kill(os.getpid(), signal.SIGKILL)


def terminate_itself(job, context):
    os.kill(os.getpid(), signal.SIGTERM)


def exit_with_3(job, context):
    os._exit(3)


def abort_for_memory(job, context):
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def divide_by_zero(job, context):
    context.metrics["epochs"] = 2
    return 1 / 0


def exhaust_tensorflow(job, context):
    import tensorflow as tf

    raise tf.errors.ResourceExhaustedError(None, None, "Graph execution error:\n\nOOM when allocating tensor")


def exhaust_address_space(job, context):
    """Allocate 8 GB with TensorFlow under a limit of 4 GB above the current use."""
    import tensorflow as tf

    with open("/proc/self/statm", encoding="ascii") as pages:
        used = int(pages.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * 2**30,) * 2)
    tf.zeros((2 * 2**30,), tf.float32)


def hang(job, context):
    print(f"child {os.getpid()}")
    time.sleep(3600)


def hang_ignoring_sigterm(job, context):
    """Hang, ignoring SIGTERM, with a child process that ignores it too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    time.sleep(3600)


def step_forever(job, context):
    context.report(1, {"val_accuracy": 0.1})
    while True:
        time.sleep(0.01)
        context.raise_if_stopped()


def print_xla_flags(job, context):
    print(json.dumps(os.environ["TF_XLA_FLAGS"]))


def three_epochs(job, context):
    for epoch in (1, 2, 3):
        context.report(epoch, {"val_accuracy": epoch / 10})
        context.metrics.update(epochs=epoch)


def slow_epochs(job, context):
    """Report four epochs of half a second each, and all metrics that a search needs."""
    for epoch in range(1, 5):
        time.sleep(0.5)
        context.report(epoch, {"val_accuracy": epoch / 10, "val_loss": 1 / epoch})
        context.raise_if_stopped()
    context.metrics.update(best_val_accuracy=0.4, best_val_loss=0.25, parameters=9.0, epochs=4.0, seconds=2.0)


def score_learning_rate(job, context):
    """Report all metrics that a search needs, as functions of the learning rate alone."""
    best = 1 / (1 + job.config.learning_rate)
    context.report(1, {"val_accuracy": best, "val_loss": 1.0})
    context.metrics.update(best_val_accuracy=best, best_val_loss=1.0, parameters=9.0, epochs=1.0, seconds=1.0)


def write_weights(job, context):
    job.weights.write_bytes(b"weights")


def read_weights(job, context):
    context.metrics.update(bytes=len(job.weights.read_bytes()))


def print_devices(job, context):
    """Print the visible device, whether TensorFlow has touched any, and the run id; report when it began and ended."""
    from tensorflow.python.eager import context as eager_context

    started = time.monotonic()
    print("device", os.environ["CUDA_VISIBLE_DEVICES"], "untouched", eager_context._context is None)
    print("run", os.environ.get("MLFLOW_RUN_ID"))
    time.sleep(0.2)
    context.metrics.update(started=started, ended=time.monotonic())


def count_threads(job, context):
    """Report how many threads TensorFlow computes with."""
    import tensorflow as tf

    tf.linalg.matmul(tf.ones((512, 512)), tf.ones((512, 512)))
    names = [Path(f"/proc/self/task/{task}/comm").read_text(encoding="utf-8") for task in os.listdir("/proc/self/task")]
    context.metrics["threads"] = sum(name == "tf_Compute\n" for name in names)


def do_nothing(job, context):
    pass
