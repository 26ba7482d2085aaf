"""What of a run's settings decides its result: those that others make idle are left out of comparisons."""

from collections.abc import Callable, Mapping

from pipeline.config.training import CHANGE_NO_RESULT, CHANGE_ROUNDING, TrainingConfig

LEFT_OUT_OF_CLEAN_EPOCHS = (
    "randaugment_layers",
    "color_jitter",
    "random_erasing",
    "cutout",
    "mixup_alpha",
    "cutmix_alpha",
)
# When a setting has no effect, whatever its value
IDLE: Mapping[str, Callable[[TrainingConfig], bool]] = {
    "crop_ratio": lambda config: config.crop_scale == 1,
    "randaugment_magnitude": lambda config: config.randaugment_layers == 0,
    "clean_epochs": lambda config: not any(getattr(config, name) for name in LEFT_OUT_OF_CLEAN_EPOCHS),
    "mix_probability": lambda config: config.mixup_alpha == 0 and config.cutmix_alpha == 0,
    "warmup_fraction": lambda config: config.schedule == "constant",
    "muon_momentum": lambda config: config.optimizer != "muon",
    # no more epochs without a better one than there are epochs
    "early_stopping_epochs": lambda config: (config.early_stopping_epochs or config.epochs) >= _epochs_to_stop(config),
    # without validation images the last epoch is the one that counts
    "monitor": lambda config: config.refit,
    # all kernels but the last layer's are the model's
    "depthwise_init": lambda config: config.weights_from is not None,
    **dict.fromkeys(
        ("teacher", "teacher_weight", "teacher_temperature"),
        lambda config: config.teacher is None or config.teacher_weight == 0,
    ),
}


def _epochs_to_stop(config: TrainingConfig) -> int:
    """Return the number of epochs in which patience counts: not in those of the last layer alone, if others follow."""
    return config.epochs - config.head_epochs if config.head_epochs < config.epochs else config.epochs


def effective(config: TrainingConfig) -> TrainingConfig:
    """Return the settings with those at their defaults that have no effect beside the others.

    Two runs train alike if their effective settings are equal.
    """
    defaults = TrainingConfig.build({})
    idle = {name for name, is_idle in IDLE.items() if is_idle(config)}
    idle |= CHANGE_NO_RESULT | CHANGE_ROUNDING
    return config.model_copy(update={name: getattr(defaults, name) for name in idle})
