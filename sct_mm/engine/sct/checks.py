"""What SCTLossHook looks for in a model and a training pipeline before it
trains: scales that fit, and normalization that serves them."""
import inspect
import logging
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import SequentialSampler

from ...datasets.last_stage import batch_resize, sizes_in_training
from ...models.guards import SYNC_BN, damaged_by_sync_bn, is_sharded
from ...models.row_mix import is_built
from ...models.size_selection import (
    NormOfScales,
    check_scales,
    scales_of,
    ssbn_layers,
)
from ...models.weight_change import ChangedLayer
from .schedule import Schedule


def resolve_scales(model: nn.Module,
                   wanted: Sequence[int] | None) -> tuple[int, ...]:
    """The scales to train ``model`` at: those of its SSBN layers, or
    ``wanted`` for a model without SSBN.

    Raises:
        ValueError: if ``wanted`` contradicts the layers, or both are missing.
        RuntimeError: if a SyncBatchNorm has replaced SSBN.
    """
    if damaged_by_sync_bn(model):
        raise RuntimeError(SYNC_BN)
    built = scales_of(model)
    wanted = None if wanted is None else check_scales(wanted)
    found = built or wanted
    if found is None:
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
    return found


def check_pipeline(loader: dict | None, base: int,
                   cfg: dict | None = None) -> None:
    """Compare the base scale with the sizes that the training pipelines make,
    where their configs show them.

    Args:
        loader: the config of the training images.
        cfg: the whole config, with the hooks that exchange the pipeline, and
            the model, whose data preprocessor may resize batches.

    Raises:
        ValueError: if a pipeline makes images of another nominal size, or
            batches get sizes drawn by chance.
    """
    found = sizes_in_training({**(cfg or {}), 'train_dataloader': loader})
    resize = batch_resize(cfg or {})
    if resize:
        # Without a size of the pipelines, batches cannot be stacked.
        fix = ('batch_augments=None' if any(found)
               else f'its random_size_range=({base}, {base})')
        raise ValueError(f'{resize} gives each batch a size of its own, which '
                         'SCT does with scales, but got it in '
                         f'`data_preprocessor.batch_augments`. Set {fix}.')
    for sizes in found:
        if sizes and sizes[0] != base:
            raise ValueError(
                'The base scale must be the nominal size of the images of the '
                f'training pipeline, {sizes[0]} pixels, but got scale {base}. '
                'Change `scales`, or the resize or crop of the pipeline.')
        if len(sizes) > 1:
            print_log('SCTLossHook: the training pipeline makes images of '
                      f'{len(sizes)} sizes, {sizes[0]} to {sizes[-1]} pixels. '
                      f'The nominal scale of all is {base}; smaller scales '
                      'shrink them by the same ratio.', 'current')


def check_model(model: nn.Module, hook_type: type) -> None:
    """Whether no other hook of ``hook_type`` acts on ``model``, and each of
    its SSBN layers is called.

    Raises:
        RuntimeError: if there is such a hook.
        ValueError: for mmengine's ``efficient_conv_bn_eval``, which reads the
            tensors of BN instead of calling it.
    """
    owners = [getattr(hook, '__self__', None)
              for hook in model._forward_pre_hooks.values()]
    if any(isinstance(owner, hook_type)
           and getattr(owner, 'model', None) is model for owner in owners):
        raise RuntimeError(f'{type(model).__name__} has a '
                           f'{hook_type.__name__} already. Remove one from '
                           '`custom_hooks`, or call detach() of the one that '
                           'an error left behind.')
    for module in model.modules():
        if getattr(module, 'efficient_conv_bn_eval_forward', None) and any(
                isinstance(m, NormOfScales) for m in module.children()):
            raise ValueError('`efficient_conv_bn_eval` computes with the '
                             'tensors of BN and knows no scales, but got it '
                             f'in a {type(module).__name__}. Remove it from '
                             'the config.')


def check_backward(model: nn.Module, backward: str) -> None:
    """Whether ``model`` or its wrapper takes gradients once a scale.

    Raises:
        ValueError: for a wrapper that wants all in one backward pass.
    """
    if backward == 'joint':
        return
    if getattr(model, 'static_graph', False):
        raise ValueError("`backward='per_scale'` cannot hand gradients to "
                         'DDP with static_graph=True. Set '
                         "backward='joint', or leave static_graph out.")
    if is_sharded(model):
        raise ValueError("`backward='per_scale'` cannot hand gradients to "
                         "FSDP or DeepSpeed. Set backward='joint'.")


def check_optimized(model: nn.Module, optim_wrapper: Any) -> None:
    """Whether the optimizer has the changes of weights of ``model``. A
    constructor may list the parameters of kinds of layers alone, as mmyolo's
    and mmaction2's do: what it leaves out would never train.

    Raises:
        ValueError: if it lacks one that is to train.
    """
    groups = getattr(optim_wrapper, 'param_groups', None)
    if groups is None or is_sharded(model):
        return
    if isinstance(groups, dict):  # of several optimizers
        groups = [group for each in groups.values() for group in each]
    held = {id(p) for group in groups for p in group['params']}
    for name, layer in model.named_modules():
        if isinstance(layer, ChangedLayer) and any(
                p.requires_grad and id(p) not in held for p in layer.changes):
            raise ValueError('The optimizer must have the private changes of '
                             'weights (`rank`), but its constructor leaves '
                             f'out that of {name.removeprefix("module.")}. '
                             'Set constructor='
                             "'DefaultOptimWrapperConstructor' in "
                             '`optim_wrapper`, or rank=0.')


def check_every_scale(model: nn.Module, schedule: Schedule) -> None:
    """Whether each scale of ``model`` gets normalization parameters: from the
    training, or from the checkpoint that it starts from.

    Raises:
        ValueError: for a scale that no step trains and that has no statistics.
    """
    norms = [layer for layer in ssbn_layers(model)
             if layer.running_mean is not None]
    for scale, steps in schedule.expected(1).items():
        if not steps and norms and all(
                is_built(layer.row(scale)) for layer in norms):
            raise ValueError('`loss_weights` must be > 0 for each scale that '
                             'has no statistics, but got 0 for scale '
                             f'{scale}, which no step trains. Give it a '
                             'weight, or leave it out of `scales`.')


# What holds keys or features of earlier batches in mmpretrain: buffers of MoCo
# and DenseCL, an attribute of SwAV's loss.
_QUEUES = ('queue', 'queue2', 'use_queue')


def check_queue(model: nn.Module, schedule: Schedule) -> None:
    """Whether a queue of ``model`` holds other images than those of a pass.

    Raises:
        ValueError: for a model with a queue whose steps run the same images
            at several scales: keys of one scale would count as negatives of
            the same images at the next.
    """
    if schedule.count == 1:
        return
    for module in model.modules():
        if any(name in module._buffers or name in vars(module)
               for name in _QUEUES):
            raise ValueError(
                '`scales_per_step` must be 1 for a network with a queue of '
                f'earlier images, as {type(module).__name__}, but a step has '
                f'{schedule.count} scales: keys of one would be negatives of '
                'the same images at the next. Set scales_per_step=1.')


def warn_of_rare_scales(schedule: Schedule, steps: int) -> None:
    """Warn of a scale that less than one of the ``steps`` of a training may
    be expected to train."""
    rare = [scale for scale, expected in schedule.expected(steps).items()
            if 0 < expected < 1]
    if rare:
        print_log(f'SCTLossHook: by its weights scale {rare[0]} is drawn in '
                  f'less than one of the {steps} steps, and may stay '
                  'untrained. Set larger `loss_weights` for it, or a smaller '
                  'share of `progressive` steps.', 'current',
                  logging.WARNING)


# Hosts' hooks that re-estimate statistics by calls of the model on images of
# the base.
_RE_ESTIMATES = ('PreciseBNHook', )  # mmpretrain's RegNets


def warn_of_re_estimates(model: nn.Module, hooks: Iterable[Any]) -> None:
    """Warn of a hook after which the base scale alone has re-estimated
    statistics."""
    for hook in hooks:
        name = type(hook).__name__
        if name in _RE_ESTIMATES and len(scales_of(model) or ()) > 1:
            print_log(f'SCTLossHook: {name} re-estimates the statistics of '
                      'the base scale alone. Leave it out, and re-estimate '
                      'those of all scales after the training by '
                      'tools/calibrate.py.', 'current', logging.WARNING)


# Samplers that arrange each batch by the source of its images.
_BY_SOURCE = ('MultiSourceSampler', 'GroupMultiSourceSampler')  # mmdet, mmpose


def warn_of_order(loader: Any) -> None:
    """Warn of a sampler of ``loader`` by which an image has the same place in
    each batch: a divided batch would show it at the same scale always."""
    # Beside a batch sampler, a loader's own sampler is one that nobody asks.
    batches = getattr(loader, 'batch_sampler', None)
    sampler = getattr(loader if batches is None else batches, 'sampler', None)
    name = type(sampler).__name__
    by_source = name in _BY_SOURCE or type(batches).__name__ in _BY_SOURCE
    if by_source or isinstance(sampler, SequentialSampler) or (
            getattr(sampler, 'shuffle', True) is False):
        print_log('SCTLossHook: partition gives the first images of a batch '
                  f'to the largest scale, but {name} gives '
                  + ('each source the same place in every batch'
                     if by_source else 'images without shuffling') +
                  ', so that an image is trained at one scale alone. '
                  + ('Train' if by_source else 'Set shuffle=True, or train')
                  + ' without partition.', 'current', logging.WARNING)


def log_cost(schedule: Schedule) -> None:
    """Log what a training costs, by which its number of epochs is chosen."""
    cost, base = schedule.relative_cost(), max(schedule.weights)
    print_log(f'SCTLossHook: by its pixels, a step costs {cost:.3f} of one '
              f'at {base} px, on average over the training: {100 / cost:.0f} '
              f'epochs cost what 100 at {base} px cost.', 'current')


def warn_of_norms(model: nn.Module) -> None:
    """Warn of norms of ``model`` that are not what their config says."""
    warn_of_lost_defaults(model)
    warn_of_shared_norms(model)
    warn_of_unloaded_norms(model)


def warn_of_shared_norms(model: nn.Module) -> None:
    """Warn of plain batch normalization beside SSBN, as where a host builds
    some of its norms without its ``norm_cfg``."""
    shared = [name for name, m in model.named_modules()
              if isinstance(m, _BatchNorm)
              and not isinstance(m, NormOfScales)]
    if shared and ssbn_layers(model):
        print_log(f'SCTLossHook: {len(shared)} layers of batch normalization '
                  f'beside SSBN, such as {shared[0]}, are shared by all '
                  'scales. Set their norm_cfg, or use model=dict('
                  "type='WithSSBN', model=...), which converts all.",
                  'current', logging.WARNING)


def warn_of_unloaded_norms(model: nn.Module) -> None:
    """Warn of a backbone with pretrained weights whose SSBN layers are as they
    were built: mmaction2's copies tensors of equal shapes alone."""
    for module in model.modules():
        norms = [layer for layer in ssbn_layers(module)
                 if layer.running_mean is not None]
        if isinstance(getattr(module, 'pretrained', None), str) and norms and (
                all(is_built(layer.row(scale)) for layer in norms
                    for scale in layer.scales)):
            print_log(f'SCTLossHook: {type(module).__name__} has loaded '
                      f'{module.pretrained!r} without its normalization, '
                      'which is as it was built. Take a backbone of '
                      'mmpretrain with init_cfg=dict(type=\'Pretrained\', '
                      'checkpoint=...), or set load_from.', 'current',
                      logging.WARNING)


def warn_of_lost_defaults(model: nn.Module) -> None:
    """Warn where the ``norm_cfg`` of a config has replaced the eps or momentum
    that a host's class has in its default ``norm_cfg``: with a checkpoint of
    the stock network, the network would compute another function."""
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
            ours = {getattr(layer, option) for layer in ssbn_layers(module)
                    if not layer.converted}
            if ours - {theirs}:
                print_log(
                    f'SCTLossHook: {type(module).__name__} has '
                    f'{option}={theirs} in its own norm_cfg, but SSBN has '
                    f'{option}={sorted(ours, key=str)[0]}: set it in your '
                    "norm_cfg, or use model=dict(type='WithSSBN', "
                    'model=...).', 'current', logging.WARNING)


def warn_if_frozen(norms: Collection[NormOfScales]) -> None:
    """Warn where no scale can get statistics of its own: every SSBN layer is
    in evaluation mode (``norm_eval``, ``frozen_stages``), and the statistics
    of all scales are the same."""
    if len(norms) and not any(layer.training or layer.running_mean is None
                              or (layer.running_mean
                                  != layer.running_mean[0]).any()
                              for layer in norms):
        print_log('SCTLossHook: the running statistics of all SSBN layers are '
                  'frozen, and the same for each scale. Set norm_eval=False '
                  'and frozen_stages=-1, or start from a checkpoint trained '
                  'at several scales.', 'current', logging.WARNING)
