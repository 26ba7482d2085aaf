"""The weights that a training starts from: those of a trained model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import keras
import numpy as np
import numpy.typing as npt
import safetensors.numpy

from pipeline.config.training import ModelConfig, TrainingConfig
from pipeline.config.weights_from import RULE, weights_file
from pipeline.data.dataset import Dataset
from pipeline.model import timm_weights
from pipeline.model.conv_mixer import HEAD
from pipeline.model.ensemble import ensemble_members
from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import sha256_file
from pipeline.runtime.text import one_line
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.models import load_model, logged_splits, resolve_model_uri

STEM = "patch_embedding"

Layers = Mapping[str, Sequence[npt.NDArray[np.float32]]]


@dataclass(frozen=True)
class InitialWeights:
    """The weights of a trained model, and what the network is that they belong to."""

    origin: str  # a model's URI, or an absolute path
    layers: Layers  # by the layer's name, in Keras' order
    architecture: Mapping[str, object]  # settings of `ModelConfig`, by name
    classes: tuple[str, ...] = ()  # none where it is unknown what the outputs mean
    resize: str = ""  # how its images of another size were resized; empty where that is unknown
    model_id: str = ""  # of a model in MLflow
    run_id: str = ""  # of the run that trained it
    digest: str = ""  # SHA-256 of a file
    image_shape: tuple[int, ...] = ()  # (height, width, channels) of its images; empty where that is unknown
    setting: str = "weights_from"  # the one that names the model
    data_fingerprint: str = ""  # of the data that it was trained on; empty where that is unknown
    splits: Mapping[str, str] = field(default_factory=dict)  # digest of each split of these, by what it was for

    @classmethod
    def load(cls, origin: str) -> Self:
        """Load the model that the setting `weights_from` names.

        Raises:
            UsageError: There is none, or it is no ConvMixer.
        """
        if path := weights_file(origin):
            return cls._read(path, _read_keras if path.suffix == ".keras" else _read_safetensors)
        return cls.load_logged(origin)

    @classmethod
    def load_logged(cls, origin: str, *, setting: str = "weights_from", rule: str = RULE) -> Self:
        """Load a model of MLflow that a setting names.

        Raises:
            UsageError: There is none, or it is not what the rule says: no ConvMixer.
        """
        client = TrackingClient()
        found = load_model(client, resolve_model_uri(client, origin))
        layers, architecture = _take_apart(found.model, origin, f"{setting} must be {rule}")
        fingerprint, splits = logged_splits(client, found.run_id)
        return cls(
            f"models:/{found.model_id}",
            layers,
            architecture,
            classes=found.classes,
            resize=found.resize,
            model_id=found.model_id,
            run_id=found.run_id,
            image_shape=found.image_shape,
            setting=setting,
            data_fingerprint=fingerprint,
            splits=splits,
        )

    def complete(self, config: TrainingConfig) -> TrainingConfig:
        """Return the settings with what is unset of the network's architecture taken from the model.

        A setting counts as set if the recipe or a flag names it, also where it is the default.
        """
        unset = {name: value for name, value in self.architecture.items() if name not in config.model_fields_set}
        return config.model_copy(update={"weights_from": self.origin, **unset})

    def check(self, config: TrainingConfig, image_shape: Sequence[int]) -> None:
        """Raise UsageError, which names the layer and both shapes, if the weights do not fit the network.

        Args:
            config: Complete, see `complete`.
            image_shape: (height, width, channels).
        """
        channels = image_shape[2]
        if (_channels(self.layers), channels) not in {(channels, channels), (3, 1), (1, 3)}:
            raise UsageError(
                f"{self.setting} must be for images of {channels} channels, or for gray where these are RGB or the "
                f"other way round: {self.origin} is for {_channels(self.layers)}"
            )
        for name, expected in _kernel_shapes(config.model, _channels(self.layers)).items():
            found = self.layers[name][0].shape if name in self.layers else None
            if found != expected:
                raise UsageError(
                    f"weights_from must fit the network: {name} is {_by(found)} in {self.origin}, and {_by(expected)} "
                    f"with these settings; leave out {_settings_of(name)} to take over the model's"
                )
        deepest = int(str(self.architecture["depth"]))
        if deepest > config.depth:
            raise UsageError(
                f"weights_from must fit the network: block{deepest}_depthwise is in {self.origin}, and not in a "
                f"network of depth={config.depth}; leave out depth to take over the model's"
            )

    def copy_to(self, model: keras.Model, classes: Sequence[str]) -> None:
        """Set the weights of a network that `check` has accepted; the last layer's only if the classes are the same."""
        for layer in model.layers:
            if layer.name == HEAD:
                if self.has_classes(classes):
                    order = [self.classes.index(name) for name in classes]
                    layer.set_weights([weight[..., order] for weight in self.layers[HEAD]])
            elif layer.name == STEM:
                kernels, bias = self.layers[STEM]
                layer.set_weights([_for_channels(kernels, model.input_shape[-1]), bias])
            elif layer.name in self.layers:
                layer.set_weights(self.layers[layer.name])

    def has_classes(self, classes: Sequence[str]) -> bool:
        """Return whether the model tells the same classes apart, in any order."""
        return sorted(self.classes) == sorted(classes)

    def leak(self, dataset: Dataset, *, remedy: str = "") -> str | None:
        """Return a warning if the model was trained on images by which this training is judged, else None.

        Its run has then split the same data otherwise. Of other data nothing is known.

        Args:
            dataset: Of the training.
            remedy: What would do, if that is not a model of the same split.
        """
        if self.data_fingerprint != dataset.fingerprint:
            return None
        judging = {"validation": dataset.validation, "test": dataset.test}
        known = [name for name, split in judging.items() if len(split) and self.splits.get(name) != split.digest]
        if not known:
            return None
        if dataset.folds:
            remedy = "leave folds out, or take one that was trained on other images"
        remedy = remedy or "try one of the same seed, validation_fraction and refit"
        return (
            f"{' and '.join(known)} accuracy may flatter: {self.setting} {self.origin} was trained on some of these "
            f"images, as its run split them otherwise; {remedy}"
        )

    def describe(self, config: TrainingConfig, dataset: Dataset) -> str:
        """Return what is taken over and what is not, for the terminal."""
        if self.has_classes(dataset.classes):
            parts = ["all layers"]
        else:
            parts = ["all layers but the last, as " + ("the classes differ" if self.classes else "it names no classes")]
        channels = dataset.image_shape[2]
        if channels < _channels(self.layers):
            parts.append("its kernels for RGB summed for gray images")
        elif channels > _channels(self.layers):
            parts.append("its kernels for gray images shared out among RGB")
        for name in ("activation", "batch_norm_epsilon"):
            if getattr(config, name) != self.architecture[name]:
                parts.append(f"{name} {config.text(name)} instead of {self.architecture[name]}")
        if self.resize not in ("", config.resize):
            parts.append(f"resize {config.resize} instead of {self.resize}")
        return f"{self.origin}: {'; '.join(parts)}"

    @classmethod
    def _read(cls, path: Path, read: Callable[[Path], tuple[Layers, dict[str, object]]]) -> Self:
        try:
            layers, architecture = read(path)
            digest = sha256_file(path)
        except UsageError:
            raise
        except Exception as error:  # noqa: BLE001 - zipfile, JSON, HDF5, Keras and safetensors raise dozens of kinds
            raise UsageError(
                f"weights_from must be {RULE}: {path} cannot be read as one: {one_line(error, most=300)}"
            ) from None
        return cls(str(path), layers, architecture, digest=digest)


def _read_keras(path: Path) -> tuple[Layers, dict[str, object]]:
    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    return _take_apart(model, str(path), f"weights_from must be {RULE}")


def _read_safetensors(path: Path) -> tuple[Layers, dict[str, object]]:
    arrays = safetensors.numpy.load_file(path)
    return timm_weights.keras_layers(arrays), timm_weights.architecture(arrays)


def _take_apart(model: keras.Model, origin: str, rule: str) -> tuple[Layers, dict[str, object]]:
    """Return the weights of a network of stock layers, and its architecture.

    Raises:
        UsageError: It is no ConvMixer of this program, or an ensemble of several.
    """
    if members := ensemble_members(model):
        raise UsageError(
            f"{rule}, of one network: {origin} is an ensemble of {len(members)}; name a run that trained one network"
        )
    layers = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    try:
        patch_size, _, channels, filters = layers[STEM][0].shape
        architecture: dict[str, object] = {
            "filters": filters,
            "depth": sum(name.endswith("_depthwise") for name in layers),
            "kernel_size": layers["block1_depthwise"][0].shape[0],
            "patch_size": patch_size,
            "activation": "relu" if any(layer.name == f"{STEM}_relu" for layer in model.layers) else "gelu",
            "batch_norm_epsilon": model.get_layer(f"{STEM}_norm").epsilon,
        }
        for name, shape in _kernel_shapes(ModelConfig.build(architecture), channels).items():
            if layers[name][0].shape != shape:
                raise ValueError(name)
    except (KeyError, ValueError, UsageError) as error:
        raise UsageError(f"{rule}: {origin} is no ConvMixer of this program ({one_line(error, most=100)})") from None
    return layers, architecture


def _channels(layers: Layers) -> int:
    """Return the number of channels of the images that weights are for."""
    return layers[STEM][0].shape[2]


def _kernel_shapes(config: ModelConfig, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of the kernels of each convolution, by the layer's name."""
    patch, side, filters = config.patch_size, config.kernel_size, config.filters
    shapes: dict[str, tuple[int, ...]] = {STEM: (patch, patch, channels, filters)}
    for block in range(1, config.depth + 1):
        shapes[f"block{block}_depthwise"] = (side, side, filters, 1)
        shapes[f"block{block}_pointwise"] = (1, 1, filters, filters)
    return shapes


def _settings_of(name: str) -> str:
    """Return the settings that decide the shape of a layer."""
    if name == STEM:
        return "patch_size and filters"
    return "kernel_size, filters and depth" if name.endswith("depthwise") else "filters and depth"


def _by(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape)) if shape else "missing"


def _for_channels(kernels: npt.NDArray[np.float32], channels: int) -> npt.NDArray[np.float32]:
    """Return kernels (p, p, c, filters) for images of another number of channels.

    A gray image is an RGB image with three equal channels, so the sum over these gives what the model would answer; one
    kernel for gray is shared out in three equal parts.
    """
    if kernels.shape[2] == channels:
        return kernels
    if channels == 1:
        return kernels.sum(axis=2, keepdims=True)
    return np.repeat(kernels / channels, channels, axis=2)
