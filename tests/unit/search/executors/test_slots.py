"""Slots on fake GPUs and on CPUs: their names, and their shares of cores and memory."""

import pynvml
import pytest

from pipeline.runtime.errors import UsageError
from pipeline.search.executors.slots import CONTEXT_MIB, MIN_TRIAL_MIB, Gpu, find_gpus, make_slots

TWO = [Gpu("GPU-aaaa", 24_000), Gpu("GPU-bbbb", 24_000)]


def test_make_slots_gives_each_gpu_its_share_of_the_cores_and_all_its_memory():
    assert [
        (slot.gpu, slot.threads, slot.memory_mib) for slot in make_slots(TWO, trials_per_gpu=1, workers=3, cores=9)
    ] == [
        ("GPU-aaaa", 4, None),
        ("GPU-bbbb", 4, None),
    ]


def test_make_slots_gives_every_gpu_a_first_trial_before_any_gets_a_second():
    assert [slot.gpu for slot in make_slots(TWO, trials_per_gpu=2, workers=1, cores=8)] == ["GPU-aaaa", "GPU-bbbb"] * 2


def test_make_slots_divides_the_memory_of_a_shared_gpu():
    shared = make_slots(TWO[:1], trials_per_gpu=3, workers=1, cores=3)
    assert {slot.memory_mib for slot in shared} == {24_000 // 3 - CONTEXT_MIB}
    assert len({slot.name for slot in shared}) == 3


def test_make_slots_with_too_small_shares_raises_usage_error_with_the_most_that_fit():
    with pytest.raises(UsageError, match=r"GPU-aaaa has 24000, got trials_per_gpu=12; try 11$"):
        make_slots(TWO, trials_per_gpu=12, workers=1, cores=8)
    assert make_slots(TWO, trials_per_gpu=11, workers=1, cores=8)


def test_make_slots_accepts_a_share_of_exactly_the_least_memory():
    assert make_slots([Gpu("GPU-aaaa", 2 * (CONTEXT_MIB + MIN_TRIAL_MIB))], trials_per_gpu=2, workers=1, cores=2)


def test_make_slots_gives_each_gpu_at_least_one_thread():
    assert {slot.threads for slot in make_slots(TWO, trials_per_gpu=1, workers=1, cores=1)} == {1}


def test_make_slots_without_gpu_divides_the_cores_among_workers():
    assert [(slot.name, slot.gpu, slot.threads) for slot in make_slots([], trials_per_gpu=4, workers=3, cores=8)] == [
        ("CPU 1 of 3", None, 2),
        ("CPU 2 of 3", None, 2),
        ("CPU 3 of 3", None, 2),
    ]


@pytest.mark.parametrize("workers", [0, 9])
def test_make_slots_with_more_workers_than_cores_raises_usage_error(workers):
    with pytest.raises(UsageError, match=f"^workers must lie between 1 and .* 8 here, got workers={workers}$"):
        make_slots([], trials_per_gpu=1, workers=workers, cores=8)


def test_environment_of_cpu_slot_hides_all_gpus_and_of_gpu_slot_all_others():
    (cpu,) = make_slots([], trials_per_gpu=1, workers=1, cores=2)
    gpu, _ = make_slots(TWO, trials_per_gpu=1, workers=1, cores=2)
    assert cpu.environment()["CUDA_VISIBLE_DEVICES"] == "-1"
    assert gpu.environment()["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa"


@pytest.fixture
def fake_nvml(monkeypatch):
    """Fake NVIDIA's library with GPU-big, and GPU-cut that is divided into two MIG instances."""
    memory = {"GPU-big": 80, "GPU-cut": 40, "MIG-one": 20, "MIG-two": 10}  # GiB

    class Info:
        def __init__(self, device):
            self.total = memory[device] * 2**30

    def by_uuid(name):
        if name not in memory:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return name

    def instance(device, index):
        if device != "GPU-cut" or index not in {1, 3}:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return {1: "MIG-one", 3: "MIG-two"}[index]

    def mode(device):
        if device == "GPU-big":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [pynvml.NVML_DEVICE_MIG_ENABLE, pynvml.NVML_DEVICE_MIG_ENABLE]

    fakes = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: ["GPU-big", "GPU-cut"][index],
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceGetUUID": lambda device: device,
        "nvmlDeviceGetMemoryInfo": Info,
        "nvmlDeviceGetMigMode": mode,
        "nvmlDeviceGetMaxMigDeviceCount": lambda device: 7,
        "nvmlDeviceGetMigDeviceHandleByIndex": instance,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(pynvml, name, fake)


@pytest.mark.usefixtures("fake_nvml")
@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, [("GPU-big", 80), ("MIG-one", 20), ("MIG-two", 10)]),
        ("1,0", [("1", 40), ("0", 40)]),  # the smaller one's memory: CUDA may number them in another order
        (" MIG-two , GPU-big", [("MIG-two", 10), ("GPU-big", 80)]),
        ("GPU-b", [("GPU-b", 40)]),  # CUDA accepts the beginning of a UUID
        ("", []),
        ("-1", []),
        ("0,-1,1", [("0", 40)]),
        ("0,2,1", [("0", 40)]),
    ],
)
def test_find_gpus_returns_the_visible_gpus_under_the_names_given(visible, found):
    assert [(gpu.name, gpu.memory_mib // 1024) for gpu in find_gpus(visible)] == found


def test_find_gpus_without_driver_returns_none_whatever_is_visible(monkeypatch):
    def fail():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert find_gpus("0") == find_gpus(None) == []
