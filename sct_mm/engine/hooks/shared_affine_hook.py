"""Gamma and beta of SSBN trained as if all scales shared them."""
from functools import partial

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import Tensor

from ...models.size_selection import ssbn_layers


def _same_for_all_rows(rows: int, grad: Tensor) -> Tensor:
    return grad.view(rows, -1).sum(0).repeat(rows)


@HOOKS.register_module()
class SharedAffineHook(Hook):
    """Train gamma and beta of SSBN as if all scales shared them, so that the
    statistics alone are private: for trainings in which a scale has too few
    steps of its own.

    Parameters that start equal stay equal, but for rounding: each scale gets
    the sum of the gradients of all, and an optimizer treats the entries of a
    parameter alike. So the weights become those of a network whose scales
    share BN (but for clipping by a norm, which counts each scale), while SSBN
    gathers the statistics of each scale.
    These are gradient hooks: set ``backward='joint'`` in SCTLossHook, which
    with ``scales_per_step=1`` costs no more.

    Source: RS-Nets (arXiv 2007.09558) and SCT keep both private; this is our
    choice, measured in docs/results.md.

    Raises:
        ValueError: for a model without SSBN, for scales whose gamma or beta
            differ, and beside SCTLossHook(adapt=True), which keeps the base.
        RuntimeError: if another SharedAffineHook acts on the model.
    """

    def __init__(self) -> None:
        self._handles: list = []

    def before_train(self, runner) -> None:
        self.after_train(runner)  # of a run that an error ended
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        layers = ssbn_layers(model)
        if not layers:
            raise ValueError('`SharedAffineHook` needs a model with SSBN, but '
                             f'{type(model).__name__} has none. Set norm_cfg='
                             "dict(type='SSBN'), or leave the hook out.")
        shared = [(layer, parameter) for layer in layers
                  for parameter in (layer.weight, layer.bias)
                  if parameter is not None and parameter.requires_grad]
        if any(getattr(hook, 'adapt', False) for hook in
               getattr(runner, 'hooks', ())):
            raise ValueError('`SharedAffineHook` moves the rows of all scales '
                             'together, but got adapt, which keeps those of '
                             'the base. Leave one of them out.')
        for layer, parameter in shared:
            if any(getattr(hook, 'func', None) is _same_for_all_rows for hook
                   in (parameter._backward_hooks or {}).values()):
                raise RuntimeError(f'{type(model).__name__} has a '
                                   'SharedAffineHook already, which counts '
                                   'twice. Remove one from `custom_hooks`, or '
                                   'build the model anew after an error.')
            rows = parameter.detach().view(len(layer.scales), -1)
            # A vectorised optimizer rounds its last entries otherwise.
            if not torch.allclose(rows, rows[:1], rtol=1e-3, atol=1e-3):
                raise ValueError('`SharedAffineHook` needs rows of SSBN that '
                                 'are alike, but gamma or beta of the scales '
                                 f'{layer.scales} differ. Start from a '
                                 'network for one size, or leave it out.')
        self._handles = [parameter.register_hook(partial(
            _same_for_all_rows, len(layer.scales)))
            for layer, parameter in shared]

    def after_train(self, runner) -> None:
        while self._handles:
            self._handles.pop().remove()
