"""The registry of augmentations, and the function that applies those that are on."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from pipeline.config.training import AugmentationConfig
from pipeline.data.augmentation.color import color_jitter
from pipeline.data.augmentation.cropping import random_resized_crop
from pipeline.data.augmentation.erasing import cutout, random_erasing
from pipeline.data.augmentation.geometric import random_flip, random_translation, random_vertical_flip
from pipeline.data.augmentation.mixing import mixup_or_cutmix
from pipeline.data.augmentation.rand_augment import rand_augment
from pipeline.data.augmentation.random_ops import record_draws, replay_draws

Augment = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]  # images, labels, seed (2,) -> both


class ImageAugmentation(NamedTuple):
    """A change of images that leaves their labels alone."""

    is_on: Callable[[AugmentationConfig], bool]
    apply: Callable[[tf.Tensor, tf.Tensor, AugmentationConfig], tf.Tensor]  # images, seed (2,), settings -> images
    # the same in operations that XLA can compile, where `apply` has others
    apply_with_xla: Callable[[tf.Tensor, tf.Tensor, AugmentationConfig], tf.Tensor] | None = None
    # whether `clean_epochs` have it: it leaves what is seen as it is
    is_clean: bool = False


# In the order of application. The position of an augmentation among those that are on is folded into its seed: a new
# one changes nothing for recipes without it, wherever it is put.
IMAGE_AUGMENTATIONS = {
    "crop": ImageAugmentation(
        is_on=lambda config: config.crop_scale < 1,
        apply=lambda images, seed, config: random_resized_crop(
            images, seed, scale=config.crop_scale, ratio=config.crop_ratio
        ),
        is_clean=True,
    ),
    "flip": ImageAugmentation(
        # alternating flips depend on the image, see `TrainingBatches`
        is_on=lambda config: config.flip is True,
        apply=lambda images, seed, config: random_flip(images, seed),
        is_clean=True,
    ),
    "vertical_flip": ImageAugmentation(
        is_on=lambda config: config.vertical_flip,
        apply=lambda images, seed, config: random_vertical_flip(images, seed),
        is_clean=True,
    ),
    "translation": ImageAugmentation(
        is_on=lambda config: config.translation > 0,
        apply=lambda images, seed, config: random_translation(images, seed, max_pixels=config.translation),
        is_clean=True,
    ),
    "randaugment": ImageAugmentation(
        is_on=lambda config: config.randaugment_layers > 0,
        apply=lambda images, seed, config: rand_augment(
            images, seed, layers=config.randaugment_layers, magnitude=config.randaugment_magnitude
        ),
        apply_with_xla=lambda images, seed, config: rand_augment(
            images, seed, layers=config.randaugment_layers, magnitude=config.randaugment_magnitude, for_xla=True
        ),
    ),
    "color_jitter": ImageAugmentation(
        is_on=lambda config: config.color_jitter > 0,
        apply=lambda images, seed, config: color_jitter(images, seed, strength=config.color_jitter),
    ),
    "random_erasing": ImageAugmentation(
        is_on=lambda config: config.random_erasing > 0,
        apply=lambda images, seed, config: random_erasing(images, seed, probability=config.random_erasing),
    ),
    "cutout": ImageAugmentation(
        is_on=lambda config: config.cutout > 0,
        apply=lambda images, seed, config: cutout(images, seed, side=config.cutout),
    ),
}


def build_augmentation(config: AugmentationConfig, *, clean: bool = False, for_xla: bool = False) -> Augment:
    """Return the augmentations that are on as one function of images, labels and a seed.

    It takes and returns images (b, h, w, c) uint8 of 1, 3 or 4 channels and labels (b, classes) float32; the seed is
    (2,) int64. Only mixup and cutmix, which come last, change labels.

    Args:
        config: Which are on, and how strong they are.
        clean: Leave out those that `clean_epochs` do not have.
        for_xla: Use operations that XLA can compile, which are slower without it; the result is the same.
    """
    augmentations = [
        each for each in IMAGE_AUGMENTATIONS.values() if each.is_on(config) and (each.is_clean or not clean)
    ]
    mixes = not clean and (config.mixup_alpha > 0 or config.cutmix_alpha > 0)

    def augment(images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        for number, augmentation in enumerate(augmentations):
            # Each augmentation draws its own random numbers.
            change = (for_xla and augmentation.apply_with_xla) or augmentation.apply
            images = change(images, tf.random.fold_in(seed, number), config)
        if not mixes:
            return images, labels
        return mixup_or_cutmix(
            images,
            labels,
            tf.random.fold_in(seed, len(augmentations)),
            mixup_alpha=config.mixup_alpha,
            cutmix_alpha=config.cutmix_alpha,
            probability=config.mix_probability,
        )

    return augment


def draw_numbers(
    augment: Augment, count: tf.Tensor, seed: tf.Tensor, *, image_shape: tuple[int, int, int], classes: int
) -> tuple[tf.Tensor, ...]:
    """Return the random numbers that an augmentation draws for a batch of `count` images, in their order.

    In a graph nothing else is computed: no number depends on the images.
    """
    with record_draws(count) as drawn:
        augment(tf.zeros([count, *image_shape], tf.uint8), tf.zeros([count, classes]), seed)
    return tuple(drawn)


def augment_as_drawn(
    augment: Augment, images: tf.Tensor, labels: tf.Tensor, drawn: Sequence[tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return augmented images and labels, by the numbers that `draw_numbers` has returned."""
    with replay_draws(drawn):
        # the seed decides nothing
        return augment(images, labels, tf.zeros([2], tf.int64))
