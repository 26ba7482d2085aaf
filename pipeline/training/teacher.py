"""Distillation: a trained model, the teacher, whose predictions a training learns beside the labels.

The teacher answers for the very images that the student is trained on, augmented and mixed as they are (Beyer et al.
2022, arXiv 2106.05237), in the compiled training step. Cross-entropy is linear in its targets, so that it is enough to
mix them: that of the mixture is (1 - w) times that of the labels plus w times that of the teacher's probabilities,
which is Hinton's loss (Hinton et al. 2015, arXiv 1503.02531) with the student at temperature 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import keras
import tensorflow as tf

from pipeline.config.training import TEACHER_RULE, TrainingConfig
from pipeline.data.dataset import Dataset
from pipeline.model.conv_mixer import HEAD, build_model
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import format_value, join_names
from pipeline.training.initial_weights import InitialWeights

Batch = tuple[tf.Tensor, ...]  # images (b, h, w, c), labels (b, classes), and with class weights those of the images


@dataclass(frozen=True)
class Teacher:
    """The model of the setting `teacher`."""

    network: InitialWeights

    @classmethod
    def load(cls, origin: str) -> Self:
        """Load the logged model that the setting names.

        Raises:
            UsageError: There is none, or it is no single ConvMixer.
        """
        return cls(InitialWeights.load_logged(origin, setting="teacher", rule=TEACHER_RULE))

    @property
    def origin(self) -> str:
        """Return the model's own URI, which names the same model for ever."""
        return self.network.origin

    def complete(self, config: TrainingConfig) -> TrainingConfig:
        """Return the settings with the model's own URI, as they are logged and resumed."""
        return config.model_copy(update={"teacher": self.origin})

    def check(self, config: TrainingConfig, dataset: Dataset) -> None:
        """Raise UsageError if the teacher's answers say nothing of these images."""
        if not self.network.has_classes(dataset.classes):
            raise UsageError(
                f"teacher must tell the data's classes apart, {join_names(dataset.classes)}: {self.origin} has "
                f"{join_names(self.network.classes)}"
            )
        self.network.check(self._settings(config), dataset.image_shape)

    def describe(self, config: TrainingConfig, dataset: Dataset) -> str:
        """Return who teaches, how much and with which images, for the terminal."""
        own, size = self._settings(config), self.network.image_shape[:2]
        parts = [f"ConvMixer-{own.filters}/{own.depth}, {format_value(config.teacher_weight)} of each target"]
        if config.teacher_temperature != 1:
            parts.append(f"at temperature {format_value(config.teacher_temperature)}")
        if size != dataset.image_shape[:2] or config.progressive_resize:
            parts.append(f"images of another size than {size[0]}x{size[1]} resized for it")
        return f"{self.origin}: {', '.join(parts)}"

    def build(self, config: TrainingConfig, dataset: Dataset) -> Callable[[Batch], Batch]:
        """Return `teach`, a part of the training step: it widens a batch's labels to labels and targets.

        The columns are the labels' (b, classes), by which accuracy is counted, and then the mixture's (b, classes), of
        which `TargetCrossentropy` takes the loss. The network is built under TensorFlow's current strategy, never
        trained, and in the student's precision.

        Args:
            config: Resolved, with no setting left at auto.
            dataset: Its classes are in the order of the labels.
        """
        height, width = self.network.image_shape[:2]
        model = build_model(self._settings(config), (height, width, dataset.image_shape[2]), len(dataset.classes))
        self.network.copy_to(model, dataset.classes)
        model.trainable = False
        head = model.get_layer(HEAD)
        head.set_weights([weights / config.teacher_temperature for weights in head.get_weights()])

        def teach(batch: Batch) -> Batch:
            images, labels, *weights = batch
            seen = images if images.shape[1:3] == (height, width) else tf.image.resize(images, (height, width))
            taught = model(seen, training=False)
            targets = (1 - config.teacher_weight) * labels + config.teacher_weight * taught
            return images, tf.concat([labels, targets], axis=-1), *weights

        return teach

    def _settings(self, config: TrainingConfig) -> TrainingConfig:
        """Return the settings of a run with the teacher's architecture in place of the student's."""
        own = config.model_copy(update={**self.network.architecture, "depthwise_init": "glorot_uniform"})
        # the layers that are faster know no other activation
        return own.model_copy(update={"fast_layers": config.fast_layers is True and own.activation == "gelu"})


class TargetCrossentropy(keras.losses.CategoricalCrossentropy):
    """Cross-entropy of the last columns of what a batch has as labels: the targets, where a teacher has added them."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss (b,) of labels (b, classes) or labels and targets (b, 2 classes)."""
        return super().call(y_true[..., -y_pred.shape[-1] :], y_pred)
