"""The hook that turns a model's training loss into the SCT loss."""
import logging
from typing import Dict, Optional, Sequence, Tuple

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, TRANSFORMS
from torch import Tensor, nn

from .scale import check_scales, preceding, scales_of, use_scale
from .ssbn import damaged_by_sync_bn

_ARGUMENTS = ('inputs', 'data_samples', 'mode')


def log_name(scale: int, name: str) -> str:
    """The name under which one scale's loss or metric is logged.

    It carries the scale and not the word "loss": mmengine's ``parse_losses``
    adds up every key that contains it. ``loss`` becomes ``s128/total``,
    ``loss_cls`` ``s128/cls``, ``accuracy_top-1`` ``s128/accuracy_top-1``.
    """
    name = name.replace('loss_', '').replace('loss', '').strip('_.')
    return f's{scale}/{name or "total"}'


class _RecallScale(torch.autograd.Function):
    """The identity; its backward says at which scale layers run again.

    Activation checkpointing calls layers a second time in the backward pass,
    the last block first, when no pin is left: one that cannot tell the scale
    from its input needs to be told.
    """

    @staticmethod
    def forward(ctx, loss: Tensor, scale: int) -> Tensor:
        ctx.scale = scale
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tuple[Tensor, None]:
        preceding.scale = ctx.scale
        return grad, None


def check_loss_weights(weights: Optional[Sequence[float]],
                       scales: Sequence[int]) -> Tuple[float, ...]:
    """lambda_s for each of ``scales``; 1/S each by default.

    Raises:
        ValueError: if there is not one finite number >= 0 per scale, or all
            are 0.
    """
    if weights is None:
        return (1 / len(scales), ) * len(scales)
    if not isinstance(weights, (tuple, list)):
        raise TypeError('`loss_weights` must be a tuple of one number per '
                        f'scale, but got {weights!r}. Leave it out for 1/S.')
    if len(weights) != len(scales) or not all(
            0 <= w < float('inf') for w in weights) or sum(weights) == 0:
        raise ValueError('`loss_weights` must be one finite number >= 0 per '
                         f'scale of {tuple(scales)}, not all 0, but got '
                         f'{tuple(weights)}. Leave it out for 1/S each.')
    return tuple(weights)


def resolve_scales(model: nn.Module,
                   wanted: Optional[Sequence[int]]) -> Tuple[int, ...]:
    """The scales to train ``model`` at: those of its SSBN layers, or
    ``wanted`` for a model without SSBN.

    Raises:
        ValueError: if ``wanted`` contradicts the layers, or neither tells.
        RuntimeError: if mmengine's ``sync_bn='torch'`` has converted SSBN.
    """
    if damaged_by_sync_bn(model):
        raise RuntimeError("`sync_bn='torch'` replaces SSBN by SyncBatchNorm "
                           'and drops the statistics of each scale. Remove '
                           "it and set norm_cfg=dict(type='SyncSSBN').")
    built = scales_of(model)
    wanted = None if wanted is None else check_scales(wanted)
    if built is None and wanted is None:
        raise ValueError('`SCTLossHook` takes its scales from SSBN layers, '
                         f'but {type(model).__name__} has none. Set '
                         "norm_cfg=dict(type='SSBN'), or give the hook "
                         '`scales` to train with shared normalization.')
    if built and wanted and built != wanted:
        raise ValueError(f'`scales` of SCTLossHook must be those of the SSBN '
                         f'layers, {built}, but got {wanted}. Leave it out: '
                         'the hook reads them from the model.')
    if built is None:
        print_log('SCTLossHook: the model has no SSBN, so all scales '
                  f'{wanted} share their normalization.', 'current',
                  logging.WARNING)
    return built or wanted


@HOOKS.register_module()
class SCTLossHook(Hook):
    """Train any model at several scales at once (Scale Calibrated Training,
    arXiv 1909.00182): the loss becomes sum_s lambda_s * loss_s.

    In training, each forward pass with ``mode='loss'`` is followed by one at
    every smaller scale, on the same batch resized by ``MultiScaleBatch`` and
    with the SSBN layers pinned to that scale. The model returns ``loss``,
    which is minimised, and for the log each scale's losses and accuracies
    (see :func:`log_name`). Only forward hooks of torch are used; after
    training the model is as it was.

    Args:
        scales: needed only for a model without SSBN (SCT with shared
            normalization); else they are read from the model.
        loss_weights: lambda_s, from the largest scale down. Defaults to 1/S
            each (our choice: the weights of the paper are not public to us;
            RS-Nets, arXiv 2007.09558, sum without dividing by S).
        backward: 'joint': the graphs of all scales live until the one
            backward pass.
        batch_transform: config of the batch transform; ``scale`` and
            ``base_scale`` are filled in.

    Raises:
        ValueError: for `scales` or `loss_weights` that do not fit the model,
            or a batch whose pictures have not the base scale.
        RuntimeError: if SSBN was converted by ``sync_bn='torch'``.
    """

    def __init__(self,
                 scales: Optional[Sequence[int]] = None,
                 loss_weights: Optional[Sequence[float]] = None,
                 backward: str = 'joint',
                 batch_transform: Optional[dict] = None) -> None:
        if backward != 'joint':
            raise ValueError(f"`backward` must be 'joint', but got "
                             f'{backward!r}. Leave it out.')
        self.scales = None if scales is None else check_scales(scales)
        self.loss_weights = loss_weights
        self.batch_transform = batch_transform or dict(type='MultiScaleBatch')
        self._handles: list = []
        self._pin = None  # the open use_scale() of the base scale's pass
        self._busy = False  # within a pass that this hook started

    def before_train(self, runner) -> None:
        model = runner.model
        self.attach(model.module if is_model_wrapper(model) else model)

    def after_train(self, runner) -> None:
        self.detach()

    def attach(self, model: nn.Module) -> None:
        """Check the configuration against ``model`` and hook it."""
        scales = resolve_scales(model, self.scales)
        self._weights = dict(
            zip(scales, check_loss_weights(self.loss_weights, scales)))
        divisor = getattr(
            getattr(model, 'data_preprocessor', None), 'pad_size_divisor', 1)
        self._transforms = {
            scale: TRANSFORMS.build(
                dict(dict(size_divisor=divisor), **dict(
                    self.batch_transform, scale=scale, base_scale=scales[0])))
            for scale in scales[1:]
        }
        self._base = scales[0]
        self._handles = [
            model.register_forward_pre_hook(self._before_pass,
                                            with_kwargs=True),
            model.register_forward_hook(self._after_pass, with_kwargs=True,
                                        always_call=True)
        ]

    def detach(self) -> None:
        """Remove the forward hooks; the model is as before :meth:`attach`."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _trains(self, model: nn.Module, args: tuple, kwargs: dict) -> bool:
        mode = {**dict(zip(_ARGUMENTS, args)), **kwargs}.get('mode')
        return mode == 'loss' and model.training and not self._busy

    def _before_pass(self, model: nn.Module, args: tuple,
                     kwargs: dict) -> None:
        if not self._trains(model, args, kwargs):
            return
        batch = {**dict(zip(_ARGUMENTS, args)), **kwargs}
        self._check_size(batch['inputs'])
        self._pin = use_scale(model, self._base, record=True)
        self._pin.__enter__()

    def _check_size(self, inputs) -> None:
        edge = min(inputs.shape[-2:]) if isinstance(inputs, Tensor) else None
        if edge not in (None, self._base):
            raise ValueError('The base scale must be the size of the pictures '
                             'that the training pipeline makes, but got '
                             f'scale {self._base} and pictures of {edge} '
                             'pixels. Change `scales`, or the crop or resize '
                             'of the pipeline.')

    def _after_pass(self, model: nn.Module, args: tuple, kwargs: dict,
                    losses: Optional[dict]) -> Optional[dict]:
        if not self._trains(model, args, kwargs) or self._pin is None:
            return None
        self._pin.__exit__(None, None, None)
        self._pin = None
        if losses is None:  # the pass at the base scale raised
            return None
        batch = {**dict(zip(_ARGUMENTS, args)), **kwargs}
        results = [self._result_of(model, losses, self._base)]
        self._busy = True
        try:
            for scale, resize in self._transforms.items():
                with use_scale(model, scale, record=True):
                    losses = model(**resize(batch))
                results.append(self._result_of(model, losses, scale))
        finally:
            self._busy = False
        logs: Dict[str, Tensor] = {}
        for _, each in results:
            logs.update(each)
        return {'loss': sum(loss for loss, _ in results), **logs}

    def _result_of(self, model: nn.Module, losses: dict,
                   scale: int) -> Tuple[Tensor, Dict[str, Tensor]]:
        """The weighted loss of one pass, and its values for the log.

        Called before the next pass starts: autograd runs the node of
        _RecallScale after those of later passes and before those of this one.
        """
        loss, log_vars = model.parse_losses(losses)
        logs = {log_name(scale, name): value.detach()
                for name, value in log_vars.items()}
        return self._weights[scale] * _RecallScale.apply(loss, scale), logs
