"""Which size an SSBN layer serves: the pinned one, or that of its input.

A *size* is the nominal edge of the network's input in pixels, a *scale* a size
that has normalization parameters of its own. The *extent* of a layer's input
is the shorter of its spatial edges, in elements of that map: at one size, the
layers of a network see different extents. Each layer records its extents at
the scales, and later finds the size of an image by them.
"""
import itertools
import math
import sys
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .pass_order import preceding
from .row_mix import COUNTER, STATISTICS, Row, rows_serving, unseen

DEFAULT_SCALES = (224, 192, 160, 128)
_LARGEST = 2**20
# The extents of a scale that was not recorded: from infinity down to minus
# infinity, so that an average of it and of a record is none.
_NOT_RECORDED = (_LARGEST, -_LARGEST)


def check_scales(scales: Sequence[int]) -> tuple[int, ...]:
    """Return ``scales`` as a tuple of ints from the largest (the base) down.

    Raises:
        TypeError: if a scale is not an int.
        ValueError: if there is none, one is not positive, or one is repeated.
    """
    if not isinstance(scales, (tuple, list)) or not all(
            isinstance(s, int) and not isinstance(s, bool) for s in scales):
        raise TypeError('`scales` must be a tuple of ints (pixels), but '
                        f'got {scales!r}. Write e.g. scales=(224, 160).')
    if not scales or min(scales) <= 0 or len(set(scales)) < len(scales) or (
            max(scales) > _LARGEST):
        raise ValueError('`scales` must be distinct positive ints, but got '
                         f'{tuple(scales)}. Write each scale once, in pixels '
                         f'up to {_LARGEST}.')
    return tuple(sorted(scales, reverse=True))


class ExtentRecord(dict[int, list[int]]):
    """``{scale: [smallest, largest recorded extent]}`` of one layer.

    A deep copy of an empty record reads its source until it records something
    itself: an EMA copy is made before the network trains. The record describes
    the geometry of the network, not its weights.

    Attributes:
        leads: whether a pass of the network starts with this layer, by whose
            extent all layers of the pass find their size.
        compiled: whether the layer has run compiled, where it notes no pass
            that has reached it.
    """
    compiled = False

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.leads = False
        self._source: ExtentRecord | None = None
        self._answers: dict[tuple, Any] = {}

    def __deepcopy__(self, memo: dict) -> 'ExtentRecord':
        new = ExtentRecord({scale: [*seen] for scale, seen in self.items()})
        new.leads = self.leads
        # A copy of a block that has run records another place of the network.
        new._source = None if self else self
        return new

    def __reduce__(self) -> tuple:
        known = self.known()
        return _record_of, (dict(known), known.leads)

    def known(self) -> 'ExtentRecord':
        """The record itself, or if it is empty that of its source."""
        record = self
        while not len(record) and record._source is not None:
            record = record._source
        return record

    def serving(self, extent: int, pass_size: float | None,
                base: int) -> float | None:
        """The size in pixels that serves an input of ``extent``; None if it
        is not known.

        Args:
            pass_size: of the preceding layer in the same thread; None where a
                pass starts. A layer follows it if its own input may have that
                size: the first layers see the image at a finer grid.
            base: the largest scale. If it was not recorded, but smaller ones
                were (:func:`calibrate`), an input that may be of an image of
                that size is one.
        """
        if not len(self):  # torch.compile takes an empty one for true
            return None
        if pass_size is not None and self._admits(extent, pass_size, base):
            return pass_size
        fits = self._looked_up(_fitting_with, extent, base)
        return pass_size if fits is None else fits

    def may_have(self, extent: int, size: float, base: int) -> bool:
        """Whether the input may have ``extent`` at ``size`` pixels."""
        known = self.known()
        return (known._looked_up(_fitting_with, extent, base) is None
                or known._admits(extent, size, base))

    def _admits(self, extent: int, size: float, base: int) -> bool:
        # The levels of a detector, which a head sees one by one, and what has
        # one extent at all sizes, may lie below all that was recorded.
        if base not in self and size > max(self):
            return True
        return self._looked_up(admits, extent, size)

    def _looked_up(self, rule: Callable, *question) -> Any:
        if torch.compiler.is_compiling():  # it would guard on each answer
            return rule(*question, self)
        answers = self._answers  # add() replaces it, maybe in another thread
        key = rule, *question
        if key not in answers:
            answers[key] = rule(*question, self)
        return answers[key]

    def rows(self, scales: Sequence[int]) -> list[tuple[int, ...]]:
        """Of ``scales``, as :meth:`take` takes them."""
        return [(scale, *self.get(scale, _NOT_RECORDED), int(self.leads))
                for scale in scales]

    def take(self, rows: Sequence[Sequence[int]]) -> None:
        """Replace the record by ``rows`` of (scale, smallest extent, largest
        extent, whether a pass starts here). A scale whose smallest extent is
        above its largest, or 0, was not recorded. Rows of an older version
        have no last number: a layer leads then if no two scales have an
        extent in common."""
        self.clear()
        self.update({row[0]: [row[1], row[2]] for row in rows
                     if 0 < row[1] <= row[2]})
        if rows and len(rows[0]) > 3:
            self.leads = any(row[3] > 0 for row in rows)
        else:
            ranges = sorted(self.values())
            self.leads = len(ranges) > 1 and all(
                a[1] < b[0] for a, b in itertools.pairwise(ranges))
        self._answers = {}

    def add(self, scale: int, extent: int, leads: bool = False) -> None:
        seen = self.get(scale)
        if seen is None or not seen[0] <= extent <= seen[1] or (
                leads and not self.leads):
            # Written only on a change: torch.compile guards on the values.
            low, high = seen or (extent, extent)
            self[scale] = [min(low, extent), max(high, extent)]
            self.leads = self.leads or leads
            self._answers = {}


def _record_of(ranges: dict, leads: bool) -> ExtentRecord:
    record = ExtentRecord(ranges)
    record.leads = leads
    return record


def fitting_size(extent: int,
                 record: dict[int, list[int]]) -> float | None:
    """The size in pixels at which a layer's input has ``extent``.

    Within the range of a scale it is that scale, between two ranges it is
    interpolated linearly, below and above all of them it is the smallest and
    the largest scale. Returns None if nothing is recorded, or if several
    scales have the same extent, as behind a global pooling.
    """
    at = [scale for scale, (low, high) in record.items()
          if low <= extent <= high]
    if at:
        return at[0] if len(at) == 1 else None
    below = [s for s, (_, high) in record.items() if high < extent]
    above = [s for s, (low, _) in record.items() if low > extent]
    if below:
        nearest = max(record[s][1] for s in below)
        below = [s for s in below if record[s][1] == nearest]
    if above:
        nearest = min(record[s][0] for s in above)
        above = [s for s in above if record[s][0] == nearest]
    if max(len(below), len(above)) > 1 or not record:
        return None
    if not below or not above:
        return (below or above)[0]
    low, high = record[below[0]][1], record[above[0]][0]
    share = (extent - low) / (high - low)
    return below[0] + (above[0] - below[0]) * share


def _fitting_with(extent: int, base: int,
                  record: dict[int, list[int]]) -> float | None:
    """:func:`fitting_size`, where ``record`` may lack the ``base``: it is
    above the other scales, and has an extent of 1, as a vector and a map
    behind a pooling have at all sizes, as well as they."""
    if record and base not in record:
        most = max(high for _, high in record.values())
        record = {**record, base: [most + (most > 1), _LARGEST]}
    return fitting_size(extent, record)


def admits(extent: int, size: float, record: dict[int, list[int]]) -> bool:
    """Whether a layer's input may have ``extent`` at ``size`` pixels, by the
    record of the scales around it, give or take one element of rounding."""
    scales = sorted(record)
    larger = next((s for s in scales if s >= size), scales[-1])
    smaller = next((s for s in reversed(scales) if s <= size), scales[0])
    share = (size - smaller) / (larger - smaller) if larger > smaller else 0
    low, high = (a + (b - a) * share
                 for a, b in zip(record[smaller], record[larger], strict=True))
    return low - 1 <= extent <= high + 1


class Pin(NamedTuple):
    """What set_scale() sets on a layer. It is one value, since a training
    step pins every layer once for each scale."""
    size: int | None = None
    thread: Any = None  # the one within use_scale(), and its asyncio task
    record: bool = False
    ratio: float = 1.0  # of a recorded extent to that of the input
    frozen: Any = None  # what the layer has prepared for `size`
    ran: list[bool] | None = None  # of all layers: whether one has run in it

    def begins(self) -> bool:
        """Whether no layer has run since this was set: it starts a pass."""
        if self.ran is None or self.ran:
            return False
        self.ran.append(True)
        return not runs_again()


_warned: 'weakref.WeakSet[nn.Module]' = weakref.WeakSet()
_warned_of_unseen: 'weakref.WeakSet[nn.Module]' = weakref.WeakSet()


class ScaleSpecific(nn.Module):
    """A layer with parameters for each scale: how it chooses its size. The
    base class of SSBN in all its forms, and of layers whose weight changes
    with the scale."""

    pin = Pin()  # class attribute: a pickle of an older version has no pin
    # What a layer has beside the norm that it stands in for.
    STATE: tuple[str, ...] = ('scales', 'pin', 'extents', '_unknown_extent',
                              '_unseen')
    _unknown_extent: int | None = None  # the last one whose size is not known
    _unseen: tuple[int, ...] = ()  # scales to warn of if they serve an image
    # Of a subclass: what serves a size, made once for a frozen pin.
    prepared: Callable[[float], Any]

    def __getstate__(self) -> dict:
        pin = self.pin._replace(thread=None, frozen=None)
        return dict(self.__dict__, pin=pin)

    def start(self, scales: Sequence[int]) -> None:
        self.scales = check_scales(scales)
        self.pin = Pin()
        self.extents = ExtentRecord()

    @property
    def pinned_size(self) -> int | None:
        return self.pin.size

    def choose_size(self, x: Tensor) -> float:
        """The size that serves ``x``, within the scales: the pinned one, else
        that of the preceding layer or of the extent of ``x``; the base scale
        if neither is known. Pinned to a scale, the layer records the extent.
        """
        pin = self.pin
        if pin.size is None:
            size = self._size_of(extent_of(x))
            if self._unseen and not self.training:
                self._warn_of_unseen(size)
        else:
            size = pin.size
            if (self.training or pin.record) and size in self.scales:
                # The channels and the number of tokens or points do not
                # follow the edge of the image.
                ratio = pin.ratio if x.dim() > 3 else 1.0
                self._record(extent_of(x), pin, ratio)
        preceding.size = size
        return size

    def _record(self, extent: int, pin: Pin, ratio: float) -> None:
        """Note the extent of an input at the pinned scale, or of an image of
        that size, at which it is ``ratio`` times as large."""
        leads, of_size = pin.begins(), extent * ratio
        # Of an odd edge a stride leaves half an element more or less.
        seen = [math.floor(of_size + 1e-6), math.ceil(of_size - 1e-6)]
        if not (leads or self.extents.leads):
            # It may not follow the image: the grid of RoIAlign.
            seen.append(extent)
        for each in seen:
            self.extents.add(cast(int, pin.size), each, leads)

    def _size_of(self, extent: int) -> float:
        pass_size, known = None, self.extents.known()
        # Read where it matters alone: torch.compile makes a graph for each
        # value that it reads.
        if len(known) and not known.leads:
            pass_size = preceding.size
            if pass_size is None and torch.compiler.is_compiling():
                pass_size = size_before_break()
        size = known.serving(extent, pass_size, self.scales[0])
        if size is None:
            # The call stack is walked for the first of equal extents only,
            # but always behind a pooling, where all sizes have one extent.
            if not torch.compiler.is_compiling() and (
                    extent != self._unknown_extent or len(known)):
                self._unknown_extent = extent
                self._warn_of_base()
            return self.scales[0]
        if not self.scales[-1] <= size <= self.scales[0]:
            return self.scales[0]  # `preceding` is of another network
        if torch.compiler.is_compiling():
            known.compiled = True
        elif known.leads:
            preceding.begin(self, size)
        else:
            preceding.follow(self, extent, size)
        return size

    def train(self, mode: bool = True):
        super().train(mode)
        if not mode:
            self.look_for_unseen()
        return self

    def look_for_unseen(self) -> None:
        """Note the scales that no batch has reached, while others have seen
        some. It waits for a GPU, which a forward pass must not."""
        if 'scales' in self.__dict__ and len(self.scales) > 1:
            self._unseen = unseen(self.scales, *(
                self._buffers.get(name) for name in (*STATISTICS, COUNTER)))

    def _warn_of_unseen(self, size: float) -> None:
        """Warn once for each model that an image is served by a row that has
        seen no batch."""
        serving = {scale for scale, _ in rows_serving(self.scales, size)}
        if torch.compiler.is_compiling() or not serving & {*self._unseen}:
            return
        self.look_for_unseen()  # it may have been calibrated since
        scales = sorted(serving & {*self._unseen})
        self._unseen = ()  # until the next call of eval()
        model = outermost_call()[0] or self
        if scales and model not in _warned_of_unseen:
            _warned_of_unseen.add(model)
            warnings.warn(unseen_text(size, scales[0]), stacklevel=2)

    def _warn_of_base(self) -> None:
        """Warn once for each model that the base scale serves all sizes."""
        if len(self.scales) == 1:
            return
        model, edge = outermost_call()
        known = len(self.extents.known()) > 0
        if model is None or model in _warned or model is self or (
                edge == self.scales[0] or edge is None and not known):
            return
        _warned.add(model)
        images = 'an input' if edge is None else f'images of {edge} pixels'
        reason, fix = (
            ('its first SSBN layer sees the same at several of them, as '
             'behind a pooling', 'Pin a size') if known else
            ('it has no record of what its layers see at each scale',
             'Train it with SCTLossHook, load a checkpoint with its '
             '`_extra_state` keys, or pin a size'))
        warnings.warn(
            f'{type(model).__name__} serves {images} by the rows of its base '
            f'scale {self.scales[0]}: {reason}. {fix} by use_scale().',
            stacklevel=2)

    def get_extra_state(self) -> Tensor:
        """The record as int64 (S, 4): each scale, the smallest and the largest
        extent at it (2**20 and -2**20 if none was recorded), and 1 if a pass
        starts with this layer. A tensor goes through any carrier: a plain
        dict, safetensors, a hub. It is on the layer's device, since mmdet's
        SyncNormHook joins the tensors of a state dict."""
        own = next((t for t in (*self._buffers.values(),
                                *self._parameters.values())
                    if t is not None and not t.is_meta), None)
        return torch.tensor(
            self.extents.known().rows(self.scales), dtype=torch.long,
            device='cpu' if own is None else own.device)

    def set_extra_state(self, state: Tensor) -> None:
        """Load a record of the same scales. One of other scales is ignored,
        although the weights load by rank: a detector at 800/480 may start
        from a classifier at 224/128. So is an average of different records,
        as an average of state dicts holds it, with a warning if the layer
        has no record of its own."""
        if not isinstance(state, Tensor) or state.is_meta or (
                state.dim() != 2 or len(state) != len(self.scales)
                or state.shape[1] not in (3, 4)):  # 3 in older checkpoints
            return
        # An average of equal records consists of floats, but for rounding
        # whole ones.
        values = state.nan_to_num(0, _LARGEST, -_LARGEST)
        missing = (values.abs() - _LARGEST).abs() <= 1e-4 * _LARGEST
        values = torch.where(missing, values.sign() * _LARGEST, values)
        rows = values.round().long().tolist()
        if tuple(row[0] for row in rows) != self.scales:
            return
        if is_whole(values) and not any(map(is_averaged, rows)):
            self.extents.take(rows)
        elif not len(self.extents.known()):
            warnings.warn(
                'The checkpoint averages records (`_extra_state`) that '
                'differ, so that no size can be found by them, and they are '
                'left out. Average the weights alone, and take the records '
                'of one network.', stacklevel=2)


def is_whole(values: Tensor) -> bool:
    """Whether ``values`` are ints but for the rounding of averages."""
    return not bool(((values - values.round()).abs() > 0.05).any())


def is_averaged(row: Sequence[int]) -> bool:
    """Whether ``row`` of a record averages one with a scale that was not
    recorded."""
    return row[1] > row[2] and (row[1], row[2]) != _NOT_RECORDED


def unseen_text(size: float, scale: int) -> str:
    """What a warning says of an image that an untrained row serves."""
    return (f'Images of {size:g} pixels are served by the normalization '
            f'parameters of scale {scale}, which have seen no batch, while '
            'those of other scales have. Train that scale, or re-estimate '
            'its statistics by calibrate().')


def warn_of_unseen(model: nn.Module, sizes: Sequence[float]) -> None:
    """Warn of the first of ``sizes`` that is served by normalization
    parameters which have seen no batch, while those of other scales have."""
    for layer in ssbn_layers(model):
        layer.look_for_unseen()
        for size in sizes if layer._unseen else ():
            for scale, _ in rows_serving(layer.scales, size):
                if scale in layer._unseen:
                    warnings.warn(unseen_text(size, scale), stacklevel=3)
                    return


def runs_again() -> bool:
    """Whether activation checkpointing calls a layer a second time, within a
    backward pass. None of these calls starts a pass."""
    return (not torch.compiler.is_compiling()
            and torch._C._current_graph_task_id() != -1)


@torch.compiler.disable
def size_before_break() -> float | None:
    """The size of the preceding layer in a pass that is compiled in several
    graphs. At the start of one, torch.compile takes what a `threading.local`
    holds for its default."""
    return preceding.size


def extent_of(x: Tensor) -> int:
    """The shorter spatial edge of ``x``; 1 if it is a vector (N, C). The
    length T of a clip (N, C, T, H, W) does not depend on its size."""
    shape = x.shape
    if len(shape) > 3:
        return min(shape[-2], shape[-1])
    return shape[2] if len(shape) == 3 else 1


def outermost_call() -> tuple[nn.Module | None, int | None]:
    """The outermost module that runs in this thread, and the shorter edge in
    pixels of the images it was called with."""
    # Read off the call stack, for the text and the condition of one warning:
    # without a record a layer knows its own extent, not the edge of the image,
    # and so not whether that is another than the base.
    model, edge = None, None
    frame: Any = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get('self')
        if (isinstance(module, nn.Module)
                and frame.f_code.co_name == '_call_impl'):
            values = [*frame.f_locals.get('args', ()),
                      *frame.f_locals.get('kwargs', {}).values()]
            edges = [min(v.shape[2:][-2:]) for v in values
                     if isinstance(v, Tensor) and v.dim() > 2]
            model, edge = module, edges[0] if edges else edge
        frame = frame.f_back
    return model, edge


class NormOfScales(ScaleSpecific, _BatchNorm):
    """An SSBN layer, with what other modules of this folder use of it."""
    STATE = (*ScaleSpecific.STATE, 'converted')
    converted = False  # it stands in for a layer that its host has built
    # Methods of the subclass in ssbn.py, which imports this module.
    row: Callable[[int], Row]
    row_at: Callable[[float], Row]


def scale_specific(model: nn.Module) -> list[ScaleSpecific]:
    """All layers of ``model`` with parameters for each scale, in the order of
    its modules.

    Raises:
        TypeError: if ``model`` is no ``nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError('`model` must be an nn.Module, but got '
                        f'{type(model).__name__}. Build it first.')
    return [m for m in model.modules() if isinstance(m, ScaleSpecific)]


def ssbn_layers(model: nn.Module) -> list[NormOfScales]:
    """All SSBN layers of ``model``, in the order of its modules.

    Raises:
        TypeError: if ``model`` is no ``nn.Module``.
    """
    return [m for m in scale_specific(model) if isinstance(m, NormOfScales)]


def scales_of(model: nn.Module) -> tuple[int, ...] | None:
    """The scales of the model's SSBN layers; None if it has no such layer.

    Raises:
        ValueError: if two layers disagree.
    """
    found = {layer.scales for layer in scale_specific(model)}
    if len(found) > 1:
        raise ValueError('All SSBN layers of a model must have the same '
                         f'`scales`, but got {sorted(found)}. Set one value '
                         'in every `norm_cfg`.')
    return found.pop() if found else None


def serving_scale(scales: Sequence[int], size: float) -> int:
    """The scale nearest to ``size`` pixels, the larger one on a tie."""
    return min(sorted(scales, reverse=True), key=lambda s: abs(s - size))
