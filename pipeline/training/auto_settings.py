"""The settings that are `auto`: what each stands for on a device, and which settings the device cannot train with."""

import math
import os

from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import Dataset
from pipeline.runtime.device import (
    Device,
    data_on_for,
    fast_layers_for,
    free_memory,
    is_deterministic,
    jit_compile_for,
    precision_for,
    steps_per_execution_for,
)
from pipeline.runtime.errors import UsageError


def resolve_auto(config: TrainingConfig, dataset: Dataset, device: Device) -> TrainingConfig:
    """Return the settings with every `auto` resolved and the data set's path absolute, as they are logged.

    Raises:
        UsageError: The devices cannot train with these settings.
    """
    if device.count > 1 and config.fast_layers is True:
        raise UsageError("fast_layers must be false or auto with devices=all, as they see one device's share: got true")
    if config.activation != "gelu" and config.fast_layers is True:
        raise UsageError(f"fast_layers must be false or auto with activation={config.activation}, got true")
    if config.batch_size % device.count:
        raise UsageError(
            f"batch_size must be a multiple of the {device.count} devices that share it: got {config.batch_size}"
        )
    if device.count > 1 and config.gradient_accumulation > 1:
        raise UsageError(
            f"gradient_accumulation must be 1 on {device.count} devices, where Keras cannot add gradients up: got "
            f"{config.gradient_accumulation}; try a larger batch_size"
        )
    if device.count > 1 and config.jit_compile is True:
        raise UsageError("jit_compile must be false or auto with devices=all, which XLA cannot compile: got true")
    if config.jit_compile is True and is_deterministic(os.environ):
        raise UsageError(
            "jit_compile must be false or auto with TF_DETERMINISTIC_OPS, with which Keras compiles nothing: got true"
        )
    if device.count > 1 and config.precision == "mixed_float16":
        raise UsageError(
            f"precision must not be mixed_float16 on {device.count} devices, of which Keras' loss scaling looks for "
            "overflow on one alone; try mixed_bfloat16 or float32"
        )
    changes: dict[str, object] = {}
    if config.precision == "auto":
        changes["precision"] = precision_for(device)
    if config.jit_compile == "auto":
        changes["jit_compile"] = jit_compile_for(device)
    if config.fast_layers == "auto":
        changes["fast_layers"] = config.activation == "gelu" and fast_layers_for(device)
    if config.steps_per_execution == "auto":
        changes["steps_per_execution"] = steps_per_execution_for(device)
    changes["data_on"] = _resolve_data_on(config.model_copy(update=changes), dataset, device)
    if os.path.isabs(dataset.source):
        changes["dataset"] = dataset.source
    return config.model_copy(update=changes)


def _resolve_data_on(config: TrainingConfig, dataset: Dataset, device: Device) -> str:
    """Return where the batches are made.

    Raises:
        UsageError: The device cannot make them.
    """
    compiled = config.jit_compile is True
    if config.data_on == "auto":
        if device.kind == "CPU" or config.progressive_resize:
            return "host"
        image_bytes = len(dataset.train) * math.prod(dataset.image_shape)
        return data_on_for(device, image_bytes=image_bytes, free_bytes=free_memory(), compiled=compiled)
    if config.data_on == "device":
        given = "data_on must be host or auto with"
        if device.count > 1:
            raise UsageError(f"{given} devices=all, each of which makes a part of a batch: got device")
        if device.kind == "GPU" and not compiled:
            raise UsageError(f"{given} jit_compile=false on a GPU, which lacks some operations on bytes: got device")
        if compiled and config.progressive_resize:
            raise UsageError(f"{given} progressive_resize, which XLA cannot compile: got device")
    return config.data_on
