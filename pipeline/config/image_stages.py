"""The settings `progressive_resize` and `clean_epochs`: how the training images change from epoch to epoch."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import UsageError


class ImageStage(NamedTuple):
    """Successive epochs that train on images of one size, augmented in one way."""

    last_epoch: int  # number of epochs after it
    size: tuple[int, int]  # (height, width) in pixels
    clean: bool  # whether the epochs are among `clean_epochs`


def image_stages(config: TrainingConfig, image_shape: Sequence[int]) -> list[ImageStage]:
    """Return the stages of a training by its images; in the last one they have their own size.

    Args:
        config: Settings that suit the images, see `check_image_stages`.
        image_shape: (height, width, channels) of the images in pixels.
    """
    stages: list[ImageStage] = []
    for last_epoch, size in _size_stages(config, image_shape):
        first_epoch = stages[-1].last_epoch if stages else 0
        if first_epoch < _first_clean_epoch(config) < last_epoch:
            stages.append(ImageStage(_first_clean_epoch(config), size, clean=False))
        stages.append(ImageStage(last_epoch, size, is_clean(config, last_epoch - 1)))
    return stages


def is_clean(config: TrainingConfig, epoch: int) -> bool:
    """Return whether an epoch, counted from 0, is among `clean_epochs`."""
    return epoch >= _first_clean_epoch(config)


def check_image_stages(config: TrainingConfig, image_shape: Sequence[int]) -> None:
    """Raise UsageError if `progressive_resize` suits neither images nor patches, or leaves a size no epoch."""
    height, width = image_shape[:2]
    given = f"got progressive_resize={config.progressive_resize}"
    for side, _ in _parse(config.progressive_resize):
        sizes = [part * side / min(height, width) for part in (height, width)]
        if side > min(height, width) or any(size % config.patch_size for size in sizes):
            fitting = [
                candidate
                for candidate in range(1, min(height, width))
                if all(part * candidate / min(height, width) % config.patch_size == 0 for part in (height, width))
            ]
            raise UsageError(
                f"progressive_resize must have sides below the image's that patch_size={config.patch_size} divides, "
                f"with images of {height}x{width} pixels, {given}; "
                f"try {'a side of ' + ', '.join(map(str, fitting)) if fitting else 'none'}"
            )
    ends = [0, *(last_epoch for last_epoch, _ in _size_stages(config, image_shape))]
    if any(last <= first for first, last in pairwise(ends)):
        raise UsageError(
            f"progressive_resize must leave each size, and the images' own at the end, at least one epoch of "
            f"epochs={config.epochs}, {given}; try larger shares, whose sum is below 1"
        )


def _first_clean_epoch(config: TrainingConfig) -> int:
    return config.epochs - config.clean_epochs


def _size_stages(config: TrainingConfig, image_shape: Sequence[int]) -> list[tuple[int, tuple[int, int]]]:
    """Return of each size the number of epochs after those that train on it, and (height, width) in pixels."""
    height, width = image_shape[:2]
    stages, share = [], 0.0
    for side, share_of_side in _parse(config.progressive_resize):
        share += share_of_side
        scale = side / min(height, width)
        stages.append((round(share * config.epochs), (round(height * scale), round(width * scale))))
    return [*stages, (config.epochs, (height, width))]


def _parse(text: str | None) -> list[tuple[int, float]]:
    """Return the sides in pixels and the shares of the epochs."""
    parts = [part.split(":") for part in text.split(",")] if text else []
    return [(int(side), float(share)) for side, share in parts]
