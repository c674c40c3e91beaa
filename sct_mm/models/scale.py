"""Which scale a network runs at: pinned by the caller, or read off the input.

A *scale* is the nominal edge of the network's input in pixels. The *extent* of
a layer's input is the shorter of its spatial edges, in elements of that map;
two layers of one network see different extents at one scale.
"""
import threading
from contextlib import contextmanager
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from torch import nn

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


class ScaleSpecific:
    """What has one row a scale: the base of SSBN in all its forms."""


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
