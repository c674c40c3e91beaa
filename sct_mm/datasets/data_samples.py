"""Resize the data sample of an image with it: boxes, masks, maps, metainfo.

To serve another field, such as keypoints, write a function like
:func:`_resized_boxes` and name it in :func:`_resizer`. Fields without one are
refused if they may carry pixels; ``pixel_fields.py`` decides that.

Shapes are (H, W) in pixels. The *content* is an image without its padding,
which is at the right and the bottom.
"""
import copy
import math
from collections.abc import Callable, Sequence
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
)

Shape = tuple[int, int]
_INSTANCES = ('gt_instances', 'ignored_instances')
# Their values are labels or metres, which do not change with the size.
_MAPS = ('gt_sem_seg', 'gt_edge_map', 'gt_depth_map')
# Lengths in the metainfo, each along the width (w) or the height (h). mmcv
# writes width and height; mmseg left, right, top, bottom; mmdet's CenterNet
# top, bottom, left, right.
_EDGES = dict(scale_factor='whwh', scale='wh', pad_fixed_size='wh',
              padding_size='wwhh', img_padding_size='wwhh', border='hhww')
_METAINFO = ('img_shape', 'ori_shape', 'batch_input_shape', 'pad_shape',
             'homography_matrix', *_EDGES)


def is_padded(sample: Any) -> bool:
    """Whether the data preprocessor pads images, as in detection: it then
    writes ``batch_input_shape``. Otherwise each image fills its batch, and
    ``img_shape`` may be that of before the last crop."""
    return (isinstance(sample, BaseDataElement)
            and 'batch_input_shape' in sample.metainfo_keys())


def content_shape(sample: BaseDataElement, padded: Sequence[int]) -> Shape:
    """(H, W) of the image of ``sample`` in a batch of ``padded`` (H, W)."""
    shape = None
    if is_padded(sample):
        shape = sample.metainfo.get('img_shape')
    if shape is None:
        return padded[0], padded[1]
    edges = numbers('img_shape', shape, (2, 3))[:2]
    if min(edges) < 1:
        raise ValueError('`img_shape` of a sample must be at least one pixel '
                         f'high and wide, but got {shape}. Remove such '
                         'images from the data set.')
    return min(int(edges[0]), padded[0]), min(int(edges[1]), padded[1])


def padded_shape(shape: Sequence[int], divisor: int) -> Shape:
    """``shape`` with each edge padded to a multiple of ``divisor``."""
    height, width = (-(-edge // divisor) * divisor for edge in shape)
    return height, width


class Geometry(NamedTuple):
    """How one image was resized; shapes are (H, W) in pixels."""
    old: Shape  # of the content before
    new: Shape  # of the content after
    batch: Shape  # of the batch before, with padding
    padded: Shape  # of the batch after, with padding
    divisor: int = 1  # padded edges are multiples of it
    ignore: int = 255  # the label of padding in a semantic map

    @property
    def factor(self) -> tuple[float, float]:
        """The width and the height after, divided by those before."""
        return self.new[1] / self.old[1], self.new[0] / self.old[0]


def _resized_boxes(boxes: Any, geometry: Geometry, path: str) -> Any:
    """A copy of the boxes at the new size. As in mmdet's ``Resize``, none is
    dropped, however small it becomes."""
    if hasattr(boxes, 'rescale_'):  # mmdet's BaseBoxes
        boxes = (boxes.clone() if boxes.tensor.is_floating_point()
                 else boxes.float())
        boxes.rescale_(geometry.factor)
        return boxes
    if not isinstance(boxes, Tensor) or boxes.shape[-1:] != (4, ):
        refuse(boxes, path)
    # Python's numbers, because a tensor of factors would make a GPU wait.
    return torch.stack([edge * factor for edge, factor in zip(
        boxes.unbind(-1), geometry.factor * 2, strict=True)], -1)


def _holds(shape: Sequence[int], geometry: Geometry) -> bool:
    """Whether masks or maps of ``shape`` hold the content and at most the
    batch's padding. Some batch augments pad images only."""
    return all(low <= edge <= high for low, edge, high in zip(
        geometry.old, shape, geometry.batch, strict=True))


def _resized_masks(masks: Any, geometry: Geometry, path: str) -> Any:
    """mmdet's bitmap or polygon masks at the new size. Masks that had the
    batch's shape get the new batch's shape."""
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
    """A map (C, H, W) at the new size, by nearest neighbour; padded as masks
    are."""
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


def _resized_areas(areas: Any, geometry: Geometry, path: str) -> Any:
    """One area in pixels for each instance, in a list, tensor or array."""
    factor = math.prod(geometry.factor)
    if isinstance(areas, (list, tuple)):
        return type(areas)(area * factor for area in areas)
    return areas * factor


def _resizer(element: str, key: str, value: Any) -> Callable | None:
    """The function that resizes the field ``key`` of ``element``; None for a
    field that stays as it is, or is not known."""
    if element in _INSTANCES:
        if key == 'bboxes':
            return _resized_boxes
        if key == 'masks' and hasattr(value, 'rescale'):  # mmdet's masks
            return _resized_masks
        if is_area(key, value):
            return _resized_areas
    elif element in _MAPS and isinstance(value, Tensor):
        if key in ('sem_seg', 'data'):  # in mmdet and in mmseg
            return _resized_map
    return None


def _resized_metainfo(metainfo: dict, geometry: Geometry,
                      path: str) -> dict:
    """A copy of the metainfo in which shapes and lengths are the new ones."""
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
    fields = {}
    for key, value in element.items():
        resize = _resizer(name, key, value)
        if resize is None:
            check_plain(value, f'{path}.{key}')
        fields[key] = value if resize is None else resize(
            value, geometry, f'{path}.{key}')
    return type(element)(metainfo=_resized_metainfo(
        element.metainfo, geometry, path), **fields)


def resized_sample(sample: BaseDataElement,
                   geometry: Geometry) -> BaseDataElement:
    """The sample of an image that was resized; ``sample`` is unchanged.

    Boxes, masks and the semantic map of mmdet's ``DetDataSample``, and mmseg's
    semantic, edge and depth maps, are resized as by mmdet's ``Resize``; areas
    are multiplied by the factors of both edges. Metainfo in pixels that mmcv,
    mmpretrain, mmdet and mmseg pack is changed alike. Labels and scores, those
    of mixup and cutmix too, are the same objects, not copies.

    Raises:
        TypeError: for any other field or metainfo whose name or dimensions
            suggest pixels or coordinates (proposals, keypoints, ``cam2img``),
            and for a sample that is no ``BaseDataElement``.
        ValueError: for masks and maps that are not as large as their image.
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
    """A copy of samples or of their fields that shares no tensor and no
    container with ``value``, so that a model may write into it."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(map(private_copy, value))
    if isinstance(value, BaseDataElement):
        # clone() shares the tensors; deepcopy() takes ten times as long.
        new = object.__new__(type(value))
        for name, field in vars(value).items():
            new.__dict__[name] = (set(field) if isinstance(field, set)
                                  else private_copy(field))
        return new
    return copy.deepcopy(value)
