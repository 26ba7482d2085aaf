"""Class activation maps (Zhou et al. 2016, arXiv 1512.04150): which parts of an image speak for a class.

A ConvMixer ends in global average pooling and one dense layer, so that a class's logit is the mean over the patches of
the dense layer's output for each patch, plus the class's bias. These outputs are the map: no approximation and no
gradient. For an ensemble, whose networks have a logit each, the map is the mean of theirs; its mean plus the mean bias
is the mean of their logits.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.model.ensemble import ensemble_members

if TYPE_CHECKING:
    import keras

# at a time, as the features of an image take as much memory as the whole batch of a training step does for each of it
BATCH_SIZE = 64


class ActivationMaps(NamedTuple):
    """Maps of one class for each image, in the pixels of the image: all pixels of a patch have its value."""

    maps: npt.NDArray[np.float32]  # (n, height, width); positive where a patch speaks for the class
    biases: npt.NDArray[np.float32]  # (n,) of the classes; the mean of a map plus its bias is the logit


def class_activation_maps(
    model: "keras.Model", images: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64]
) -> ActivationMaps:
    """Return the map of one class for each image.

    Args:
        model: A ConvMixer, or an ensemble of them, of stock layers.
        images: (n, height, width, channels), 0 to 255.
        classes: (n,) positions of the classes whose maps are wanted.

    Raises:
        ValueError: The model does not end in global average pooling and a dense layer.
    """
    networks = ensemble_members(model) or [model]
    of_networks = [_maps_of_network(network, images, classes) for network in networks]
    return ActivationMaps(
        np.mean([one.maps for one in of_networks], axis=0), np.mean([one.biases for one in of_networks], axis=0)
    )


def _maps_of_network(
    network: "keras.Model", images: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64]
) -> ActivationMaps:
    # not above: the command that imports this module refuses what is wrong before TensorFlow is imported
    import keras

    *_, pooling, head = network.layers
    if not isinstance(pooling, keras.layers.GlobalAveragePooling2D) or not isinstance(head, keras.layers.Dense):
        raise ValueError(
            f"{network.name} must end in GlobalAveragePooling2D and Dense, got {type(pooling).__name__} and "
            f"{type(head).__name__}"
        )
    features = keras.Model(network.input, pooling.input)
    kernel, bias = head.get_weights()  # (filters, classes), (classes,)
    maps = []
    for start in range(0, len(images), BATCH_SIZE):
        batch = slice(start, start + BATCH_SIZE)
        of_patches = features(images[batch].astype(np.float32), training=False).numpy()  # (b, height/p, width/p, f)
        maps.append(np.einsum("bhwf,fb->bhw", of_patches, kernel[:, classes[batch]]))
    of_pixels = _enlarge(np.concatenate(maps), images.shape[1:3])
    return ActivationMaps(of_pixels, bias[classes])


def _enlarge(maps: npt.NDArray[np.float32], size: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return maps (n, h, w) in the size of the images, a multiple of theirs, which leaves their means as they are."""
    height, width = size[0] // maps.shape[1], size[1] // maps.shape[2]
    return maps.repeat(height, axis=1).repeat(width, axis=2)
