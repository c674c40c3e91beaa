"""Which size a network runs at: pinned by the caller, or read off the input.

A *size* is the nominal edge of the network's input in pixels, a *scale* a size
that has rows of its own. The *extent* of a layer's input is the shorter of its
spatial edges, in elements of that map; two layers of one network see different
extents at one size.
"""
import itertools
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import (
    Any,
    NamedTuple,
)

import torch
from torch import Tensor, nn

DEFAULT_SCALES = (224, 192, 160, 128)
_LARGEST = 2**20


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


def rows_serving(scales: Sequence[int],
                 size: float) -> tuple[tuple[int, float], ...]:
    """The rows that serve an input of ``size`` pixels, as pairs of a scale
    and its share of the mix: the scale itself, the two next to it with the
    weights of a linear interpolation, or the end ("interpolated" of SAN, see
    :mod:`between`).

    Args:
        scales: from the largest down.
    """
    if size >= scales[0] or size <= scales[-1]:
        return ((scales[0 if size >= scales[0] else -1], 1.0), )
    for larger, smaller in itertools.pairwise(scales):
        if size == smaller:
            return ((smaller, 1.0), )
        if size > smaller:
            share = (size - smaller) / (larger - smaller)
            return ((larger, share), (smaller, 1 - share))
    raise AssertionError(size)


class Pin(NamedTuple):
    """What set_scale() gives a layer: one write for each, since a step
    pins every layer once a scale."""
    size: int | None = None
    thread: int | None = None  # the one within use_scale()
    record: bool = False
    ratio: float = 1.0  # of what is recorded


class _Pass(threading.local):
    """The size at which the SSBN layer before ran, in the same thread.

    Only the layer that starts a pass leaves it unread; every layer writes it.
    Threads do not meet.
    """
    size: float | None = None


preceding = _Pass()


_warned: 'weakref.WeakSet[nn.Module]' = weakref.WeakSet()


class ScaleSpecific:
    """A layer with one row a scale: how it chooses the size that it serves.
    The base of SSBN in all its forms."""

    pin = Pin()  # of what an older version pickled
    # What a layer has beside the norm that it stands in for.
    STATE = ('scales', 'pin', 'extents', 'plain_type', '_strange', '_served',
             '_eps')

    def start(self, scales: Sequence[int]) -> None:
        self.scales = check_scales(scales)
        self.pin = Pin()
        self.extents = ExtentRecord()
        self._strange: int | None = None  # the last extent that told none
        self._served: tuple | None = None  # the row of the last inference

    @property
    def pinned_size(self) -> int | None:
        return self.pin.size

    def choose_size(self, x: Tensor) -> float:
        """The size that serves ``x``, within the scales: the pinned one, else
        the one of the layer before, else what the extent tells."""
        # Of a clip (N, C, T, H, W), its length says nothing of its size.
        extent = min(x.shape[2:][-2:]) if x.dim() > 2 else 1
        pin = self.pin
        size = pin.size
        if size is None:
            size = self.extents.serving(extent, preceding.size)
            if size is None:
                size = self.scales[0]
                # Behind a pooling, sizes have one extent.
                if extent != self._strange or len(self.extents.known()):
                    self._strange = extent
                    self._warn_untold()
            elif not self.scales[-1] <= size <= self.scales[0]:
                size = self.scales[0]  # of another network's pass
        elif (self.training or pin.record) and size in self.scales:
            self.extents.add(size, round(extent * pin.ratio),
                             preceding.size is None)
        preceding.size = size
        return size

    def _warn_untold(self) -> None:
        """Say once that any size is served by the base scale."""
        if len(self.scales) == 1 or torch.compiler.is_compiling():
            return
        model, edge = outermost_call()
        if model in _warned or model is self or edge in (
                None, self.scales[0]):
            return
        _warned.add(model)
        reason, fix = (
            ('its first SSBN layer sees the same at several of them, as '
             'behind a pooling', 'Pin a size') if self.extents.known() else
            ('it has no record of what its layers see at each scale',
             'Train it with SCTLossHook, load a checkpoint with its '
             '`_extra_state` keys, or pin a size'))
        warnings.warn(
            f'{type(model).__name__} serves images of {edge} pixels by the '
            f'rows of its base scale {self.scales[0]}: {reason}. {fix} by '
            'use_scale().', stacklevel=2)

    def get_extra_state(self) -> Tensor:
        """(S, 4), int64: each scale, the smallest and the largest extent of
        the layer's input at it, 0 where none was recorded, and 1 where a pass
        starts with this layer. A tensor goes through any carrier: a plain
        dict, safetensors, a hub; it lies where the layer's own do, since some
        hosts join them (mmdet's SyncNormHook)."""
        own = next((t for t in (self.running_mean, self.weight)
                    if t is not None and not t.is_meta), None)
        known = self.extents.known()
        return torch.tensor(
            [(scale, *known.get(scale, (0, 0)), known.leads)
             for scale in self.scales],
            dtype=torch.long, device='cpu' if own is None else own.device)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over a record of the same scales: those of others tell
        nothing, though the rows load by rank (a detector at 800/480 may
        start from a classifier at 224/128)."""
        if not isinstance(state, Tensor) or state.is_meta or (
                state.dim() != 2 or len(state) != len(self.scales)
                or state.shape[1] not in (3, 4)):  # 3 in older checkpoints
            return
        # What averages a state dict over processes makes floats of them.
        rows = state.nan_to_num().round().long().tolist()
        if tuple(row[0] for row in rows) == self.scales:
            self.extents.take(rows)


def ssbn_layers(model: nn.Module) -> list[nn.Module]:
    """All SSBN layers of ``model``, in the order of its modules.

    Raises:
        TypeError: if ``model`` is no ``nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError('`model` must be an nn.Module, but got '
                        f'{type(model).__name__}. Build it first.')
    return [m for m in model.modules() if isinstance(m, ScaleSpecific)]


def scales_of(model: nn.Module) -> tuple[int, ...] | None:
    """The scales of the model's SSBN layers; None if it has no such layer.

    Raises:
        ValueError: if two layers disagree.
    """
    found = {layer.scales for layer in ssbn_layers(model)}
    if len(found) > 1:
        raise ValueError('All SSBN layers of a model must have the same '
                         f'`scales`, but got {sorted(found)}. Set one value '
                         'in every `norm_cfg`.')
    return found.pop() if found else None


def serving_scale(scales: Sequence[int], size: float) -> int:
    """The scale nearest to ``size`` pixels, the larger one on a tie."""
    return min(sorted(scales, reverse=True), key=lambda s: abs(s - size))


class ExtentRecord(dict[int, list[int]]):
    """``{scale: [smallest, largest extent seen]}`` of one layer.

    A deep copy made before anything was seen learns from its source until it
    sees something itself, as an EMA copy of a network that trains does. The
    record describes the network's geometry, not its weights.

    Attributes:
        leads: whether a pass of the network starts with this layer. The one
            that starts tells all others the size of the pass.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.leads = False
        self._source: ExtentRecord | None = None
        self._answers: dict[tuple, Any] = {}

    def __deepcopy__(self, memo: dict) -> 'ExtentRecord':
        new = ExtentRecord({scale: [*seen] for scale, seen in self.items()})
        new.leads = self.leads
        # Copies of a block that has run stand at places of their own.
        new._source = None if self else self
        return new

    def __reduce__(self) -> tuple:
        known = self.known()
        return _record_of, (dict(known), known.leads)

    def known(self) -> 'ExtentRecord':
        """The record itself, or that of its source where it is empty."""
        record = self
        while not len(record) and record._source is not None:
            record = record._source
        return record

    def serving(self, extent: int,
                pass_size: float | None) -> float | None:
        """The size in pixels that serves an input of ``extent``; None if
        nothing tells.

        Args:
            pass_size: of the layer that ran before in the same thread. What
                does not start a pass follows it where its own input may be of
                that size: the first layers see more of the image.
        """
        known = self.known()
        if not len(known):  # torch.compile takes an empty one for true
            return None
        if known.leads:
            pass_size = None
        if pass_size is not None and known._looked_up(admits, extent,
                                                      pass_size):
            return pass_size
        fits = known._looked_up(fitting_size, extent)
        return pass_size if fits is None else fits

    def _looked_up(self, rule: Callable, *question) -> Any:
        answers = self._answers  # add() replaces it, maybe in another thread
        if question not in answers:
            answers[question] = rule(*question, self)
        return answers[question]

    def take(self, rows: Sequence[Sequence[int]]) -> None:
        """Take over rows of (scale, smallest, largest extent, whether a pass
        starts here) that were recorded elsewhere; 0 says that none was. Rows
        of three numbers say nothing of the start: a layer leads then if it
        tells the scales apart."""
        self.clear()
        self.update({row[0]: [row[1], row[2]] for row in rows
                     if 0 < row[1] <= row[2]})
        if rows and len(rows[0]) > 3:
            self.leads = any(row[3] > 0 for row in rows)
        else:
            seen = sorted(self.values())
            self.leads = len(seen) > 1 and all(
                a[1] < b[0] for a, b in itertools.pairwise(seen))
        self._answers = {}

    def add(self, scale: int, extent: int, leads: bool = False) -> None:
        low, high = self.get(scale, (extent, extent))
        if scale not in self or not low <= extent <= high or (
                leads and not self.leads):
            # Written only on a change: torch.compile guards on the values.
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

    It is a recorded scale within the range seen there; between two ranges it
    is interpolated linearly; below and above all of them it is the end.
    Returns None where the extent cannot tell: nothing is recorded, or several
    scales were seen at the same extent, as behind a global pooling.
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


def admits(extent: int, size: float, record: dict[int, list[int]]) -> bool:
    """Whether a layer's input may have ``extent`` at ``size`` pixels, by what
    was recorded at the scales around it; one element is left to rounding."""
    scales = sorted(record)
    larger = next((s for s in scales if s >= size), scales[-1])
    smaller = next((s for s in reversed(scales) if s <= size), scales[0])
    share = (size - smaller) / (larger - smaller) if larger > smaller else 0
    low, high = (a + (b - a) * share
                 for a, b in zip(record[smaller], record[larger], strict=True))
    return low - 1 <= extent <= high + 1


def outermost_call() -> tuple[nn.Module | None, int | None]:
    """The outermost module that runs in this thread, and the shorter edge in
    pixels of the images it was called with; read off the call stack."""
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


def rows_of_checkpoint(state_dict: dict, prefix: str,
                       own: dict[str, Tensor | None],
                       scales: tuple[int, ...]) -> dict[str, Tensor]:
    """The tensors of a checkpoint that are a layer's, in its shapes: those
    of plain BN, (C,), fill every row.

    Args:
        prefix: of the layer's keys in ``state_dict``.
        own: {name: tensor of the layer, or None}.

    Raises:
        ValueError: if the checkpoint has another number of scales.
    """
    values = {name: state_dict[prefix + name] for name, tensor in own.items()
              if tensor is not None
              and isinstance(state_dict.get(prefix + name), Tensor)}
    # One dimension more than BN's tells rows; a weight of rows is flat, and
    # without statistics, as among a network's parameters, nothing tells.
    in_rows = not {'running_mean', 'running_var',
                   'num_batches_tracked'} & set(values) or any(
        value.dim() > (name != 'num_batches_tracked')
        for name, value in values.items())
    rows, shaped = len(scales), {}
    for name, value in values.items():
        shape = own[name].shape
        width = own[name].numel() // rows
        if value.numel() == width:
            shaped[prefix + name] = value.reshape(-1).repeat(rows).reshape(
                shape)
        elif in_rows and value.numel() == rows * width:  # flat, or (S, C)
            shaped[prefix + name] = value.reshape(shape)
        elif in_rows and value.numel() % width == 0:
            raise ValueError(
                f'The checkpoint has {value.numel() // width} scales in '
                f'{prefix}{name}, but the model has {rows} ({scales}). Set '
                'the `scales` of its `norm_cfg` to those of the checkpoint.')
        elif value.shape == shape:
            # Plain BN of S * C channels is no row: torch says so.
            shaped[prefix + name] = value[None]
    return shaped
