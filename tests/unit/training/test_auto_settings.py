"""Settings at auto: what they stand for on a device, and what is refused."""

import os
from dataclasses import replace

import pytest

from pipeline.config.training import TrainingConfig
from pipeline.runtime.device import Device
from pipeline.runtime.errors import UsageError
from pipeline.training import auto_settings
from pipeline.training.auto_settings import resolve_auto
from tests.support.training_runs import small_dataset

CPU = Device("CPU", "any", capability=None)


def test_resolve_auto_leaves_no_auto_and_an_absolute_path(tmp_path):
    config = TrainingConfig.build({"dataset": os.path.relpath(tmp_path)})
    resolved = resolve_auto(config, small_dataset(str(tmp_path)), CPU)
    assert "auto" not in {resolved.text(name) for name in TrainingConfig.model_fields}
    assert resolved.dataset == str(tmp_path)


def test_resolve_auto_with_explicit_settings_keeps_them():
    settings = {"precision": "float32", "jit_compile": True, "fast_layers": False, "steps_per_execution": 2}
    config = TrainingConfig.build(settings | {"data_on": "device"})
    assert resolve_auto(config, small_dataset(), CPU) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fast_layers": True}, "fast_layers must be false or auto with devices=all"),
        ({"batch_size": 127}, "batch_size must be a multiple of the 2 devices that share it: got 127"),
        (
            {"gradient_accumulation": 2},
            "gradient_accumulation must be 1 on 2 devices, .*: got 2; try a larger",
        ),
        ({"jit_compile": True}, "jit_compile must be false or auto with devices=all, .*: got true"),
        ({"precision": "mixed_float16"}, "precision must not be mixed_float16 on 2 devices, .*; try mixed_bfloat16"),
    ],
)
def test_resolve_auto_with_settings_that_devices_cannot_share_raises_usage_error(settings, message):
    two = Device("GPU", "any", capability=(9, 0), count=2)
    with pytest.raises(UsageError, match=message):
        resolve_auto(TrainingConfig.build(settings), small_dataset(), two)


GPU = Device("GPU", "any", capability=(9, 0))


@pytest.mark.parametrize(
    ("device", "settings", "expected"),
    [
        (CPU, {}, {"jit_compile": False, "fast_layers": True, "steps_per_execution": 1, "data_on": "host"}),
        (CPU, {"activation": "relu"}, {"jit_compile": False, "fast_layers": False, "steps_per_execution": 1}),
        (CPU, {"data_on": "device", "progressive_resize": "16:0.5"}, {"data_on": "device"}),
        (GPU, {}, {"precision": "mixed_bfloat16", "jit_compile": True, "fast_layers": False}),
        (GPU, {"activation": "relu", "fast_layers": False}, {"fast_layers": False, "steps_per_execution": 16}),
        (GPU, {"data_on": "host"}, {"data_on": "host"}),
        (replace(GPU, count=2), {"batch_size": 128}, {"jit_compile": False, "data_on": "host"}),
        (replace(GPU, capability=(7, 0)), {}, {"precision": "mixed_float16"}),
    ],
)
def test_resolve_auto_gives_each_setting_what_suits_the_device(device, settings, expected):
    config = TrainingConfig.build({"dataset": "digits"} | settings)
    resolved = resolve_auto(config, small_dataset(), device)
    assert {name: getattr(resolved, name) for name in expected} == expected
    assert resolved.dataset == "digits"


def test_resolve_auto_with_deterministic_operations_compiles_nothing(monkeypatch):
    monkeypatch.setenv("TF_DETERMINISTIC_OPS", "1")
    resolved = resolve_auto(TrainingConfig.build({}), small_dataset(), GPU)
    assert (resolved.jit_compile, resolved.data_on) == (False, "host")
    with pytest.raises(UsageError, match="^jit_compile must be false or auto with TF_DETERMINISTIC_OPS, .*: got true$"):
        resolve_auto(TrainingConfig.build({"jit_compile": True}), small_dataset(), GPU)


def test_resolve_auto_refuses_fast_layers_of_another_activation():
    config = TrainingConfig.build({"fast_layers": True, "activation": "relu"})
    with pytest.raises(UsageError, match="^fast_layers must be false or auto with activation=relu, got true$"):
        resolve_auto(config, small_dataset(), CPU)


def test_resolve_auto_asks_for_room_for_all_training_images(monkeypatch):
    asked = []
    monkeypatch.setattr(auto_settings, "free_memory", lambda: 1000)
    monkeypatch.setattr(auto_settings, "data_on_for", lambda *given, **named: asked.append((given, named)) or "host")
    dataset = small_dataset()
    dataset.train, dataset.image_shape = range(7), (4, 5, 3)
    resolve_auto(TrainingConfig.build({}), dataset, GPU)
    assert asked == [((GPU,), {"image_bytes": 7 * 60, "free_bytes": 1000, "compiled": True})]


@pytest.mark.parametrize(
    ("device", "settings", "message"),
    [
        (Device("GPU", "any", (9, 0), count=2), {}, "devices=all, each of which makes a part of a batch"),
        (GPU, {"jit_compile": False}, "jit_compile=false on a GPU"),
        (GPU, {"progressive_resize": "16:0.5"}, "progressive_resize, which XLA cannot compile"),
    ],
)
def test_resolve_auto_refuses_data_on_a_device_that_cannot_make_batches(device, settings, message):
    config = TrainingConfig.build({"data_on": "device"} | settings)
    with pytest.raises(UsageError, match=rf"^data_on must be host or auto with {message}.*: got device$"):
        resolve_auto(config, small_dataset(), device)


@pytest.mark.parametrize(
    ("free_bytes", "settings", "place"),
    [
        (10**9, {}, "device"),
        (3 * 64, {}, "host"),
        (10**9, {"jit_compile": False}, "host"),
        (10**9, {"progressive_resize": "16:0.5"}, "host"),
    ],
)
def test_resolve_auto_puts_data_on_a_gpu_with_room_that_can_make_batches(monkeypatch, free_bytes, settings, place):
    monkeypatch.setattr(auto_settings, "free_memory", lambda: free_bytes)
    assert resolve_auto(TrainingConfig.build(settings), small_dataset(), GPU).data_on == place
