"""What takes a layer's rows for one, and would serve one scale: refused."""
import sys
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _LazyNormBase
from torch.nn.utils import parametrize

SYNC_BN = ('`sync_bn` replaces SSBN by SyncBatchNorm and drops the statistics '
           "of each scale. Remove it and set norm_cfg=dict(type='SyncSSBN').")
# timm's, which build another layer of a norm's tensors.
_KNOW_NO_ROWS = ('freeze_batch_norm_2d', 'convert_splitbn_model',
                 'merge_pre_bn')


def _within(name: str) -> bool:
    """Whether a function whose name starts so is being called."""
    frame = sys._getframe(1)
    while frame and not frame.f_code.co_name.startswith(name):
        frame = frame.f_back
    return frame is not None


class _Eps:
    """``eps`` of a layer. All that fuses norms, for good or in each pass,
    or makes others of them reads it, and would take rows for one. A layer
    itself reads ``_eps``: torch.compile cannot trace this."""

    def __set__(self, layer: nn.Module, eps: float) -> None:
        layer.__dict__.update(eps=eps, _eps=eps)

    def __get__(self, layer: nn.Module | None, owner: type) -> Any:
        if layer is None:
            return self
        name = sys._getframe(1).f_code.co_name
        if name == 'convert_sync_batchnorm':  # of torch, mmengine, timm
            raise RuntimeError(SYNC_BN)
        if ('fuse' in name.split('_') or name in _KNOW_NO_ROWS
                or name.startswith('efficient_conv_bn')):
            raise RuntimeError(f'{name}() knows no rows, but got those of the '
                               f'scales {layer.scales}. Take one scale by '
                               'sct_mm.extract_scale() first.')
        return layer.__dict__['eps']


class OneScaleAlone:
    """What a layer with rows refuses, since only one extracted scale can be
    fused, scripted and exported."""

    scales: tuple[int, ...]
    eps = _Eps()

    def check_export(self) -> None:
        """A trace holds one scale: refuse it, or warn.

        Raises:
            RuntimeError: where the network is exported.
        """
        if len(self.scales) == 1:
            return
        text = ('fixes the scale that it saw, and this network has rows for '
                f'{self.scales}. Take one scale by sct_mm.extract_scale() '
                'first, or let tools/export.py write the file.')
        if not torch.compiler.is_compiling() and _within(
                'turn_on_efficient_conv_bn_eval'):  # mmengine's, by fx
            raise RuntimeError('`efficient_conv_bn_eval` computes with the '
                               'tensors of BN and knows no scales, but the '
                               f'network has those of {self.scales}. Remove '
                               'it from the config.')
        if not torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
            raise RuntimeError(f'An exported graph {text}')
        # mmengine counts FLOPs by a bare trace.
        warnings.warn(f'A trace {text}', stacklevel=2)

    def __prepare_scriptable__(self):
        raise RuntimeError('torch.jit.script cannot choose among the scales '
                           f'{self.scales}. Take one scale by '
                           'sct_mm.extract_scale() first.')


def check_own(norm: nn.Module) -> None:
    """Whether weight and bias of ``norm`` are parameters of its own.

    Raises:
        TypeError: for a lazy, pruned or parametrized norm.
    """
    if isinstance(norm, _LazyNormBase) or parametrize.is_parametrized(
            norm) or not {'weight', 'bias'} <= set(norm._parameters):
        raise TypeError(f'`model` has a {type(norm).__name__}, whose '
                        'parameters are not its own. Run one batch through a '
                        'lazy model, or remove the parametrization or '
                        'pruning, first.')
