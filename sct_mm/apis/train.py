"""Train a config of an OpenMMLab project: what tools/train.py does."""
import os.path as osp
import warnings

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.runner import Runner
from torch import nn

from ..engine import hooks
from ..engine.load_model import check_is_of, is_of_one_size
from ..engine.loops import unwrapped
from ..engine.resume import choose_start, places_of
from ..engine.runner import built_runner, lacking
from ..models.size_selection import scales_of
from ..utils.checkpoint import check_checkpoint, check_place, make_folder
from ..utils.config import (
    check_data,
    import_this_package,
    join_processes,
    set_loader_defaults,
)
from ..utils.config_walk import type_name
from ..utils.errors import UserError
from ..utils.lost_hooks import lost_hooks
from ..utils.safe_load import protected_loading


def set_defaults(cfg: Config, pin_memory: bool = True,
                 persistent_workers: bool = False) -> None:
    """Set what ``cfg`` leaves open: checkpoints are written whole or not at
    all, data loaders get the defaults of the tools, and the config that the
    Runner writes to the work directory imports this package."""
    import_this_package(cfg)
    checkpoint = cfg.setdefault('default_hooks', {}).setdefault(
        'checkpoint', dict(type='CheckpointHook', interval=1))
    # None switches the hook off; remote folders have a backend of their own.
    if checkpoint and '://' not in str(checkpoint.get('out_dir') or ''):
        if checkpoint.get('file_client_args') is None:
            checkpoint.setdefault('backend_args',
                                  dict(backend='atomic_local'))
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        set_loader_defaults(loader, cfg, pin_memory)
        if loader is not None:
            loader.setdefault('persistent_workers', persistent_workers
                              and loader.get('num_workers', 0) > 0)


def check_complete(cfg: Config) -> None:
    """Refuse a config without what a training needs.

    Raises:
        UserError: naming what is missing.
    """
    for name in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if not isinstance(cfg.get(name), dict):
            raise UserError(f'The config must have a `{name}` to train, but '
                            f'got {cfg.get(name)!r}. Set it.')
    if missing := lacking(cfg, 'validation'):
        raise UserError(f'The config must have a `{missing[0]}` to validate, '
                        'but has none. Set it, or give --no-validate.')
    amp = type_name(cfg.optim_wrapper) == 'AmpOptimWrapper'
    if amp and get_device() in ('cpu', 'mps'):
        raise UserError('Mixed precision (AmpOptimWrapper, --amp) needs a '
                        f'GPU, but the device is {get_device()!r}. Leave it '
                        'out.')


def check_same(model: nn.Module, path: str) -> None:
    """Refuse to resume ``model`` from a checkpoint ``path`` of another one:
    mmengine would keep the initial values of all that does not fit, and load
    moments of the optimizer that have other shapes.

    Raises:
        UserError: if the checkpoint is of another network.
    """
    checkpoint = check_checkpoint(path)
    check_is_of(model, checkpoint, path)
    if is_of_one_size(model, checkpoint['state_dict']):
        raise UserError(f'The checkpoint {path!r} cannot be resumed: it is '
                        'of a network for one size, and the config has rows '
                        f'for {scales_of(model)}. Start from its weights by '
                        '`load_from`.')


def warn_of_lost_hooks(cfg: Config) -> None:
    """Warn of a host's hooks in the base configs that a config with
    SCTLossHook has dropped: its list replaces theirs."""
    kept = [type_name(hook) for hook in cfg.get('custom_hooks') or ()]
    lost = [name for name in lost_hooks(cfg) if name not in hooks.__all__
            ] if 'SCTLossHook' in kept else []
    if lost:
        warnings.warn('`custom_hooks` replaces those of the base config, and '
                      f'drops {", ".join(lost)}. Write custom_hooks='
                      "[*_base_.custom_hooks, dict(type='SCTLossHook')] to "
                      'keep them.', stacklevel=2)


@protected_loading()
def train(cfg: Config, resume: str | None = None) -> Runner:
    """Train ``cfg``, which has a `work_dir`; returns the Runner.

    Args:
        resume: see ``choose_start``.

    Raises:
        UserError: if the data or the checkpoint to start from is missing or
            damaged, of another network, or if no checkpoint can be written.
    """
    check_complete(cfg)
    set_defaults(cfg)
    check_data(cfg.train_dataloader)
    if cfg.get('val_dataloader'):
        check_data(cfg.val_dataloader)
    make_folder(cfg.work_dir, '`work_dir`')
    for folder, template in places_of(cfg):
        if '://' not in folder:
            check_place(osp.join(folder, template))
    join_processes(cfg)
    if is_main_process():
        warn_of_lost_hooks(cfg)
    choose_start(cfg, resume)
    runner = built_runner(cfg)
    if cfg.resume and '://' not in cfg.load_from and isinstance(
            runner.model, nn.Module) and osp.isfile(cfg.load_from):
        check_same(unwrapped(runner.model), cfg.load_from)
    runner.train()
    return runner
