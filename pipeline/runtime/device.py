"""The device of a run, and the precision and compilation that suit it."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import pynvml

from pipeline.runtime import cpu
from pipeline.runtime.cpu import available_cores, tune_malloc
from pipeline.runtime.errors import UsageError

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Device:
    """What TensorFlow computes on; `capability` is NVIDIA's compute capability, of several the least."""

    kind: str  # CPU or GPU
    name: str
    capability: tuple[int, int] | None  # None: a CPU
    count: int = 1  # GPUs, each with its share of every batch

    def __str__(self) -> str:
        return f"{self.kind} {f'{self.count} x ' if self.count > 1 else ''}{self.name}"

    def strategy(self) -> "tf.distribute.Strategy":
        """How the steps of training are shared among them."""
        import tensorflow as tf

        return tf.distribute.MirroredStrategy() if self.count > 1 else tf.distribute.get_strategy()


def select_device(devices: str) -> Device:
    """The first GPU that TensorFlow sees, or all of them, which then take memory as they need it; or the CPU.

    Call before anything has touched a device.

    Args:
        devices: one or all.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        tune_malloc()
        cpu.run_operations_serially()
        return Device("CPU", f"{cpu.processor_name()}, {_extent()}", None)
    used = gpus if devices == "all" else gpus[:1]
    tf.config.set_visible_devices(used, "GPU")
    for gpu in used:
        tf.config.experimental.set_memory_growth(gpu, True)
    details = [tf.config.experimental.get_device_details(gpu) for gpu in used]
    capabilities = [one.get("compute_capability") for one in details]
    least = None if None in capabilities else min(capabilities)
    return Device("GPU", details[0].get("device_name", used[0].name), least, len(used))


def precision_for(device: Device) -> str:
    """The Keras dtype policy that `precision=auto` means here.

    Matrix units take bfloat16 from compute capability 8.0 and float16 from 7.0 (NVIDIA, "Train With Mixed Precision");
    a CPU is asked for its instructions, and one without bfloat16 among them would be slower with it.
    """
    if device.kind == "CPU":
        return "mixed_bfloat16" if cpu.has_bfloat16() else "float32"
    if device.capability is None or device.capability < (7, 0):
        return "float32"
    return "mixed_bfloat16" if device.capability >= (8, 0) else "mixed_float16"


def jit_compile_for(device: Device) -> bool:
    """What `jit_compile=auto` means here.

    On an H100 ConvMixer-256/8 trains six times as fast with it, once it is compiled; XLA's CPU compiler did not finish
    twelve steps in 140 s. Several GPUs exchange what batch norm sees in the midst of a step, which XLA cannot hold.
    """
    return device.kind == "GPU" and device.count == 1


def fast_layers_for(device: Device) -> bool:
    """What `fast_layers=auto` means here: `pipeline.model.cpu_layers` was made for the CPU, and measured there only."""
    return device.kind == "CPU"


def unused_gpu(device: Device) -> str | None:
    """A warning with its cure, where the machine has an NVIDIA GPU that TensorFlow does not use; else None.

    A GPU hidden on purpose, by an empty or negative CUDA_VISIBLE_DEVICES, is none.
    """
    import tensorflow as tf

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device.kind == "GPU" or (hidden is not None and hidden.strip() in {"", "-1", "NoDevFiles"}):
        return None
    names = _nvidia_gpus()
    if not names:
        return None
    cure = (
        f'pip install "tensorflow[and-cuda]=={tf.__version__}" brings the CUDA libraries that match'
        if tf.test.is_built_with_cuda()
        else f"this TensorFlow was built without CUDA; on Linux pip install tensorflow[and-cuda]=={tf.__version__}"
    )
    return (
        f"this machine has {', '.join(names)} but TensorFlow {tf.__version__} sees no GPU and trains on the CPU: {cure}"
    )


def _extent() -> str:
    """How much of the processor this process may use: a batch system's job, or a container, may have a part of it."""
    usable, threads = available_cores(), os.cpu_count() or 1
    if usable < threads:
        return f"{usable} of {threads} threads"
    return f"{psutil.cpu_count(logical=False) or usable} cores"


def _nvidia_gpus() -> list[str]:
    """Names of the GPUs that NVIDIA's driver knows; none where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_nvidia_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _nvidia_gpu(index: int) -> str:
    try:
        return pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError as error:  # fallen off the bus, say
        return f"GPU {index} (which does not answer: {error})"


def check_single_host(environ: Mapping[str, str]) -> None:
    """Refuse a cluster of several workers, as TensorFlow's TF_CONFIG describes it: each would train a model of its own.

    Keras 3 cannot train with MultiWorkerMirroredStrategy: `fit` hands a layer what belongs to all workers (Keras 3.15,
    TensorFlow 2.21, two processes on one machine).

    Raises:
        UsageError: it names several.
    """
    try:
        cluster = json.loads(environ.get("TF_CONFIG") or "{}").get("cluster", {})
        workers = [worker for job in ("chief", "worker") for worker in cluster.get(job, ())]
    except (ValueError, AttributeError, TypeError):
        return
    if len(workers) > 1:
        raise UsageError(
            "one run trains on one host, as Keras 3 cannot share a model among several: TF_CONFIG names "
            f"{len(workers)} workers; unset it, take devices=all on one host, or search with cluster= or drivers=shared"
        )
