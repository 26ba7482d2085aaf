"""Where trials run, with made GPUs: names as given, cores shared out, memory divided."""

import pynvml
import pytest

from pipeline.runtime.errors import UsageError
from pipeline.search.executors.slots import CONTEXT_MIB, Gpu, find_gpus, make_slots

TWO = [Gpu("GPU-aaaa", 24_000), Gpu("GPU-bbbb", 24_000)]


def test_each_gpu_is_one_slot_with_its_share_of_the_cores_and_all_its_memory():
    assert [
        (slot.gpu, slot.threads, slot.memory_mib) for slot in make_slots(TWO, trials_per_gpu=1, workers=3, cores=9)
    ] == [
        ("GPU-aaaa", 4, None),
        ("GPU-bbbb", 4, None),
    ]


def test_every_gpu_gets_a_first_trial_before_any_gets_a_second():
    assert [slot.gpu for slot in make_slots(TWO, trials_per_gpu=2, workers=1, cores=8)] == ["GPU-aaaa", "GPU-bbbb"] * 2


def test_trials_on_one_gpu_cannot_take_each_others_memory():
    shared = make_slots(TWO[:1], trials_per_gpu=3, workers=1, cores=3)
    assert {slot.memory_mib for slot in shared} == {24_000 // 3 - CONTEXT_MIB}
    assert len({slot.name for slot in shared}) == 3


def test_parts_too_small_to_train_in_are_refused_with_the_most_that_fit():
    with pytest.raises(UsageError, match=r"GPU-aaaa has 24000, got trials_per_gpu=12; try 11$"):
        make_slots(TWO, trials_per_gpu=12, workers=1, cores=8)
    assert make_slots(TWO, trials_per_gpu=11, workers=1, cores=8)


def test_a_gpu_gets_a_thread_where_cores_are_few():
    assert {slot.threads for slot in make_slots(TWO, trials_per_gpu=1, workers=1, cores=1)} == {1}


def test_workers_share_the_cores_where_there_is_no_gpu():
    assert [(slot.name, slot.gpu, slot.threads) for slot in make_slots([], trials_per_gpu=4, workers=3, cores=8)] == [
        ("CPU 1 of 3", None, 2),
        ("CPU 2 of 3", None, 2),
        ("CPU 3 of 3", None, 2),
    ]


@pytest.mark.parametrize("workers", [0, 9])
def test_workers_without_a_core_of_their_own_are_refused(workers):
    with pytest.raises(UsageError, match=f"^workers must lie between 1 and .* 8 here, got workers={workers}$"):
        make_slots([], trials_per_gpu=1, workers=workers, cores=8)


def test_a_cpu_slot_hides_every_gpu_and_a_gpu_slot_all_others():
    (cpu,) = make_slots([], trials_per_gpu=1, workers=1, cores=2)
    gpu, _ = make_slots(TWO, trials_per_gpu=1, workers=1, cores=2)
    assert cpu.environment()["CUDA_VISIBLE_DEVICES"] == "-1"
    assert gpu.environment()["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa"


@pytest.fixture
def machine(monkeypatch):
    """Fakes NVIDIA's library: GPU-big, and GPU-cut which is divided into two MIG instances."""
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


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, [("GPU-big", 80), ("MIG-one", 20), ("MIG-two", 10)]),
        ("1,0", [("1", 40), ("0", 40)]),  # the smaller one's memory: CUDA may count in another order
        (" MIG-two , GPU-big", [("MIG-two", 10), ("GPU-big", 80)]),
        ("GPU-b", [("GPU-b", 40)]),  # CUDA takes the beginning of a UUID
        ("", []),
        ("-1", []),
        ("0,-1,1", [("0", 40)]),
        ("0,2,1", [("0", 40)]),
    ],
)
def test_the_gpus_are_those_that_cuda_visible_devices_leaves_under_the_names_it_gives(visible, found):
    assert [(gpu.name, gpu.memory_mib // 1024) for gpu in find_gpus(visible)] == found


def test_a_machine_without_nvidias_driver_has_no_gpu_whatever_the_variable_says(monkeypatch):
    def fail():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert find_gpus("0") == find_gpus(None) == []
