"""Images (n, h, w, c) uint8 -> the same images as a camera, a transmission or bad light might have spoilt them.

After Hendrycks & Dietterich 2019 (arXiv 1903.12261): strengths 1, 2 and 3 are the severities 1, 3 and 5 of their
CIFAR-10-C, so that what was measured there can stand beside. Each corruption takes images of 1, 3 or 4 channels, a
strength and a seed, and returns new images of the same shape; the fourth channel, transparency, stays as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

Images = npt.NDArray[np.uint8]  # (n, h, w, c)
Seed = int | Sequence[int]
Corruption = Callable[[Images, int, Seed], Images]

STRENGTHS = (1, 2, 3)
NOISE = (0.04, 0.08, 0.10)  # standard deviation, of a range of 1
PHOTONS = (500, 100, 50)  # that make a pixel white
BLUR = (0.4, 0.7, 1.0)  # standard deviation in pixels of an image of 32; larger images get as much of their side
CONTRAST = (0.75, 0.4, 0.15)  # share of it that is left
QUALITY = (80, 58, 40)  # of a JPEG file
SIDE = 32


def _keep_alpha(corrupt: Corruption) -> Corruption:
    """Leaves the fourth channel out."""

    @wraps(corrupt)
    def whole(images: Images, strength: int, seed: Seed) -> Images:
        colours = 3 if images.shape[-1] == 4 else images.shape[-1]
        return np.concatenate([corrupt(images[..., :colours], strength, seed), images[..., colours:]], axis=-1)

    return whole


@_keep_alpha
def gaussian_noise(images: Images, strength: int, seed: Seed) -> Images:
    """Noise of a sensor in bad light: NOISE of the range is added to every value."""
    noise = np.random.default_rng(seed).standard_normal(images.shape, np.float32)
    return _pixels(images + 255 * NOISE[strength - 1] * noise)


@_keep_alpha
def shot_noise(images: Images, strength: int, seed: Seed) -> Images:
    """Noise of light itself: each value is what a Poisson number of photons makes of it, PHOTONS of them for white."""
    photons = PHOTONS[strength - 1]
    return _pixels(np.random.default_rng(seed).poisson(images * (photons / 255)) * (255 / photons))


@_keep_alpha
def gaussian_blur(images: Images, strength: int, seed: Seed) -> Images:
    """A picture out of focus: BLUR."""
    from scipy.ndimage import gaussian_filter  # takes a while to import

    sigma = BLUR[strength - 1] * max(min(images.shape[1:3]) / SIDE, 1)
    return _pixels(gaussian_filter(images.astype(np.float32), sigma=(0, sigma, sigma, 0), mode="nearest"))


@_keep_alpha
def contrast(images: Images, strength: int, seed: Seed) -> Images:
    """A picture through fog: CONTRAST of each value's distance from its channel's mean over the image is left."""
    means = images.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    return _pixels(means + CONTRAST[strength - 1] * (images - means))


@_keep_alpha
def jpeg_compression(images: Images, strength: int, seed: Seed) -> Images:
    """A file that was made small: JPEG of QUALITY."""
    return np.stack([_through_jpeg(image, QUALITY[strength - 1]) for image in images])


CORRUPTIONS: Mapping[str, Corruption] = {
    corrupt.__name__: corrupt for corrupt in (gaussian_noise, shot_noise, gaussian_blur, contrast, jpeg_compression)
}


def _through_jpeg(image: Images, quality: int) -> Images:
    file = BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file, formats=["JPEG"])).reshape(image.shape)


def _pixels(values: npt.NDArray[np.floating]) -> Images:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
