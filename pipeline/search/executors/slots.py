"""Slots in which one trial at a time is trained: GPUs or shares of them, else shares of the CPU's cores."""

from collections.abc import Sequence
from dataclasses import dataclass

import pynvml

from pipeline.runtime.device import open_nvml
from pipeline.runtime.errors import UsageError

# CUDA ignores these names and every name after them
HIDDEN = {"", "-1", "NoDevFiles"}
# Memory that a process takes on a GPU before its first tensor: CUDA's context, cuBLAS and cuDNN
CONTEXT_MIB = 1024
MIN_TRIAL_MIB = 1024
# Without a GPU: the small operations of a trial do not keep more cores busy
CORES_PER_TRIAL = 4


@dataclass(frozen=True)
class Gpu:
    """A device under a name that CUDA_VISIBLE_DEVICES accepts: an index, a GPU-UUID or a MIG instance."""

    name: str
    memory_mib: int


@dataclass(frozen=True)
class Slot:
    """Where one trial at a time is trained."""

    name: str
    gpu: str | None  # as CUDA_VISIBLE_DEVICES accepts it; None: the CPU
    threads: int
    memory_mib: int | None  # of the GPU, for tensors; None: no limit

    def environment(self) -> dict[str, str]:
        """Return the variables that confine a process to the slot, if set before TensorFlow touches a device."""
        return {
            "CUDA_VISIBLE_DEVICES": "-1" if self.gpu is None else self.gpu,
            "TF_NUM_INTRAOP_THREADS": str(self.threads),
            # for the 1 on a CPU see pipeline.runtime.cpu
            "TF_NUM_INTEROP_THREADS": "1" if self.gpu is None else str(self.threads),
        }


def make_slots(gpus: Sequence[Gpu], *, trials_per_gpu: int, workers: int, cores: int) -> list[Slot]:
    """Return `trials_per_gpu` slots for each GPU, or `workers` slots if there is no GPU; they share the cores.

    Trials that share a GPU get fixed and equal parts of its memory: if each took what it needs, one could run out of
    memory because of another. A trial that has a GPU to itself takes what it needs.

    Raises:
        UsageError: the parts are too small to train in, or there are more workers than cores.
    """
    if not gpus:
        if not 1 <= workers <= cores:
            raise UsageError(f"workers must lie between 1 and the number of cores: {cores} here, got workers={workers}")
        return [Slot(f"CPU {n + 1} of {workers}", None, cores // workers, None) for n in range(workers)]
    threads = max(1, cores // (len(gpus) * trials_per_gpu))
    if trials_per_gpu == 1:
        return [Slot(f"GPU {gpu.name}", gpu.name, threads, None) for gpu in gpus]
    # all GPUs get their first trial before any gets its second
    return [
        Slot(f"GPU {gpu.name} ({n + 1} of {trials_per_gpu})", gpu.name, threads, _memory_share(gpu, trials_per_gpu))
        for n in range(trials_per_gpu)
        for gpu in gpus
    ]


def _memory_share(gpu: Gpu, trials: int) -> int:
    """Return the MiB for the tensors of each of several trials on a GPU."""
    share = gpu.memory_mib // trials - CONTEXT_MIB
    if share < MIN_TRIAL_MIB:
        max_trials = gpu.memory_mib // (MIN_TRIAL_MIB + CONTEXT_MIB)
        raise UsageError(
            f"trials_per_gpu must leave each trial {MIN_TRIAL_MIB + CONTEXT_MIB} MiB: GPU {gpu.name} has "
            f"{gpu.memory_mib}, got trials_per_gpu={trials}; try {max(1, max_trials)}"
        )
    return share


def find_gpus(visible: str | None) -> list[Gpu]:
    """Return NVIDIA's GPUs as the driver lists them, without touching them; an empty list without a driver.

    Args:
        visible: CUDA_VISIBLE_DEVICES, whose names are kept as given; None if it is not set: all GPUs, by UUID.
    """
    with open_nvml() as available:
        if not available:
            return []
        gpus = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        if visible is None:
            devices = [device for gpu in gpus for device in _split_mig(gpu)]
            return [Gpu(pynvml.nvmlDeviceGetUUID(device), _memory_mib(device)) for device in devices]
        return [Gpu(name, _memory_of_name(name, gpus)) for name in _visible_names(visible, len(gpus))]


def _visible_names(visible: str, count: int) -> list[str]:
    """Return the names in CUDA_VISIBLE_DEVICES up to the first that CUDA rejects."""
    names: list[str] = []
    for name in map(str.strip, visible.split(",")):
        if name in HIDDEN or (name.isdecimal() and int(name) >= count):
            break
        names.append(name)
    return names


def _split_mig(gpu: object) -> list[object]:
    """Return the MIG instances of a GPU that is divided into instances, else the GPU."""
    try:
        if pynvml.nvmlDeviceGetMigMode(gpu)[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return [gpu]
    except pynvml.NVMLError:
        # a GPU that cannot be divided
        return [gpu]
    instances = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            instances.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index))
        except pynvml.NVMLError:
            # a position that no instance takes
            continue
    return instances


def _memory_of_name(name: str, gpus: Sequence[object]) -> int:
    """Return the MiB of the device with this UUID; for an index, those of the smallest GPU.

    CUDA may number the GPUs in another order than the driver.
    """
    try:
        return _memory_mib(pynvml.nvmlDeviceGetHandleByUUID(name))
    except pynvml.NVMLError:
        return min(map(_memory_mib, gpus))


def _memory_mib(device: object) -> int:
    return int(pynvml.nvmlDeviceGetMemoryInfo(device).total) // 2**20
