"""Samples of OpenMMLab that follow their picture to another size.

Shapes are (H, W) in pixels. A *content* is the part of a picture before its
padding at the right and the bottom.
"""
import copy
from typing import Any, NamedTuple, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from torch import Tensor

Shape = Tuple[int, int]
_INSTANCES = ('gt_instances', 'ignored_instances')
# mmdet packs a map as `sem_seg`, mmseg as `data`; depth is in no pixels.
_MAPS = ('gt_sem_seg', 'gt_edge_map', 'gt_depth_map')


def is_padded(sample: Any) -> bool:
    """Whether the data preprocessor pads pictures: such a one (detection)
    writes ``batch_input_shape``. Without it a picture fills its batch, and
    its ``img_shape`` may be older than the last crop."""
    return (isinstance(sample, BaseDataElement)
            and 'batch_input_shape' in sample.metainfo_keys())


def content_shape(sample: BaseDataElement, padded: Sequence[int]) -> Shape:
    """(H, W) of the picture of ``sample`` in a batch of ``padded`` (H, W)."""
    shape = None
    if is_padded(sample):
        shape = sample.metainfo.get('img_shape')
    if shape is None:
        return tuple(padded)
    edges = _numbers('img_shape', shape, (2, 3))[:2]
    if min(edges) < 1:
        raise ValueError('`img_shape` of a sample must be at least one pixel '
                         f'high and wide, but got {shape}. Remove such '
                         'pictures from the data set.')
    return tuple(min(int(a), b) for a, b in zip(edges, padded))


def _numbers(name: str, value: Any, lengths: Sequence[int]) -> list:
    """A list of numbers in the metainfo.

    Raises:
        TypeError: if it is none, or of another length.
    """
    values = (list(value) if isinstance(value, (list, tuple))
              or getattr(value, 'ndim', 0) == 1 else [])
    if len(values) not in lengths or not all(
            isinstance(v, (int, float, np.number)) or isinstance(v, Tensor)
            and v.dim() == 0 for v in values):
        raise TypeError(f'`{name}` of a sample must be '
                        f'{" or ".join(map(str, lengths))} numbers, but got '
                        f'{value!r}. Pack it as the host does.')
    return [float(v) for v in values]


def _is_plain(value: Any) -> bool:
    """Whether ``value`` cannot carry pixels or coordinates: a number, a text,
    or one value per instance."""
    if isinstance(value, (list, tuple)):
        return all(isinstance(v, (str, int, float)) for v in value)
    return (isinstance(value, (bool, int, float, str, type(None)))
            or isinstance(value, (Tensor, np.ndarray, np.generic))
            and value.ndim <= 1)


def _refuse(value: Any, path: str) -> None:
    shape = getattr(value, 'shape', None)
    what = (type(value).__name__ if shape is None
            else f'shape {tuple(shape)}')
    raise TypeError('`MultiScaleBatch` knows labels, scores, boxes, masks and '
                    f'semantic maps, but got `{path}` of {what}, which may '
                    'carry pixels or coordinates. Remove the field from the '
                    'pipeline.')


def _check_plain(value: Any, path: str) -> None:
    if isinstance(value, BaseDataElement):
        for name, field in value.items():
            _check_plain(field, f'{path}.{name}')
    elif not _is_plain(value):
        _refuse(value, path)


def padded_shape(shape: Sequence[int], divisor: int) -> Shape:
    """``shape`` with each edge padded to a multiple of ``divisor``."""
    return tuple(-(-edge // divisor) * divisor for edge in shape)


class Geometry(NamedTuple):
    """How one picture was resized; shapes are (H, W) in pixels."""
    old: Shape  # the content before
    new: Shape  # the content after
    batch: Shape  # the batch before, padding included
    padded: Shape  # the batch after
    divisor: int = 1  # of the edges of a padded picture
    ignore: int = 255  # label of the padding of a semantic map

    @property
    def factor(self) -> Tuple[float, float]:
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
        _refuse(boxes, path)
    # By Python's numbers: a tensor of them would make a GPU wait.
    return torch.stack([edge * factor for edge, factor in zip(
        boxes.unbind(-1), geometry.factor * 2)], -1)


def _resized_masks(masks: Any, geometry: Geometry) -> Any:
    """mmdet's bitmap or polygon masks; those of the batch's shape are padded
    to it again, even if a picture filled it."""
    old, new, batch, padded, *_ = geometry
    was_padded = (masks.height, masks.width) == batch
    content = masks.masks
    if isinstance(content, np.ndarray):
        content = content[:, :old[0], :old[1]]
    resized = type(masks)(content, *old).resize(new)
    return resized.pad(padded, pad_val=0) if was_padded else resized


def _resized_map(labels: Tensor, geometry: Geometry, path: str) -> Tensor:
    """A map (1, H, W), by nearest neighbour; padded as masks."""
    old, new, batch, padded, _, ignore = geometry
    was_padded = tuple(labels.shape[-2:]) == batch
    if labels.dim() != 3 or (not was_padded
                             and tuple(labels.shape[-2:]) != old):
        raise ValueError(f'`{path}` must have shape (C, H, W), as large as '
                         f'its picture, {old}, but got shape '
                         f'{tuple(labels.shape)}. Remove SegRescale from the '
                         'pipeline.')
    content = labels[None, :, :old[0], :old[1]].double()
    resized = F.interpolate(content, new, mode='nearest')[0].to(labels.dtype)
    if was_padded:
        resized = F.pad(resized, (0, padded[1] - new[1],
                                  0, padded[0] - new[0]), value=ignore)
    return resized


def _resized_metainfo(metainfo: dict, geometry: Geometry) -> dict:
    w, h = geometry.factor
    metainfo = dict(metainfo, img_shape=geometry.new)
    if 'batch_input_shape' in metainfo:
        metainfo['batch_input_shape'] = geometry.padded
    if 'pad_shape' in metainfo:
        metainfo['pad_shape'] = padded_shape(geometry.new, geometry.divisor)
    # mmseg pads left, right, top, bottom.
    for name, lengths, factor in (('padding_size', (4, ), (w, w, h, h)),
                                  ('scale_factor', (2, 4), (w, h, w, h))):
        if metainfo.get(name) is not None:
            values = [v * f for v, f in zip(
                _numbers(name, metainfo[name], lengths), factor)]
            metainfo[name] = tuple(map(round, values) if 'padding' in name
                                   else values)
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
            known['masks'] = _resized_masks(element.masks, geometry)
    elif name in _MAPS:
        known = {key: _resized_map(element.get(key), geometry,
                                   f'{path}.{key}')
                 for key in ('sem_seg', 'data')
                 if isinstance(element.get(key), Tensor)}
    fields = {key: known.get(key, value) for key, value in element.items()}
    for key, value in fields.items():
        if key not in known:
            _check_plain(value, f'{path}.{key}')
    return type(element)(metainfo=element.metainfo, **fields)


def resized_sample(sample: BaseDataElement,
                   geometry: Geometry) -> BaseDataElement:
    """The sample of a picture that was resized; ``sample`` is unchanged.

    Labels and scores (mixup's and cutmix's too) are the same objects, not
    copies. Boxes, masks and the semantic map of mmdet's ``DetDataSample`` are
    resized as mmdet's ``Resize`` does, mmseg's semantic, edge and depth maps
    alike, and the metainfo ``img_shape``, ``batch_input_shape``,
    ``pad_shape``, ``padding_size``, ``scale_factor`` and
    ``homography_matrix`` follow.

    Raises:
        TypeError: for another field that may carry pixels or coordinates
            (proposals, keypoints, depth), naming it, and for another sample
            than a ``BaseDataElement``.
        ValueError: for a semantic map that is not as large as its picture.
    """
    if not isinstance(sample, BaseDataElement):
        raise TypeError('`data_samples` must be BaseDataElements of mmengine, '
                        f'but got a {type(sample).__name__}. Pack them as '
                        'mmpretrain and mmdet do.')
    resized = type(sample)(metainfo=_resized_metainfo(sample.metainfo,
                                                      geometry))
    for name, value in sample.items():
        path = f'{type(sample).__name__}.{name}'
        if isinstance(value, BaseDataElement):
            value = _resized_element(name, value, geometry, path)
        else:
            _check_plain(value, path)
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
