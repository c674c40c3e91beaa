"""The hook that turns a model's training loss into the SCT loss."""
import copy
import math
from collections.abc import Sequence
from functools import partial

from mmengine.hooks import Hook
from mmengine.model import BaseAveragedModel, is_model_wrapper
from mmengine.registry import HOOKS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...datasets.multi_scale_batch import padding_of
from ...models.size_selection import check_scales
from ...utils.arguments import check_choice, check_int, check_number
from ..sct.adapt_step import AdaptPasses, check_adapt, check_adaptable, frozen
from ..sct.checks import (
    SCHEDULE,
    batch_size_of,
    check_arguments,
    check_loss_weights,
    check_model,
    check_pipeline,
    check_progressive,
    check_run,
    resolve_scales,
    schedule_of,
    warn_of_changes,
    warn_of_norms,
)
from ..sct.distill_step import ENSEMBLE, DistillPasses, check_distill
from ..sct.monitor import FiniteLosses
from ..sct.schedule import Schedule, check_scales_per_step, sizes_between
from ..sct.step import Passes, Resize

_SETTLE = 50  # steps after which a GPU is asked whether losses are finite


@HOOKS.register_module()
class SCTLossHook(Hook):
    """Train any model at several scales at once (Scale Calibrated Training,
    arXiv 1909.00182): the loss becomes sum_s lambda_s * loss_s.

    In training, each forward pass with ``mode='loss'`` is followed by one at
    every smaller scale, on the same batch resized by ``MultiScaleBatch`` and
    with the SSBN layers pinned to that scale. The model returns ``loss``,
    which is minimised, and for the log each scale's losses and accuracies
    (see :func:`~sct_mm.engine.sct.monitor.log_name`). Only forward hooks of torch are
    used; after training the model is as it was.

    Args:
        scales: needed only for a model without SSBN (SCT with shared
            normalization); else they are read from the model.
        loss_weights: lambda_s, from the largest scale down. Defaults to 1/S
            each (our choice: the weights of the paper are not public to us;
            RS-Nets, arXiv 2007.09558, sum without dividing by S).
        backward: 'per_scale': each scale's graph is freed before the next
            scale starts, in the memory of the base scale. 'joint': all graphs
            live until the one backward pass, for a model with gradient hooks.
            The gradients are the same, but for ``distill='ensemble'``.
        scales_per_step: train the base scale and ``scales_per_step - 1`` of
            the others in each step, or with 1 one scale alone, drawn by their
            weights from (``seed``, step). A scale drawn counts more, so that
            the mean over the steps is the same loss, and each step weighs the
            same. With 1 a step costs what a plain one at that scale does, and
            the whole batch is at it: for batches too small to divide.
            Momentum and weight decay act on all rows in each step (our
            choice): the gradient of a step is a sample of that of all scales,
            of which zeros for the rows that were not drawn are a part.
            Defaults to all scales.
        partition: divide each batch over the scales of the step, in
            proportion to lambda_s, so that an image is seen at one of them,
            and each image of a batch counts the same: the cost is the mean
            over the scales. Batch statistics then come from a share of the
            batch. Each share must have two images, and a step two scales.
        between: in this share of the steps, 0 to 1, each smaller scale of the
            step gives its pass to a size between it and the next larger one,
            for a network that is tested at any size; see
            :func:`~sct_mm.engine.sct.schedule.sizes_of_step`. With every schedule
            above, and at the same cost but for the larger sizes. The log
            names the scale to which a size is nearest. torch.compile makes a
            graph for each size: raise its ``recompile_limit``, or set a
            larger ``size_divisor``.
        progressive: in this share of the steps, 0 to 1, the first ones, small
            scales get more of the compute, see
            :func:`~sct_mm.engine.sct.schedule.smallest_first`: more images are
            seen for the same compute (progressive learning of EfficientNetV2,
            arXiv 2104.00298). With ``partition`` or ``scales_per_step=1``.
        size_divisor: the sizes between are multiples of it, and of the data
            preprocessor's.
        adapt: train nothing but weight, bias and statistics of the smaller
            scales, for a network that answers at the base scale as before, to
            the bit. True, 'logits', 'labels' or 'both':
            :class:`~sct_mm.engine.sct.adapt_step.AdaptPasses`. ``loss_weights`` has an
            entry for the base, which does not count; ``scales_per_step`` and
            ``partition`` are of the smaller scales.
        distill: the scales of a step teach each other by the logits of a
            classifier, as in RS-Nets. True or 'larger': each larger scale
            every smaller one. 'ensemble': a learned mix of their logits, too:
            :class:`~sct_mm.engine.sct.distill_step.DistillPasses`.
        distill_weight: of what is distilled, beside the labels.
        temperature: of the softmax that is distilled.
        seed: of the draw; the same for all processes.
        batch_transform: its config, without ``scale`` and ``base_scale``.
        check_finite: stop the run at a loss that is NaN or inf; on a GPU at
            the latest 50 steps later, before a checkpoint is saved.

    Each scale sees the samples as made, whatever the model writes into them.

    Raises:
        TypeError: for arguments of another type; for batches that are no
            (N, C, H, W) tensor and list of samples.
        ValueError: for arguments that do not fit each other or the model, two
            scales without a size `between`, a batch too small for
            `partition`, or one whose images have not the base scale.
        RuntimeError: if SSBN was converted by ``sync_bn='torch'``; with
            'per_scale', for a model whose parameters have gradient hooks; for
            a loss that is not finite; for a ``train_step`` that does not call
            the model with ``mode='loss'``.
    """

    priority = 'BELOW_NORMAL'  # behind EMAHook, see AdaptPasses.restore()

    def __init__(self,
                 scales: Sequence[int] | None = None,
                 loss_weights: Sequence[float] | None = None,
                 backward: str = 'per_scale',
                 scales_per_step: int | None = None,
                 partition: bool = False,
                 between: float = 0.0,
                 progressive: float = 0.0,
                 size_divisor: int = 1,
                 adapt: bool | str = False,
                 distill: bool | str = False,
                 distill_weight: float = 1.0,
                 temperature: float = 1.0,
                 seed: int = 0,
                 batch_transform: dict | None = None,
                 check_finite: bool = True) -> None:
        check_choice('backward', backward, ('per_scale', 'joint'))
        loss_weights, seed, scales_per_step = check_arguments(
            loss_weights, batch_transform, seed, scales_per_step,
            partition=partition, check_finite=check_finite)
        self.scales = None if scales is None else check_scales(scales)
        self.loss_weights = loss_weights
        self.backward = backward
        self.scales_per_step = scales_per_step
        self.partition = partition
        self.between = check_number(
            'between', between, 0, 'Give the share of the steps that train '
            'between the scales.', 1)
        self.progressive = check_progressive(progressive, partition,
                                             scales_per_step, adapt)
        self.size_divisor = check_int('size_divisor', size_divisor, 1,
                                      'Give it in pixels.', 2**16)
        self.adapt = check_adapt(adapt)
        self.distill = check_distill(distill, distill_weight, temperature,
                                     adapt, partition, scales_per_step)
        self.seed = seed
        self.batch_transform = batch_transform or dict(type='MultiScaleBatch')
        self.check_finite = check_finite
        self.step = 0
        self._told = False  # the step, by a Runner
        self._handles: list = []
        self._passes: Passes | None = None  # of the model attached to
        self._finite = FiniteLosses()
        self._points: dict = {}  # what the ensemble has learned, by scale

    def before_run(self, runner) -> None:
        self.detach()  # of a run that an error ended
        # DDP looks for parameters that get no gradients as it wraps.
        if self.adapt and isinstance(runner.model, DistributedDataParallel):
            with frozen(runner.model.module):
                runner.model = runner.wrap_model(
                    runner.cfg.get('model_wrapper_cfg'), runner.model.module)

    def before_train(self, runner) -> None:
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        scales = resolve_scales(model, self.scales)
        check_pipeline(runner.cfg.get('train_dataloader'), scales[0])
        check_run(runner, self)
        self.attach(model, getattr(runner.optim_wrapper, 'loss_scaler', None),
                    runner.max_iters if self.progressive else 0)
        if size := batch_size_of(runner.train_dataloader):
            self._passes.schedule.check_batch(size)
            self._passes.shares_fit = True

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.step, self._told = runner.iter, True

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        if self._passes is not None and not self._passes.taken:
            name = type(self._passes.model).__name__
            raise RuntimeError(f'The train_step of {name} must call '
                               "model(..., mode='loss'), on which SCTLossHook "
                               'acts, but has not: it trained the base scale '
                               'alone. Use a train_step that does, as '
                               "mmengine's BaseModel has.")
        self._restore(runner)
        if self.every_n_train_iters(runner, _SETTLE):
            self._finite.settle()

    def after_train_epoch(self, runner) -> None:
        self._restore(runner)  # SyncBuffersHook averages the buffers

    def _restore(self, runner) -> None:
        if self._passes is not None:
            self._passes.restore(
                value.module for hook in runner.hooks
                for value in vars(hook).values()
                if isinstance(value, BaseAveragedModel))

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        self._finite.settle()
        checkpoint[SCHEDULE] = schedule_of(self, runner)
        if self._points:
            checkpoint[ENSEMBLE] = {scale: point.cpu() for scale, point
                                    in self._points.items()}

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume:
            self._points = dict(checkpoint.get(ENSEMBLE, {}))
            warn_of_changes(self, runner, checkpoint)

    def after_train(self, runner) -> None:
        self.detach()
        self._finite.settle()

    def attach(self, model: nn.Module, scaler=None, steps: int = 0) -> None:
        """Check the configuration against ``model`` and hook it.

        Args:
            scaler: the ``GradScaler`` of the training loop, if it has one.
            steps: of the training, of which ``progressive`` is a share.
        """
        if self._passes is not None:
            self.detach()
        scales = resolve_scales(model, self.scales)
        weights = check_loss_weights(self.loss_weights, scales,
                                     self.partition)
        if self.adapt:
            check_adaptable(model, scales, weights)
        trained = scales[1:] if self.adapt else scales
        count = (check_scales_per_step(self.scales_per_step, trained)
                 + len(scales) - len(trained))
        check_model(model, type(self))
        self._finite = FiniteLosses()
        config = {**padding_of(model), **self.batch_transform}
        resize = Resize(config, scales[0])
        divisor = math.lcm(self.size_divisor, config.get('size_divisor', 1))
        if self.between:
            sizes_between(scales, divisor)
        if self.progressive and not steps:
            raise ValueError('`progressive` is a share of the training, whose '
                             'steps attach() was not told. Give it `steps`.')
        schedule = Schedule(dict(zip(scales, weights,
                                     strict=True)), count, self.seed,
                            self.partition, self.between, divisor,
                            not self.adapt, self.progressive, steps)
        kind = Passes
        if self.adapt:
            kind = partial(AdaptPasses, adapt=self.adapt)
        elif self.distill:
            kind = partial(DistillPasses, self.distill, self._points)
        self._passes = kind(model, schedule, resize, self.backward, scaler,
                            self._finite if self.check_finite else None)
        warn_of_norms(model)
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
        if self._passes is not None:
            self._passes.release()  # also a pass that Ctrl-C ended
        self._passes, self._points, self._told = None, {}, False

    @property
    def model(self) -> nn.Module | None:
        """The model that it is attached to."""
        return None if self._passes is None else self._passes.model

    def __getstate__(self) -> dict:
        """On a copy of the model, and in its pickle, the hooks rest."""
        return dict(vars(self), _handles=[], _passes=None, _points={},
                    _finite=FiniteLosses())

    def __deepcopy__(self, memo: dict) -> 'SCTLossHook':
        return copy.copy(self)

    def _before_pass(self, model: nn.Module, args: tuple,
                     kwargs: dict) -> tuple | None:
        if model is not self.model:
            return None
        return self._passes.before(args, kwargs, self.step)

    def _after_pass(self, model: nn.Module, args: tuple, kwargs: dict,
                    losses: dict | None) -> dict | None:
        if model is not self.model:
            return None
        losses = self._passes.after(kwargs, losses)
        # Without a Runner each pass is a step; with one, SAM's two are one.
        self.step += losses is not None and not self._told
        return losses
