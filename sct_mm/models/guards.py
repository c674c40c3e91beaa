"""Refuses what would take the tensors of all scales for those of one norm."""
import warnings
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

SYNC_BN = ('`sync_bn` replaces SSBN by SyncBatchNorm and drops the statistics '
           "of each scale. Remove it and set norm_cfg=dict(type='SyncSSBN').")


# {class of a wrapper, by name: how to reach what it wraps}
_PARALLEL = {  # they hold its tensors, or replace them by shards
    'DistributedDataParallel': 'model.module',
    'FullyShardedDataParallel': 'a model that is not sharded',
    'FSDPModule': 'a model that is not sharded',  # of fully_shard()
    'DeepSpeedEngine': 'model.module',
}
_AVERAGES = {  # they hold a copy, and are updated from the model
    'BaseAveragedModel': 'model.module',  # mmengine's, as of EMAHook
    'AveragedModel': 'model.module',  # torch's
}
_CALLERS = {  # they only call it
    'DataParallel': 'model.module',
    'OptimizedModule': 'model._orig_mod',  # of torch.compile()
}


def _wrapper_in(model: nn.Module, inside: dict[str, str],
                outermost: dict[str, str]) -> tuple[str, str] | None:
    """The name of a wrapper and how to reach what it wraps: one of ``inside``
    anywhere in ``model``, or ``model`` itself if it is one of ``outermost``.
    """
    for module in model.modules():
        names = {**inside, **(outermost if module is model else {})}
        for kind in type(module).__mro__:
            if kind.__name__ in names:
                return type(module).__name__, names[kind.__name__]
    return None


def check_before_wrapping(model: nn.Module, function: str) -> None:
    """Whether no wrapper holds the tensors of ``model``, which ``function``
    replaces. A copy of a part within the model, as momentum encoders are, is
    none.

    Raises:
        TypeError: naming the wrapper.
    """
    if found := _wrapper_in(model, _PARALLEL, _AVERAGES):
        raise TypeError(f'`model` of {function}() must not be wrapped, but '
                        f'got {found[0]}, which would keep the tensors that '
                        'it replaces. Call it before the model is wrapped.')


def check_unwrapped(model: nn.Module, function: str) -> None:
    """Whether ``model`` is the network itself, of which ``function`` makes an
    independent copy.

    Raises:
        TypeError: naming the wrapper.
    """
    if found := _wrapper_in(model, _PARALLEL, {**_AVERAGES, **_CALLERS}):
        raise TypeError(f'`model` of {function}() must be the network '
                        f'itself, but got {found[0]}. Pass {found[1]}.')


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP or DeepSpeed holds the parameters of ``model``."""
    names = set(_PARALLEL) - {'DistributedDataParallel'}
    return any(kind.__name__ in names for module in model.modules()
               for kind in type(module).__mro__)


class Guards:
    """What a layer with several scales refuses: to be exported and scripted.

    torch.ao's ``fuse_modules`` is refused by :func:`refuse_fusing`. Functions
    that compute with the tensors of a norm without a call of it
    (``fuse_conv_bn_eval`` of torch, ``fuse_conv_bn`` of mmcv, hosts' own)
    multiply weights (S * C,) by deviations (S, C). torch refuses that at once,
    or where the result runs:
    The size of tensor a (…) must match the size of tensor b (…)
    expected bias to be 1-dimensional
    What makes another norm of the tensors, makes one that refuses its input:
    running_mean should contain … elements not …
    """

    scales: tuple[int, ...]

    def check_export(self, x: Tensor | fx.Proxy) -> None:
        """Refuse to be exported, since a graph holds the scale that it was
        made at. A bare ``torch.jit.trace``, by which mmengine counts FLOPs,
        warns.

        Raises:
            RuntimeError: if the pass with input ``x`` is recorded for export.
        """
        symbolic = isinstance(x, fx.Proxy)
        if len(self.scales) == 1 or not (
                symbolic or torch.compiler._is_exporting_flag
                or torch.jit.is_tracing()):
            return
        if symbolic:
            raise RuntimeError(
                'A symbolic trace, which `efficient_conv_bn_eval` of mmengine '
                'makes too, holds one scale, but the network has those of '
                f'{self.scales}. Remove it from the config, or take one scale '
                'by sct_mm.extract_scale() first.')
        text = ('fixes the scale that it saw, and this network has rows for '
                f'{self.scales}. Take one scale by sct_mm.extract_scale() '
                'first, or let tools/export.py write the file.')
        if not torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
            raise RuntimeError(f'An exported graph {text}')
        warnings.warn(f'A trace {text}', stacklevel=2)

    def __prepare_scriptable__(self) -> NoReturn:
        raise RuntimeError('torch.jit.script cannot choose among the scales '
                           f'{self.scales}. Take one scale by '
                           'sct_mm.extract_scale() first.')


def refuse_fusing(is_qat: bool, *layers: nn.Module) -> NoReturn:
    """A fuser method of torch.ao for layers of which one is SSBN.

    Raises:
        RuntimeError: in any case.
    """
    raise RuntimeError('fuse_modules() cannot fold the rows of several scales '
                       'into '
                       f'{" and ".join(type(m).__name__ for m in layers)}. '
                       'Take one scale by sct_mm.extract_scale() first.')


def refuse_to_fuse(forms: Iterable[type]) -> None:
    """Let torch.ao's fuse_modules() refuse the classes ``forms`` wherever it
    fuses a norm that they derive from: it picks by the exact class, and its
    own error does not say what to do."""
    try:
        from torch.ao.quantization.fuser_method_mappings import (
            _DEFAULT_OP_LIST_TO_FUSER_METHOD as methods,
        )
    except ImportError:  # torch is to move it to torchao
        return
    for form in forms:
        plain: Any = next(base for base in form.__mro__
                          if any(base in key for key in methods))
        for classes in [key for key in methods if plain in key]:
            methods[tuple(form if kind is plain else kind
                          for kind in classes)] = refuse_fusing


def check_own(layer: nn.Module) -> None:
    """Check that weight and bias of ``layer`` are parameters of its own.

    Raises:
        TypeError: for a lazy, pruned or parametrized layer.
    """
    if isinstance(layer, LazyModuleMixin) or parametrize.is_parametrized(
            layer) or not {'weight', 'bias'} <= set(layer._parameters):
        raise TypeError(f'`model` has a {type(layer).__name__}, whose '
                        'parameters are not its own. Run one batch through a '
                        'lazy model, or remove the parametrization or '
                        'pruning, first.')


def damaged_by_sync_bn(model: nn.Module) -> bool:
    """Whether SSBN layers of ``model`` were replaced by other norms that hold
    the tensors of all scales: by ``convert_sync_batchnorm`` of torch, mmengine
    or timm, apex's ``convert_syncbn_model``, timm's ``freeze_batch_norm_2d``.
    """
    norms = [m for m in model.modules() if not isinstance(m, Guards)
             and hasattr(m, 'running_mean') and hasattr(m, 'num_features')]
    return any(isinstance(t, Tensor) and t.shape != (m.num_features, )
               for m in norms for t in (m.weight, m.running_mean))
