"""Which fields of a sample may carry pixels, by their values and names."""
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from mmengine.structures import BaseDataElement
from torch import Tensor

# How the hosts name coordinates and lengths of the input image: mmdet's
# boxes, mmpose's centers and scales, mmdet3d's matrices, mmyolo's padding. The
# last word tells: `bbox_scores` are none.
_PIXELS = re.compile(
    r'(^|_)(b?box(es)?|matri(x|ces)|mat|intrinsics?|pad_param|'
    r'(area|border|cent(er|re)|coord(inate)?|corner|keypoint|landmark|offset|'
    r'point|polygon|proposal|rect|roi|scale|shape|size|xywh|xyxy)s?)'
    r'(_2d|_ignore)?$|2img$')
# Of the image before any resize, or no length at all.
_OTHER = re.compile(r'(ori|orig|original|num|is|has|with)_')
_AREAS = re.compile(r'(^|_)areas?$')


def numbers(name: str, value: Any, lengths: Sequence[int]) -> list:
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


def is_area(name: str, value: Any) -> bool:
    """Whether a field of instances has an area in pixels for each."""
    return (_is_pixels(name) and bool(_AREAS.search(name))
            and _is_row(value))


def resized_areas(value: Any, factor: float) -> list | Tensor | np.ndarray:
    if isinstance(value, (list, tuple)):
        return type(value)(v * factor for v in value)
    return value * factor


def _is_row(value: Any) -> bool:
    """Whether ``value`` is one number an instance."""
    if isinstance(value, (list, tuple)):
        return all(isinstance(v, (int, float)) for v in value)
    return isinstance(value, (Tensor, np.ndarray)) and value.ndim == 1


def _is_plain(value: Any) -> bool:
    """Whether ``value`` is a number, a text, or one of them an instance."""
    if isinstance(value, (list, tuple)):
        return all(isinstance(v, (str, int, float)) for v in value)
    return (isinstance(value, (bool, int, float, str, type(None)))
            or isinstance(value, (Tensor, np.ndarray, np.generic))
            and value.ndim <= 1)


@lru_cache(maxsize=1024)  # each sample of each batch asks for the same
def _is_pixels(name: str) -> bool:
    return bool(_PIXELS.search(name)) and not _OTHER.match(name)


def _names_pixels(name: str, value: Any) -> bool:
    """Whether ``value`` is called a coordinate or a length, and may be it."""
    if not _is_pixels(name):
        return False
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    return not isinstance(first, (bool, str, type(None))) and (
        'bool' not in str(getattr(value, 'dtype', '')))


def refuse(value: Any, path: str) -> None:
    shape = getattr(value, 'shape', None)
    what = (type(value).__name__ if shape is None
            else f'shape {tuple(shape)}')
    raise TypeError('`MultiScaleBatch` knows labels, scores, boxes, masks and '
                    f'semantic maps, but got `{path}` of {what}, which may '
                    'carry pixels or coordinates. Remove the field from the '
                    'pipeline.')


def check_plain(value: Any, path: str) -> None:
    """Refuse the field at ``path`` if it may carry pixels or coordinates.

    Raises:
        TypeError: if it does, also within an element.
    """
    if isinstance(value, BaseDataElement):
        check_metainfo(value.metainfo, path)
        for name, field in value.items():
            check_plain(field, f'{path}.{name}')
    elif not _is_plain(value) or _names_pixels(path.rpartition('.')[2],
                                               value):
        refuse(value, path)


def check_metainfo(metainfo: dict, path: str,
                   known: Sequence[str] = ()) -> None:
    """Refuse metainfo that may carry pixels, but for ``known`` names. What
    has a name of its own and no dimensions, or one, cannot be told.

    Raises:
        TypeError: for an array of two dimensions or more, and for a name of
            coordinates.
    """
    for name, value in metainfo.items():
        if name not in known and (
                isinstance(value, (Tensor, np.ndarray)) and value.ndim > 1
                or _names_pixels(name, value)):
            refuse(value, f'{path}.{name}')
