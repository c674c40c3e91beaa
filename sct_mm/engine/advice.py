"""What SCTLossHook warns of before it trains: norms that are not what their
config seems to say, and a run that goes on with other arguments."""
import inspect
import logging
from typing import Any, Dict

from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..models.size_selection import ScaleSpecific, ssbn_layers
from .hooks.shared_affine_hook import SharedAffineHook

SCHEDULE = 'sct_schedule'  # key of a checkpoint
_ARGUMENTS = ('scales', 'loss_weights', 'scales_per_step', 'partition',
              'between', 'progressive', 'size_divisor', 'adapt', 'distill',
              'seed', 'batch_transform')


def schedule_of(hook: Any, runner: Any) -> Dict[str, str]:
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
