"""Whether a run's settings suit the images: what is refused, and what is warned of, before it is trained."""

import math
from collections.abc import Collection, Mapping, Sequence

from pipeline.config.image_stages import check_image_stages
from pipeline.config.monitor import OF_CLASSES
from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import printable


def validate_against_data(config: TrainingConfig, *, image_shape: Sequence[int], training_images: int) -> None:
    """Raise UsageError if a run with these settings cannot be trained on these images.

    Args:
        image_shape: (height, width, channels), in pixels.
        training_images: how many there are after the split.

    Raises:
        UsageError: the settings do not suit each other, see `validate_settings`, the patches do not tile the image,
            the outer weights of a kernel never meet a patch, the sizes of `progressive_resize` do not suit them, the
            batch or those of one update are larger than the training data, or the translation or the cutout is as
            large as the image.
    """
    validate_settings(config)
    height, width = image_shape[:2]
    size = f"{height}x{width} pixels"
    patch = config.patch_size
    if height % patch or width % patch:
        fitting = ", ".join(str(p) for p in range(1, min(height, width) + 1) if height % p == 0 == width % p)
        raise UsageError(f"patch_size must divide the image side: {size}, got patch_size={patch}; try one of {fitting}")
    check_image_stages(config, image_shape)
    grid = min(height, width) // patch
    # with 'same' padding a weight farther than grid - 1 from the centre only ever meets zeros
    largest = 2 * grid - 1
    if config.kernel_size > largest:
        raise UsageError(
            f"kernel_size must be at most 2 x grid - 1: {size} in patches of {patch} make a grid of {grid}, "
            f"got kernel_size={config.kernel_size}; try {largest} or less"
        )
    if config.batch_size > training_images:
        raise UsageError(
            f"batch_size must not exceed the training images: {training_images} here, "
            f"got batch_size={config.batch_size}; try {min(128, training_images)}"
        )
    if config.batch_size * config.gradient_accumulation > training_images:
        raise UsageError(
            f"gradient_accumulation must leave an epoch at least one update: {training_images} training images in "
            f"batches of {config.batch_size}, got gradient_accumulation={config.gradient_accumulation}; "
            f"try {training_images // config.batch_size} or less"
        )
    for name, try_part in (("translation", 8), ("cutout", 2)):
        pixels = getattr(config, name)
        if pixels >= min(height, width):
            raise UsageError(
                f"{name} must be less than the image side: {size}, got {name}={pixels}; "
                f"try {min(height, width) // try_part}"
            )


def validate_settings(config: TrainingConfig, *, unknown: Collection[str] = ()) -> None:
    """Raise UsageError if a run's settings do not suit each other, whatever the images are.

    Args:
        config: The settings.
        unknown: Names of those whose values are not known yet, as a search draws them.

    Raises:
        UsageError: a training without validation images goes by them, there are fewer blocks or epochs than are to be
            frozen, or fewer epochs than clean ones, rare classes are made up for twice, or kernels of folds are to be
            drawn.
    """
    check_refit(config)
    for part, whole in (("freeze_blocks", "depth"), ("head_epochs", "epochs"), ("clean_epochs", "epochs")):
        value, most = getattr(config, part), getattr(config, whole)
        if value > most and not {part, whole} & {*unknown}:
            raise UsageError(f"{part} must be at most {whole}: {whole}={most}, got {part}={value}")
    if (
        config.class_weights != "none"
        and config.sampling == "balanced"
        and not {"class_weights", "sampling"} & {*unknown}
    ):
        raise UsageError(
            "class_weights must be none with sampling=balanced, as either makes up for rare classes, and both make "
            f"them count too much: got {config.class_weights}"
        )
    if config.folds and config.filter_steps:
        raise UsageError(
            f"filter_steps must be 0 with folds, whose networks draw no kernels: got {config.filter_steps} with "
            f"folds={config.folds}"
        )


def check_refit(config: TrainingConfig) -> None:
    """Raise UsageError if a run without validation images has a setting that goes by them."""
    if config.refit and config.early_stopping_epochs is not None:
        raise UsageError(
            "early_stopping_epochs must be none with refit, which leaves no validation images to stop by, got "
            f"{config.early_stopping_epochs}; set epochs instead"
        )
    if config.refit and config.folds is not None:
        raise UsageError(
            f"folds must be none with refit, which leaves no images to validate a fold by, got {config.folds}"
        )


def unequal_classes(config: TrainingConfig, images: Mapping[str, int]) -> str | None:
    """Return a warning if a class has less than a tenth of another one's images and no setting makes up for it.

    Args:
        config: The settings of a run.
        images: Number of training images of each class.
    """
    rarest, commonest = min(images, key=images.__getitem__), max(images, key=images.__getitem__)
    if config.class_weights != "none" or config.sampling != "uniform" or 10 * images[rarest] >= images[commonest]:
        return None
    # accuracy hardly changes if a rare class is passed over
    judged = "" if config.monitor in OF_CLASSES else f", and monitor={OF_CLASSES[0]}"
    return (
        f"rare classes may be passed over: {printable(rarest)} has {images[rarest]:,} training images and "
        f"{printable(commonest)} {images[commonest]:,}; try class_weights=balanced or sampling=balanced{judged}"
    )


def slow_batch_norm(config: TrainingConfig, *, steps_per_epoch: int) -> str | None:
    """Return a warning if batch norm's moving averages are near their initial values after an epoch, else None."""
    left = config.batch_norm_momentum**steps_per_epoch
    # with ema_momentum they are computed anew before each validation
    if left <= 0.05 or config.ema_momentum is not None:
        return None
    enough = math.floor(100 * 0.05 ** (1 / steps_per_epoch)) / 100
    return (
        f"validation will lag behind in the first epochs: with batch_norm_momentum={config.batch_norm_momentum} and "
        f"{steps_per_epoch} steps an epoch, batch norm's averages are {left:.0%} their initial values after one epoch; "
        f"try {enough} or less"
    )
