"""The batch transform of Scale Calibrated Training."""
from typing import Any, Optional, Sequence

import numpy as np
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement
from torch import Tensor


def resized_edge(edge: int, scale: int, base_scale: int, divisor: int) -> int:
    """``edge`` pixels at the base scale, in pixels at ``scale``: a multiple
    of ``divisor``, at least one."""
    return max(round(edge * scale / base_scale / divisor), 1) * divisor


def _check_no_pixels(element: BaseDataElement, path: str) -> None:
    for name, value in element.items():
        where = f'{path}.{name}'
        if isinstance(value, BaseDataElement):
            _check_no_pixels(value, where)
        elif not (isinstance(value, (bool, int, float, str, type(None)))
                  or isinstance(value, (Tensor, np.ndarray, np.generic))
                  and value.ndim <= 1):
            shape = getattr(value, 'shape', None)
            what = (type(value).__name__ if shape is None
                    else f'shape {tuple(shape)}')
            raise TypeError('`MultiScaleBatch` knows labels and scores, but '
                            f'got `{where}` of {what}, which may carry '
                            'pixels or coordinates. Remove the field from '
                            'PackInputs.')


def resized_sample(sample: BaseDataElement, shape: Sequence[int],
                   base_shape: Sequence[int]) -> BaseDataElement:
    """A sample for the resized image, which shares the data of ``sample``.

    Labels and scores (mixup's and cutmix's too) are the same objects. Of the
    metainfo, ``img_shape`` becomes ``shape`` (H, W) in pixels and
    ``scale_factor`` (w, h) is multiplied by the ratio.

    Raises:
        TypeError: for a field that may carry pixels, naming it.
    """
    _check_no_pixels(sample, type(sample).__name__)
    metainfo = sample.metainfo
    metainfo['img_shape'] = tuple(shape)
    if 'scale_factor' in metainfo:
        w, h = metainfo['scale_factor']
        metainfo['scale_factor'] = (w * shape[1] / base_shape[1],
                                    h * shape[0] / base_shape[0])
    resized = type(sample)(metainfo=metainfo)
    resized.set_data(dict(sample.items()))
    return resized


@TRANSFORMS.register_module()
class MultiScaleBatch(BaseTransform):
    """Resize a preprocessed batch and its samples to another scale: T_s of
    Scale Calibrated Training (arXiv 1909.00182).

    Every scale sees the same crop and the same flip, resized on the device
    where the batch is. Antialiased bilinear interpolation is our choice: it
    is what torchvision and PIL do to pictures at test time.

    Required keys: ``inputs`` (N, C, H, W), float; ``data_samples`` (a list of
    samples with labels and scores, or None) and ``mode`` are optional and in
    the result. Nothing of the input is changed in place.
    At the base scale the result is the input itself.

    Args:
        scale: the scale of the result in pixels.
        base_scale: the scale of the given batch in pixels.
        size_divisor: edges of the result are multiples of it.
        interpolation: a mode of ``torch.nn.functional.interpolate``.
        antialias: low-pass filter before reducing; for 'bilinear' and
            'bicubic'.

    Raises:
        TypeError: for a sample with pixels or coordinates, naming the field,
            for another key, and for inputs that are no (N, C, H, W) tensor.
        ValueError: for ``antialias`` with another interpolation.
    """

    def __init__(self,
                 scale: int,
                 base_scale: int,
                 size_divisor: int = 1,
                 interpolation: str = 'bilinear',
                 antialias: bool = True) -> None:
        self.scale = scale
        self.base_scale = base_scale
        self.size_divisor = size_divisor
        if antialias and interpolation not in ('bilinear', 'bicubic'):
            raise ValueError("`antialias` needs interpolation 'bilinear' or "
                             f"'bicubic', but got {interpolation!r}. Set "
                             'antialias=False.')
        self.interpolation = interpolation
        self.antialias = antialias

    def transform(self, results: dict) -> dict:
        if self.scale == self.base_scale:
            return results
        inputs: Any = results['inputs']
        if not isinstance(inputs, Tensor) or inputs.dim() != 4:
            got = getattr(inputs, 'shape', type(inputs).__name__)
            raise TypeError('`MultiScaleBatch` takes a tensor (N, C, H, W) as '
                            f'`inputs`, but got {got}. Use a data '
                            'preprocessor that stacks the images.')
        other = set(results) - {'inputs', 'data_samples', 'mode'}
        if other:
            raise TypeError('`MultiScaleBatch` knows the keys inputs, '
                            f'data_samples and mode, but got {sorted(other)}, '
                            'which may carry pixels. Remove them.')
        base_shape = inputs.shape[-2:]
        shape = [resized_edge(edge, self.scale, self.base_scale,
                              self.size_divisor) for edge in base_shape]
        smooth = self.interpolation in ('bilinear', 'bicubic')
        resized = F.interpolate(inputs, shape, mode=self.interpolation,
                                align_corners=False if smooth else None,
                                antialias=self.antialias)
        samples: Optional[list] = results.get('data_samples')
        if samples is not None:
            samples = [resized_sample(s, shape, base_shape) for s in samples]
        return {**results, 'inputs': resized, 'data_samples': samples}

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(scale={self.scale}, '
                f'base_scale={self.base_scale}, '
                f'size_divisor={self.size_divisor}, '
                f'interpolation={self.interpolation!r}, '
                f'antialias={self.antialias})')
