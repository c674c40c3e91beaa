"""Read from a pipeline the size of its images, and rewrite it for another."""
import copy
from typing import Any

from ..utils.config_walk import type_name

# Transform -> the argument that holds its size in pixels, in a test pipeline.
_SIZES = {
    'Resize': 'scale',
    'ResizeEdge': 'scale',
    'CenterCrop': 'crop_size',
    'EfficientNetCenterCrop': 'crop_size',
    'FixScaleResize': 'scale',
    'Pad': 'size',
    'torchvision/Resize': 'size',
    'torchvision/CenterCrop': 'size',
}
# Those that cut or pad: objects in the image keep their size.
_CUTS = ('CenterCrop', 'Pad', 'torchvision/CenterCrop')
# The same, with those of training pipelines.
_TRAIN_SIZES = {
    **_SIZES,
    'RandomResize': 'scale',
    'RandomChoiceResize': 'scales',
    'RandomResizedCrop': 'scale',
    'RandomCrop': 'crop_size',
}


def _size_key(transform: dict, sizes: dict[str, str] = _SIZES
              ) -> str | None:
    """The argument of ``transform`` that holds a size, if it has one."""
    if not isinstance(transform, dict):
        return None
    key = sizes.get(type_name(transform))
    return key if key and transform.get(key) is not None else None


def _edges(value: Any) -> list[int]:
    """The edges in pixels of a size; -1, which lets one edge follow the
    other, is left out.

    Raises:
        ValueError: for a size without a positive edge.
    """
    edges = list(value) if isinstance(value, (list, tuple)) else [value]
    numbers = all(isinstance(edge, (int, float)) for edge in edges)
    found = [edge for edge in edges if edge > 0] if numbers else []
    if not found:
        raise ValueError('A size in a pipeline must be positive pixels, but '
                         f'got {value!r}. Write e.g. scale=224.')
    return found


def nominal_size(pipeline: list[dict]) -> int:
    """The shorter edge in pixels of the images that ``pipeline`` makes, as its
    last resize or crop gives it.

    Raises:
        ValueError: if no transform sets a size.
    """
    for transform in reversed(pipeline):
        key = _size_key(transform)
        if key:
            return int(min(_edges(transform[key])))
    names = [type_name(t) for t in pipeline]
    raise ValueError('The test pipeline must have one of '
                     f'{sorted(_SIZES)} to set the size, but got {names}. '
                     "Add e.g. dict(type='Resize', scale=224).")


def keeps_ratio(pipeline: list[dict]) -> bool:
    """Whether ``pipeline`` keeps the aspect of images, so that the shorter
    edge of a long image is less than the nominal size."""
    for transform in reversed(pipeline):
        if _size_key(transform):
            return bool(transform.get('keep_ratio', False)
                        or type_name(transform) == 'ResizeEdge')
    return False


def _random_sizes(transform: dict, value: Any) -> list[float]:
    """The sizes in pixels, or the ends of their range, that a transform draws
    from; ``value`` is its argument."""
    pairs = (isinstance(value, (list, tuple)) and len(value) > 0
             and isinstance(value[0], (list, tuple)))
    # mmcv's RandomChoiceResize takes a list of sizes, or one tuple.
    choice = (isinstance(value, list)
              and type_name(transform) == 'RandomChoiceResize')
    if pairs or choice:
        return [min(_edges(each)) for each in value]
    size = min(_edges(value))
    ratios = transform.get('ratio_range')
    # In mmpretrain's RandomResizedCrop `ratio_range` is of the aspect.
    if ratios and type_name(transform) == 'RandomResize':
        return [size * ratio for ratio in ratios]
    return [size]


def train_sizes(pipeline: list[dict]) -> tuple[int, ...]:
    """The nominal sizes in pixels of the images that a training pipeline
    makes, the largest first; empty if no transform sets a size.

    The last resize, crop or padding sets it: the nominal size is its shorter
    edge. Of a ``ratio_range`` the sizes are the two ends.
    """
    for transform in reversed(pipeline):
        key = _size_key(transform, _TRAIN_SIZES)
        if key and transform.get('crop_type', 'absolute') != 'absolute':
            return ()  # a crop of any size
        if key:
            sizes = _random_sizes(transform, transform[key])
            return tuple(sorted({round(size) for size in sizes},
                                reverse=True))
    return ()


def rescale_pipeline(pipeline: list[dict], size: int) -> list[dict]:
    """A copy of ``pipeline`` that makes images of ``size`` pixels.

    Every resize and crop changes by the same ratio, so that the network sees
    the same part of an image at each size.

    Raises:
        ValueError: if no transform sets a size, or all of them only cut or
            pad.
    """
    nominal = nominal_size(pipeline)
    names = [type_name(each) for each in pipeline if _size_key(each)]
    if size != nominal and all(name in _CUTS for name in names):
        raise ValueError('The test pipeline must resize to test at '
                         f'{size} pixels what it shows at {nominal}, but its '
                         f'size is set by {names[-1]} alone. Add e.g. dict('
                         f"type='Resize', scale={nominal}) at its place.")

    def scaled(edge: float) -> float:
        return edge if edge < 0 else round(edge * size / nominal)

    pipeline = copy.deepcopy(pipeline)
    for transform in pipeline:
        key = _size_key(transform)
        if key:
            value = transform[key]
            transform[key] = (scaled(value) if isinstance(value, (int, float))
                              else tuple(scaled(edge) for edge in value))
            if transform.get('max_size'):  # torchvision's, of the longer edge
                transform['max_size'] = max(scaled(transform['max_size']),
                                            size + 1)
            if type_name(transform).startswith('EfficientNet'):
                transform['crop_padding'] = scaled(
                    transform.get('crop_padding', 32))  # mmpretrain's default
    return pipeline
