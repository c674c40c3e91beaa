"""Samples of OpenMMLab that follow their image to another size.

Shapes are (H, W) in pixels. A *content* is the part of an image before its
padding at the right and the bottom.
"""
import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from torch import Tensor

from .pixel_fields import (
    check_metainfo,
    check_plain,
    is_area,
    numbers,
    refuse,
    resized_areas,
)

Shape = tuple[int, int]
_INSTANCES = ('gt_instances', 'ignored_instances')
# mmdet packs a map as `sem_seg`, mmseg as `data`; depth is in no pixels.
_MAPS = ('gt_sem_seg', 'gt_edge_map', 'gt_depth_map')
# The edges in metainfo, each along the width or the height: mmcv writes w, h;
# mmseg left, right, top, bottom; mmdet's CenterNet top, bottom, left, right.
_EDGES = dict(scale_factor='whwh', scale='wh', pad_fixed_size='wh',
              padding_size='wwhh', img_padding_size='wwhh', border='hhww')
_METAINFO = ('img_shape', 'ori_shape', 'batch_input_shape', 'pad_shape',
             'homography_matrix', *_EDGES)


def is_padded(sample: Any) -> bool:
    """Whether the data preprocessor pads images: such a one (detection)
    writes ``batch_input_shape``. Without it an image fills its batch, and
    its ``img_shape`` may be older than the last crop."""
    return (isinstance(sample, BaseDataElement)
            and 'batch_input_shape' in sample.metainfo_keys())


def content_shape(sample: BaseDataElement, padded: Sequence[int]) -> Shape:
    """(H, W) of the image of ``sample`` in a batch of ``padded`` (H, W)."""
    shape = None
    if is_padded(sample):
        shape = sample.metainfo.get('img_shape')
    if shape is None:
        return tuple(padded)
    edges = numbers('img_shape', shape, (2, 3))[:2]
    if min(edges) < 1:
        raise ValueError('`img_shape` of a sample must be at least one pixel '
                         f'high and wide, but got {shape}. Remove such '
                         'images from the data set.')
    return tuple(min(int(a), b) for a, b in zip(edges, padded, strict=True))


def padded_shape(shape: Sequence[int], divisor: int) -> Shape:
    """``shape`` with each edge padded to a multiple of ``divisor``."""
    return tuple(-(-edge // divisor) * divisor for edge in shape)


class Geometry(NamedTuple):
    """How one image was resized; shapes are (H, W) in pixels."""
    old: Shape  # the content before
    new: Shape  # the content after
    batch: Shape  # the batch before, padding included
    padded: Shape  # the batch after
    divisor: int = 1  # of the edges of a padded image
    ignore: int = 255  # label of the padding of a semantic map

    @property
    def factor(self) -> tuple[float, float]:
        """(w, h) of the content after, in those before."""
        return self.new[1] / self.old[1], self.new[0] / self.old[0]


def _resized_boxes(boxes: Any, geometry: Geometry, path: str) -> Any:
    """A copy of the boxes at the new size; none is dropped, as by mmdet's
    ``Resize``, however small it becomes."""
    if hasattr(boxes, 'rescale_'):  # mmdet's BaseBoxes
        boxes = (boxes.clone() if boxes.tensor.is_floating_point()
                 else boxes.float())
        boxes.rescale_(geometry.factor)
        return boxes
    if not isinstance(boxes, Tensor) or boxes.shape[-1:] != (4, ):
        refuse(boxes, path)
    # By Python's numbers: a tensor of them would make a GPU wait.
    return torch.stack([edge * factor for edge, factor in zip(
        boxes.unbind(-1), geometry.factor * 2, strict=True)], -1)


def _holds(shape: Shape, geometry: Geometry) -> bool:
    """Whether what has ``shape`` is an image's content and its padding: some
    batch augments pad images alone."""
    return all(low <= edge <= high for low, edge, high in zip(
        geometry.old, shape, geometry.batch, strict=True))


def _resized_masks(masks: Any, geometry: Geometry, path: str) -> Any:
    """mmdet's bitmap or polygon masks; those of the batch's shape are padded
    to it again, even if an image filled it."""
    old, new, batch, padded, *_ = geometry
    shape = masks.height, masks.width
    was_padded = shape == batch
    if not _holds(shape, geometry):
        raise ValueError(f'`{path}` must be as large as their image, {old}, '
                         f'but got {shape}. Let each transform of the '
                         'pipeline that changes images change masks, too.')
    content = masks.masks
    if isinstance(content, np.ndarray):
        content = content[:, :old[0], :old[1]]
    resized = type(masks)(content, *old).resize(new)
    return resized.pad(padded, pad_val=0) if was_padded else resized


def _resized_map(labels: Tensor, geometry: Geometry, path: str) -> Tensor:
    """A map (1, H, W), by nearest neighbour; padded as masks."""
    old, new, batch, padded, _, ignore = geometry
    was_padded = tuple(labels.shape[-2:]) == batch
    if labels.dim() != 3 or not _holds(labels.shape[-2:], geometry):
        raise ValueError(f'`{path}` must have shape (C, H, W), as large as '
                         f'its image, {old}, but got shape '
                         f'{tuple(labels.shape)}. Remove SegRescale from the '
                         'pipeline.')
    content = labels[None, :, :old[0], :old[1]].double()
    resized = F.interpolate(content, new, mode='nearest')[0].to(labels.dtype)
    if was_padded:
        resized = F.pad(resized, (0, padded[1] - new[1],
                                  0, padded[0] - new[0]), value=ignore)
    return resized


def _resized_metainfo(metainfo: dict, geometry: Geometry,
                      path: str) -> dict:
    check_metainfo(metainfo, path, _METAINFO)
    metainfo, (w, h) = dict(metainfo), geometry.factor
    shapes = dict(
        img_shape=geometry.new, batch_input_shape=geometry.padded,
        pad_shape=padded_shape(geometry.new, geometry.divisor))
    metainfo.update((name, shape) for name, shape in shapes.items()
                    if name in metainfo)
    for name, axes in _EDGES.items():
        if metainfo.get(name) is not None:
            lengths = (2, 4) if name == 'scale_factor' else (len(axes), )
            values = [v * dict(w=w, h=h)[axis] for v, axis in zip(
                numbers(name, metainfo[name], lengths), axes, strict=False)]
            metainfo[name] = tuple(values if name == 'scale_factor'
                                   else map(round, values))
    if metainfo.get('homography_matrix') is not None:
        matrix = metainfo['homography_matrix']
        if not isinstance(matrix, np.ndarray) or matrix.shape != (3, 3):
            raise TypeError('`homography_matrix` of a sample must be an array '
                            f'of shape (3, 3), but got {matrix!r}. Pack it '
                            'as the host does.')
        metainfo['homography_matrix'] = np.diag([w, h, 1]).astype(
            np.float32) @ matrix
    return metainfo


def _resized_element(name: str, element: BaseDataElement, geometry: Geometry,
                     path: str) -> BaseDataElement:
    """A field of a sample that is itself made of fields."""
    known = {}
    if name in _INSTANCES:
        if 'bboxes' in element:
            known['bboxes'] = _resized_boxes(element.bboxes, geometry,
                                             f'{path}.bboxes')
        if hasattr(element.get('masks'), 'rescale'):  # mmdet's masks
            known['masks'] = _resized_masks(element.masks, geometry,
                                            f'{path}.masks')
        known.update(
            (key, resized_areas(value, math.prod(geometry.factor)))
            for key, value in element.items() if is_area(key, value))
    elif name in _MAPS:
        known = {key: _resized_map(element.get(key), geometry,
                                   f'{path}.{key}')
                 for key in ('sem_seg', 'data')
                 if isinstance(element.get(key), Tensor)}
    fields = {key: known.get(key, value) for key, value in element.items()}
    for key, value in fields.items():
        if key not in known:
            check_plain(value, f'{path}.{key}')
    return type(element)(metainfo=_resized_metainfo(
        element.metainfo, geometry, path), **fields)


def resized_sample(sample: BaseDataElement,
                   geometry: Geometry) -> BaseDataElement:
    """The sample of an image that was resized; ``sample`` is unchanged.

    Labels and scores (mixup's and cutmix's too) are the same objects, not
    copies. Boxes, masks and the semantic map of mmdet's ``DetDataSample`` are
    resized as mmdet's ``Resize`` does, mmseg's semantic, edge and depth maps
    alike, areas by the product of the factors of the edges. The metainfo of
    pixels that mmcv, mmpretrain, mmdet and mmseg pack follows.

    Raises:
        TypeError: for another field or metainfo that may carry pixels or
            coordinates (proposals, keypoints, depth, ``cam2img``), by its
            dimensions or its name, naming it, and for another sample than a
            ``BaseDataElement``.
        ValueError: for masks or a semantic map that are not as large as the
            image.
    """
    if not isinstance(sample, BaseDataElement):
        raise TypeError('`data_samples` must be BaseDataElements of mmengine, '
                        f'but got a {type(sample).__name__}. Pack them as '
                        'mmpretrain and mmdet do.')
    kind = type(sample).__name__
    resized = type(sample)(metainfo=_resized_metainfo(
        dict(sample.metainfo, img_shape=geometry.new), geometry, kind))
    for name, value in sample.items():
        path = f'{kind}.{name}'
        if isinstance(value, BaseDataElement):
            value = _resized_element(name, value, geometry, path)
        else:
            check_plain(value, path)
        resized.set_field(value, name)
    return resized


def private_copy(value: Any) -> Any:
    """``value`` (samples in lists, their fields) with tensors and containers
    of its own: what a model writes into one is not in the other."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(map(private_copy, value))
    if isinstance(value, BaseDataElement):
        # Its own clone() shares the tensors, deepcopy() takes ten times as
        # long.
        new = object.__new__(type(value))
        for name, field in vars(value).items():
            new.__dict__[name] = (set(field) if isinstance(field, set)
                                  else private_copy(field))
        return new
    return copy.deepcopy(value)
