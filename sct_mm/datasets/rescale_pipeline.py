"""Read from a pipeline the size of its images, and rewrite it for another."""
import copy
from collections.abc import Sequence
from typing import NamedTuple

from ..utils.config_walk import type_name
from .size_transforms import (
    SETTERS,
    divisor_of,
    edges_of,
    main_of,
    paths_in,
    sets_unknown_size,
    size_in,
)

_ASK = ('Resize the images in the pipeline, e.g. by dict(type=\'Resize\', '
        'scale=224), or name their shorter edge in pixels by test_base=... '
        'in the config.')


def sized_part(way: Sequence[dict]) -> list[dict]:
    """The transforms of ``way`` (:func:`paths_in`) by which the network's
    input has its size: the last one that resizes, what cuts or pads behind
    it, and before it what makes the same size. Earlier resizes make another
    size, which the last one undoes."""
    part: list[dict] = []
    last = None
    for transform in reversed(way):
        setter = SETTERS[type_name(transform)]
        nominal = min(edges_of(size_in(transform)))
        if last is not None and (setter.cuts or nominal != last):
            break
        part.append(transform)
        last = last if setter.cuts else nominal
    return part[::-1]


def nominal_size(pipeline: list[dict]) -> int:
    """The shorter edge in pixels of the images that a test pipeline makes, as
    the last transform that sets a size gives it.

    Raises:
        ValueError: if no transform sets a size, or two ways through the
            pipeline set two.
    """
    ways = [way for way in paths_in(pipeline) if way]
    found = {int(min(edges_of(size_in(main_of(way))))) for way in ways}
    if len(found) == 1:
        return found.pop()
    if found:
        raise ValueError('A test pipeline must make images of one size, but '
                         f'got {sorted(found)}. Test at each by --scales.')
    names = [type_name(t) for t in pipeline]
    raise ValueError('The test pipeline must have one of '
                     f'{sorted(n for n, s in SETTERS.items() if not s.trains)}'
                     f' to set the size, but got {names}. {_ASK}')


class Limits(NamedTuple):
    """What images of one nominal size may measure, in pixels."""
    short: int  # the shorter edge, or
    long: int  # the longer edge of an image that is narrower
    divisor: int = 1  # edges are rounded up to multiples of it

    def admits(self, short: int, long: int) -> bool:
        """Whether an image may have these edges."""
        return (0 <= short - self.short < self.divisor
                or 0 <= long - self.long < self.divisor)


def limits_of(pipeline: list[dict]) -> Limits | None:
    """What the images of a test pipeline may measure; None if no transform
    sets a size, or small images stay as they are."""
    ways = [way for way in paths_in(pipeline) if way]
    if not ways:
        return None
    last = main_of(ways[0])
    edges = edges_of(size_in(last))
    if last.get('use_mini_pad') and not last.get('allow_scale_up', True):
        return None  # of mmyolo's LetterResize: small images stay small
    return Limits(int(min(edges)),
                  int(max(*edges, last.get('max_size') or 0, 0)),
                  max(map(divisor_of, pipeline)))


def keeps_ratio(pipeline: list[dict]) -> bool:
    """Whether ``pipeline`` keeps the aspect of images, so that the shorter
    edge of a long image may be less than the nominal size."""
    for way in paths_in(pipeline):
        if way:
            last = main_of(way)
            return bool(last.get('keep_ratio', False)
                        or SETTERS[type_name(last)].keeps)
    return False


def resizes(pipeline: list[dict]) -> bool:
    """Whether a transform of ``pipeline`` resizes images to a size, so that
    they may come in any."""
    return any(not SETTERS[type_name(transform)].cuts
               for way in paths_in(pipeline, trains=True)
               for transform in way)


def _random_sizes(transform: dict) -> list[float]:
    """The sizes in pixels, or the ends of their range, that a transform draws
    from."""
    name, value = type_name(transform), size_in(transform)
    pairs = (isinstance(value, (list, tuple)) and len(value) > 0
             and isinstance(value[0], (list, tuple)))
    # mmcv's RandomChoiceResize takes a list of sizes, or one tuple.
    if pairs or (isinstance(value, list) and name == 'RandomChoiceResize'):
        return [min(edges_of(each)) for each in value]
    size = min(edges_of(value))
    ratios = transform.get('ratio_range')
    # In mmpretrain's RandomResizedCrop `ratio_range` is of the aspect.
    if ratios and name == 'RandomResize':
        return [size * ratio for ratio in ratios]
    return [size]


def train_sizes(pipeline: list[dict]) -> tuple[int, ...]:
    """The nominal sizes in pixels of the images that a training pipeline
    makes, the largest first; empty if no transform sets a size, or one draws
    crops of any size, or is of another library (albumentations).

    The last resize, crop or padding sets it: the nominal size is its shorter
    edge. Of a ``ratio_range`` the sizes are the two ends, of views and of
    transforms drawn by chance those of all.
    """
    found: set[int] = set()
    if sets_unknown_size(pipeline):
        return ()
    for way in paths_in(pipeline, trains=True):
        if not way:
            continue
        last = main_of(way)
        if last.get('crop_type', 'absolute') != 'absolute':
            return ()  # a crop of any size
        found.update(round(size) for size in _random_sizes(last))
    return tuple(sorted(found, reverse=True))


def smallest_size(pipeline: list[dict]) -> int:
    """The nominal size in pixels of the smallest images that a training
    pipeline makes; 0 if they may have any, as where a crop leaves an image
    that is smaller as it is."""
    ways = [way for way in paths_in(pipeline, trains=True) if way]
    cuts = any(SETTERS[type_name(main_of(way))].cuts
               and type_name(main_of(way)) != 'Pad' for way in ways)
    return 0 if cuts else min(train_sizes(pipeline), default=0)


def rescale_pipeline(pipeline: list[dict], size: int,
                     base: int | None = None) -> list[dict]:
    """A copy of ``pipeline`` that makes images for a test at ``size`` pixels.

    The last resize and what cuts or pads behind it change by the same ratio,
    so that the network sees the same part of an image at each size.

    Args:
        base: the size in pixels at which ``pipeline`` tests; None: that of
            its images. A window of the host's sliding inference is smaller.

    Raises:
        ValueError: if no transform sets a size and ``base`` is not given, or
            all of them only cut or pad.
    """
    base = nominal_size(pipeline) if base is None else base
    if size == base:
        return copy.deepcopy(pipeline)
    pipeline = copy.deepcopy(pipeline)
    ratio = size / base
    ways = [way for way in paths_in(pipeline) if way]
    if not ways:
        return _resized_first(pipeline, ratio)
    parts = [sized_part(way) for way in ways]
    if all(SETTERS[type_name(t)].cuts for part in parts for t in part):
        raise ValueError('The test pipeline must resize to test at '
                         f'{size} pixels what it shows at {base}, but its '
                         f'size is set by {type_name(parts[0][-1])} alone. '
                         "Add e.g. dict(type='Resize', "
                         f'scale={base}) at its place.')
    for transform in {id(t): t for part in parts for t in part}.values():
        _rescale(transform, ratio)
    return pipeline


def _rescale(transform: dict, ratio: float) -> None:
    """Change what ``transform`` holds in pixels by ``ratio``, in place."""
    def scaled(edge: float) -> float:
        whole = 0 < edge < float('inf')
        return round(edge * ratio) if whole else edge

    setter = SETTERS[type_name(transform)]
    value = size_in(transform)
    transform[setter.key_in(transform)] = (
        scaled(value) if isinstance(value, (int, float))
        else tuple(map(scaled, value)))
    for name, default in setter.also:
        value = transform.get(name, default)
        if value:
            transform[name] = scaled(value)
    if transform.get('max_size'):  # torchvision's must be above `size`
        transform['max_size'] = max(
            transform['max_size'], min(edges_of(size_in(transform))) + 1)


def _resized_first(pipeline: list[dict], ratio: float) -> list[dict]:
    """``pipeline``, which leaves images as large as they are, with a resize
    by ``ratio`` behind the loading."""
    for transform in pipeline:
        factor = (transform.get('scale_factor')
                  if type_name(transform) == 'Resize' else None)
        if factor:
            transform['scale_factor'] = (
                tuple(each * ratio for each in factor)
                if isinstance(factor, (list, tuple)) else factor * ratio)
            return pipeline
    if any(type_name(t).endswith('Decode') for t in pipeline):  # mmaction2's
        raise ValueError('A test pipeline of videos must resize them to be '
                         'tested at several sizes, but none of its '
                         "transforms does. Add e.g. dict(type='Resize', "
                         'scale=(-1, 256)).')
    loads = [i for i, t in enumerate(pipeline)
             if type_name(t).startswith('Load')
             and 'Annotation' not in type_name(t)]
    place = loads[-1] + 1 if loads else 0
    return [*pipeline[:place],
            dict(type='Resize', scale_factor=ratio, keep_ratio=True),
            *pipeline[place:]]
