"""Which size a network runs at: pinned by the caller, or read off the input.

A *size* is the nominal edge of the network's input in pixels, a *scale* a size
that has rows of its own. The *extent* of a layer's input is the shorter of its
spatial edges, in elements of that map; two layers of one network see different
extents at one size.
"""
import threading
import warnings
import weakref
from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from .record import ExtentRecord, outermost_call

DEFAULT_SCALES = (224, 192, 160, 128)
_LARGEST = 2**20


def check_scales(scales: Sequence[int]) -> Tuple[int, ...]:
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
                 size: float) -> Tuple[Tuple[int, float], ...]:
    """The rows that serve an input of ``size`` pixels, as pairs of a scale
    and its share of the mix: the scale itself, the two next to it with the
    weights of a linear interpolation, or the end ("interpolated" of SAN, see
    :mod:`between`).

    Args:
        scales: from the largest down.
    """
    if size >= scales[0] or size <= scales[-1]:
        return ((scales[0 if size >= scales[0] else -1], 1.0), )
    for larger, smaller in zip(scales, scales[1:]):
        if size == smaller:
            return ((smaller, 1.0), )
        if size > smaller:
            share = (size - smaller) / (larger - smaller)
            return ((larger, share), (smaller, 1 - share))
    raise AssertionError(size)


class Pin(NamedTuple):
    """What set_scale() gives a layer: one write for each, since a step
    pins every layer once a scale."""
    size: Optional[int] = None
    thread: Optional[int] = None  # the one within use_scale()
    record: bool = False
    ratio: float = 1.0  # of what is recorded


class _Pass(threading.local):
    """The size at which the SSBN layer before ran, in the same thread.

    Only the layer that starts a pass leaves it unread; every layer writes it.
    Threads do not meet.
    """
    size: Optional[float] = None


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
        self._strange: Optional[int] = None  # the last extent that told none
        self._served: Optional[tuple] = None  # the row of the last inference

    @property
    def pinned_size(self) -> Optional[int]:
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
        reason, mend = (
            ('its first SSBN layer sees the same at several of them, as '
             'behind a pooling', 'Pin a size') if self.extents.known() else
            ('it has no record of what its layers see at each scale',
             'Train it with SCTLossHook, load a checkpoint with its '
             '`_extra_state` keys, or pin a size'))
        warnings.warn(
            f'{type(model).__name__} serves pictures of {edge} pixels by the '
            f'rows of its base scale {self.scales[0]}: {reason}. {mend} by '
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


def ssbn_layers(model: nn.Module) -> List[nn.Module]:
    """All SSBN layers of ``model``, in the order of its modules.

    Raises:
        TypeError: if ``model`` is no ``nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError('`model` must be an nn.Module, but got '
                        f'{type(model).__name__}. Build it first.')
    return [m for m in model.modules() if isinstance(m, ScaleSpecific)]


def scales_of(model: nn.Module) -> Optional[Tuple[int, ...]]:
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
