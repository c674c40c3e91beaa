"""Which scale a network runs at: pinned by the caller, or read off the input.

A *scale* is the nominal edge of the network's input in pixels. The *extent* of
a layer's input is the shorter of its spatial edges, in elements of that map;
two layers of one network see different extents at one scale.
"""
import sys
import threading
import warnings
import weakref
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

DEFAULT_SCALES = (224, 192, 160, 128)


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
    if not scales or min(scales) <= 0 or len(set(scales)) < len(scales):
        raise ValueError('`scales` must be distinct positive ints, but got '
                         f'{tuple(scales)}. Write each scale once.')
    return tuple(sorted(scales, reverse=True))


class ExtentRecord(Dict[int, List[int]]):
    """``{scale: [smallest, largest extent seen]}`` of one layer.

    A deep copy of a layer shares its record: an EMA copy made before training
    learns from it what the trained network saw. The record describes the
    network's geometry, not its weights.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._fits: Dict[int, Optional[int]] = {}  # answers of fitting()

    def __deepcopy__(self, memo: dict) -> 'ExtentRecord':
        return self

    def fitting(self, extent: int) -> Optional[int]:
        """:func:`fitting_scale` of ``extent``, looked up once."""
        fits = self._fits  # add() replaces it, maybe in another thread
        if extent not in fits:
            fits[extent] = fitting_scale(extent, self)
        return fits[extent]

    def take(self, rows: Sequence[Sequence[int]]) -> None:
        """Take over rows of (scale, smallest, largest extent) that were
        recorded elsewhere; 0 says that none was."""
        self.update({scale: [low, high] for scale, low, high in rows if high})
        self._fits = {}

    def add(self, scale: int, extent: int) -> None:
        low, high = self.get(scale, (extent, extent))
        if scale not in self or not low <= extent <= high:
            # Written only on a change: torch.compile guards on the values.
            self[scale] = [min(low, extent), max(high, extent)]
            self._fits = {}


def fitting_scale(extent: int,
                  record: Dict[int, List[int]]) -> Optional[int]:
    """The recorded scale whose extents lie nearest to ``extent``.

    Halfway between two scales the larger one wins (our choice: its statistics
    come from more pixels). Returns None where the extent cannot tell: nothing
    is recorded, or the best scales were seen at the same extent, as behind a
    global pooling.
    """
    best: List[int] = []
    least = None
    for scale, (low, high) in record.items():
        distance = max(low - extent, extent - high, 0)
        if least is None or distance < least:
            best, least = [scale], distance
        elif distance == least:
            best.append(scale)
    if not best:
        return None
    overlap = (max([record[s][0] for s in best])
               <= min([record[s][1] for s in best]))
    return None if len(best) > 1 and overlap else max(best)


class _PrecedingScale(threading.local):
    """The scale at which the SSBN layer before ran, in the same thread.

    Only a layer whose own input cannot tell the scales apart reads it; every
    layer writes it. Threads do not meet. Where a backward pass runs layers
    again (activation checkpointing), SCTLossHook sets it before each scale.
    """
    scale: Optional[int] = None


preceding = _PrecedingScale()


_warned: 'weakref.WeakSet[nn.Module]' = weakref.WeakSet()


def _outermost_call() -> Tuple[Optional[nn.Module], Optional[int]]:
    """The outermost module that runs in this thread, and the shorter edge in
    pixels of the pictures it was called with; read off the call stack."""
    model, edge = None, None
    frame: Any = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get('self')
        if (isinstance(module, nn.Module)
                and frame.f_code.co_name == '_call_impl'):
            values = [*frame.f_locals.get('args', ()),
                      *frame.f_locals.get('kwargs', {}).values()]
            edges = [min(v.shape[2:]) for v in values
                     if isinstance(v, Tensor) and v.dim() > 2]
            model, edge = module, edges[0] if edges else edge
        frame = frame.f_back
    return model, edge


class ScaleSpecific:
    """A layer with one row a scale: how it chooses the row. The base of SSBN
    in all its forms."""

    # What a layer has beside the norm that it stands in for.
    STATE = ('scales', 'pinned_scale', 'record', 'record_ratio', 'extents',
             'plain_type', '_strange')

    def start(self, scales: Sequence[int]) -> None:
        self.scales = check_scales(scales)
        self.pinned_scale: Optional[int] = None
        self.record, self.record_ratio = False, 1.0  # see set_scale()
        self.extents = ExtentRecord()
        self._strange: Optional[int] = None  # the last extent without record

    def choose_scale(self, x: Tensor) -> int:
        """The scale that serves ``x``: the pinned one, else the one whose
        recorded extent fits best, else the one of the layer before."""
        extent = min(x.shape[2:]) if x.dim() > 2 else 1
        scale = self.pinned_scale
        if scale is None:
            scale = self.extents.fitting(extent)
            if scale is None and self.extents:
                scale = preceding.scale
            if scale not in self.scales:
                scale = self.scales[0]
            if not self.extents and extent != self._strange:
                self._strange = extent
                self._warn_without_record()
        elif self.training or self.record:
            self.extents.add(scale, round(extent * self.record_ratio))
        preceding.scale = scale
        return scale

    def _warn_without_record(self) -> None:
        """Say once that any size is served by the base scale."""
        if len(self.scales) == 1 or torch.compiler.is_compiling():
            return
        model, edge = _outermost_call()
        if model in _warned or model is self or edge in (
                None, self.scales[0]):
            return
        _warned.add(model)
        warnings.warn(
            f'{type(model).__name__} serves pictures of {edge} pixels by the '
            f'rows of its base scale {self.scales[0]}: it has no record of '
            'what its layers see at each scale. Train it with SCTLossHook, '
            'load a checkpoint with its `_extra_state` keys, or pin a scale '
            'by use_scale().', stacklevel=2)

    def get_extra_state(self) -> Tensor:
        """(S, 3), int64: each scale, and the smallest and the largest extent
        of the layer's input at it, 0 where none was recorded. A tensor goes
        through any carrier: a plain dict, safetensors, a hub."""
        return torch.tensor([(scale, *self.extents.get(scale, (0, 0)))
                             for scale in self.scales], device='cpu')

    def set_extra_state(self, state: Tensor) -> None:
        """Take over a record of the same scales: those of others tell
        nothing, though the rows load by rank (a detector at 800/480 may
        start from a classifier at 224/128)."""
        if state.is_meta:
            return
        rows = [[round(value) for value in row] for row in state.tolist()]
        if tuple(row[0] for row in rows) == self.scales:
            self.extents.take(rows)


def ssbn_layers(model: nn.Module) -> List[nn.Module]:
    """All SSBN layers of ``model``, in the order of its modules."""
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


def set_scale(model: nn.Module,
              scale: Optional[int],
              record: bool = False,
              edge: Optional[int] = None) -> None:
    """Pin every SSBN layer of ``model`` to ``scale`` pixels; None unpins.

    A model without SSBN has nothing to pin and is left as it is. A pinned
    layer records the extent of its input if it is in training mode, or with
    ``record``: a network that trains may have layers in evaluation mode
    (``norm_eval``, ``frozen_stages``).

    Args:
        edge: shorter edge of the model's input in pixels, where it is not
            ``scale``, as with a detector's pictures of all shapes. Recorded
            is the extent that a picture of ``scale`` pixels has.

    Raises:
        ValueError: if the model was not built for ``scale``; nothing is
            pinned then.
    """
    layers = ssbn_layers(model)
    for layer in layers:
        if scale is not None and scale not in layer.scales:
            raise ValueError(f'`scale` must be one of the trained scales '
                             f'{layer.scales}, but got {scale!r}. Pin the '
                             'nearest of them instead.')
    for layer in layers:
        layer.pinned_scale = scale
        layer.record = record
        layer.record_ratio = 1.0 if edge is None else scale / edge


@contextmanager
def use_scale(model: nn.Module,
              scale: Optional[int],
              record: bool = False,
              edge: Optional[int] = None) -> Iterator[nn.Module]:
    """Pin ``model`` to ``scale`` within a ``with`` block; blocks may nest.

    On leaving, also by an error, every layer gets back the pin it had. See
    :func:`set_scale` for ``record`` and ``edge``.
    """
    before = [(layer, layer.pinned_scale, layer.record, layer.record_ratio)
              for layer in ssbn_layers(model)]
    set_scale(model, scale, record, edge)
    try:
        yield model
    finally:
        for layer, *state in before:
            layer.pinned_scale, layer.record, layer.record_ratio = state


def serving_scale(scales: Sequence[int], size: int) -> int:
    """The trained scale whose statistics serve an input of ``size`` pixels.

    The nearest one, the larger on a tie ("proxy" of RS-Nets, arXiv
    2007.09558, which names the nearest without a rule for ties).
    """
    return min(sorted(scales, reverse=True), key=lambda s: abs(s - size))
