"""Refuses what would take the tensors of all scales for those of one norm."""
import warnings
from typing import NoReturn

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _LazyNormBase
from torch.nn.utils import parametrize

SYNC_BN = ('`sync_bn` replaces SSBN by SyncBatchNorm and drops the statistics '
           "of each scale. Remove it and set norm_cfg=dict(type='SyncSSBN').")


class Guards:
    """What a layer with several scales refuses: to be exported and scripted.

    Functions that fuse a convolution and a norm multiply weights (S * C,) by
    deviations (S, C). torch refuses that at once, or where the result runs:
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


def check_own(norm: nn.Module) -> None:
    """Check that weight and bias of ``norm`` are parameters of its own.

    Raises:
        TypeError: for a lazy, pruned or parametrized norm.
    """
    if isinstance(norm, _LazyNormBase) or parametrize.is_parametrized(
            norm) or not {'weight', 'bias'} <= set(norm._parameters):
        raise TypeError(f'`model` has a {type(norm).__name__}, whose '
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
