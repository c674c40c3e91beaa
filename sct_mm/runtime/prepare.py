"""Prepare an image for a network by the steps that its file names.

A step is a dict with its ``type``, one of :data:`STEPS`, and sizes in pixels:
plain data, as a file's metadata holds it (docs/export.md).
"""
from collections.abc import Callable, Sequence

import numpy as np

from ..utils.errors import UserError
from .resize import Array, check_rule, resize

# What a step holds in pixels.
_EDGES = ('height', 'width', 'edge', 'padding')


def _resize(image: Array, step: dict) -> Array:
    """To (height, width)."""
    return resize(image, step['height'], step['width'], step['backend'],
                  step['interpolation'])


def _resize_short(image: Array, step: dict) -> Array:
    """The shorter edge to ``edge``; the longer one is rounded down."""
    height, width = image.shape[:2]
    edge, short = step['edge'], min(height, width)
    return resize(image, int(edge * height / short), int(edge * width / short),
                  step['backend'], step['interpolation'])


def _centre(image: Array, height: float, width: float) -> Array:
    """The centre of ``image``, at most (height, width): edges that are no
    whole numbers are those of a box whose last pixels are in it, as in
    mmcv."""
    top = max(0, round((image.shape[0] - height) / 2))
    left = max(0, round((image.shape[1] - width) / 2))
    return image[top:top + max(int(height), 1),
                 left:left + max(int(width), 1)]


def _center_crop(image: Array, step: dict) -> Array:
    """The centre, (height, width)."""
    return _centre(image, step['height'], step['width'])


def _resized_center(image: Array, step: dict) -> Array:
    """The centre, the share edge / (edge + padding) of the shorter edge, to
    (edge, edge): the crop of EfficientNet."""
    edge = step['edge']
    crop = edge / (edge + step['padding']) * min(image.shape[:2])
    return resize(_centre(image, crop, crop), edge, edge, step['backend'],
                  step['interpolation'])


# {type of a step: (image (H, W, C), step) -> image}
STEPS: dict[str, Callable[[Array, dict], Array]] = {
    'resize': _resize, 'resize_short': _resize_short,
    'center_crop': _center_crop, 'resized_center': _resized_center}
# {type of a step: what it must hold in pixels}
_NEEDED = {'resize': ('height', 'width'), 'resize_short': ('edge', ),
           'center_crop': ('height', 'width'),
           'resized_center': ('edge', 'padding')}


def steps_at(steps: Sequence[dict], ratio: float) -> list[dict]:
    """``steps`` for another size: what they hold in pixels changes by
    ``ratio``, except in those that are ``fixed``."""
    return [step if step.get('fixed') else {
        name: round(value * ratio) if name in _EDGES else value
        for name, value in step.items()} for step in steps]


def check_steps(steps: Sequence[dict]) -> None:
    """Refuse steps that this version does not know, before any image.

    Raises:
        UserError: naming the step, or the way of a resize.
    """
    for step in steps:
        kind = step.get('type')
        if kind not in list(STEPS):
            raise UserError(
                f'A step of preparation must be one of {", ".join(STEPS)}, '
                f'but the file asks for {kind!r}. Update sct_mm, or '
                'prepare the images yourself.')
        for name in _NEEDED[kind]:
            if not isinstance(step.get(name), (int, float)):
                raise UserError(f'The step {kind!r} must have {name!r} in '
                                f'pixels, but the file has {step.get(name)!r}'
                                '. Export it again.')
        if kind != 'center_crop':
            check_rule(step.get('backend'), step.get('interpolation'))


def padded(images: Array, divisor: int, value: float) -> Array:
    """``images`` (..., H, W) with edges that are multiples of ``divisor``, by
    pixels of ``value`` at the right and the bottom."""
    edges = [(0, -edge % divisor) for edge in images.shape[-2:]]
    if not any(behind for _, behind in edges):
        return images
    return np.pad(images, [(0, 0)] * (images.ndim - 2) + edges,
                  constant_values=value)


def prepare(image: Array, steps: Sequence[dict]) -> Array:
    """``image`` (H, W, C), uint8, after ``steps``."""
    for step in steps:
        image = STEPS[step['type']](image, step)
    return image
