"""What SCTLossHook compares before it trains: scales, model and images."""
import inspect
import itertools
import logging
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...datasets.data_samples import content_shape, is_padded
from ...datasets.multi_scale_batch import check_batch
from ...datasets.rescale_pipeline import train_sizes
from ...models.guards import SYNC_BN, damaged_by_sync_bn
from ...models.size_selection import (
    ScaleSpecific,
    check_scales,
    scales_of,
    ssbn_layers,
)
from ...utils.arguments import check_flag, check_int, check_number
from ...utils.config_walk import pipeline_of
from ..hooks.shared_affine_hook import SharedAffineHook


def check_loss_weights(weights: Sequence[float] | None,
                       scales: Sequence[int],
                       partition: bool = False) -> tuple[float, ...]:
    """lambda_s for each of ``scales``; 1/S each by default.

    Raises:
        ValueError: if there is not one finite number >= 0 per scale, or all
            are 0; with ``partition``, if one is.
    """
    if weights is None:
        return (1 / len(scales), ) * len(scales)
    if len(weights) != len(scales) or sum(weights) == 0:
        raise ValueError('`loss_weights` must be one finite number >= 0 per '
                         f'scale of {tuple(scales)}, not all 0, but got '
                         f'{tuple(weights)}. Leave it out for 1/S each.')
    if partition and not all(weights):
        raise ValueError('`loss_weights` must be > 0 with partition=True, '
                         f'which gives shares by them, but got {weights}. '
                         'Train without partition, or with less scales.')
    return tuple(weights)


def check_arguments(loss_weights, batch_transform, seed, scales_per_step,
                    **flags) -> tuple:
    """What of SCTLossHook's arguments can be checked without a model; the
    weights, the seed and the scales a step as Python's own numbers.

    Raises:
        TypeError, ValueError: naming the argument, its value and the fix.
    """
    if loss_weights is not None:
        if not isinstance(loss_weights, (tuple, list)):
            raise TypeError('`loss_weights` must be a tuple of one number per '
                            f'scale, but got {loss_weights!r}. Leave it out '
                            'for 1/S.')
        loss_weights = tuple(
            check_number('loss_weights', weight, 0, 'Give one number >= 0 '
                         'per scale, or leave it out for 1/S.', 3e38)
            for weight in loss_weights)
    seed = check_int('seed', seed, 0, 'The default is 0.')
    for name, flag in flags.items():
        check_flag(name, flag)
    if scales_per_step is not None:
        scales_per_step = check_int('scales_per_step', scales_per_step, 1,
                                    'Leave it out to train all scales.')
    if flags['partition'] and scales_per_step == 1:
        raise ValueError('`partition` divides a batch over the scales of '
                         'a step, but got scales_per_step=1. Leave one of '
                         'them out.')
    if batch_transform is None:
        return loss_weights, seed, scales_per_step
    if not isinstance(batch_transform, dict) or 'type' not in batch_transform:
        raise TypeError('`batch_transform` must be the config of a batch '
                        f'transform, but got {batch_transform!r}. Write '
                        "e.g. dict(type='MultiScaleBatch', antialias=True).")
    if {'scale', 'base_scale'} & set(batch_transform):
        raise ValueError('`batch_transform` must leave scale and base_scale '
                         f'to SCTLossHook, but got {batch_transform!r}. '
                         'Remove them.')
    return loss_weights, seed, scales_per_step


def check_progressive(share: float, partition: bool,
                      scales_per_step: int | None, adapt: Any) -> float:
    """``progressive`` of SCTLossHook as a float.

    Raises:
        TypeError, ValueError: if it is no share, or no scale of a step can
            be left out for a smaller one.
    """
    share = check_number('progressive', share, 0, 'Give the share of the '
                         'steps that prefer small scales.', 1)
    if share and (adapt or not (partition or scales_per_step == 1)):
        raise ValueError('`progressive` spends the compute of the base scale '
                         'on smaller ones, but got '
                         + (f'adapt={adapt!r}' if adapt else
                            'a schedule that trains the base in each step')
                         + '. Set scales_per_step=1 or partition=True without '
                         'adapt, or leave it out.')
    return share


def resolve_scales(model: nn.Module,
                   wanted: Sequence[int] | None) -> tuple[int, ...]:
    """The scales to train ``model`` at: those of its SSBN layers, or
    ``wanted`` for a model without SSBN.

    Raises:
        ValueError: if ``wanted`` contradicts the layers, or neither tells.
        RuntimeError: if a SyncBatchNorm has replaced SSBN.
    """
    if damaged_by_sync_bn(model):
        raise RuntimeError(SYNC_BN)
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


def check_pipeline(loader: dict | None, base: int) -> None:
    """Compare the base scale with the training pipeline, as far as it tells.

    Raises:
        ValueError: if the pipeline makes images of another nominal size.
    """
    pipeline = pipeline_of(loader or {})
    sizes = train_sizes(pipeline) if pipeline else ()
    if sizes and sizes[0] != base:
        raise ValueError('The base scale must be the nominal size of the '
                         f'images of the training pipeline, {sizes[0]} '
                         f'pixels, but got scale {base}. Change `scales`, or '
                         'the resize or crop of the pipeline.')
    if len(sizes) > 1:
        print_log('SCTLossHook: the training pipeline makes images of '
                  f'{len(sizes)} sizes, {sizes[0]} to {sizes[-1]} pixels. '
                  f'The nominal scale of all is {base}; smaller scales '
                  'shrink them by the same ratio.', 'current')


def check_run(runner: Any, hook: Any) -> None:
    """Compare what a Runner makes of the model with the arguments of
    ``hook``.

    Raises:
        ValueError: for DDP that wants every gradient in one backward pass,
            and for `adapt` behind a hook that saves.
    """
    if hook.backward != 'joint' and getattr(runner.model, 'static_graph',
                                            False):
        raise ValueError("`backward='per_scale'` cannot hand gradients to DDP "
                         "with static_graph=True. Set backward='joint', or "
                         'leave static_graph out.')
    if not hook.adapt:
        return
    before = itertools.takewhile(lambda each: each is not hook, runner.hooks)
    if any(isinstance(each, CheckpointHook) for each in before):
        raise ValueError('`priority` of SCTLossHook must be above that of '
                         'CheckpointHook with adapt, which puts the base back '
                         f'before it is saved, but got {hook.priority!r}. '
                         'Leave it out.')
    if not (runner._load_from or runner._resume):
        print_log('SCTLossHook: adapt keeps the network as its config builds '
                  'it, since load_from is not set.', 'current',
                  logging.WARNING)


def check_images(batch: dict, base: int) -> None:
    """Compare a batch with what MultiScaleBatch takes, and the base scale
    with its images.

    Raises:
        TypeError: as :func:`check_batch`.
        ValueError: if the shorter edge of the images is not ``base``
            pixels. Of padded images (detection) none may be larger; long
            ones are narrower than the nominal scale.
    """
    check_batch(batch)
    inputs, samples = batch['inputs'], batch.get('data_samples')
    edge = min(inputs.shape[-2:])
    padded = (samples is not None and len(samples) > 0
              and is_padded(samples[0]))
    if padded:
        edge = max(min(content_shape(sample, inputs.shape[-2:]))
                   for sample in samples)
    if edge != base and not (padded and edge < base):
        raise ValueError('The base scale must be the size of the images '
                         f'that the training pipeline makes, but got scale '
                         f'{base} and images of {edge} pixels. Change '
                         '`scales`, or the crop or resize of the pipeline.')


def batch_size_of(loader: Any) -> int | None:
    """Images in a batch of a ``DataLoader``; None if its sampler does not
    tell. Behind a batch sampler ``batch_size`` is None."""
    sampler = getattr(loader, 'batch_sampler', None)
    for size in (getattr(loader, 'batch_size', None),
                 getattr(sampler, 'batch_size', None)):
        if isinstance(size, (list, tuple)):  # one for each data set joined
            size = sum(size)
        if isinstance(size, int):
            return size
    return None


def check_gradients(batch: dict) -> None:
    """Whether a batch may be differentiated once a scale.

    Raises:
        ValueError: if the images themselves require gradients.
    """
    if batch['inputs'].requires_grad:
        raise ValueError("`backward='per_scale'` differentiates once a scale, "
                         'but got images that require gradients. Set '
                         "backward='joint'.")


def check_model(model: nn.Module, hook_type: type) -> None:
    """Whether no other hook of ``hook_type`` is on ``model``, and nothing
    calls past its SSBN layers.

    Raises:
        RuntimeError: if there is such a hook.
        ValueError: for mmengine's ``efficient_conv_bn_eval``, which reads the
            tensors of BN instead of calling it.
    """
    owners = [getattr(hook, '__self__', None)
              for hook in model._forward_pre_hooks.values()]
    if any(isinstance(owner, hook_type) and owner.model is model
           for owner in owners):
        raise RuntimeError(f'{type(model).__name__} has a '
                           f'{hook_type.__name__} already. Remove one from '
                           '`custom_hooks`, or call detach() of the one that '
                           'an error left behind.')
    for module in model.modules():
        if getattr(module, 'efficient_conv_bn_eval_forward', None) and any(
                isinstance(m, ScaleSpecific) for m in module.children()):
            raise ValueError('`efficient_conv_bn_eval` computes with the '
                             'tensors of BN and knows no scales, but got it '
                             f'in a {type(module).__name__}. Remove it from '
                             'the config.')


SCHEDULE = 'sct_schedule'  # key of a checkpoint
_ARGUMENTS = ('scales', 'loss_weights', 'scales_per_step', 'partition',
              'between', 'progressive', 'size_divisor', 'adapt', 'distill',
              'seed', 'batch_transform')


def schedule_of(hook: Any, runner: Any) -> dict[str, str]:
    """The arguments of SCTLossHook that say what each step trains, as text,
    which any checkpoint may hold."""
    told = {name: repr(getattr(hook, name)) for name in _ARGUMENTS}
    if hook.progressive:  # a share of all steps
        told['max_iters'] = repr(runner.max_iters)
    # Else the gradients are the same.
    if hook.distill and hook.distill.teachers == 'ensemble':
        told['backward'] = repr(hook.backward)
    told['SharedAffineHook'] = repr(any(
        isinstance(each, SharedAffineHook) for each in runner.hooks))
    return told


def warn_of_changes(hook: Any, runner: Any, checkpoint: dict) -> None:
    """Warn where a run goes on with another schedule than that of its
    ``checkpoint``, if it tells."""
    now, before = schedule_of(hook, runner), checkpoint.get(SCHEDULE, {})
    changes = [f'{name}={now[name]}, which was {before[name]}'
               for name in now if before.get(name, now[name]) != now[name]]
    if changes:
        print_log('SCTLossHook: the run goes on with another schedule than '
                  f'it began with: {"; ".join(changes)}. Set what it was, or '
                  'start a run of its own by load_from.', 'current',
                  logging.WARNING)


def warn_of_norms(model: nn.Module) -> None:
    """Warn of norms of ``model`` that are not what their config says."""
    warn_of_lost_defaults(model)
    warn_of_shared_norms(model)


def warn_of_shared_norms(model: nn.Module) -> None:
    """Warn of batch normalization without rows beside SSBN, as where a host
    builds some of its norms without its ``norm_cfg``."""
    shared = [name for name, m in model.named_modules()
              if isinstance(m, _BatchNorm)
              and not isinstance(m, ScaleSpecific)]
    if shared and ssbn_layers(model):
        print_log(f'SCTLossHook: {len(shared)} layers of batch normalization '
                  f'beside SSBN, such as {shared[0]}, are shared by all '
                  'scales. Set their norm_cfg, or use model=dict('
                  "type='WithSSBN', model=...), which converts all.",
                  'current', logging.WARNING)


def warn_of_lost_defaults(model: nn.Module) -> None:
    """Warn where a ``norm_cfg`` of one's own has replaced the eps or momentum
    that a host's class has in its default ``norm_cfg``: with a checkpoint of
    the stock network it computes another function."""
    inside: set = set()
    for name, module in model.named_modules():
        if any(name.startswith(outer) for outer in inside):
            continue
        parameter = inspect.signature(type(module).__init__).parameters.get(
            'norm_cfg')
        if parameter is None:
            continue
        inside.add(f'{name}.' if name else '')
        default = parameter.default
        for option in ('eps', 'momentum'):
            if not isinstance(default, dict) or option not in default:
                continue
            theirs = default[option]
            ours = {getattr(layer, option) for layer in ssbn_layers(module)}
            if ours - {theirs}:
                print_log(
                    f'SCTLossHook: {type(module).__name__} has '
                    f'{option}={theirs} in its own norm_cfg, but SSBN has '
                    f'{option}={sorted(ours, key=str)[0]}: set it in your '
                    "norm_cfg, or use model=dict(type='WithSSBN', "
                    'model=...).', 'current', logging.WARNING)


def warn_if_frozen(norms: nn.ModuleList) -> None:
    """Warn where no scale can get statistics of its own: every SSBN layer is
    in evaluation mode (``norm_eval``, ``frozen_stages``) and its rows are the
    same."""
    if len(norms) and not any(layer.training or layer.running_mean is None
                              or (layer.running_mean
                                  != layer.running_mean[0]).any()
                              for layer in norms):
        print_log('SCTLossHook: the running statistics of all SSBN layers are '
                  'frozen, and the same for each scale. Set norm_eval=False '
                  'and frozen_stages=-1, or start from a checkpoint trained '
                  'at several scales.', 'current', logging.WARNING)
