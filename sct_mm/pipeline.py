"""Rewriting a test pipeline for another size of the input."""
import copy
from typing import Any, List, Optional

# Transform -> the argument that holds its size in pixels.
_SIZES = {
    'Resize': 'scale',
    'ResizeEdge': 'scale',
    'CenterCrop': 'crop_size',
    'EfficientNetCenterCrop': 'crop_size',
}


def _size_key(transform: dict) -> Optional[str]:
    kind = transform.get('type')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    key = _SIZES.get(name.rpartition('.')[2])
    return key if key and transform.get(key) is not None else None


def _edges(value: Any) -> List[int]:
    """The edges in pixels that a size gives; -1 leaves one to the other."""
    edges = [value] if isinstance(value, (int, float)) else list(value)
    return [edge for edge in edges if edge > 0]


def nominal_size(pipeline: List[dict]) -> int:
    """The shorter edge in pixels of what ``pipeline`` feeds to the network:
    that of its last resize or crop.

    Raises:
        ValueError: if no transform sets a size.
    """
    for transform in reversed(pipeline):
        key = _size_key(transform)
        if key:
            return int(min(_edges(transform[key])))
    names = [t.get('type') for t in pipeline]
    raise ValueError('The test pipeline must have one of '
                     f'{sorted(_SIZES)} to set the size, but got {names}. '
                     "Add e.g. dict(type='Resize', scale=224).")


def rescale_pipeline(pipeline: List[dict], size: int) -> List[dict]:
    """A copy of ``pipeline`` that feeds pictures of ``size`` pixels.

    Every resize and crop changes by the same ratio, so that the same part of
    a picture is seen at each size.

    Raises:
        ValueError: if no transform sets a size.
    """
    nominal = nominal_size(pipeline)

    def scaled(edge: float) -> float:
        return edge if edge < 0 else round(edge * size / nominal)

    pipeline = copy.deepcopy(pipeline)
    for transform in pipeline:
        key = _size_key(transform)
        if key:
            value = transform[key]
            transform[key] = (scaled(value) if isinstance(value, (int, float))
                              else tuple(scaled(edge) for edge in value))
            if 'EfficientNet' in str(transform['type']):
                transform['crop_padding'] = scaled(
                    transform.get('crop_padding', 32))  # mmpretrain's default
    return pipeline
