"""The hook that turns a model's training loss into the SCT loss."""
import copy
import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.model import BaseAveragedModel, is_model_wrapper
from mmengine.registry import HOOKS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...datasets.last_stage import smallest_in_training
from ...datasets.multi_scale_batch import padding_of
from ...models.size_selection import check_scales, scales_of
from ...utils.arguments import (
    check_choice,
    check_flag,
    check_int,
    check_number,
)
from ..sct.adapt_step import (
    AdaptTeacher,
    Kept,
    check_adapt,
    check_adaptable,
    frozen,
)
from ..sct.checks import (
    check_backward,
    check_every_scale,
    check_model,
    check_optimized,
    check_pipeline,
    check_queue,
    log_cost,
    resolve_scales,
    warn_of_norms,
    warn_of_order,
    warn_of_rare_scales,
    warn_of_re_estimates,
)
from ..sct.distill_step import ENSEMBLE, DistillTeacher, check_distill
from ..sct.monitor import log_means
from ..sct.recipe import at_scales, detects, recipe_of
from ..sct.resize import Resize, check_batch_transform
from ..sct.schedule import (
    check_count,
    check_progressive,
    check_weights,
    make_schedule,
)
from ..sct.shared_affine import check_shared_affine, share_affine
from ..sct.step import SCTStep
from ..sct.teacher import Labels, Teacher
from .shared_affine_hook import SharedAffineHook

SCHEDULE = 'sct_schedule'  # key of a checkpoint
_SETTLE = 50  # steps after which a GPU is asked whether losses are finite


@HOOKS.register_module()
class SCTLossHook(Hook):
    """Train any model at several scales at once (Scale Calibrated Training,
    arXiv 1909.00182): the loss becomes sum_s lambda_s * loss_s.

    In training, each forward pass with ``mode='loss'`` is followed by one at
    every smaller scale, on the same batch resized by ``MultiScaleBatch`` and
    with the SSBN layers pinned to that scale. The model returns ``loss``,
    which is minimised, and for the log each scale's losses and accuracies
    (see :func:`~sct_mm.engine.sct.monitor.log_name`). Only forward hooks of
    torch are used; after training the model is as it was.

    Without a Runner: ``hook.attach(model)``, then train as usual, then
    ``hook.detach()``. Each pass is a step, unless ``hook.step`` is set.

    ``recipe`` names what belongs together; an argument that is given has
    precedence over it, and None stands for not given.

    Args:
        recipe: 'any-size', the recommended one (docs/train.md): one scale a
            step, ``progressive=0.65``, ``shared_affine``, and weights,
            ``between`` and ``size_divisor`` that follow from the scales, see
            :func:`~sct_mm.engine.sct.recipe.at_scales`. 'paper', as the paper
            describes SCT: all scales in each step, private gamma and beta;
            these are the defaults without a recipe, too.
        scales: needed only for a model without SSBN (SCT with shared
            normalization); else they are read from the model.
        loss_weights: lambda_s, from the largest scale down. Defaults to 1/S
            each (our choice: the weights of the paper are not public to us;
            RS-Nets, arXiv 2007.09558, sum without dividing by S).
        backward: 'per_scale': each scale's graph is freed before the next
            scale starts, in the memory of the base scale. 'joint': all graphs
            live until the one backward pass, for a model with gradient hooks.
            The gradients are the same, but for ``distill='ensemble'``.
            Defaults to 'joint' with ``shared_affine``, else to 'per_scale'.
        scales_per_step: train the base scale and ``scales_per_step - 1`` of
            the others in each step, or with 1 one scale alone, drawn by their
            weights from (``seed``, step). A scale drawn counts more, so that
            the mean over the steps is the same loss, and each step weighs the
            same. With 1 a step costs what a plain one at that scale does, and
            the whole batch is at it: for batches too small to divide.
            Momentum and weight decay act on the normalization parameters of
            all scales in each step, also of those that were not drawn and
            have gradients of zero (our choice). Defaults to all scales.
        partition: divide each batch over the scales of the step, in
            proportion to lambda_s, so that an image is seen at one of them,
            and each image of a batch counts the same: a step costs the mean
            over the scales. Batch statistics then come from a share of the
            batch. Each share must have two images, and a step two scales.
        between: in this share of the steps, 0 to 1, each smaller scale of the
            step gives its pass to a size between it and the next larger one,
            for a network that is tested at any size; see
            :func:`~sct_mm.engine.sct.schedule.sizes_of_step`. It goes with
            every schedule above. The log names the scale that is nearest to a
            size. torch.compile makes a graph for each size: raise its
            ``recompile_limit``, or set a larger ``size_divisor``.
        progressive: in this share of the steps, 0 to 1, the first ones, small
            scales get more of the compute, see
            :func:`~sct_mm.engine.sct.schedule.smallest_first`: more images are
            seen for the same compute (progressive learning of EfficientNetV2,
            arXiv 2104.00298). With ``partition`` or ``scales_per_step=1``.
            Defaults to 0.
        size_divisor: the sizes between are multiples of it, and of the data
            preprocessor's. Defaults to 1.
        shared_affine: train gamma and beta of SSBN as if all scales shared
            them, as :class:`SharedAffineHook` does, which is then left out of
            `custom_hooks`. Needs ``backward='joint'``.
        adapt: train nothing but weight, bias and statistics of the smaller
            scales, for a network that answers at the base scale as before, to
            the bit. True, 'logits', 'labels' or 'both':
            :class:`~sct_mm.engine.sct.adapt_step.AdaptTeacher`.
            ``loss_weights`` has an entry for the base, which does not count;
            ``scales_per_step`` and ``partition`` concern the smaller scales.
        norm_eval: with ``adapt``, normalise with the running statistics, which
            stay as they are: weight and bias alone train. For a network whose
            statistics at the smaller scales are bad, as where it is adapted on
            images unlike those that it was trained on.
        distill: the scales of a step teach each other by the logits of a
            classifier, as in RS-Nets. True or 'larger': each larger scale
            every smaller one. 'ensemble': a learned mix of their logits, too:
            :class:`~sct_mm.engine.sct.distill_step.DistillTeacher`.
        distill_weight: of the distillation loss, beside that of the labels.
        temperature: of the softmax that is distilled.
        seed: of the draw; the same for all processes.
        batch_transform: config of the transform that resizes a batch, without
            ``scale`` and ``base_scale``. Defaults to ``MultiScaleBatch``.
        check_finite: stop the run at a loss that is NaN or inf; on a GPU at
            the latest 50 steps later, before a checkpoint is saved.

    What the model writes into the samples of one scale reaches no other.

    Raises:
        TypeError: for arguments of another type; for batches that are no
            (N, C, H, W) tensor and list of samples.
        ValueError: for arguments that do not fit each other or the model, two
            scales without a size `between` them, a batch too small for
            `partition`, or images that do not have the base scale.
        RuntimeError: if SSBN was converted by ``sync_bn='torch'``; with
            'per_scale', for a model whose parameters have gradient hooks; for
            a loss that is not finite; for a ``train_step`` that does not call
            the model with ``mode='loss'``.
    """

    priority = 'BELOW_NORMAL'  # behind EMAHook, see Kept.restore()

    def __init__(self,
                 scales: Sequence[int] | None = None,
                 loss_weights: Sequence[float] | None = None,
                 backward: str | None = None,
                 scales_per_step: int | None = None,
                 partition: bool = False,
                 between: float | None = None,
                 progressive: float | None = None,
                 size_divisor: int | None = None,
                 adapt: bool | str = False,
                 norm_eval: bool = False,
                 distill: bool | str = False,
                 distill_weight: float = 1.0,
                 temperature: float = 1.0,
                 seed: int = 0,
                 batch_transform: dict | None = None,
                 check_finite: bool = True,
                 recipe: str | None = None,
                 shared_affine: bool | None = None) -> None:
        self.adapt = check_adapt(adapt)
        chosen = recipe_of(recipe, adapt)
        self.recipe = recipe
        self.shared_affine = check_shared_affine(
            chosen.shared_affine if shared_affine is None else shared_affine,
            backward, adapt)
        if backward is None:
            backward = 'joint' if self.shared_affine else 'per_scale'
        self.backward = backward
        check_choice('backward', backward, ('per_scale', 'joint'))
        check_flag('check_finite', check_finite)
        self.scales = None if scales is None else check_scales(scales)
        self.loss_weights = check_weights(loss_weights)
        if scales_per_step is None and not partition:
            scales_per_step = chosen.scales_per_step
        self.scales_per_step = check_count(scales_per_step, partition)
        self.partition = partition
        self.between = None if between is None else check_number(
            'between', between, 0, 'Give the share of the steps that train '
            'between the scales.', 1)
        self.progressive = check_progressive(
            chosen.progressive if progressive is None else progressive,
            partition, self.scales_per_step, adapt)
        self.size_divisor = None if size_divisor is None else check_int(
            'size_divisor', size_divisor, 1, 'Give it in pixels.', 2**16)
        check_flag('norm_eval', norm_eval)
        self.norm_eval = norm_eval
        if norm_eval and not adapt:
            raise ValueError('`norm_eval` must be False without `adapt`, but '
                             'got True. Set the norm_eval of the backbone to '
                             'keep statistics in another training.')
        self.distill = check_distill(distill, distill_weight, temperature,
                                     adapt, partition, self.scales_per_step)
        self.seed = check_int('seed', seed, 0, 'The default is 0.')
        self.batch_transform = check_batch_transform(batch_transform)
        self.check_finite = check_finite
        self._sct: SCTStep | None = None
        self._handles: list = []
        self._resumed: dict = {}  # the checkpoint that the run goes on from

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
        check_pipeline(runner.cfg.get('train_dataloader'), scales[0],
                       runner.cfg)
        self._check_run(runner)
        before = self._resumed.get(SCHEDULE, {})
        self.attach(model, getattr(runner.optim_wrapper, 'loss_scaler', None),
                    runner.max_iters if self.progressive else 0,
                    smallest_in_training(runner.cfg))
        if before:
            warn_of_changes(before, self._schedule(runner))
        if size := batch_size_of(runner.train_dataloader):
            self.sct.check_shares(size)
        if self.partition:
            warn_of_order(runner.train_dataloader)
        warn_of_rare_scales(self.sct.schedule, runner.max_iters)
        warn_of_re_estimates(model, runner.hooks)
        if not self.adapt:  # its pass at the base scale is forward only
            log_cost(self.sct.schedule)
        log_means(runner.log_processor)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.sct.begin(runner.iter)

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        self.sct.check_taken()
        self._restore(runner)
        if self.every_n_train_iters(runner, _SETTLE):
            self.sct.settle()

    def after_train_epoch(self, runner) -> None:
        self._restore(runner)  # SyncBuffersHook averages the buffers

    def _restore(self, runner) -> None:
        self.sct.restore(value.module for hook in runner.hooks
                         for value in vars(hook).values()
                         if isinstance(value, BaseAveragedModel))

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self._sct is None:  # saved by hand after the training
            return
        self.sct.settle()
        checkpoint[SCHEDULE] = self._schedule(runner)
        if ensemble := self.sct.ensemble():
            checkpoint[ENSEMBLE] = ensemble

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._resumed = ({key: checkpoint[key] for key in (SCHEDULE, ENSEMBLE)
                          if key in checkpoint} if runner._resume else {})

    def after_train(self, runner) -> None:
        try:
            self.sct.settle()
        finally:
            self.detach()

    def attach(self, model: nn.Module, scaler=None, steps: int = 0,
               smallest: int | None = None) -> None:
        """Check the configuration against ``model`` and hook it.

        Args:
            scaler: the ``GradScaler`` of the training loop, if it has one.
            steps: of the training, of which ``progressive`` is a share.
            smallest: nominal size in pixels of the smallest images; None:
                the base scale, 0: any.
        """
        if self._sct is not None:
            self.detach()
        scales = resolve_scales(model, self.scales)
        config = {**padding_of(model), **self.batch_transform}
        fitted = at_scales(
            self.recipe, scales, detects(model), between=self.between,
            loss_weights=self.loss_weights, size_divisor=self.size_divisor)
        schedule = make_schedule(
            scales, fitted['loss_weights'], self.scales_per_step,
            not self.adapt, steps, seed=self.seed, partition=self.partition,
            between=fitted['between'], progressive=self.progressive,
            divisor=math.lcm(fitted['size_divisor'],
                             config.get('size_divisor', 1)))
        if self.adapt:
            check_adaptable(model, scales, tuple(schedule.weights.values()))
        check_model(model, type(self))
        check_every_scale(model, schedule)
        check_queue(model, schedule)
        check_backward(model, self.backward)
        resize = Resize(config, scales[0])
        teacher: Teacher = Labels(model)
        if self.adapt:
            teacher = AdaptTeacher(model, scales[0], resize, self.adapt,
                                   self.norm_eval)
        elif self.distill:
            teacher = DistillTeacher(model, schedule, self.distill,
                                     self.backward,
                                     self._resumed.get(ENSEMBLE, {}))
        self._sct = SCTStep(
            model, schedule, resize, teacher,
            Kept(model) if self.adapt else None, self.backward, scaler,
            self.check_finite, smallest)
        warn_of_norms(model)
        self._handles = [
            *(share_affine(model) if self.shared_affine else ()),
            model.register_forward_pre_hook(self._before_pass,
                                            with_kwargs=True),
            model.register_forward_hook(self._after_pass, always_call=True)
        ]

    def detach(self) -> None:
        """Remove the forward hooks; the model is as before :meth:`attach`."""
        while self._handles:
            self._handles.pop().remove()
        if self._sct is not None:
            self._sct.release()  # also a pass that Ctrl-C ended
        self._sct, self._resumed = None, {}

    @property
    def sct(self) -> SCTStep:
        """The training steps of the model that this hook is attached to.

        Raises:
            RuntimeError: if it is attached to none.
        """
        if self._sct is None:
            raise RuntimeError('SCTLossHook must be attached to a model, but '
                               'is not. Call attach(model) first.')
        return self._sct

    @property
    def step(self) -> int:
        """The number of the training step, from 0, by which its scales are
        drawn. Without a Runner each pass is a step, unless this is set."""
        return self.sct.number

    @step.setter
    def step(self, number: int) -> None:
        self.sct.begin(number)

    @property
    def model(self) -> nn.Module | None:
        """The model that it is attached to."""
        return None if self._sct is None else self._sct.model

    def __getstate__(self) -> dict:
        """On a copy of the model, and in its pickle, the hooks rest."""
        return dict(vars(self), _handles=[], _sct=None, _resumed={})

    def __deepcopy__(self, memo: dict) -> 'SCTLossHook':
        return copy.copy(self)

    def _before_pass(self, model: nn.Module, args: tuple,
                     kwargs: dict) -> tuple | None:
        return (self.sct.before(args, kwargs) if model is self.model
                else None)

    def _after_pass(self, model: nn.Module, args: tuple,
                    losses: dict | None) -> dict | None:
        return self.sct.after(losses) if model is self.model else None

    def _schedule(self, runner) -> dict[str, str]:
        """What decides what each step trains, by name, as text, which any
        checkpoint may hold."""
        shares = (self.shared_affine and scales_of(self.sct.model) is not None
                  or any(isinstance(hook, SharedAffineHook)
                         for hook in runner.hooks))
        return {**self.sct.described(), 'SharedAffineHook': repr(shares)}

    def _check_run(self, runner) -> None:
        """Compare what a Runner makes of the model with the arguments.

        Raises:
            ValueError: as :func:`check_backward` and
                :func:`check_optimized`, and for `adapt` behind a hook that
                saves.
        """
        check_backward(runner.model, self.backward)
        check_optimized(runner.model, runner.optim_wrapper)
        if not self.adapt:
            return
        before = itertools.takewhile(lambda each: each is not self,
                                     runner.hooks)
        if any(isinstance(each, CheckpointHook) for each in before):
            raise ValueError('`priority` of SCTLossHook must be above that of '
                             'CheckpointHook with adapt, which puts the base '
                             'back before it is saved, but got '
                             f'{self.priority!r}. Leave it out.')
        if not (runner._load_from or runner._resume):
            print_log('SCTLossHook: adapt keeps the network as its config '
                      'builds it, since load_from is not set.', 'current',
                      logging.WARNING)


def batch_size_of(loader: Any) -> int | None:
    """Images in a batch of a ``DataLoader``; None if its sampler does not
    say. Behind a batch sampler ``batch_size`` is None."""
    sampler = getattr(loader, 'batch_sampler', None)
    for size in (getattr(loader, 'batch_size', None),
                 getattr(sampler, 'batch_size', None)):
        if isinstance(size, (list, tuple)):  # one for each data set joined
            size = sum(size)
        if isinstance(size, int):
            return size
    return None


def warn_of_changes(before: dict[str, str], now: dict[str, str]) -> None:
    """Warn if a run goes on with another schedule than ``before``, which its
    checkpoint recorded. Names that the checkpoint lacks are not compared."""
    changes = [f'{name}={text}, which was {before[name]}'
               for name, text in now.items() if before.get(name, text) != text]
    if changes:
        print_log('SCTLossHook: the run goes on with another schedule than '
                  f'it began with: {"; ".join(changes)}. Set what it was, or '
                  'start a run of its own by load_from.', 'current',
                  logging.WARNING)
