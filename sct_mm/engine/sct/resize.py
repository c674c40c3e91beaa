"""A batch at any size, by the batch transform that SCTLossHook is given."""
from collections.abc import Callable

import numpy as np
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from torch import Tensor

from ...utils.config_walk import type_name


def check_batch_transform(config: dict | None) -> dict:
    """``batch_transform`` of SCTLossHook; MultiScaleBatch by default.

    Raises:
        TypeError, ValueError: if it is no config of a batch transform, or
            has the scales that the hook sets.
    """
    if config is None:
        return dict(type='MultiScaleBatch')
    if not isinstance(config, dict) or 'type' not in config:
        raise TypeError('`batch_transform` must be the config of a batch '
                        f'transform, but got {config!r}. Write '
                        "e.g. dict(type='MultiScaleBatch', antialias=True).")
    if {'scale', 'base_scale'} & set(config):
        raise ValueError('`batch_transform` must leave scale and base_scale '
                         f'to SCTLossHook, but got {config!r}. Remove them.')
    return config


def batch_transform_of(cfg: Config) -> dict:
    """The batch transform of the SCTLossHook of ``cfg``; the default one if
    it has none."""
    own = [hook.get('batch_transform')
           for hook in cfg.get('custom_hooks') or ()
           if type_name(hook) == 'SCTLossHook']
    return check_batch_transform(own[-1] if own else None)


# Of MultiScaleBatch, the default first.
KERNELS = tuple(dict(interpolation=interpolation, antialias=antialias)
                for antialias in (True, False)
                for interpolation in ('bilinear', 'bicubic'))


def nearest_kernel(images: dict[int, list[Tensor]], base: int) -> dict:
    """The interpolation by which batches of the base come nearest to those
    that a test makes of the same images at smaller sizes.

    A test resizes the images as they are stored; a training those that were
    resized to the base before. A second resize by the kernel of the first
    blurs them.

    Args:
        images: {size in pixels: batches (N, ..., H, W)}, of ``base``, too.

    Returns:
        dict: the one of :data:`KERNELS` with the least root mean square
        difference of pixels, on average over batches and sizes; the first of
        equal ones.
    """
    def distance(kernel: dict) -> float:
        return float(np.mean([
            _distance(TRANSFORMS.build(dict(
                kernel, type='MultiScaleBatch', scale=size, base_scale=base))(
                    dict(inputs=whole))['inputs'], part)
            for size, batches in images.items() if size != base
            for whole, part in zip(images[base], batches, strict=False)
            if len(whole) == len(part)]))  # else of other images

    return min(KERNELS, key=distance)


def _distance(a: Tensor, b: Tensor) -> float:
    """Root mean square difference where both have pixels: their padding may
    differ."""
    height, width = (min(a.shape[axis], b.shape[axis]) for axis in (-2, -1))
    a, b = (each[..., :height, :width] for each in (a, b))
    return float((a - b).square().mean().sqrt())


class Resize:
    """A batch at any size, by batch transforms that are built when a size is
    first asked for.

    Args:
        config: of the batch transform, without its scales.
        base: scale of the batches given, in pixels.
    """

    def __init__(self, config: dict, base: int) -> None:
        self._config, self._base = config, base
        self._transforms: dict[int, Callable[[dict], dict]] = {}
        try:
            self.at(base)  # a bad config is refused before the training
        except (KeyError, TypeError) as error:
            if '`' in str(error).partition(' ')[0]:  # of MultiScaleBatch
                raise
            raise ValueError(
                '`batch_transform` must be the config of a batch transform '
                f'that takes scale and base_scale, but got {config!r} '
                f'({str(error).partition(". ")[0]}). Write e.g. '
                "dict(type='MultiScaleBatch', antialias=True).") from error

    def at(self, size: int) -> Callable[[dict], dict]:
        """The transform to ``size`` pixels."""
        if size not in self._transforms:
            self._transforms[size] = TRANSFORMS.build(dict(
                self._config, scale=size, base_scale=self._base))
        return self._transforms[size]

    def __call__(self, size: int, batch: dict) -> dict:
        return self.at(size)(batch)

    def __repr__(self) -> str:
        return repr(self._config)
