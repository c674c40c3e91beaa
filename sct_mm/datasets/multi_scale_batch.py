"""Resize a preprocessed batch and its data samples to another scale."""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from torch import Tensor, nn

from ..utils.arguments import check_choice, check_flag, check_int, check_number
from .batch_forms import (
    check_batch,
    contents_of,
    image_shape,
    is_collated,
    resized_collated,
    views_of,
    with_views,
)
from .data_samples import (
    has_padding_size,
    is_padded_further,
    resized_sample,
)
from .sample_fields import Geometry, Shape, padded_shape

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

    Required key: ``inputs``, float, of a form that ``batch_forms.py`` lists:
    (N, C, H, W), or e.g. views of several sizes, which are all resized by the
    same ratio. Optional keys: ``data_samples`` (a list of the hosts' samples,
    see :func:`resized_sample`, mmyolo's dict, or None) and ``mode``. Nothing
    of the input is changed in place. At the base scale the result is the
    input itself. Half precision is resized in single precision.

    Args:
        scale: the scale of the result in pixels.
        base_scale: the scale of the given batch in pixels.
        size_divisor: edges of the result are padded to multiples of it.
        pad_value: value of padded pixels, in the units of ``inputs``.
        seg_pad_value: label of padded pixels in semantic maps.
        aligned_heatmaps: the corners of mmpose's heatmaps are those of the
            image, as of its UDP codecs.
        interpolation: a mode of ``torch.nn.functional.interpolate``.
        antialias: low-pass filter before reducing; for 'bilinear' and
            'bicubic'.

    Raises:
        TypeError: for a field of a sample that may carry pixels and is not
            known, for other keys, and for inputs and samples of another form.
        ValueError: for arguments out of range, for ``antialias`` with another
            interpolation, for a semantic map that is not as large as its
            image, and for instances beyond their image.
    """

    def __init__(self,
                 scale: int,
                 base_scale: int,
                 size_divisor: int = 1,
                 pad_value: float = 0,
                 seg_pad_value: int = 255,
                 interpolation: str = 'bilinear',
                 antialias: bool = True,
                 aligned_heatmaps: bool = False) -> None:
        check_choice('interpolation', interpolation, _INTERPOLATIONS)
        check_flag('antialias', antialias)
        check_flag('aligned_heatmaps', aligned_heatmaps)
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
        self.aligned_heatmaps = aligned_heatmaps

    def transform(self, results: dict) -> dict:
        check_batch(results)
        if self.scale == self.base_scale:
            return results
        several = len(views_of(results)) > 1
        samples: Any = results.get('data_samples')
        keeps_padding = isinstance(samples, (list, tuple)) and any(
            has_padding_size(sample)
            or is_padded_further(sample, self.size_divisor)
            for sample in samples)
        geometries = self._geometries(contents_of(results),
                                      image_shape(results), keeps_padding)
        if is_collated(samples):
            samples = resized_collated(samples, geometries[0])
        elif samples is not None:
            samples = [resized_sample(*pair) for pair in zip(
                samples, geometries, strict=True)]

        def resized(view: Tensor) -> Tensor:
            shape = view.shape[-2], view.shape[-1]
            return self._resize(view, self._geometries(
                [((0, 0), shape)], shape) if several else geometries)

        results = with_views(results, resized)
        return results if samples is None else {**results,
                                                'data_samples': samples}

    def _geometries(self, contents: Sequence[tuple[Shape, Shape]],
                    batch: Shape, keeps_padding: bool = False
                    ) -> list[Geometry]:
        """How each image is resized.

        Args:
            contents: of each, top and left edge, and shape.
            batch: (H, W) with padding.
            keeps_padding: the padding is part of the scale.
        """
        new = [((corner[0] and self._at(corner[0]),
                 corner[1] and self._at(corner[1])),
                (self._at(shape[0]), self._at(shape[1])))
               for corner, shape in contents]
        edges = [max(corner[axis] + shape[axis] for corner, shape in new)
                 for axis in (0, 1)]
        before = padded_shape(
            [max(corner[axis] + shape[axis] for corner, shape in contents)
             for axis in (0, 1)], self.size_divisor)
        if keeps_padding and before != batch:  # by no divisor
            edges = [max(edge, self._at(whole)) for edge, whole in zip(
                edges, batch, strict=True)]
        padded = padded_shape(edges, self.size_divisor)
        return [Geometry(old, shape, batch, padded, self.size_divisor,
                         self.seg_pad_value, old_corner, corner,
                         self.aligned_heatmaps)
                for (old_corner, old), (corner, shape) in zip(
                    contents, new, strict=True)]

    def _at(self, edge: int) -> int:
        return resized_edge(edge, self.scale, self.base_scale)

    def _resize(self, images: Tensor, geometries: Sequence[Geometry]
                ) -> Tensor:
        """Images (N, ..., H, W) by a geometry for each; one if all have the
        same."""
        first = geometries[0]
        if len(set(geometries)) == 1:
            return self._resize_alike(images, first)
        return torch.cat([self._resize_alike(images[i:i + 1], geometry)
                          for i, geometry in enumerate(geometries)])

    def _resize_alike(self, images: Tensor, geometry: Geometry) -> Tensor:
        (top, left), (h, w) = geometry.corner, geometry.old
        content = images[..., top:top + h, left:left + w]
        # One image for each frame or segment.
        flat = self._interpolate(content.flatten(0, -4), geometry.new)
        resized = flat.reshape(*images.shape[:-2], *geometry.new)
        if not any(geometry.padding):
            return resized
        return F.pad(resized, geometry.padding, value=self.pad_value)

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


def padding_of(model: nn.Module) -> dict:
    """The arguments of :class:`MultiScaleBatch` that make it pad as the data
    preprocessor of ``model`` does, and resize heatmaps on its grid."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    # mmdet's name, then mmseg's.
    names = dict(pad_size_divisor='size_divisor', size_divisor='size_divisor',
                 pad_value='pad_value', pad_val='pad_value',
                 seg_pad_value='seg_pad_value', seg_pad_val='seg_pad_value')
    found = {ours: getattr(preprocessor, theirs)
             for theirs, ours in names.items()
             if getattr(preprocessor, theirs, None) is not None}
    # mmpose: UDPHeatmap, and AssociativeEmbedding(use_udp=True).
    codec = getattr(getattr(model, 'head', None), 'decoder', None)
    if getattr(codec, 'use_udp', False) or any(
            each.__name__ == 'UDPHeatmap' for each in type(codec).__mro__):
        found['aligned_heatmaps'] = True
    return found
