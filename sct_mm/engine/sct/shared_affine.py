"""Gradient hooks that train gamma and beta of SSBN as if shared."""
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...models.size_selection import ssbn_layers
from ...utils.arguments import check_flag


def _same_for_all_rows(rows: int, grad: Tensor) -> Tensor:
    return grad.view(rows, -1).sum(0).repeat(rows)


def share_affine(model: nn.Module) -> list[RemovableHandle]:
    """Make each scale get the sum of the gradients of all, for gamma and beta
    of the SSBN layers of ``model``, until the handles are removed.

    Raises:
        ValueError: for scales whose gamma or beta differ.
        RuntimeError: if they are shared already.
    """
    shared = [(layer, parameter) for layer in ssbn_layers(model)
              for parameter in (layer.weight, layer.bias)
              if parameter is not None and parameter.requires_grad]
    for layer, parameter in shared:
        if any(getattr(hook, 'func', None) is _same_for_all_rows for hook
               in (parameter._backward_hooks or {}).values()):
            raise RuntimeError(f'{type(model).__name__} shares gamma and beta '
                               'already, and would count them twice. Remove '
                               'SharedAffineHook from `custom_hooks` beside '
                               'shared_affine=True or a recipe, or build the '
                               'model anew after an error.')
        rows = parameter.detach().view(len(layer.scales), -1)
        # A vectorised optimizer rounds its last entries otherwise.
        if not torch.allclose(rows, rows[:1], rtol=1e-3, atol=1e-3):
            raise ValueError('Gamma and beta must be alike at all scales to '
                             f'be shared, but those of {layer.scales} differ. '
                             'Start from a network for one size, or train '
                             'without SharedAffineHook and with '
                             'shared_affine=False.')
    return [parameter.register_hook(partial(_same_for_all_rows,
                                            len(layer.scales)))
            for layer, parameter in shared]


def check_shared_affine(share: bool, backward: str | None,
                        adapt: bool | str) -> bool:
    """``shared_affine`` of SCTLossHook, beside ``backward`` and ``adapt``.

    Raises:
        TypeError, ValueError: for another type, for ``backward='per_scale'``,
            which gradient hooks do not stand, and beside ``adapt``.
    """
    check_flag('shared_affine', share)
    if share and adapt:
        raise ValueError('`shared_affine` moves gamma and beta of all scales '
                         f'together, but got adapt={adapt!r}, which keeps '
                         'those of the base. Leave one of them out.')
    if share and backward == 'per_scale':
        raise ValueError("`backward` must be 'joint' to share gamma and beta, "
                         "but got 'per_scale'. Leave it out, or set "
                         'shared_affine=False.')
    return share
