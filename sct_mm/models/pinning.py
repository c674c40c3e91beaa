"""Pin a network to a size: use_scale() for a block, set_scale() until the
next call."""
import asyncio
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..utils.arguments import check_flag, check_int
from .size_selection import Pin, ScaleSpecific, preceding, scale_specific

_pinning = threading.Lock()


def _this_thread() -> tuple[int, asyncio.Task | None] | None:
    """The thread, and its asyncio task."""
    if torch.compiler.is_compiling():  # it cannot trace them
        return None
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in the thread
        task = None
    return threading.get_ident(), task


def _check_thread(layers: Sequence[ScaleSpecific]) -> None:
    """Refuse a pin while another thread, or asyncio task of the same one, has
    pinned the network: one of them would run at the size of the other. Python
    does not list the threads of autograd, which run layers again within the
    pin of their pass.

    Raises:
        RuntimeError: naming the size that is pinned.
    """
    own = _this_thread()
    others = {pin.thread: pin.size for pin in (layer.pin for layer in layers)
              if pin.thread not in (None, own)}
    living = {t.ident for t in threading.enumerate()} if others else ()
    for (thread, task), size in others.items():
        if own and thread in living and own[0] in living and (
                thread != own[0] or (task and own[1])):
            raise RuntimeError(
                f'Another {"thread" if thread != own[0] else "asyncio task"} '
                f'has pinned this network to {size} pixels, and a pin holds '
                'for all. Leave it unpinned, where each input tells its size, '
                'or give each a copy by copy.deepcopy().')


def check_size(layers: Sequence[ScaleSpecific], size: int) -> int:
    """``size`` as an int. Outside of the scales of ``layers`` a warning names
    the scale whose rows serve it.

    Raises:
        TypeError, ValueError: if it is no positive int.
    """
    size = check_int('size', size, 1, 'Give the edge of the input in pixels.')
    for scales in {layer.scales for layer in layers}:
        nearest = min(max(size, scales[-1]), scales[0])
        if nearest != size:
            warnings.warn(f'{size} pixels lie outside of the scales {scales}: '
                          f'the rows of scale {nearest} serve them.',
                          stacklevel=4)
    return size


def set_scale(model: nn.Module,
              size: int | None,
              record: bool = False,
              edge: int | None = None) -> None:
    """Pin every SSBN layer of ``model`` to ``size`` pixels; None unpins.

    At a scale the network uses the parameters of that scale, between two
    scales their linear mix, outside of them, with a warning, those of the
    largest or smallest scale. A model without SSBN stays as it is. A layer
    that is pinned to a scale records the extent of its input if it is in
    training mode.

    Args:
        record: whether layers in evaluation mode record, too: a network that
            trains may have some (``norm_eval``, ``frozen_stages``).
        edge: shorter edge of the model's input in pixels, if it is not
            ``size``, as a detector's images have all shapes. The layers then
            record the extent that an image of ``size`` pixels would have.

    Raises:
        TypeError, ValueError: if ``size`` is no size; nothing is pinned then.
        RuntimeError: if another thread or asyncio task is within use_scale().
    """
    layers = scale_specific(model)
    _set_pin(layers, size, record, edge)


def _set_pin(layers: Sequence[ScaleSpecific], size: int | None,
             record: bool, edge: int | None, thread: Any = None,
             freeze: bool = False) -> None:
    check_flag('record', record)
    check_flag('freeze', freeze)
    _check_thread(layers)
    if size is not None:
        size = check_size(layers, size)
    ratio = 1.0
    if edge is not None:
        ratio = (size or 1) / check_int('edge', edge, 1, 'Give the shorter '
                                        'edge of the input in pixels.')
    ran: list[bool] | None = None if size is None else []
    for layer in layers:
        scales = layer.scales
        nearest = size and min(max(size, scales[-1]), scales[0])
        _hold(layer, Pin(
            nearest, thread or layer.pin.thread, record, ratio,
            layer.prepared(nearest) if freeze and nearest else None, ran))
    preceding.size = None  # a pass begins


def _hold(layer: ScaleSpecific, pin: Pin) -> None:
    # A module's own __setattr__ searches its parameters, buffers and modules.
    # Each pass of a step pins all layers twice, so that it would take as long
    # as a tenth of a small norm.
    object.__setattr__(layer, 'pin', pin)


@contextmanager
def use_scale(model: nn.Module,
              size: int | None,
              record: bool = False,
              edge: int | None = None,
              freeze: bool = False) -> Iterator[nn.Module]:
    """Pin ``model`` to ``size`` pixels within a ``with`` block; blocks nest.

    At the end of the block, also after an error, every layer has its previous
    pin again. See :func:`set_scale` for ``record`` and ``edge``.

    Args:
        freeze: mix the parameters of two scales, and compose weights that
            change with the scale, once, at the start of the block, in place
            of in each pass. It acts in evaluation mode without gradients; the
            tensors of these layers must not change within the block. One
            image is then as fast as by :func:`extract_scale`.
    """
    with pinned(scale_specific(model), size, record, edge, freeze):
        yield model


@contextmanager
def pinned(layers: Sequence[ScaleSpecific],
           size: int | None,
           record: bool = False,
           edge: int | None = None,
           freeze: bool = False) -> Iterator[None]:
    """:func:`use_scale` of a network whose ``layers`` are at hand."""
    with _pinning:
        before = [layer.pin for layer in layers]
        _set_pin(layers, size, record, edge, _this_thread(), freeze)
    try:
        yield
    finally:
        for layer, pin in zip(layers, before, strict=True):
            _hold(layer, pin)
        preceding.size = None  # of a pass that has ended
