"""Resize an image as Pillow, OpenCV and torch do, with numpy alone."""
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..utils.errors import UserError

Array = np.ndarray


def _triangle(x: Array) -> Array:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(a: float) -> Callable[[Array], Array]:
    """Keys' kernel with its parameter ``a``."""

    def kernel(x: Array) -> Array:
        x = np.abs(x)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * a
        return np.where(x < 1, near, np.where(x < 2, far, 0))

    return kernel


def _lanczos(x: Array) -> Array:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


class Rule(NamedTuple):
    """How a pixel is made of those around it.

    Attributes:
        kernel: the weight at a distance in pixels.
        reach: the distance in pixels from which on it is 0.
        antialias: whether the kernel is as wide as a pixel of the result, so
            that an image that shrinks loses no pixel, and ends at the border;
            otherwise it is as wide as a pixel of the image, whose border goes
            on without end.
    """
    kernel: Callable[[Array], Array]
    reach: int
    antialias: bool


# {(backend, interpolation), by the names of mmcv: how it resizes}. torch's
# antialiased resize has the rules of Pillow.
RULES = {
    ('pillow', 'bilinear'): Rule(_triangle, 1, True),
    ('pillow', 'bicubic'): Rule(_cubic(-0.5), 2, True),
    ('pillow', 'lanczos'): Rule(_lanczos, 3, True),
    ('cv2', 'bilinear'): Rule(_triangle, 1, False),
    ('cv2', 'bicubic'): Rule(_cubic(-0.75), 2, False)}


def check_rule(backend: Any, interpolation: Any) -> Rule:
    """The rule of a backend and an interpolation.

    Raises:
        UserError: for one that is not in :data:`RULES`.
    """
    try:
        return RULES[backend, interpolation]
    except (KeyError, TypeError):  # of a list, which is no key
        known = ', '.join(' of '.join(names[::-1]) for names in RULES)
        raise UserError(f'A resize must be one of {known}, but the file asks '
                        f'for {interpolation} of {backend}. Prepare the '
                        'images yourself, and run the file by onnxruntime.'
                        ) from None


def taps_of(length: int, out: int, rule: Rule) -> tuple[Array, Array]:
    """Which pixels of an edge of ``length`` make each of ``out`` pixels.

    Returns:
        The indices and the weights of K pixels for each, both (out, K); the
        weights of a pixel add up to 1.
    """
    scale = length / out
    wide = max(scale, 1.0) if rule.antialias else 1.0
    centre = (np.arange(out) + 0.5) * scale
    reach = rule.reach * wide
    first = np.floor(centre - reach + 0.5)
    places = first[:, None] + np.arange(int(np.ceil(2 * reach)) + 1)
    weights = rule.kernel((places + 0.5 - centre[:, None]) / wide)
    if rule.antialias:
        weights = np.where((places >= 0) & (places < length), weights, 0)
    weights /= weights.sum(1, keepdims=True)
    return (places.clip(0, length - 1).astype(np.intp),
            weights.astype(np.float32))


def _along_first(image: Array, out: int, rule: Rule) -> Array:
    """``image`` (L, M, C) as (out, M, C), float32."""
    if len(image) == out:  # as it is, in any rule
        return image.astype(np.float32)
    image = np.ascontiguousarray(image)  # whole rows are copied fast
    places, weights = taps_of(len(image), out, rule)
    made = np.zeros((out, *image.shape[1:]), np.float32)
    for tap in range(places.shape[1]):
        made += image[places[:, tap]] * weights[:, tap, None, None]
    return made


def _as_bytes(image: Array) -> Array:
    return np.floor(image + 0.5).clip(0, 255).astype(np.uint8)


def resize(image: Array, height: int, width: int, backend: str = 'pillow',
           interpolation: str = 'bilinear') -> Array:
    """Resize ``image`` (H, W, C) to (height, width, C).

    uint8 stays uint8, and differs from the backend's by 1 at most: Pillow and
    OpenCV compute in integers. Pillow rounds between the edges, the width
    first; from version 13 on the height first where that is cheaper, as for
    some images that change their aspect, or are tall and shrink. Then bicubic
    and lanczos may differ by more (docs/runtime.md). float32 stays float32, as
    in torch's ``interpolate(antialias=True)`` by the rules of 'pillow'.

    Args:
        backend: 'pillow' or 'cv2', as mmcv calls them.
        interpolation: 'bilinear', 'bicubic', or of Pillow 'lanczos'.

    Raises:
        UserError: for another backend or interpolation.
    """
    rule = check_rule(backend, interpolation)
    whole = image.dtype == np.uint8
    made = _along_first(image.transpose(1, 0, 2), width, rule)
    if whole and backend == 'pillow':  # which rounds between both edges
        made = _as_bytes(made)
    made = _along_first(made.transpose(1, 0, 2), height, rule)
    return np.ascontiguousarray(_as_bytes(made) if whole else made)
