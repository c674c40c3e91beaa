"""Decide, by name and dimensions, whether a field may carry pixels.

Such a field must follow its image to another size: ``sample_fields.py`` has a
function for those that are known, the others are refused.
"""
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from mmengine.structures import BaseDataElement
from torch import Tensor

# The hosts' names of coordinates and lengths of the input image: mmdet's
# boxes, mmpose's centers and scales, mmdet3d's matrices, mmyolo's padding. The
# last word of a name counts: `bbox_scores` are scores.
_PIXELS = re.compile(
    r'(^|_)(b?box(es)?|matri(x|ces)|mat|intrinsics?|pad_param|'
    r'(area|border|cent(er|re)|coord(inate)?|corner|keypoint|landmark|offset|'
    r'point|polygon|proposal|rect|roi|scale|shape|size|xywh|xyxy)s?)'
    r'(_2d|_ignore)?$|2img$')
# Prefixes of what is measured in the original image, or is no length.
_OTHER = re.compile(r'(ori|orig|original|num|is|has|with)_')
_AREAS = re.compile(r'(^|_)areas?$')


def numbers(name: str, value: Any, lengths: Sequence[int]) -> list:
    """``value`` of the metainfo as floats.

    Raises:
        TypeError: unless it is numbers, as many as one of ``lengths``.
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
    """Whether a field is an area in pixels for each instance."""
    return (_is_pixels(name) and bool(_AREAS.search(name))
            and _is_row(value))


def _is_row(value: Any) -> bool:
    """Whether ``value`` is one number for each instance."""
    if isinstance(value, (list, tuple)):
        return all(isinstance(v, (int, float)) for v in value)
    return isinstance(value, (Tensor, np.ndarray)) and value.ndim == 1


def _is_plain(value: Any) -> bool:
    """Whether ``value`` is a number or a text, or one for each instance."""
    if isinstance(value, (list, tuple)):
        return all(isinstance(v, (str, int, float)) for v in value)
    return (isinstance(value, (bool, int, float, str, type(None)))
            or isinstance(value, (Tensor, np.ndarray, np.generic))
            and value.ndim <= 1)


@lru_cache(maxsize=1024)  # each sample of each batch asks for the same
def _is_pixels(name: str) -> bool:
    return bool(_PIXELS.search(name)) and not _OTHER.match(name)


def _names_pixels(name: str, value: Any) -> bool:
    """Whether ``name`` is that of pixels, and ``value`` no flag or text."""
    if not _is_pixels(name):
        return False
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    return not isinstance(first, (bool, str, type(None))) and (
        'bool' not in str(getattr(value, 'dtype', '')))


def refuse(value: Any, path: str) -> None:
    """Raise the TypeError for the field at ``path``."""
    shape = getattr(value, 'shape', None)
    what = (type(value).__name__ if shape is None
            else f'shape {tuple(shape)}')
    raise TypeError('`MultiScaleBatch` knows labels, scores, boxes, masks and '
                    f'maps of the hosts, but got `{path}` of {what}, which '
                    'may carry pixels or coordinates. Remove the field from '
                    'the pipeline, or register a function that resizes it '
                    '(docs/batches.md).')


def check_plain(value: Any, path: str) -> None:
    """Refuse the field at ``path`` if it may carry pixels or coordinates.

    Raises:
        TypeError: if it may, or a field of it may.
    """
    if isinstance(value, BaseDataElement):
        check_metainfo(value.metainfo, f'{path}.')
        for name, field in value.items():
            check_plain(field, f'{path}.{name}')
    elif not _is_plain(value) or _names_pixels(path.rpartition('.')[2],
                                               value):
        refuse(value, path)


def check_metainfo(metainfo: dict, path: str) -> None:
    """Refuse metainfo that may carry pixels; ``path`` ends with a dot. Numbers
    under a name that the hosts do not use are not recognised.

    Raises:
        TypeError: for an array of two dimensions or more, and for a name of
            coordinates.
    """
    for name, value in metainfo.items():
        if isinstance(value, (Tensor, np.ndarray)) and value.ndim > 1 or (
                _names_pixels(name, value)):
            refuse(value, path + name)
