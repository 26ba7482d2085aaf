"""Views of an image, over which its predictions are averaged."""

from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

View = Callable[[tf.Tensor], tf.Tensor]  # images (b, h, w, c) -> the same


def mirror(images: tf.Tensor) -> tf.Tensor:
    """Mirror images (b, h, w, c) left to right."""
    return images[:, :, ::-1]


def shift(images: tf.Tensor, pixels: int) -> tf.Tensor:
    """Move images (b, h, w, c) by this many pixels down and right, or up and left if negative; edges are reflected."""
    reach = abs(pixels)
    height, width = images.shape[1], images.shape[2]
    padded = tf.pad(images, [[0, 0], [reach, reach], [reach, reach], [0, 0]], mode="REFLECT")
    start = reach - pixels
    return padded[:, start : start + height, start : start + width]


# The views beside the image itself, by the setting `test_time_views`
VIEWS: Mapping[str, Sequence[View]] = {
    "one": (),
    "mirrored": (mirror,),
    "shifted": (
        mirror,
        lambda images: shift(images, -1),
        lambda images: shift(images, 1),
        lambda images: shift(mirror(images), -1),
        lambda images: shift(mirror(images), 1),
    ),
}
