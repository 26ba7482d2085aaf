"""Image corruptions: images (n, h, w, c) uint8 -> the same images as a camera, a transmission or bad light spoils them.

After Hendrycks & Dietterich 2019 (arXiv 1903.12261): strengths 1, 2 and 3 are the severities 1, 3 and 5 of their
CIFAR-10-C, so that results can be compared with published ones. Each corruption takes images of 1, 3 or 4 channels, a
strength and a seed, and returns new images of the same shape; the fourth channel, transparency, is left unchanged.
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
NOISE = (0.04, 0.08, 0.10)  # standard deviation, for a range of 1
PHOTONS = (500, 100, 50)  # that make a pixel white
BLUR = (0.4, 0.7, 1.0)  # standard deviation in pixels of an image of SIDE; in proportion for larger images
CONTRAST = (0.75, 0.4, 0.15)  # share that is kept
QUALITY = (80, 58, 40)  # of a JPEG file
SIDE = 32


def _keep_alpha(corrupt: Corruption) -> Corruption:
    """Apply a corruption to all channels but the fourth."""

    @wraps(corrupt)
    def corrupt_colors(images: Images, strength: int, seed: Seed) -> Images:
        colors = 3 if images.shape[-1] == 4 else images.shape[-1]
        return np.concatenate([corrupt(images[..., :colors], strength, seed), images[..., colors:]], axis=-1)

    return corrupt_colors


@_keep_alpha
def gaussian_noise(images: Images, strength: int, seed: Seed) -> Images:
    """Add normal noise with a standard deviation of NOISE, as a sensor does in bad light."""
    noise = np.random.default_rng(seed).standard_normal(images.shape, np.float32)
    return _to_pixels(images + 255 * NOISE[strength - 1] * noise)


@_keep_alpha
def shot_noise(images: Images, strength: int, seed: Seed) -> Images:
    """Replace each value by a Poisson number of photons, of which PHOTONS make white: the noise of light itself."""
    photons = PHOTONS[strength - 1]
    return _to_pixels(np.random.default_rng(seed).poisson(images * (photons / 255)) * (255 / photons))


@_keep_alpha
def gaussian_blur(images: Images, strength: int, seed: Seed) -> Images:
    """Blur the images with a standard deviation of BLUR, as a lens out of focus does."""
    # scipy.ndimage takes long to import, and only evaluations need it
    from scipy.ndimage import gaussian_filter

    sigma = BLUR[strength - 1] * max(min(images.shape[1:3]) / SIDE, 1)
    return _to_pixels(gaussian_filter(images.astype(np.float32), sigma=(0, sigma, sigma, 0), mode="nearest"))


@_keep_alpha
def contrast(images: Images, strength: int, seed: Seed) -> Images:
    """Keep CONTRAST of each value's distance from the mean of its channel in the image, as fog does."""
    means = images.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    return _to_pixels(means + CONTRAST[strength - 1] * (images - means))


@_keep_alpha
def jpeg_compression(images: Images, strength: int, seed: Seed) -> Images:
    """Encode the images as JPEG of QUALITY and decode them again."""
    return np.stack([_through_jpeg(image, QUALITY[strength - 1]) for image in images])


CORRUPTIONS: Mapping[str, Corruption] = {
    corrupt.__name__: corrupt for corrupt in (gaussian_noise, shot_noise, gaussian_blur, contrast, jpeg_compression)
}


def _through_jpeg(image: Images, quality: int) -> Images:
    file = BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file, formats=["JPEG"])).reshape(image.shape)


def _to_pixels(values: npt.NDArray[np.floating]) -> Images:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
