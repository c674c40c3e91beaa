"""Which transforms set the size of an image, and by which arguments."""
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..utils.config_walk import type_name


class Setter(NamedTuple):
    """How a transform holds a size.

    Attributes:
        key: the argument with the size in pixels, by the host's name.
        cuts: whether it cuts or pads, so that objects keep their size.
        also: further arguments in pixels, with their defaults.
        trains: whether it is for training only.
        other: the argument's name in another host.
        minor: whether it sets one edge alone, so that the size is that of the
            transform before it.
        divisor: the argument by whose multiples edges are rounded up, and its
            default.
        alone: whether no other transform may set a size before it.
        keeps: whether it always keeps the aspect of images, without
            ``keep_ratio``.
    """
    key: str
    cuts: bool = False
    also: tuple[tuple[str, float | None], ...] = ()
    trains: bool = False
    other: str = ''
    minor: bool = False
    divisor: tuple[str, int] = ('size_divisor', 1)
    alone: bool = False
    keeps: bool = False

    def key_in(self, transform: dict) -> str:
        return (self.other if self.other in transform else self.key)


SETTERS = {
    # mmcv
    'Resize': Setter('scale'),
    'RandomResize': Setter('scale', trains=True),
    'RandomChoiceResize': Setter('scales', trains=True),
    'CenterCrop': Setter('crop_size', cuts=True),
    'Pad': Setter('size', cuts=True),
    # mmpretrain
    'ResizeEdge': Setter('scale', keeps=True),
    'RandomResizedCrop': Setter('scale', trains=True),
    'RandomCrop': Setter('crop_size', cuts=True, trains=True,
                         other='size'),  # of mmaction2
    'EfficientNetCenterCrop': Setter('crop_size', also=(
        ('crop_padding', 32), )),
    'EfficientNetRandomCrop': Setter('scale', trains=True),
    'RandomResizedCropAndInterpolationWithTwoPic': Setter(
        'size', trains=True),
    'torchvision/Resize': Setter('size', also=(('max_size', None), )),
    'torchvision/CenterCrop': Setter('size', cuts=True),
    'torchvision/RandomResizedCrop': Setter('size', trains=True),
    'torchvision/RandomCrop': Setter('size', cuts=True, trains=True),
    # mmdet
    'FixScaleResize': Setter('scale', keeps=True),
    'FixShapeResize': Setter('height', also=(('width', None), ), alone=True),
    'Mosaic': Setter('img_scale', trains=True),
    'CachedMosaic': Setter('img_scale', trains=True),
    'RandomCenterCropPad': Setter('crop_size', cuts=True, trains=True),
    # mmseg
    'RandomMosaic': Setter('img_scale', trains=True),
    'ResizeShortestEdge': Setter('scale', also=(('max_size', None), ),
                                 keeps=True),
    # mmyolo
    # BatchShapePolicy adds half a multiple of 32 or 64, and rounds up.
    'LetterResize': Setter('scale', divisor=('', 129)),
    'YOLOv5KeepRatioResize': Setter('scale', keeps=True),
    'Mosaic9': Setter('img_scale', trains=True),
    # mmpose
    'TopdownAffine': Setter('input_size'),
    'BottomupResize': Setter('input_size', divisor=('size_factor', 32)),
    'BottomupRandomAffine': Setter('input_size', trains=True),
    # mmaction2
    'TenCrop': Setter('crop_size', cuts=True),
    'ThreeCrop': Setter('crop_size', cuts=True),
    'MultiScaleCrop': Setter('input_size', cuts=True, trains=True),
    # mmocr
    'RescaleToHeight': Setter('height', also=(
        ('min_width', None), ('max_width', None)), keeps=True),
    'PadToWidth': Setter('width', cuts=True, minor=True),
}
# Hosts' wrappers of another library, whose transforms share names with ours,
# but not arguments: albumentations has RandomResizedCrop(scale=(0.08, 1)).
_FOREIGN = ('Albu', 'Albumentation', 'Albumentations', 'ImgAug')
_FOREIGN_SIZES = ('height', 'width', 'size', 'max_size')
# Transforms that set no size, but round edges up to multiples.
_ROUNDS = {'ResizeToMultiple': ('size_divisor', 32)}  # mmseg


def setter_of(transform: Any, trains: bool = False) -> Setter | None:
    """How the config ``transform`` sets a size; None if it sets none.

    Args:
        trains: whether transforms of a training pipeline count.
    """
    if not isinstance(transform, dict):
        return None
    setter = SETTERS.get(type_name(transform))
    if setter is None or setter.trains > trains or (
            transform.get(setter.key_in(transform)) is None):
        return None
    return setter


def sets_unknown_size(transform: Any) -> bool:
    """Whether ``transform``, or one that it holds, lets another library set
    the size of images."""
    return any(type_name(outer) in _FOREIGN and inner is not outer and any(
        name in inner for name in _FOREIGN_SIZES)
        for outer in _held(transform) for inner in _held(outer))


def _held(transform: Any) -> Iterator[dict]:
    """``transform`` and those within it."""
    if isinstance(transform, (list, tuple)):
        for each in transform:
            yield from _held(each)
    elif isinstance(transform, dict):
        yield transform
        yield from _held(transform.get('transforms'))


def size_in(transform: dict) -> Any:
    """The size that ``transform`` holds, in the form of its host."""
    return transform[SETTERS[type_name(transform)].key_in(transform)]


def divisor_of(transform: Any) -> int:
    """The multiples in pixels to which ``transform`` rounds edges up."""
    if not isinstance(transform, dict):
        return 1
    name = type_name(transform)
    setter = SETTERS.get(name)
    key, default = setter.divisor if setter else _ROUNDS.get(name, ('', 1))
    value = transform.get(key) or default
    return int(max(edges_of(value)))


def main_of(way: Sequence[dict]) -> dict:
    """The last transform of ``way`` that sets the size.

    Raises:
        ValueError: for one that must be the only one, but is not.
    """
    last = [t for t in way if not SETTERS[type_name(t)].minor][-1]
    if SETTERS[type_name(last)].alone and last is not way[0]:
        raise ValueError(f'{type_name(last)} must be the only transform that '
                         'sets the size of images, but comes after '
                         f'{type_name(way[0])}. Leave one of them out.')
    return last


def paths_in(pipeline: Sequence, trains: bool = False) -> list[list[dict]]:
    """Each way through ``pipeline``, as the list of those transforms that set
    a size. Transforms that hold others (``RandomChoice``, ``RandomApply``,
    ``TestTimeAug``, ``MultiView``) are entered.

    Args:
        trains: whether transforms of a training pipeline count.
    """
    return _joined([_ways(transform, trains) for transform in pipeline])


def _joined(steps: list[list[list[dict]]]) -> list[list[dict]]:
    ways = {}
    for choice in itertools.product(*steps):
        way = list(itertools.chain(*choice))
        ways[tuple(map(id, way))] = way  # most alternatives set no size
    return list(ways.values())


def _ways(transform: Any, trains: bool) -> list[list[dict]]:
    inner = transform.get('transforms') if isinstance(transform, dict) else ()
    name = type_name(transform)
    if name in _FOREIGN:
        return [[]]
    if not isinstance(inner, (list, tuple)) or not inner:
        return [[transform] if setter_of(transform, trains) else []]
    if name == 'TestTimeAug':  # a list of alternatives for each step
        return _joined([[way for each in step for way in _ways(each, trains)]
                        for step in inner])
    if name in ('RandomChoice', 'MultiView'):  # a pipeline, or one transform
        return [way for each in inner for way in paths_in(
            each if isinstance(each, (list, tuple)) else [each], trains)]
    ways = paths_in(inner, trains)
    if name == 'RandomApply' and [] not in ways:
        ways.append([])
    return ways


def edges_of(value: Any) -> list[float]:
    """The edges in pixels of a size; -1 and infinity, by which one edge
    follows the other, are left out.

    Raises:
        ValueError: for a size without a positive edge.
    """
    edges = list(value) if isinstance(value, (list, tuple)) else [value]
    numbers = all(isinstance(edge, (int, float)) for edge in edges)
    found = [edge for edge in edges
             if 0 < edge < float('inf')] if numbers else []
    if not found:
        raise ValueError('A size in a pipeline must be positive pixels, but '
                         f'got {value!r}. Write e.g. scale=224.')
    return found
