"""Resize a preprocessed batch and its data samples to another scale."""
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from torch import Tensor, nn

from ..utils.arguments import check_choice, check_flag, check_int, check_number
from .data_samples import (
    Geometry,
    Shape,
    content_shape,
    padded_shape,
    resized_sample,
)

_INTERPOLATIONS = ('bilinear', 'bicubic', 'nearest', 'nearest-exact', 'area')


def resized_edge(edge: int, scale: int, base_scale: int) -> int:
    """``edge`` pixels at the base scale, in pixels at ``scale``; at least 1.

    Half a pixel counts as one, as in mmcv's ``rescale_size``.
    """
    return max(int(edge * scale / base_scale + 0.5), 1)


@TRANSFORMS.register_module()
class MultiScaleBatch(BaseTransform):
    """Resize a preprocessed batch and its samples to another scale: T_s of
    Scale Calibrated Training (arXiv 1909.00182).

    Every scale sees the same crop and the same flip, resized on the device of
    the batch. The paper names no interpolation; antialiased bilinear is what
    torchvision and PIL do to images at test time.

    Padding is not resized: each image is resized without its padding and then
    padded as the data preprocessor would, which is what the test pipeline
    makes of an image at that scale. Images without padding are resized in one
    call.

    Required key: ``inputs`` (N, C, H, W), float. Optional keys:
    ``data_samples`` (a list of mmpretrain's ``DataSample`` or mmdet's
    ``DetDataSample``, or None; see :func:`resized_sample`) and ``mode``.
    Nothing of the input is changed in place. At the base scale the result is
    the input itself. Half precision is resized in single precision.

    Args:
        scale: the scale of the result in pixels.
        base_scale: the scale of the given batch in pixels.
        size_divisor: edges of the result are padded to multiples of it.
        pad_value: value of padded pixels, in the units of ``inputs``.
        seg_pad_value: label of padded pixels in semantic maps.
        interpolation: a mode of ``torch.nn.functional.interpolate``.
        antialias: low-pass filter before reducing; for 'bilinear' and
            'bicubic'.

    Raises:
        TypeError: for a field of a sample that may carry pixels and is not
            known, for other keys, for samples that are no list, and for
            inputs that are no floating point tensor (N, C, H, W).
        ValueError: for arguments out of range, for ``antialias`` with another
            interpolation, and for a semantic map that is not as large as its
            image.
    """

    def __init__(self,
                 scale: int,
                 base_scale: int,
                 size_divisor: int = 1,
                 pad_value: float = 0,
                 seg_pad_value: int = 255,
                 interpolation: str = 'bilinear',
                 antialias: bool = True) -> None:
        check_choice('interpolation', interpolation, _INTERPOLATIONS)
        check_flag('antialias', antialias)
        self.scale = check_int('scale', scale, 1, 'Give it in pixels.')
        self.base_scale = check_int('base_scale', base_scale, 1,
                                    'Give it in pixels.')
        self.size_divisor = check_int('size_divisor', size_divisor, 1,
                                      'The default is 1.', 2**16)
        self.pad_value = check_number('pad_value', pad_value, -3e38,
                                      'The default is 0.', 3e38)
        self.seg_pad_value = check_int('seg_pad_value', seg_pad_value, -2**31,
                                       'The default is 255.')
        if antialias and interpolation not in ('bilinear', 'bicubic'):
            raise ValueError("`antialias` needs interpolation 'bilinear' or "
                             f"'bicubic', but got {interpolation!r}. Set "
                             'antialias=False.')
        self.interpolation = interpolation
        self.antialias = antialias

    def transform(self, results: dict) -> dict:
        check_batch(results)
        if self.scale == self.base_scale:
            return results
        inputs, samples = results['inputs'], results.get('data_samples')
        base_shape = inputs.shape[-2], inputs.shape[-1]
        old = [base_shape if samples is None
               else content_shape(samples[i], base_shape)
               for i in range(len(inputs))]
        new = [(resized_edge(height, self.scale, self.base_scale),
                resized_edge(width, self.scale, self.base_scale))
               for height, width in old]
        padded = padded_shape([max(edges) for edges in zip(*new, strict=True)],
                              self.size_divisor)
        if samples is not None:
            samples = [resized_sample(sample, Geometry(
                before, after, base_shape, padded, self.size_divisor,
                self.seg_pad_value)) for sample, before, after
                in zip(samples, old, new, strict=True)]
        results = {**results, 'inputs': self._resize(inputs, old, new, padded)}
        return results if samples is None else {**results,
                                                'data_samples': samples}

    def _resize(self, inputs: Tensor, old: list[Shape], new: list[Shape],
                padded: Shape) -> Tensor:
        if len(set(old)) == 1:
            h, w = old[0]
            parts = [self._interpolate(inputs[..., :h, :w], new[0])]
            if new[0] == padded:
                return parts[0]
        else:
            parts = [self._interpolate(inputs[i:i + 1, :, :h, :w], new[i])
                     for i, (h, w) in enumerate(old)]
        return torch.cat([
            F.pad(part, (0, padded[1] - part.shape[-1],
                         0, padded[0] - part.shape[-2]), value=self.pad_value)
            for part in parts])

    def _interpolate(self, images: Tensor, shape: Shape) -> Tensor:
        smooth = self.interpolation in ('bilinear', 'bicubic')
        # torch has no antialiased resize of half precision on a CPU.
        exact = images.float() if images.element_size() < 4 else images
        return F.interpolate(exact, shape, mode=self.interpolation,
                             align_corners=False if smooth else None,
                             antialias=self.antialias).to(images.dtype)

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(scale={self.scale}, '
                f'base_scale={self.base_scale}, '
                f'size_divisor={self.size_divisor}, '
                f'interpolation={self.interpolation!r}, '
                f'antialias={self.antialias})')


def check_batch(batch: dict) -> None:
    """Refuse a batch that :class:`MultiScaleBatch` cannot resize.

    Raises:
        TypeError: for images or samples of another form, and for other keys.
        ValueError: for a batch without images.
    """
    fix = ('Use a model and a data preprocessor whose batches are one tensor '
           'and one list of samples.')
    if not isinstance(batch, dict):
        raise TypeError('A batch at several scales must be a dict, but got '
                        f'a {type(batch).__name__}. {fix}')
    other = sorted(map(str, set(batch) - {'inputs', 'data_samples', 'mode'}))
    if other or 'inputs' not in batch:
        raise TypeError('A batch at several scales has the keys inputs, '
                        'data_samples and mode, but got '
                        f'{other or sorted(batch)}. {fix}')
    inputs: Any = batch['inputs']
    if not isinstance(inputs, Tensor) or inputs.dim() != 4:
        got = (f'shape {tuple(inputs.shape)}' if isinstance(inputs, Tensor)
               else f'a {type(inputs).__name__}')
        raise TypeError('`inputs` of a batch at several scales must be a '
                        f'tensor (N, C, H, W), but got {got}. {fix}')
    if not inputs.is_floating_point():
        raise TypeError('`inputs` must be floating point to be resized, but '
                        f'got {inputs.dtype}. Let the data preprocessor '
                        'normalise the images.')
    if not inputs.numel():
        raise ValueError('`inputs` of a batch at several scales must hold '
                         f'images, but got shape {tuple(inputs.shape)}. '
                         'Leave empty batches out.')
    samples: Any = batch.get('data_samples')
    if samples is None:
        return
    if not isinstance(samples, (list, tuple)):
        raise TypeError('`data_samples` of a batch at several scales must be '
                        f'a list, but got a {type(samples).__name__}. {fix}')
    if len(samples) != len(inputs):
        raise TypeError('`data_samples` must be one for each image, but got '
                        f'{len(samples)} for {len(inputs)} images. {fix}')


def padding_of(model: nn.Module) -> dict:
    """The arguments of :class:`MultiScaleBatch` that make it pad as the data
    preprocessor of ``model`` does."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    # mmdet's name, then mmseg's.
    names = dict(pad_size_divisor='size_divisor', size_divisor='size_divisor',
                 pad_value='pad_value', pad_val='pad_value',
                 seg_pad_value='seg_pad_value', seg_pad_val='seg_pad_value')
    return {ours: getattr(preprocessor, theirs)
            for theirs, ours in names.items()
            if getattr(preprocessor, theirs, None) is not None}
