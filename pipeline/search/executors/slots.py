"""Places where one trial at a time can be trained: GPUs or shares of them, else shares of the CPU's cores."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pynvml

from pipeline.runtime.errors import UsageError

HIDDEN = {"", "-1", "NoDevFiles"}  # CUDA ignores these and every name after them
CONTEXT_MIB = 1024  # what a process takes on a GPU before its first tensor: CUDA's context, cuBLAS and cuDNN
LEAST_MIB = 1024
CORES_A_TRIAL = 4  # where there is no GPU: a trial's small operations do not feed more


@dataclass(frozen=True)
class Gpu:
    """A device under a name that CUDA_VISIBLE_DEVICES takes: an index, a GPU-UUID or a MIG instance."""

    name: str
    memory_mib: int


@dataclass(frozen=True)
class Slot:
    """Where one trial at a time is trained."""

    name: str
    gpu: str | None  # as CUDA_VISIBLE_DEVICES takes it; None: the CPU
    threads: int
    memory_mib: int | None  # of the GPU, for tensors; None: as much as there is

    def environment(self) -> dict[str, str]:
        """What confines a process to the slot, if it is set before TensorFlow has touched a device."""
        return {
            "CUDA_VISIBLE_DEVICES": "-1" if self.gpu is None else self.gpu,
            "TF_NUM_INTRAOP_THREADS": str(self.threads),
            "TF_NUM_INTEROP_THREADS": "1" if self.gpu is None else str(self.threads),  # see pipeline.runtime.cpu
        }


def slots(gpus: Sequence[Gpu], *, trials_per_gpu: int, workers: int, cores: int) -> list[Slot]:
    """`trials_per_gpu` slots on each GPU, or `workers` slots where there is none; the cores are shared out.

    Trials that share a GPU get fixed and equal parts of its memory: if each took what it needs, one would run out of
    memory because of another. One alone takes what it needs.

    Raises:
        UsageError: parts too small to train in, or more workers than cores.
    """
    if not gpus:
        if not 1 <= workers <= cores:
            raise UsageError(f"workers must lie between 1 and the number of cores: {cores} here, got workers={workers}")
        return [Slot(f"CPU {n + 1} of {workers}", None, cores // workers, None) for n in range(workers)]
    threads = max(1, cores // (len(gpus) * trials_per_gpu))
    if trials_per_gpu == 1:
        return [Slot(f"GPU {gpu.name}", gpu.name, threads, None) for gpu in gpus]
    return [
        Slot(f"GPU {gpu.name} ({n + 1} of {trials_per_gpu})", gpu.name, threads, _memory_share(gpu, trials_per_gpu))
        for n in range(trials_per_gpu)  # all GPUs get their first trial before any gets its second
        for gpu in gpus
    ]


def _memory_share(gpu: Gpu, trials: int) -> int:
    part = gpu.memory_mib // trials - CONTEXT_MIB
    if part < LEAST_MIB:
        most = gpu.memory_mib // (LEAST_MIB + CONTEXT_MIB)
        raise UsageError(
            f"trials_per_gpu must leave each trial {LEAST_MIB + CONTEXT_MIB} MiB: GPU {gpu.name} has {gpu.memory_mib}, "
            f"got trials_per_gpu={trials}; try {max(1, most)}"
        )
    return part


def find_gpus(visible: str | None) -> list[Gpu]:
    """NVIDIA's GPUs, asked of the driver without touching them; none where there is no driver.

    Args:
        visible: CUDA_VISIBLE_DEVICES, whose names are kept as given; None where it is not set: all, by UUID.
    """
    with _nvml() as found:
        if not found:
            return []
        every = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        if visible is None:
            return [Gpu(pynvml.nvmlDeviceGetUUID(device), _memory(device)) for gpu in every for device in _parts(gpu)]
        return [Gpu(name, _memory_of(name, every)) for name in _names(visible, len(every))]


def _names(visible: str, count: int) -> list[str]:
    names: list[str] = []
    for name in map(str.strip, visible.split(",")):
        if name in HIDDEN or (name.isdecimal() and int(name) >= count):
            break
        names.append(name)
    return names


@contextmanager
def _nvml() -> Iterator[bool]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()


def _parts(gpu: object) -> list[object]:
    """The MIG instances of a GPU that is divided into such, else the GPU."""
    try:
        if pynvml.nvmlDeviceGetMigMode(gpu)[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return [gpu]
    except pynvml.NVMLError:  # a GPU that cannot be divided
        return [gpu]
    parts = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            parts.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index))
        except pynvml.NVMLError:  # a place that no instance takes
            continue
    return parts


def _memory_of(name: str, every: Sequence[object]) -> int:
    """Of the device with this UUID; of the smallest GPU for an index, since CUDA may count in another order."""
    try:
        return _memory(pynvml.nvmlDeviceGetHandleByUUID(name))
    except pynvml.NVMLError:
        return min(map(_memory, every))


def _memory(device: object) -> int:
    return int(pynvml.nvmlDeviceGetMemoryInfo(device).total) // 2**20
