"""The device: its choice, the precision, compilation and layers for it, and the warning for an unused GPU."""

import json
import os
from types import SimpleNamespace

import psutil
import pynvml
import pytest
import tensorflow as tf

from pipeline.runtime import cpu, device
from pipeline.runtime.device import (
    Device,
    check_single_host,
    data_on_for,
    fast_layers_for,
    free_memory,
    hide_gpus,
    jit_compile_for,
    precision_for,
    steps_per_execution_for,
    unused_gpu,
)
from pipeline.runtime.errors import UsageError

CPU = Device("CPU", "some processor", None)


@pytest.mark.parametrize(
    ("capability", "precision"),
    [
        ((6, 1), "float32"),
        ((7, 0), "mixed_float16"),
        ((7, 5), "mixed_float16"),
        ((8, 0), "mixed_bfloat16"),
        ((9, 0), "mixed_bfloat16"),
        ((10, 0), "mixed_bfloat16"),
    ],
)
def test_precision_for_a_gpu_follows_its_compute_capability(capability, precision):
    assert precision_for(Device("GPU", "some", capability)) == precision


@pytest.mark.parametrize(("able", "precision"), [(False, "float32"), (True, "mixed_bfloat16")])
def test_precision_for_a_cpu_follows_its_instructions(able, precision, monkeypatch):
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: able)
    assert precision_for(CPU) == precision


def test_fast_layers_for_a_cpu_only():
    assert fast_layers_for(CPU)
    assert not fast_layers_for(Device("GPU", "some", (8, 0)))


def test_steps_per_execution_for_a_gpu_are_many_and_for_a_cpu_one():
    assert steps_per_execution_for(Device("GPU", "some", (8, 0))) == 16
    assert steps_per_execution_for(CPU) == 1


@pytest.mark.parametrize(
    ("device", "free_bytes", "compiled", "place"),
    [
        (Device("GPU", "some", (8, 0)), 401, True, "device"),
        (Device("GPU", "some", (8, 0)), 400, True, "host"),
        (Device("GPU", "some", (8, 0)), 401, False, "host"),
        (Device("GPU", "some", (8, 0), count=2), 401, True, "host"),
        (CPU, 401, True, "host"),
    ],
)
def test_data_on_for_one_gpu_whose_memory_has_four_times_the_images(device, free_bytes, compiled, place):
    assert data_on_for(device, image_bytes=100, free_bytes=free_bytes, compiled=compiled) == place


def test_jit_compile_for_a_gpu_and_not_for_a_cpu_nor_with_deterministic_operations(monkeypatch):
    gpu = Device("GPU", "some", (8, 0))
    monkeypatch.delenv("TF_DETERMINISTIC_OPS", raising=False)
    assert jit_compile_for(gpu) and not jit_compile_for(CPU)
    for value, compiled in (("1", False), ("true", False), ("True", False), ("0", True), ("", True)):
        monkeypatch.setenv("TF_DETERMINISTIC_OPS", value)
        assert jit_compile_for(gpu) is compiled


def test_hide_gpus_leaves_them_to_others_unless_they_are_in_use(monkeypatch):
    calls = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *given: calls.append(given))
    hide_gpus()
    assert calls == [([], "GPU")]
    in_use = RuntimeError("Visible devices cannot be modified after being initialized")
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *given: (_ for _ in ()).throw(in_use))
    hide_gpus()


def test_select_device_takes_one_gpu_with_memory_growth_and_its_capability(monkeypatch):
    calls = []
    gpus = [
        tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU"),
        tf.config.PhysicalDevice("/physical_device:GPU:1", "GPU"),
    ]
    details = {"device_name": "NVIDIA A100", "compute_capability": (8, 0)}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus if kind == "GPU" else [])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *given: calls.append(("visible", *given)))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda *given: calls.append(("growth", *given)))
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details if gpu is gpus[0] else {})
    assert device.select_device("one") == Device("GPU", "NVIDIA A100", (8, 0))
    assert calls == [("visible", gpus[:1], "GPU"), ("growth", gpus[0], True)]


def test_select_device_all_takes_every_gpu_with_the_least_capability(monkeypatch):
    calls = []
    gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{index}", "GPU") for index in range(2)]
    capabilities = dict(zip(gpus, [(9, 0), (7, 5)], strict=True))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus if kind == "GPU" else [])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *given: calls.append(("visible", *given)))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda *given: calls.append(("growth", *given)))
    monkeypatch.setattr(
        tf.config.experimental,
        "get_device_details",
        lambda gpu: {"device_name": "NVIDIA", "compute_capability": capabilities[gpu]},
    )
    selected = device.select_device("all")
    assert selected == Device("GPU", "NVIDIA", (7, 5), 2)
    assert str(selected) == "GPU 2 x NVIDIA"
    assert calls == [("visible", gpus, "GPU"), ("growth", gpus[0], True), ("growth", gpus[1], True)]
    # Keras' loss scaling would look for overflow on the first of them alone
    assert (precision_for(selected), jit_compile_for(selected), fast_layers_for(selected)) == ("float32", False, False)


def test_strategy_of_one_device_is_the_default():
    assert Device("CPU", "some", None).strategy().num_replicas_in_sync == 1


@pytest.mark.parametrize(("usable", "name"), [(16, "Some, 8 cores"), (4, "Some, 4 of 16 threads")])
def test_select_device_without_a_gpu_names_the_processor_and_its_usable_part(monkeypatch, usable, name):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(cpu, "processor_name", lambda: "Some")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 16 if logical else 8)
    monkeypatch.setattr(device, "available_cores", lambda: usable)
    monkeypatch.delenv("TF_NUM_INTEROP_THREADS", raising=False)
    assert device.select_device("all") == Device("CPU", name, None)
    assert os.environ["TF_NUM_INTEROP_THREADS"] == "1"


def test_unused_gpu_warns_with_the_remedy(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device, "_nvidia_gpus", lambda: ["NVIDIA H200"])
    warning = unused_gpu(CPU)
    assert warning is not None
    assert "NVIDIA H200" in warning and f"tensorflow[and-cuda]=={tf.__version__}" in warning


def test_unused_gpu_names_a_gpu_that_does_not_answer(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: handle)

    def handle(index):
        if index:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return "NVIDIA H200"

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", handle)
    assert "this machine has NVIDIA H200, GPU 1 (which does not answer: " in unused_gpu(CPU)


@pytest.mark.parametrize(("visible", "asked"), [(None, 0), ("2,3", 2), ("GPU-1a", "GPU-1a")])
def test_free_memory_is_that_of_the_first_visible_gpu_up_to_its_part(monkeypatch, visible, asked):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda name: name)
    free = {asked: SimpleNamespace(free=3 << 20)}
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", free.__getitem__)
    assert free_memory() == 3 << 20
    part = tf.config.LogicalDeviceConfiguration(memory_limit=2)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["a GPU"])
    monkeypatch.setattr(tf.config, "get_logical_device_configuration", lambda gpu: [part])
    assert free_memory() == 2 << 20


def test_unused_gpu_ignores_a_gpu_hidden_on_purpose_or_in_use(monkeypatch):
    monkeypatch.setattr(device, "_nvidia_gpus", lambda: ["NVIDIA H200"])
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert unused_gpu(CPU) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert unused_gpu(Device("GPU", "NVIDIA H200", (9, 0))) is None


def test_unused_gpu_without_nvidias_driver_is_none(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def no_driver():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert unused_gpu(CPU) is None
    assert free_memory() == 0


@pytest.mark.parametrize("cluster", [{"worker": ["a:1", "b:1"]}, {"chief": ["a:1"], "worker": ["b:1"]}])
def test_check_single_host_refuses_several_workers(cluster):
    with pytest.raises(UsageError, match="one run trains on one host, .* TF_CONFIG names 2 workers; unset it"):
        check_single_host({"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 0}})})


@pytest.mark.parametrize(
    "text", [None, "", "{}", "no JSON", "[]", '{"cluster": {"worker": ["a:1"]}}', '{"cluster": 1}']
)
def test_check_single_host_accepts_anything_else(text):
    check_single_host({} if text is None else {"TF_CONFIG": text})
