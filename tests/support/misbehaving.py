"""What trials do to themselves, for the tests of those who have to live with it; imports nothing slow."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.search.executors.trial import train_trial


def by_run_id(job, trial):
    """Train where there is a store to train into; else do what the run is called."""
    if job.run.tracking_uri:
        return train_trial(job, trial)
    return globals().get(job.run.run_id, by_its_rate)(job, trial)


def segfault(job, trial):
    import ctypes

    print("about to read address 0")
    ctypes.string_at(0)


def kill_itself(job, trial):
    os.kill(os.getpid(), signal.SIGKILL)


def terminate_itself(job, trial):
    os.kill(os.getpid(), signal.SIGTERM)


def leave(job, trial):
    os._exit(3)


def abort_for_memory(job, trial):
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def divide_by_zero(job, trial):
    trial.metrics["epochs"] = 2
    return 1 / 0


def exhaust_tensorflow(job, trial):
    import tensorflow as tf

    raise tf.errors.ResourceExhaustedError(None, None, "Graph execution error:\n\nOOM when allocating tensor")


def exhaust_address_space(job, trial):
    """Ask TensorFlow for 8 GB where 4 GB more than now may be had."""
    import tensorflow as tf

    with open("/proc/self/statm", encoding="ascii") as pages:
        now = int(pages.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + 4 * 2**30,) * 2)
    tf.zeros((2 * 2**30,), tf.float32)


def hang(job, trial):
    print(f"child {os.getpid()}")
    time.sleep(3600)


def hang_on(job, trial):
    """Hang, deaf to SIGTERM, with a child that is deaf too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    time.sleep(3600)


def step_for_ever(job, trial):
    trial.report(1, {"val_accuracy": 0.1})
    while True:
        time.sleep(0.01)
        trial.raise_if_stopped()


def three_epochs(job, trial):
    for epoch in (1, 2, 3):
        trial.report(epoch, {"val_accuracy": epoch / 10})
        trial.metrics.update(epochs=epoch)


def slow_epochs(job, trial):
    """Four epochs of half a second each, and all figures that a search asks for."""
    for epoch in range(1, 5):
        time.sleep(0.5)
        trial.report(epoch, {"val_accuracy": epoch / 10, "val_loss": 1 / epoch})
        trial.raise_if_stopped()
    trial.metrics.update(best_val_accuracy=0.4, best_val_loss=0.25, parameters=9.0, epochs=4.0, seconds=2.0)


def by_its_rate(job, trial):
    """What a search asks for, as a function of the settings alone."""
    best = 1 / (1 + job.config.learning_rate)
    trial.report(1, {"val_accuracy": best, "val_loss": 1.0})
    trial.metrics.update(best_val_accuracy=best, best_val_loss=1.0, parameters=9.0, epochs=1.0, seconds=1.0)


def leave_weights(job, trial):
    job.weights.write_bytes(b"weights")


def weigh(job, trial):
    trial.metrics.update(bytes=len(job.weights.read_bytes()))


def look_at_devices(job, trial):
    """Say which device it was given, whether TensorFlow has seen one, its threads, and when it was there."""
    from tensorflow.python.eager import context

    began = time.monotonic()
    print("device", os.environ["CUDA_VISIBLE_DEVICES"], "untouched", context._context is None)
    print("run", os.environ.get("MLFLOW_RUN_ID"))
    time.sleep(0.2)
    trial.metrics.update(began=began, ended=time.monotonic())


def compute(job, trial):
    """Say how many threads TensorFlow computes with."""
    import tensorflow as tf

    tf.linalg.matmul(tf.ones((512, 512)), tf.ones((512, 512)))
    names = [Path(f"/proc/self/task/{task}/comm").read_text(encoding="utf-8") for task in os.listdir("/proc/self/task")]
    trial.metrics["threads"] = sum(name == "tf_Compute\n" for name in names)


def nothing(job, trial):
    pass
