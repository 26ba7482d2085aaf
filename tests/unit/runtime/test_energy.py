"""Tests of reading energy counters: a folder as Linux makes it, and a library as NVIDIA's."""

import pynvml
import pytest

from pipeline.runtime.energy import Counter, EnergyMeter

KWH = 3_600_000.0
RANGE = 262_143_328_850  # microjoules, of a real processor


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Nvml:
    """NVIDIA's library with GPUs whose counters, in millijoules, a test sets; None is a GPU without a counter."""

    def __init__(self, *millijoules):
        self.millijoules = list(millijoules)

    def nvmlInit(self):
        if not self.millijoules:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    def nvmlDeviceGetCount(self):
        return len(self.millijoules)

    def nvmlDeviceGetHandleByIndex(self, index):
        if index >= len(self.millijoules):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return index

    def nvmlDeviceGetHandleByUUID(self, name):
        return self.nvmlDeviceGetHandleByIndex(int(name.removeprefix("GPU-")))

    def nvmlDeviceGetTotalEnergyConsumption(self, device):
        if self.millijoules[device] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self.millijoules[device]


def zone(powercap, folder, name, microjoules, most=RANGE):
    path = powercap / folder
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{most}\n")
    return path / "energy_uj"


@pytest.fixture
def powercap(tmp_path):
    return tmp_path / "powercap"


def find(powercap, *millijoules, **environ):
    return EnergyMeter.find(powercap=powercap, nvml=Nvml(*millijoules), environ=environ)


def test_find_without_any_counter_is_none(powercap):
    assert find(powercap) is None


def test_find_counts_packages_and_memory_once(powercap):
    zone(powercap, "intel-rapl:0", "package-0", 0)
    zone(powercap, "intel-rapl:0:0", "core", 0)
    zone(powercap, "intel-rapl:0:1", "dram", 0)
    zone(powercap, "intel-rapl:1", "package-1", 0)
    zone(powercap, "intel-rapl:2", "psys", 0)
    zone(powercap, "intel-rapl-mmio:0", "package-0", 0)
    assert find(powercap).parts == "package-0, dram-0, package-1"


def test_find_leaves_out_counters_that_cannot_be_read(powercap):
    zone(powercap, "intel-rapl:0", "package-0", 0).unlink()
    (powercap / "intel-rapl:0" / "energy_uj").mkdir()
    assert find(powercap) is None
    assert find(powercap, 5).parts == "GPU 0"


@pytest.mark.parametrize(
    ("visible", "parts"),
    [({}, "GPU 0, GPU 1"), ({"CUDA_VISIBLE_DEVICES": "1"}, "GPU 1"), ({"CUDA_VISIBLE_DEVICES": "GPU-1"}, "GPU GPU-1")],
)
def test_find_counts_the_gpus_that_the_process_may_use(powercap, visible, parts):
    assert find(powercap, 1, 2, **visible).parts == parts


def test_find_with_hidden_gpus_counts_the_processors_alone(powercap):
    zone(powercap, "intel-rapl:0", "package-0", 0)
    assert find(powercap, 1, CUDA_VISIBLE_DEVICES="-1").parts == "package-0"


@pytest.mark.parametrize("visible", [{}, {"CUDA_VISIBLE_DEVICES": "0,7"}, {"CUDA_VISIBLE_DEVICES": "MIG-x"}])
def test_find_makes_nothing_up_where_a_gpu_has_no_counter(powercap, visible):
    zone(powercap, "intel-rapl:0", "package-0", 0)
    assert find(powercap, 1, None, **visible) is None


def test_kwh_sums_the_counters_since_the_meter_was_made(powercap):
    file = zone(powercap, "intel-rapl:0", "package-0", 5_000_000)
    nvml = Nvml(7_000)
    meter = EnergyMeter.find(powercap=powercap, nvml=nvml, environ={})
    assert meter.kwh() == 0.0
    file.write_text("8000000\n")
    nvml.millijoules[0] = 9_000
    meter.sample()
    assert meter.kwh() == pytest.approx((3 + 2) / KWH)


def test_kwh_of_a_counter_that_begins_anew_goes_on(powercap):
    file = zone(powercap, "intel-rapl:0", "package-0", RANGE - 1_000_000)
    meter = find(powercap)
    file.write_text("2000000\n")
    meter.sample()
    assert meter.kwh() == pytest.approx(3 / KWH)


def make_meter(*readings, wraps_at=None):
    values = list(readings)
    clock = Clock()
    meter = EnergyMeter([Counter("x", lambda: values.pop(0), wraps_at)], clock=clock)
    return meter, clock


@pytest.mark.parametrize(
    ("readings", "seconds", "wraps_at"),
    [
        # a driver that was loaded anew
        ((100.0, 10.0), 10.0, None),
        # an overflow may have been missed
        ((100.0, 200.0), 3600.0, 262_143.0),
        # after a suspension the counter begins at zero
        ((200_000.0, 10.0), 10.0, 262_143.0),
    ],
)
def test_kwh_is_not_known_where_the_counter_cannot_be_trusted(readings, seconds, wraps_at):
    meter, clock = make_meter(*readings, readings[-1] + 1, wraps_at=wraps_at)
    clock.now += seconds
    meter.sample()
    assert meter.kwh() is None
    clock.now += 1
    meter.sample()
    assert meter.kwh() is None


def test_kwh_is_not_known_after_a_counter_fails():
    values = [1.0]

    def read():
        if not values:
            raise OSError("gone")
        return values.pop()

    meter = EnergyMeter([Counter("x", read)])
    meter.sample()
    assert meter.kwh() is None
