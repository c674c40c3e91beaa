"""The hook that turns a model's training loss into the SCT loss."""
import copy
from typing import Dict, Optional, Sequence

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, TRANSFORMS
from torch import Tensor, nn

from ..arguments import check_choice, check_int
from ..datasets.multi_scale import padding_of
from ..models.scale import check_scales, ssbn_layers, use_scale
from .backward import BACKWARDS
from .checks import (batch_size_of, check_arguments, check_gradients,
                     check_loss_weights, check_model, check_pictures,
                     check_pipeline, resolve_scales, warn_if_frozen,
                     warn_of_lost_defaults, warn_of_shared_norms)
from .finite import FiniteLosses, name_scale, named
from .parts import parts_of_batch
from .schedule import (check_scales_per_step, check_shares, scales_of_step,
                       shares_of_step, weights_of_shares, weights_of_step)

_SETTLE = 50  # steps after which a GPU is asked whether losses are finite
_ARGUMENTS = ('inputs', 'data_samples', 'mode')


def log_name(scale: int, name: str) -> str:
    """The name under which one scale's loss or metric is logged.

    It carries the scale and not the word "loss": mmengine's ``parse_losses``
    adds up every key that contains it. ``loss`` becomes ``s128/total``,
    ``loss_cls`` ``s128/cls``, ``accuracy_top-1`` ``s128/accuracy_top-1``.
    """
    name = name.replace('loss_', '').replace('loss', '').strip('_.')
    return f's{scale}/{name or "total"}'


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
            the others in each step, drawn by their weights from (``seed``,
            step). A scale drawn counts more, so that the mean over the steps
            is the same loss, and each step weighs the same. Defaults to all
            scales.
        partition: divide each batch over the scales of the step, in
            proportion to lambda_s, so that a picture is seen at one of them,
            and each picture of a batch counts the same: the cost is the mean
            over the scales instead of the sum. Batch statistics then come
            from a share of the batch: enlarge it. Each share must have two
            pictures.
        seed: of the draw; the same for all processes.
        batch_transform: config of the batch transform; ``scale`` and
            ``base_scale`` are filled in.
        check_finite: stop the run at a loss that is NaN or inf, naming scale
            and step; on a GPU at the latest 50 steps later, before a
            checkpoint is saved.

    Each scale sees the samples as the pipeline made them, whatever the model
    writes into them: they are made for all scales before the first pass.

    Raises:
        TypeError: for arguments of another type; for batches that are no
            (N, C, H, W) tensor and list of samples.
        ValueError: for `scales`, `loss_weights` or `scales_per_step` that do
            not fit the model, a batch too small for `partition`, or one whose
            pictures have not the base scale.
        RuntimeError: if SSBN was converted by ``sync_bn='torch'``; with
            'per_scale', for a model whose parameters have gradient hooks; for
            a loss that is not finite.
    """

    def __init__(self,
                 scales: Optional[Sequence[int]] = None,
                 loss_weights: Optional[Sequence[float]] = None,
                 backward: str = 'per_scale',
                 scales_per_step: Optional[int] = None,
                 partition: bool = False,
                 seed: int = 0,
                 batch_transform: Optional[dict] = None,
                 check_finite: bool = True) -> None:
        check_choice('backward', backward, ('per_scale', 'joint'))
        loss_weights, seed = check_arguments(
            loss_weights, batch_transform, seed, partition=partition,
            check_finite=check_finite)
        if scales_per_step is not None:
            scales_per_step = check_int('scales_per_step', scales_per_step, 2,
                                        'Leave it out to train all scales.')
        self.scales = None if scales is None else check_scales(scales)
        self.loss_weights = loss_weights
        self.backward = BACKWARDS[backward]
        self.scales_per_step = scales_per_step
        self.partition = partition
        self.seed = seed
        self.batch_transform = batch_transform or dict(type='MultiScaleBatch')
        self.check_finite = check_finite
        self.step = 0
        self._handles: list = []
        self.model: Optional[nn.Module] = None  # that it is attached to
        self._pin = None  # the open use_scale() of the base scale's pass
        self._busy = False  # within a pass that this hook started
        self._looked = False  # whether SSBN's rows are frozen
        self._finite = FiniteLosses()

    def before_train(self, runner) -> None:
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        scales = resolve_scales(model, self.scales)
        check_pipeline(runner.cfg.get('train_dataloader'), scales[0])
        if (self.backward is not BACKWARDS['joint']
                and getattr(runner.model, 'static_graph', False)):
            raise ValueError("`backward='per_scale'` cannot hand gradients to "
                             'DDP with static_graph=True. Set '
                             "backward='joint', or leave static_graph out.")
        self.attach(model, getattr(runner.optim_wrapper, 'loss_scaler', None))
        size = batch_size_of(runner.train_dataloader)
        if self.partition and size:
            check_shares(size, weights_of_step(
                dict(zip(scales, self._loss_weights)), self._count))
            self._shares_fit = True

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.step = runner.iter

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        if self.every_n_train_iters(runner, _SETTLE):
            self._finite.settle()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        self._finite.settle()

    def after_train(self, runner) -> None:
        self.detach()
        self._finite.settle()

    def attach(self, model: nn.Module, scaler=None) -> None:
        """Check the configuration against ``model`` and hook it.

        Args:
            scaler: the ``GradScaler`` of the training loop, if it has one.
        """
        self.detach()  # of a run that an error ended
        self._scales = scales = resolve_scales(model, self.scales)
        self._count = check_scales_per_step(self.scales_per_step, scales)
        self._loss_weights = check_loss_weights(self.loss_weights, scales,
                                                self.partition)
        check_model(model, type(self))
        self._shares_fit = False  # whether a batch has a share for each
        self._finite = FiniteLosses()
        self.model, self._scaler = model, scaler
        self._norms = nn.ModuleList(ssbn_layers(model))
        self._transforms = {
            scale: TRANSFORMS.build(dict(
                {**padding_of(model), **self.batch_transform},
                scale=scale, base_scale=scales[0])) for scale in scales
        }
        # Under torch.compile the passes are compiled, not what joins them.
        self._losses_of_step = torch.compiler.disable(
            type(self)._losses_of_step.__get__(self), recursive=False)
        for name in ('_take', '_prepare'):
            setattr(self, name, torch.compiler.disable(
                getattr(type(self), name).__get__(self)))
        warn_of_lost_defaults(model)
        warn_of_shared_norms(model)
        self._handles = [
            model.register_forward_pre_hook(self._before_pass,
                                            with_kwargs=True),
            model.register_forward_hook(self._after_pass, with_kwargs=True,
                                        always_call=True)
        ]

    def detach(self) -> None:
        """Remove the forward hooks; the model is as before :meth:`attach`."""
        while self._handles:
            self._handles.pop().remove()
        self.model = None
        self._unpin()  # a pass that Ctrl-C ended

    def __deepcopy__(self, memo: dict) -> 'SCTLossHook':
        """On a copy of the model, which carries its hooks, they rest."""
        new = copy.copy(self)
        new.model = None
        return new

    def _trains(self, model: nn.Module, batch: dict) -> bool:
        return (batch.get('mode') == 'loss' and model.training
                and model is self.model and torch.is_grad_enabled()
                and not self._busy)

    def _before_pass(self, model: nn.Module, args: tuple,
                     kwargs: dict) -> Optional[tuple]:
        batch = {**dict(zip(_ARGUMENTS, args)), **kwargs}
        if not self._trains(model, batch):
            return None
        if len(args) > len(_ARGUMENTS):
            raise TypeError(f'SCTLossHook knows {_ARGUMENTS} of a model, but '
                            f'got {len(args)} arguments. Leave others out.')
        self._prepare(batch)
        part = self._parts[self._scales[0]]
        self._pin = self._pinned(self._scales[0], part)
        self._pin.__enter__()
        return (), part

    def _prepare(self, batch: dict) -> None:
        """Check the batch, and make each scale's part of it."""
        check_pictures(batch, self._scales[0])
        if self.backward is BACKWARDS['per_scale']:
            check_gradients(batch)
        pictures = len(batch['inputs'])
        weights = dict(zip(self._scales, self._loss_weights))
        scales = scales_of_step(weights, self._count, self.seed, self.step)
        weights = weights_of_step(weights, self._count)
        self._weights = {scale: weights[scale] for scale in scales}
        shares = None
        if self.partition:
            if not self._shares_fit:  # no sampler told: the first batch does
                check_shares(pictures, weights)
                self._shares_fit = True
            shares = shares_of_step(pictures, self._weights, self.step)
            self._weights = weights_of_shares(shares,
                                              sum(self._weights.values()))
            scales = tuple(shares)
        self._parts = parts_of_batch(
            batch, {scale: self._transforms[scale] for scale in scales},
            shares)
        if not self._looked:
            self._looked = True
            warn_if_frozen(self._norms)

    def _pinned(self, scale: int, part: dict):
        return use_scale(self._norms, scale, record=True,
                         edge=min(part['inputs'].shape[-2:]))

    def _after_pass(self, model: nn.Module, args: tuple, kwargs: dict,
                    losses: Optional[dict]) -> Optional[dict]:
        if not self._trains(model, kwargs) or self._pin is None:
            return None
        try:
            if losses is None:  # the pass at the base scale raised
                name_scale(self._scales[0])
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
                    part = self._parts.pop(scale)
                    with named(scale), self._pinned(scale, part):
                        losses = model(**part)
                        logs.update(self._take(backward, model, losses,
                                               scale))
            finally:
                self._busy = False
            self.step += 1  # where no Runner says it
            return dict(logs, loss=backward.total())

    def _take(self, backward, model: nn.Module, losses: dict,
              scale: int) -> Dict[str, Tensor]:
        """Hand one scale's weighted loss to ``backward``; its log values."""
        loss, log_vars = model.parse_losses(losses)
        if self.check_finite:
            self._finite.watch(loss, scale, self.step)
        backward.add(self._weights[scale] * loss, scale)
        return {log_name(scale, name): value.detach()
                for name, value in log_vars.items()}
