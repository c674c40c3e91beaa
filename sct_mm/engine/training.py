"""A training as tools/train.py runs it."""
from typing import Optional

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .config import check_data, join_processes, set_loader_defaults
from .protection import protected_loading
from .resume import choose_start


def set_defaults(cfg: Config, pin_memory: bool = True,
                 persistent_workers: bool = False) -> None:
    """What a config leaves open: atomic checkpoints, and the loaders."""
    checkpoint = cfg.setdefault('default_hooks', {}).setdefault(
        'checkpoint', dict(type='CheckpointHook', interval=1))
    # None switches it off; a folder elsewhere has a backend of its own.
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


@protected_loading()
def train(cfg: Config, resume: Optional[str] = None) -> Runner:
    """Train the config, which names its `work_dir`; returns its Runner.

    Args:
        resume: see ``choose_start``.

    Raises:
        UserError: if the data or the checkpoint to start from is missing or
            damaged, or if no checkpoint can be written.
    """
    set_defaults(cfg)
    check_data(cfg.train_dataloader)
    join_processes(cfg)
    choose_start(cfg, resume)
    runner = (RUNNERS.build(cfg) if 'runner_type' in cfg
              else Runner.from_cfg(cfg))
    runner.train()
    return runner
