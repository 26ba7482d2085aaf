"""The setting `progressive_resize`: which size the training images of each epoch have."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import UsageError


class SizeStage(NamedTuple):
    """Successive epochs that train on images of one size."""

    last_epoch: int  # number of epochs after it
    size: tuple[int, int]  # (height, width) in pixels


def size_stages(config: TrainingConfig, image_shape: Sequence[int]) -> list[SizeStage]:
    """Return the stages of a training by image size; the last one has the images' own.

    Args:
        config: Settings that suit the images, see `check_image_sizes`.
        image_shape: (height, width, channels) of the images in pixels.
    """
    height, width = image_shape[:2]
    stages, share = [], 0.0
    for side, share_of_side in _parse(config.progressive_resize):
        share += share_of_side
        scale = side / min(height, width)
        stages.append(SizeStage(round(share * config.epochs), (round(height * scale), round(width * scale))))
    return [*stages, SizeStage(config.epochs, (height, width))]


def check_image_sizes(config: TrainingConfig, image_shape: Sequence[int]) -> None:
    """Raise UsageError if `progressive_resize` has a size that suits neither images nor patches, or no epochs."""
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
    ends = [0, *(stage.last_epoch for stage in size_stages(config, image_shape))]
    if any(last <= first for first, last in pairwise(ends)):
        raise UsageError(
            f"progressive_resize must leave each size, and the images' own at the end, at least one epoch of "
            f"epochs={config.epochs}, {given}; try larger shares, whose sum is below 1"
        )


def _parse(text: str | None) -> list[tuple[int, float]]:
    """Return the sides in pixels and the shares of the epochs."""
    parts = [part.split(":") for part in text.split(",")] if text else []
    return [(int(side), float(share)) for side, share in parts]
