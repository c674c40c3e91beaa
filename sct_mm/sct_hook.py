"""The hook that turns a model's training loss into the SCT loss."""
import logging
from typing import Dict, Optional, Sequence, Tuple

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, TRANSFORMS
from torch import Tensor, nn

from .backward import BACKWARDS
from .scale import check_scales, scales_of, ssbn_layers, use_scale
from .schedule import (check_scales_per_step, scales_of_step, shares_of_step,
                       weights_of_step)
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
        backward: 'per_scale': each scale's gradients are taken, and its graph
            freed, before the next scale starts, in the memory of the base
            scale. 'joint': all graphs live until the one backward pass, for
            a model with gradient hooks on its parameters. The gradients are
            the same.
        scales_per_step: train the base scale and ``scales_per_step - 1`` of
            the others in each step, drawn from (``seed``, step). A scale
            drawn counts more, so that the mean over the steps is the same
            loss. Defaults to all scales.
        partition: divide each batch over the scales of the step, in
            proportion to lambda_s, so that a picture is seen at one of them:
            the cost is the mean over the scales instead of the sum. Batch
            statistics then come from a share of the batch: enlarge it.
        seed: of the draw; the same for all processes.
        batch_transform: config of the batch transform; ``scale`` and
            ``base_scale`` are filled in.

    Raises:
        ValueError: for `scales`, `loss_weights` or `scales_per_step` that do
            not fit the model, or a batch whose pictures have not the base
            scale.
        RuntimeError: if SSBN was converted by ``sync_bn='torch'``; with
            'per_scale', for a model whose parameters have gradient hooks.
    """

    def __init__(self,
                 scales: Optional[Sequence[int]] = None,
                 loss_weights: Optional[Sequence[float]] = None,
                 backward: str = 'per_scale',
                 scales_per_step: Optional[int] = None,
                 partition: bool = False,
                 seed: int = 0,
                 batch_transform: Optional[dict] = None) -> None:
        if backward not in BACKWARDS:
            raise ValueError("`backward` must be 'per_scale' or 'joint', but "
                             f"got {backward!r}. Leave it out for "
                             "'per_scale'.")
        self.scales = None if scales is None else check_scales(scales)
        self.loss_weights = loss_weights
        self.backward = BACKWARDS[backward]
        self.scales_per_step = scales_per_step
        self.partition = partition
        self.seed = seed
        self.batch_transform = batch_transform or dict(type='MultiScaleBatch')
        self.step = 0
        self._handles: list = []
        self._pin = None  # the open use_scale() of the base scale's pass
        self._busy = False  # within a pass that this hook started

    def before_train(self, runner) -> None:
        model = runner.model
        self.attach(model.module if is_model_wrapper(model) else model,
                    getattr(runner.optim_wrapper, 'loss_scaler', None))

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.step = runner.iter

    def after_train(self, runner) -> None:
        self.detach()

    def attach(self, model: nn.Module, scaler=None) -> None:
        """Check the configuration against ``model`` and hook it.

        Args:
            scaler: the ``GradScaler`` of the training loop, if it has one.
        """
        self._scales = scales = resolve_scales(model, self.scales)
        self._count = check_scales_per_step(self.scales_per_step, scales)
        weights = check_loss_weights(self.loss_weights, scales)
        if self.partition and not all(weights):
            raise ValueError('`loss_weights` must be > 0 with partition=True, '
                             f'which gives shares by them, but got {weights}. '
                             'Train without partition, or with less scales.')
        self._weights = weights_of_step(dict(zip(scales, weights)),
                                        self._count)
        self._scaler = scaler
        self._norms = nn.ModuleList(ssbn_layers(model))
        divisor = getattr(
            getattr(model, 'data_preprocessor', None), 'pad_size_divisor', 1)
        self._transforms = {
            scale: TRANSFORMS.build(
                dict(dict(size_divisor=divisor), **dict(
                    self.batch_transform, scale=scale, base_scale=scales[0])))
            for scale in scales
        }
        # Under torch.compile the passes are compiled, not what joins them.
        self._losses_of_step = torch.compiler.disable(
            type(self)._losses_of_step.__get__(self), recursive=False)
        self._take = torch.compiler.disable(type(self)._take.__get__(self))
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

    def _trains(self, model: nn.Module, batch: dict) -> bool:
        return (batch.get('mode') == 'loss' and model.training
                and not self._busy)

    def _before_pass(self, model: nn.Module, args: tuple,
                     kwargs: dict) -> Optional[tuple]:
        batch = {**dict(zip(_ARGUMENTS, args)), **kwargs}
        if not self._trains(model, batch):
            return None
        self._check_size(batch['inputs'])
        self._parts = self._divide(batch)
        self._pin = use_scale(self._norms, self._scales[0], record=True)
        self._pin.__enter__()
        return (), self._parts[self._scales[0]]

    def _check_size(self, inputs) -> None:
        base = self._scales[0]
        edge = min(inputs.shape[-2:]) if isinstance(inputs, Tensor) else None
        if edge not in (None, base):
            raise ValueError('The base scale must be the size of the pictures '
                             'that the training pipeline makes, but got '
                             f'scale {base} and pictures of {edge} '
                             'pixels. Change `scales`, or the crop or resize '
                             'of the pipeline.')

    def _divide(self, batch: dict) -> Dict[int, dict]:
        """The part of the batch that each scale of this step trains on."""
        scales = scales_of_step(self._scales, self._count, self.seed,
                                self.step)
        if not self.partition:
            return dict.fromkeys(scales, batch)
        shares = shares_of_step(len(batch['inputs']), {
            scale: self._weights[scale] for scale in scales}, self.step)
        samples = batch.get('data_samples')
        return {scale: {**batch, 'inputs': batch['inputs'][share],
                        'data_samples': samples and samples[share]}
                for scale, share in shares.items()}

    def _after_pass(self, model: nn.Module, args: tuple, kwargs: dict,
                    losses: Optional[dict]) -> Optional[dict]:
        if not self._trains(model, kwargs) or self._pin is None:
            return None
        try:
            if losses is None:  # the pass at the base scale raised
                return None
            return self._losses_of_step(model, losses)
        finally:
            self._unpin()
            self._parts = {}

    def _unpin(self) -> None:
        if self._pin is not None:
            self._pin.__exit__(None, None, None)
        self._pin = None

    def _losses_of_step(self, model: nn.Module, losses: dict) -> dict:
        """The loss to minimise and each scale's values for the log."""
        base, *others = self._parts
        with self.backward(model, self._scaler) as backward:
            logs = self._take(backward, model, losses, base)
            self._unpin()
            self._busy = True
            try:
                for scale in others:
                    part = self._transforms[scale](self._parts[scale])
                    with use_scale(self._norms, scale, record=True):
                        losses = model(**part)
                        logs.update(self._take(backward, model, losses,
                                               scale))
            finally:
                self._busy = False
            return {'loss': backward.total(), **logs}

    def _take(self, backward, model: nn.Module, losses: dict,
              scale: int) -> Dict[str, Tensor]:
        """Hand one scale's weighted loss to ``backward``; its log values."""
        loss, log_vars = model.parse_losses(losses)
        backward.add(self._weights[scale] * loss, scale)
        return {log_name(scale, name): value.detach()
                for name, value in log_vars.items()}
