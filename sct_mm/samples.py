"""Samples of OpenMMLab that follow their picture to another size.

Shapes are (H, W) in pixels. A *content* is the part of a picture before its
padding at the right and the bottom.
"""
from typing import Any, Sequence, Tuple

import numpy as np
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from torch import Tensor

Shape = Tuple[int, int]
_INSTANCES = ('gt_instances', 'ignored_instances')


def is_padded(sample: Any) -> bool:
    """Whether the data preprocessor pads pictures: such a one (detection)
    writes ``batch_input_shape``. Without it a picture fills its batch, and
    its ``img_shape`` may be older than the last crop."""
    return (isinstance(sample, BaseDataElement)
            and 'batch_input_shape' in sample.metainfo_keys())


def content_shape(sample: BaseDataElement, padded: Sequence[int]) -> Shape:
    """(H, W) of the picture of ``sample`` in a batch of ``padded`` (H, W)."""
    shape = padded
    if is_padded(sample):
        shape = sample.metainfo.get('img_shape', padded)
    return tuple(min(int(a), int(b)) for a, b in zip(shape[:2], padded))


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


def _check_plain(element: BaseDataElement, path: str) -> None:
    for name, value in element.items():
        if isinstance(value, BaseDataElement):
            _check_plain(value, f'{path}.{name}')
        elif not _is_plain(value):
            _refuse(value, f'{path}.{name}')


def _resized_boxes(boxes: Any, factor: Tuple[float, float], path: str) -> Any:
    """Boxes times ``factor`` (w, h), a copy; none is dropped, as by mmdet's
    ``Resize``, however small it becomes."""
    if hasattr(boxes, 'rescale_'):  # mmdet's BaseBoxes
        boxes = boxes.clone()
        boxes.rescale_(factor)
        return boxes
    if not isinstance(boxes, Tensor) or boxes.shape[-1] != 4:
        _refuse(boxes, path)
    return boxes * boxes.new_tensor((*factor, *factor))


def _resized_masks(masks: Any, old: Shape, new: Shape, padded: Shape) -> Any:
    """mmdet's bitmap or polygon masks of the content ``old``, resized to
    ``new``; padded to ``padded`` if they were padded."""
    was_padded = (masks.height, masks.width) != tuple(old)
    content = masks.masks
    if isinstance(content, np.ndarray):
        content = content[:, :old[0], :old[1]]
    resized = type(masks)(content, *old).resize(new)
    return resized.pad(padded, pad_val=0) if was_padded else resized


def _resized_map(labels: Tensor, old: Shape, new: Shape, padded: Shape,
                 ignore: int) -> Tensor:
    """A map of labels (1, H, W), by nearest neighbour."""
    was_padded = tuple(labels.shape[-2:]) != tuple(old)
    content = labels[None, :, :old[0], :old[1]].float()
    resized = F.interpolate(content, new, mode='nearest')[0].to(labels.dtype)
    if was_padded:
        resized = F.pad(resized, (0, padded[1] - new[1],
                                  0, padded[0] - new[0]), value=ignore)
    return resized


def _resized_metainfo(sample: BaseDataElement, factor: Tuple[float, float],
                      new: Shape, padded: Shape, divisor: int) -> dict:
    metainfo = sample.metainfo
    metainfo['img_shape'] = tuple(new)
    if 'batch_input_shape' in metainfo:
        metainfo['batch_input_shape'] = tuple(padded)
    if 'pad_shape' in metainfo:
        metainfo['pad_shape'] = padded_shape(new, divisor)
    if 'scale_factor' in metainfo:
        w, h = metainfo['scale_factor']
        metainfo['scale_factor'] = (w * factor[0], h * factor[1])
    if metainfo.get('homography_matrix') is not None:
        metainfo['homography_matrix'] = np.diag(
            [*factor, 1]).astype(np.float32) @ metainfo['homography_matrix']
    return metainfo


def padded_shape(shape: Sequence[int], divisor: int) -> Shape:
    """``shape`` with each edge padded to a multiple of ``divisor``."""
    return tuple(-(-edge // divisor) * divisor for edge in shape)


def resized_sample(sample: BaseDataElement, old: Sequence[int],
                   new: Sequence[int], padded: Sequence[int],
                   divisor: int = 1, ignore: int = 255) -> BaseDataElement:
    """The sample of a picture whose content ``old`` was resized to ``new``.

    Labels and scores (mixup's and cutmix's too) are the same objects, not
    copies. Boxes, masks and the semantic map of mmdet's ``DetDataSample`` are
    resized as mmdet's ``Resize`` does, and the metainfo ``img_shape``,
    ``batch_input_shape``, ``pad_shape``, ``scale_factor`` and
    ``homography_matrix`` follow. ``sample`` is unchanged.

    Args:
        padded: shape of the resized batch.
        divisor: of its edges.
        ignore: label of the padding of a semantic map.

    Raises:
        TypeError: for another field that may carry pixels or coordinates
            (proposals, keypoints, depth), naming it.
    """
    old, new, padded = tuple(old), tuple(new), tuple(padded)
    factor = (new[1] / old[1], new[0] / old[0])
    resized = type(sample)(metainfo=_resized_metainfo(sample, factor, new,
                                                      padded, divisor))
    for name, value in sample.items():
        path = f'{type(sample).__name__}.{name}'
        known = {}
        if isinstance(value, BaseDataElement):
            if name in _INSTANCES:
                if 'bboxes' in value:
                    known['bboxes'] = _resized_boxes(value.bboxes, factor,
                                                     f'{path}.bboxes')
                if hasattr(value.get('masks'), 'resize'):
                    known['masks'] = _resized_masks(value.masks, old, new,
                                                    padded)
            elif name == 'gt_sem_seg' and isinstance(value.get('sem_seg'),
                                                     Tensor):
                known['sem_seg'] = _resized_map(value.sem_seg, old, new,
                                                padded, ignore)
            rest = type(value)(metainfo=value.metainfo)
            rest.set_data({k: v for k, v in value.items() if k not in known})
            _check_plain(rest, path)
            value = type(value)(metainfo=value.metainfo,
                                **{k: known.get(k, v)
                                   for k, v in value.items()})
        elif not _is_plain(value):
            _refuse(value, path)
        resized.set_field(value, name)
    return resized
