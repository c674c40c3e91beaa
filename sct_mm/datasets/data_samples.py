"""Resize the data sample of an image with it: boxes, masks, maps, metainfo.

``sample_fields.py`` has a function for each field. Shapes are (H, W) in
pixels. The *content* is an image without its padding.
"""
import copy
from collections.abc import Sequence
from typing import Any

from mmengine.structures import BaseDataElement
from torch import Tensor

from .pixel_fields import check_metainfo, check_plain, numbers
from .sample_fields import (
    Geometry,
    Shape,
    padded_shape,
    resizer_of,
    unchanged,
)

# mmseg's names of left, right, top, bottom, in training and in testing.
_PADDING = ('padding_size', 'img_padding_size')
# mmpose warps an image into the whole input; `img_shape` is the original's.
_FILLED = ('PoseDataSample', )


def _is_filled(sample: Any) -> bool:
    return any(base.__name__ in _FILLED for base in type(sample).__mro__)


def is_padded(sample: Any) -> bool:
    """Whether the data preprocessor pads images, as in detection: it then
    writes ``batch_input_shape``, and a scale is the nominal edge of an image
    without its padding. Otherwise it is that of the batch, and ``img_shape``
    may be that of before the last crop."""
    return (isinstance(sample, BaseDataElement)
            and 'batch_input_shape' in sample.metainfo_keys()
            and not _is_filled(sample))


def has_padding_size(sample: Any) -> bool:
    """Whether a host, as mmseg, wrote how it padded the image to the shape of
    the batch, which is then part of the scale."""
    return isinstance(sample, BaseDataElement) and any(
        sample.metainfo.get(name) is not None for name in _PADDING)


def is_padded_further(sample: Any, divisor: int) -> bool:
    """Whether a host padded the image of ``sample`` by more than to multiples
    of ``divisor``, as mmdet's ``BatchFixedSizePad``: to a shape that is then
    part of the scale."""
    if not is_padded(sample):
        return False
    shape, padded = (sample.metainfo.get(name)
                     for name in ('img_shape', 'pad_shape'))
    return (isinstance(shape, (list, tuple)) and isinstance(padded, (
        list, tuple)) and any(edge > own for edge, own in zip(
            padded, padded_shape(shape[:2], divisor), strict=False)))


def content_of(sample: Any, batch: Sequence[int]) -> tuple[Shape, Shape]:
    """The top and left edge, and (H, W), of the image of ``sample`` in a batch
    of shape ``batch``.

    Raises:
        TypeError, ValueError: for metainfo of another form, and for an image
            without a pixel.
    """
    height, width = batch
    if has_padding_size(sample):
        name = next(n for n in _PADDING if sample.metainfo.get(n) is not None)
        value = sample.metainfo[name]
        padding = numbers(name, value, (4, ))
        left, right, top, bottom = padding
        if not (min(padding) >= 0 and left + right < width
                and top + bottom < height):
            raise ValueError(f'`{name}` of a sample must be left, right, top '
                             'and bottom of what pads an image in a batch of '
                             f'{height, width}, but got {value}. Pack it as '
                             'the host does.')
        return (int(top), int(left)), (height - int(top + bottom),
                                       width - int(left + right))
    shape = sample.metainfo.get('img_shape') if is_padded(sample) else None
    if shape is None:
        return (0, 0), (height, width)
    edges = numbers('img_shape', shape, (2, 3))[:2]
    if min(edges) < 1:
        raise ValueError('`img_shape` of a sample must be at least one pixel '
                         f'high and wide, but got {shape}. Remove such '
                         'images from the data set.')
    return (0, 0), (min(int(edges[0]), height), min(int(edges[1]), width))


def _resized_metainfo(kind: type, metainfo: dict, geometry: Geometry,
                      element: str = '') -> dict:
    """A copy of the metainfo in which shapes and lengths are the new ones."""
    prefix = f'{element}.' if element else ''
    path, resized, others = f'{kind.__name__}.{prefix}', dict(metainfo), {}
    for name, value in metainfo.items():
        resize = (resizer_of(kind, prefix + name)
                  or resizer_of(kind, name))
        if resize is None:
            others[name] = value
        elif resize is not unchanged:
            resized[name] = resize(value, geometry._replace(field=path + name))
    check_metainfo(others, path)
    return resized


def _resized_element(kind: type, name: str, element: BaseDataElement,
                     geometry: Geometry) -> BaseDataElement:
    """A field of a sample that is itself made of fields."""
    fields = {key: _resized_field(kind, f'{name}.{key}', value, geometry)
              for key, value in element.items()}
    return type(element)(metainfo=_resized_metainfo(
        kind, element.metainfo, geometry, name), **fields)


def _resized_field(kind: type, field: str, value: Any,
                   geometry: Geometry) -> Any:
    path = f'{kind.__name__}.{field}'
    resize = resizer_of(kind, field, value)
    if resize is not None:
        return resize(value, geometry._replace(field=path))
    if isinstance(value, BaseDataElement) and '.' not in field:
        return _resized_element(kind, field, value, geometry)
    check_plain(value, path)
    return value


def resized_sample(sample: Any, geometry: Geometry) -> Any:
    """The sample of an image that was resized; ``sample`` is unchanged.

    Boxes, masks and the semantic map of mmdet's ``DetDataSample``, and mmseg's
    semantic, edge and depth maps, are resized as by mmdet's ``Resize``; areas
    are multiplied by the factors of both edges. Metainfo in pixels is changed
    alike. ``sample_fields.py`` lists the fields of each host. Labels and
    scores, those of mixup and cutmix too, are the same objects, not copies.

    Raises:
        TypeError: for any other field or metainfo whose name or dimensions
            suggest pixels or coordinates (``keypoint_indices``, ``cam2img``),
            and for a sample that is no ``BaseDataElement``, unless
            ``register_resizer`` knows it.
        ValueError: for masks and maps that are not as large as their image,
            and for instances beyond it.
    """
    kind = type(sample)
    whole = resizer_of(kind, '')
    if whole is not None:
        return whole(sample, geometry._replace(field=kind.__name__))
    if not isinstance(sample, BaseDataElement):
        raise TypeError('`data_samples` must be BaseDataElements of mmengine, '
                        f'but got a {kind.__name__}. Pack them as '
                        'mmpretrain and mmdet do, or register their class '
                        '(docs/batches.md).')
    resized = kind(metainfo=_resized_metainfo(
        kind, {'img_shape': None, **sample.metainfo}, geometry))
    for name, value in sample.items():
        resized.set_field(_resized_field(kind, name, value, geometry), name)
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
