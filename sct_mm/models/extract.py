"""Extract one size of a network as an independent, plain network."""
import inspect
from types import MethodType
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import nn

from .convert import _PLAIN_NAMES
from .guards import check_own, check_unwrapped
from .pinning import check_size
from .replace_modules import refresh_averages, replace_modules
from .scratch_copy import copied
from .size_selection import scale_specific, ssbn_layers, warn_of_unseen
from .ssbn import ScaleSpecificNorm
from .weight_change import ChangedLayer


def extract_scale(model: nn.Module, size: int) -> nn.Module:
    """An independent copy of ``model`` at one size, with the plain layers
    that SSBN stands in for: those that were converted, or ``nn.BatchNorm2d``
    and ``nn.SyncBatchNorm`` if a ``norm_cfg`` built SSBN and SyncSSBN. The
    weights have their change at the size. Between two scales the layers have
    the mix of both, outside of them, with a warning, the parameters of the
    largest or smallest scale. A scale that has seen no batch, while others
    have, is extracted with a warning, too.

    Its state dict has the keys and shapes of a network without SSBN: stock
    mmpretrain, mmdet and timm load it, without this package. Layers that
    share a tensor share it in the copy, too.

    Raises:
        TypeError, ValueError: if the model has no SSBN layer, or a pruned or
            parametrized layer of scales, or is in a wrapper (DDP, an average,
            a compiled module), if ``size`` is no size, and as
            :func:`convert_to_ssbn` for shared tensors.
    """
    layers = ssbn_layers(model)
    if not layers:
        raise ValueError('`model` must have SSBN layers to extract a scale '
                         f'from, but {type(model).__name__} has none. It is '
                         'an ordinary model already.')
    check_unwrapped(model, 'extract_scale')
    size = check_size(layers, size)
    for layer in scale_specific(model):
        check_own(layer)
    warn_of_unseen(model, (size, ))

    def swap(layer: nn.Module) -> nn.Module | None:
        return (_own(layer.plain(size), layer)
                if isinstance(layer, (ScaleSpecificNorm, ChangedLayer))
                else None)

    # Or a mix would require no gradients, and the copy could not be trained.
    with torch.inference_mode(False):
        extracted = replace_modules(copied(model), swap)
    refresh_averages(extracted)
    _with_own_forwards(extracted)
    for module in extracted.modules():
        _without_run_hooks(module)
        for name, value in vars(module).items():
            if isinstance(value, (dict, list, tuple)) and name[0] != '_':
                module.__dict__[name] = _plain_config(value)
    return extracted


def _with_own_forwards(model: nn.Module) -> None:
    """Remove from a copy each wrapped ``forward`` that runs what the module
    was copied from, as mmengine's `activation_checkpointing` and
    torch.compile() make them: that of the class takes its place."""
    own = set(model.modules())
    for module in own:
        inner = inspect.unwrap(vars(module).get('forward', module.forward))
        if isinstance(inner, MethodType) and inner.__self__ not in own:
            del module.__dict__['forward']


def _without_run_hooks(module: nn.Module) -> None:
    """Remove the forward hooks that belong to a hook of mmengine's Runner, as
    those of SCTLossHook while it trains."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, '__self__', None), Hook):
                del hooks[key]


def _plain_config(value: Any) -> Any:
    """``value`` with each ``norm_cfg`` in it, at any depth, as it builds the
    plain layer: RepVGG and others keep their ``norm_cfg`` and read it before
    they fuse. Returns the same object if it holds no ``norm_cfg`` of SSBN."""
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        new = type(value)(map(_plain_config, value))
        return new if any(a is not b for a, b in zip(new, value,
                                                     strict=True)) else value
    if not isinstance(value, dict):
        return value
    kind = value.get('type')
    name = kind.rpartition('.')[2] if isinstance(kind, str) else getattr(
        kind, '__name__', None)
    if name in _PLAIN_NAMES:
        value = type(value)(value, type=_PLAIN_NAMES[name])
        value.pop('scales', None)
        return value
    items = {key: _plain_config(item) for key, item in value.items()}
    return (type(value)(items)
            if any(items[k] is not value[k] for k in items) else value)


def _own(layer: nn.Module, changing: nn.Module) -> nn.Module:
    """``layer`` with tensors of its own in place of views and mixes of those
    of ``changing``, which it stands for at one size."""
    for name, view in layer._parameters.items():
        if view is not None and view is not changing._parameters[name]:
            layer._parameters[name] = nn.Parameter(
                view.detach().clone(), requires_grad=view.requires_grad)
    for name, buffer in layer._buffers.items():
        if buffer is not None and buffer is not changing._buffers[name]:
            layer._buffers[name] = buffer.clone()
    return layer
