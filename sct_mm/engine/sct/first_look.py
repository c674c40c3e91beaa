"""The first step of a training: SSBN layers see the scales that it does not
train."""
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...datasets.batch_forms import image_shape, with_views
from ...datasets.data_samples import private_copy
from ...models.pinning import pinned
from ...models.scratch_copy import keeping_random_state, scratch_copy
from ...models.size_selection import ScaleSpecific, scale_specific
from .monitor import named


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """The ``modules`` in evaluation mode within a ``with`` block; what they
    contain stays as it is."""
    before = [m for m in modules if m.training]
    for module in before:
        module.training = False
    try:
        yield
    finally:
        for module in before:
            module.training = True


def leaves(model: nn.Module) -> list[nn.Module]:
    """The layers of ``model`` that hold no others, and every norm: where
    statistics move and elements drop. What a model returns, its containers
    choose by their mode."""
    return [m for m in model.modules()
            if isinstance(m, _BatchNorm) or not list(m.children())]


@contextmanager
def keeping_buffers(model: nn.Module) -> Iterator[None]:
    """Put the buffers and frozen parameters of ``model`` back after a
    ``with`` block: a head may count the images that it sees, or hold a queue
    of them, and an encoder may follow another."""
    before = [(m, name, buffer, buffer.clone()) for m in model.modules()
              for name, buffer in m._buffers.items() if buffer is not None]
    frozen = [(p, p.detach().clone()) for p in model.parameters()
              if not p.requires_grad]
    try:
        yield
    finally:
        for module, name, buffer, value in before:
            buffer.copy_(value)
            module._buffers[name] = buffer  # it may have been replaced
        for parameter, value in frozen:
            parameter.data.copy_(value)


def unrecorded(norms: Iterable[ScaleSpecific],
               scales: Iterable[int]) -> list[int]:
    """Those of ``scales`` at which no layer of ``norms`` has seen an input."""
    norms = list(norms)
    return [scale for scale in scales if norms and not any(
        scale in layer.extents for layer in norms)]


def record(model: nn.Module, layers: Sequence[ScaleSpecific],
           batch: dict, resize: Callable[[int, dict], dict],
           scales: Sequence[int]) -> None:
    """Let ``layers`` see ``batch`` at each of ``scales``; nothing else of the
    model changes.

    Unless it is pinned, a network finds the scale of an input by the extents
    that its layers have recorded. Where a step trains one scale, or between
    the scales, an early checkpoint would lack some of them.

    The passes run on copies, since a head may count them. A model that cannot
    be copied, or whose copy fails, runs itself, which is logged: its buffers
    and frozen parameters are put back.
    """
    for scale in scales:
        with keeping_random_state(model):
            try:
                _look(scratch_copy(model), model, layers, batch, resize, scale)
                continue
            except Exception as error:  # each host has its own
                print_log('SCTLossHook: a copy of the model cannot run '
                          f'({type(error).__name__}: {error}), so that the '
                          'model itself sees the scales which the first step '
                          'does not train.', 'current', logging.WARNING)
            _look(model, model, layers, batch, resize, scale)


def _look(runs: nn.Module, model: nn.Module,
          layers: Sequence[ScaleSpecific], batch: dict,
          resize: Callable[[int, dict], dict], scale: int) -> None:
    """One pass of ``runs``, a copy of ``model`` or the model itself."""
    part = with_views(resize(scale, batch), Tensor.clone)
    if 'data_samples' in part:
        part['data_samples'] = private_copy(part['data_samples'])
    edge = min(image_shape(part))
    # Of both, since a compiled `forward` of a copy is that of its model.
    modules = {module for each in (runs, model) for module in leaves(each)}
    smaller = scale < layers[0].scales[0]
    with named(f'scale {scale}', smaller), torch.no_grad(), evaluating(
            modules), keeping_buffers(model), pinned(
                [*{*layers, *scale_specific(runs)}], scale,
                record=True, edge=edge):
        runs(**part)
