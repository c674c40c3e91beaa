"""What the tools share: reading their inputs, and saying what is wrong."""
import os
import os.path as osp
import sys
import traceback
from typing import Callable, Optional

import mmengine
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner.checkpoint import _load_checkpoint

from .pipeline import type_name


class UserError(Exception):
    """An input that the user must mend; shown without a traceback."""


def is_refusal(error: Exception) -> bool:
    """Whether a ``raise`` of this package made ``error``: its text is for the
    user. A bug, or what a host or torch found wrong, wants its traceback."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return isinstance(error, UserError) or (
        osp.dirname(frame.filename) == osp.dirname(__file__)
        and (frame.line or '').startswith('raise '))


def cli(main: Callable[[], None]) -> None:
    """Run a tool; what this package refuses ends it with one sentence and
    exit code 2, without a traceback."""
    try:
        main()
    except (UserError, TypeError, ValueError, RuntimeError) as error:
        if not is_refusal(error):
            raise
        print(f'{osp.basename(sys.argv[0])}: {error}', file=sys.stderr)
        sys.exit(2)


def load_config(path: str, options: Optional[dict] = None) -> Config:
    """Read the config file and merge ``options`` into it."""
    if not osp.isfile(path):
        raise UserError(f'The config must be a file, but got {path!r}. Name '
                        'one of configs/ or of your own.')
    cfg = Config.fromfile(path)
    if options:
        cfg.merge_from_dict(options)
    return cfg


def join_processes(cfg: Config) -> None:
    """Join the processes that torchrun started, where there is no GPU.

    mmengine 0.10 joins them on an accelerator only: its launcher sets a CUDA
    device. On a CPU the backend is gloo.
    """
    if cfg.launcher == 'pytorch' and get_device() == 'cpu':
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group('gloo')
        cfg.setdefault('model_wrapper_cfg', dict(
            type='MMDistributedDataParallel', device_ids=None,
            broadcast_buffers=False))


def set_loader_defaults(loader: Optional[Config], cfg: Config,
                        pin_memory: bool = True) -> None:
    """What the tools of mmpretrain set where its configs are silent; other
    projects' configs are complete, and their samples differ in shape."""
    if loader is not None and cfg.get('default_scope') == 'mmpretrain':
        loader.setdefault('collate_fn', dict(type='default_collate'))
        loader.setdefault('pin_memory',
                          pin_memory and torch.cuda.is_available())


def check_checkpoint(path: str) -> dict:
    """Load the checkpoint at ``path`` on the CPU, or say why it cannot be."""
    if '://' not in path and not osp.isfile(path):
        raise UserError(f'The checkpoint must be a file, but got {path!r}. '
                        'Train first, or name another.')
    try:
        checkpoint = _load_checkpoint(path, map_location='cpu')
    except Exception as error:  # each format and torch version has its own
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f'The checkpoint {path!r} cannot be read ({cause}). '
                        'It is damaged or no checkpoint: name another, or '
                        'resume from the one before.') from error
    if not isinstance(checkpoint, dict):
        raise UserError(f'The checkpoint {path!r} must hold a dict, but got '
                        f'a {type(checkpoint).__name__}. Name another.')
    return checkpoint


def check_data(loader: Config) -> None:
    """Say where the data set of ``loader`` is missing, before work begins.

    A data set that downloads itself may be missing.
    """
    dataset = loader.get('dataset', {})
    while 'dataset' in dataset:  # RepeatDataset and other wrappers
        dataset = dataset['dataset']
    root = dataset.get('data_root')
    downloads = type_name(dataset).endswith(('MNIST', 'CIFAR10', 'CIFAR100'))
    remote = (dataset.get('backend_args') or {}).get('backend',
                                                     'local') != 'local'
    if not root or '://' in root or downloads or remote:
        return
    if not (osp.isdir(root) and os.listdir(root)):
        raise UserError(f'The data set must be at {root!r}, but there is no '
                        'such folder, or nothing in it. Put it there, or set '
                        '`data_root` in the config.')
    annotations = osp.join(root, dataset.get('ann_file') or '')
    if '://' not in annotations and not osp.exists(annotations):
        raise UserError('The annotations of the data set must be at '
                        f'{annotations!r}, but there is no such file. Put it '
                        'there, or set `ann_file` in the config.')


def dump(data: dict, path: str) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    from .checkpoint import AtomicLocalBackend
    text = mmengine.dump(data, file_format='json', indent=2)
    AtomicLocalBackend().put(text.encode(), path)
