"""Which scale a network runs at: pinned by the caller, or read off the input.

A *scale* is the nominal edge of the network's input in pixels. The *extent* of
a layer's input is the shorter of its spatial edges, in elements of that map;
two layers of one network see different extents at one scale.
"""
import threading
import warnings
import weakref
from contextlib import contextmanager
from typing import Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ..arguments import check_int
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


class _PrecedingScale(threading.local):
    """The scale at which the SSBN layer before ran, in the same thread.

    Only a layer whose own input cannot tell the scales apart reads it; every
    layer writes it. Threads do not meet. Where a backward pass runs layers
    again (activation checkpointing), SCTLossHook sets it before each scale.
    """
    scale: Optional[int] = None


preceding = _PrecedingScale()


_warned: 'weakref.WeakSet[nn.Module]' = weakref.WeakSet()


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
        model, edge = outermost_call()
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
        through any carrier: a plain dict, safetensors, a hub; it lies where
        the layer's own do, since some hosts join them (mmdet's
        SyncNormHook)."""
        own = next((t for t in (self.running_mean, self.weight)
                    if t is not None and not t.is_meta), None)
        return torch.tensor([(scale, *self.extents.get(scale, (0, 0)))
                             for scale in self.scales],
                            device='cpu' if own is None else own.device)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over a record of the same scales: those of others tell
        nothing, though the rows load by rank (a detector at 800/480 may
        start from a classifier at 224/128)."""
        if not isinstance(state, Tensor) or state.is_meta or (
                state.shape != (len(self.scales), 3)):
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


def check_trained(layers: Sequence[nn.Module], scale: int) -> int:
    """``scale`` as an int, if all of ``layers`` have rows for it.

    Raises:
        TypeError, ValueError: if it is no int, or one has none.
    """
    scale = check_int('scale', scale, 1, 'Give one of the trained scales.')
    for layer in layers:
        if scale not in layer.scales:
            raise ValueError(f'`scale` must be one of the trained scales '
                             f'{layer.scales}, but got {scale!r}. Take the '
                             'nearest of them instead.')
    return scale


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
    if scale is not None:
        scale = check_trained(layers, scale)
    ratio = 1.0
    if edge is not None:
        ratio = (scale or 1) / check_int('edge', edge, 1, 'Give the shorter '
                                         'edge of the input in pixels.')
    for layer in layers:
        layer.pinned_scale = scale
        layer.record = record
        layer.record_ratio = ratio


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
        preceding.scale = None  # of a pass that has ended


def serving_scale(scales: Sequence[int], size: int) -> int:
    """The trained scale whose statistics serve an input of ``size`` pixels.

    The nearest one, the larger on a tie ("proxy" of RS-Nets, arXiv
    2007.09558, which names the nearest without a rule for ties).
    """
    return min(sorted(scales, reverse=True), key=lambda s: abs(s - size))
