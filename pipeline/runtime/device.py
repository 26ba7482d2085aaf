"""The device that TensorFlow computes on, and the precision, compilation and layers that suit it."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import pynvml

from pipeline.runtime import cpu
from pipeline.runtime.cpu import available_cores, tune_malloc
from pipeline.runtime.environment import EPSILON, FLOATX, IMAGE_DATA_FORMAT
from pipeline.runtime.errors import UsageError
from pipeline.runtime.shell import install_command

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Device:
    """A CPU, or one or more GPUs."""

    kind: str  # CPU or GPU
    name: str
    capability: tuple[int, int] | None  # NVIDIA's compute capability, the least of several GPUs; None: a CPU
    count: int = 1  # number of GPUs, each with its share of every batch

    def __str__(self) -> str:
        name = f"{self.count} x {self.name}" if self.count > 1 else self.name
        return f"{self.kind} {name}"

    def strategy(self) -> "tf.distribute.Strategy":
        """Return the strategy that shares each training step among the GPUs."""
        import tensorflow as tf

        return tf.distribute.MirroredStrategy() if self.count > 1 else tf.distribute.get_strategy()


def select_device(devices: str) -> Device:
    """Return the first GPU that TensorFlow sees, or all of them, or the CPU if it sees none.

    The GPUs allocate memory as they need it. Call before anything has used a device.

    Args:
        devices: `one` or `all`: how many GPUs to use.
    """
    import tensorflow as tf

    configure_keras()
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        tune_malloc()
        cpu.run_operations_serially()
        return Device("CPU", f"{cpu.processor_name()}, {_usable_part()}", None)
    used = gpus if devices == "all" else gpus[:1]
    tf.config.set_visible_devices(used, "GPU")
    for gpu in used:
        tf.config.experimental.set_memory_growth(gpu, True)
    details = [tf.config.experimental.get_device_details(gpu) for gpu in used]
    capabilities = [one.get("compute_capability") for one in details]
    least = None if None in capabilities else min(capabilities)
    return Device("GPU", details[0].get("device_name", used[0].name), least, len(used))


def hide_gpus() -> None:
    """Leave all GPUs to other processes, unless something in this one has used them already.

    A process that only loads models would otherwise take memory of each GPU.
    """
    import tensorflow as tf

    with suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")


def configure_keras() -> None:
    """Give Keras its own defaults, whatever keras.json or a notebook has set; call before a model is built or loaded.

    Raises:
        UsageError: Keras has been imported with another backend than TensorFlow.
    """
    import keras

    if keras.config.backend() != "tensorflow":
        raise UsageError(
            f"Keras must run on TensorFlow, got {keras.config.backend()}, with which this process has imported it: "
            "start Python with KERAS_BACKEND=tensorflow"
        )
    keras.config.set_floatx(FLOATX)
    keras.config.set_epsilon(EPSILON)
    keras.config.set_image_data_format(IMAGE_DATA_FORMAT)
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)
    # read when `tf.keras` is first used, as MLflow does when it saves a model
    os.environ.pop("TF_USE_LEGACY_KERAS", None)


def precision_for(device: Device) -> str:
    """Return the Keras dtype policy that `precision=auto` stands for on a device.

    GPUs have matrix units for bfloat16 from compute capability 8.0, and for float16 from 7.0 (NVIDIA, "Train With Mixed
    Precision"). A CPU without bfloat16 instructions would be slower with it. Several GPUs without bfloat16 train in
    float32: Keras' loss scaling looks for overflow on the first of them alone.
    """
    if device.kind == "CPU":
        return "mixed_bfloat16" if cpu.has_bfloat16() else "float32"
    if device.capability is None or device.capability < (7, 0):
        return "float32"
    if device.capability >= (8, 0):
        return "mixed_bfloat16"
    return "mixed_float16" if device.count == 1 else "float32"


def jit_compile_for(device: Device) -> bool:
    """Return what `jit_compile=auto` stands for on a device.

    On an H100 ConvMixer-256/8 trains six times as fast with it, once it is compiled. XLA's CPU compiler did not finish
    twelve steps in 140 s. Several GPUs exchange the batch statistics in the middle of a step, which XLA cannot compile,
    and Keras compiles nothing while TensorFlow's operations are to be deterministic.
    """
    return device.kind == "GPU" and device.count == 1 and not is_deterministic(os.environ)


def is_deterministic(environ: Mapping[str, str]) -> bool:
    """Return whether the user has told TensorFlow to use deterministic operations only."""
    return environ.get("TF_DETERMINISTIC_OPS", "").lower() in {"1", "true"}


def fast_layers_for(device: Device) -> bool:
    """Return what `fast_layers=auto` stands for: true on a CPU, where `pipeline.model.cpu_layers` was measured."""
    return device.kind == "CPU"


def steps_per_execution_for(device: Device) -> int:
    """Return what `steps_per_execution=auto` stands for: a GPU need not wait for Python after each short step."""
    return 16 if device.kind == "GPU" else 1


@contextmanager
def open_nvml() -> Iterator[bool]:
    """Keep NVIDIA's management library open; yield whether there is one."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()


def free_memory() -> int:
    """Return how many bytes are free on the GPU that this process trains on and on the host, whichever are fewer.

    They are 0 where NVIDIA's driver does not answer. Of a GPU that trials share, it is at most a trial's part.
    """
    import tensorflow as tf

    name = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    with open_nvml() as available:
        if not available:
            return 0
        find = pynvml.nvmlDeviceGetHandleByIndex if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID
        try:
            free = int(pynvml.nvmlDeviceGetMemoryInfo(find(int(name) if name.isdigit() else name)).free)
        except pynvml.NVMLError:
            return 0
    parts = [part for gpu in tf.config.get_visible_devices("GPU") for part in _parts_of(gpu)]
    return min(free, psutil.virtual_memory().available, *parts)


def _parts_of(gpu: "tf.config.PhysicalDevice") -> list[int]:
    """Return the bytes of each part that TensorFlow may use of a GPU; none where it may use all of it."""
    import tensorflow as tf

    parts = tf.config.get_logical_device_configuration(gpu) or ()
    return [part.memory_limit << 20 for part in parts if part.memory_limit is not None]


def data_on_for(device: Device, *, image_bytes: int, free_bytes: int, compiled: bool) -> str:
    """Return what `data_on=auto` stands for: the device if it is one GPU with room for all training images.

    Without XLA TensorFlow has no GPU kernels for some of the operations on bytes, and computes integers on the host.
    """
    fits = 4 * image_bytes < free_bytes
    return "device" if device.kind == "GPU" and device.count == 1 and compiled and fits else "host"


def unused_gpu(device: Device) -> str | None:
    """Return a warning and its remedy if the machine has an NVIDIA GPU that TensorFlow does not use, else None.

    A GPU that is hidden on purpose, by an empty or negative CUDA_VISIBLE_DEVICES, does not count.
    """
    import tensorflow as tf

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device.kind == "GPU" or (hidden is not None and hidden.strip() in {"", "-1", "NoDevFiles"}):
        return None
    names = _nvidia_gpus()
    if not names:
        return None
    install = install_command(f"tensorflow[and-cuda]=={tf.__version__}")
    remedy = (
        f"{install} brings the CUDA libraries that match"
        if tf.test.is_built_with_cuda()
        else f"this TensorFlow was built without CUDA; on Linux {install}"
    )
    sees = f"TensorFlow {tf.__version__} sees no GPU and trains on the CPU"
    return f"this machine has {', '.join(names)} but {sees}: {remedy}"


def _usable_part() -> str:
    """Return how much of the processor this process may use: a container or a batch job may have a part of it only."""
    usable, threads = available_cores(), os.cpu_count() or 1
    if usable < threads:
        return f"{usable} of {threads} threads"
    return f"{psutil.cpu_count(logical=False) or usable} cores"


def _nvidia_gpus() -> list[str]:
    """Return the names of the GPUs that NVIDIA's driver knows; none if there is no driver."""
    with open_nvml() as available:
        return [_nvidia_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())] if available else []


def _nvidia_gpu(index: int) -> str:
    try:
        return pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError as error:
        # for example, it has fallen off the bus
        return f"GPU {index} (which does not answer: {error})"


def check_single_host(environ: Mapping[str, str]) -> None:
    """Raise UsageError if TensorFlow's TF_CONFIG describes several workers: each would train a model of its own.

    Keras 3 cannot train with MultiWorkerMirroredStrategy: `fit` passes a layer what belongs to all workers (Keras 3.15,
    TensorFlow 2.21, two processes on one machine).
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
