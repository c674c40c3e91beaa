"""Read an experiment's config, and report what is wrong with it."""
import atexit
import os
import os.path as osp
import traceback
import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import init_dist, is_distributed
from mmengine.utils import is_abs
from mmengine.utils.dl_utils import set_multi_processing

from .arguments import check_int, optional_dict
from .config_walk import data_sets_in, pipelines_in, type_name
from .errors import UserError
from .package import config_path


def config_name(path: str) -> str:
    """The name of a config's file, without its folder and its ending."""
    return osp.splitext(osp.basename(path.rpartition('::')[2]))[0]


def load_config(path: str, options: dict | None = None) -> Config:
    """Read the config file and merge ``options`` into it.

    ``sct_mm::NAME.py`` is a config of this package, and
    ``mmpretrain::FOLDER/NAME.py`` one of another.

    Raises:
        UserError: if there is no such file, it cannot be read, has no
            ``model``, or ``options`` do not fit it.
        TypeError: if ``options`` are no dict.
    """
    options = optional_dict('cfg_options', options,
                            "Write e.g. {'train_cfg.max_epochs': 9}.")
    file = config_path(path)
    if not osp.isfile(file):
        raise UserError(f'The config must be a file, but got {path!r}. Name '
                        'one of your own, or from anywhere one of this or of '
                        'another package, as sct_mm::NAME.py or '
                        'mmpretrain::FOLDER/NAME.py.')
    try:
        cfg = Config.fromfile(file)
    except Exception as error:  # a config is a program
        with warnings.catch_warnings():  # mmengine leaves its copy open
            warnings.simplefilter('ignore', ResourceWarning)
            traceback.clear_frames(error.__traceback__)
        text = str(error).strip() or 'nothing more is known'
        raise UserError(f'The config {path!r} cannot be read '
                        f'({type(error).__name__}: {text}). Fix it there.'
                        ) from error
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError) as error:
        raise UserError(f'--cfg-options {options} do not fit the config '
                        f'{path!r} ({error.args[0]}). Name settings that it '
                        'has.') from error
    if not isinstance(cfg.get('model'), dict):
        raise UserError(f'The config must have a `model`, but {path!r} has '
                        f'{cfg.get("model")!r}. Name that of an experiment.')
    if cfg.get('default_scope') is None:
        cfg.default_scope = _project_of(cfg.model)
    return cfg


def _project_of(model: dict) -> str:
    """The project of the class of ``model``. New-style configs (`read_base`)
    set no `default_scope`; strings in them may be of this project."""
    kind = model.get('type')
    path = kind if isinstance(kind, str) else getattr(kind, '__module__', '')
    project = path.partition('.')[0] if '.' in path else 'mmengine'
    if project in ('mmengine', __package__.partition('.')[0]):
        inner = model.get('model')  # of WithSSBN and of wrappers
        return _project_of(inner) if isinstance(inner, dict) else 'mmengine'
    return project


def join_processes(cfg: Config) -> None:
    """Make the processes of a launcher one group before the Runner does, so
    that all of them start from the same checkpoint.

    On a CPU the backend is gloo: mmengine 0.10 makes groups on an accelerator
    only.
    """
    launcher = cfg.get('launcher', 'none')
    if get_device() != 'cpu':
        # The strategies of a FlexibleRunner make their own groups.
        if not (launcher == 'none' or 'runner_type' in cfg
                or is_distributed()):
            _check_gpus(launcher)
            env = cfg.get('env_cfg') or {}
            set_multi_processing(**env.get('mp_cfg', {}), distributed=True)
            init_dist(launcher, **env.get('dist_cfg', {}))
    elif launcher == 'pytorch':
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group('gloo')
            # An interpreter that ends before gloo's threads may abort.
            atexit.register(_leave_processes)
        cfg.setdefault('model_wrapper_cfg', dict(
            type='MMDistributedDataParallel', device_ids=None,
            broadcast_buffers=False))


def _leave_processes() -> None:
    if is_distributed():
        torch.distributed.destroy_process_group()


def _check_gpus(launcher: str) -> None:
    """Refuse more processes than GPUs: process N of a machine takes GPU N.

    Raises:
        UserError: for a process without a GPU.
    """
    rank, gpus = os.environ.get('LOCAL_RANK'), torch.cuda.device_count()
    if launcher == 'pytorch' and rank and 0 < gpus <= int(rank):
        raise UserError(
            f'Each process takes a GPU of its own, but process {rank} found '
            f'{gpus} on its machine. Start at most {gpus} a machine, or hide '
            'them all (export CUDA_VISIBLE_DEVICES=).')


def set_loader_defaults(loader: Config | None, cfg: Config,
                        pin_memory: bool = True) -> None:
    """Set in ``loader`` what mmpretrain's tools set and its configs leave out.
    Configs of other projects are complete."""
    if loader is not None and cfg.get('default_scope') == 'mmpretrain':
        loader.setdefault('collate_fn', dict(type='default_collate'))
        loader.setdefault('pin_memory',
                          pin_memory and torch.cuda.is_available())


def check_indices(dataset: dict) -> None:
    """Refuse ``indices`` of a data set that mmengine's BaseDataset does not
    take. Those of a list may still be of more images than there are.

    Raises:
        UserError: unless they are an int other than 0, or a list of ints.
    """
    indices: Any = dataset.get('indices')
    several = isinstance(indices, Sequence) and not isinstance(indices, str)
    ints = all(isinstance(index, Integral) and not isinstance(index, bool)
               for index in (indices if several else [indices]))
    if indices is None or ints and (len(indices) if several else indices):
        return
    raise UserError('`indices` of a data set must be an int other than 0 (the '
                    'first N images, or the last N if it is negative) or a '
                    f'list of ints, but got {indices!r}. Leave it out for '
                    'all images.')


def check_range(indices: Any, total: int) -> None:
    """Refuse a list of ``indices`` beyond the ``total`` images of a data set.

    Raises:
        UserError: naming the first one.
    """
    for index in indices if isinstance(indices, Sequence) else ():
        if not -total <= index < total:
            raise UserError('`indices` must be those of the '
                            f'{total} images of the data set, but got '
                            f'{index}. Leave it out for all images.')


def check_data(loader: Config) -> None:
    """Refuse a ``loader`` whose settings its class does not take, or whose
    data set is not there, before work begins. A data set that downloads
    itself may be absent.

    Raises:
        TypeError, ValueError: for a number of images or of workers that is
            none.
        UserError: if the folder or the annotations are not there, and as
            :func:`check_indices`.
    """
    for name, least, default in (('batch_size', 1, 1), ('num_workers', 0, 0)):
        if loader.get(name) is not None:
            check_int(name, loader[name], least,
                      f'Set it in the config, e.g. to {default}.')
    dataset = loader.get('dataset', {})
    for each in data_sets_in(dataset):
        check_indices(each)
    while 'dataset' in dataset:  # RepeatDataset and other wrappers
        dataset = dataset['dataset']
    root = dataset.get('data_root')
    downloads = dataset.get('download', True) and type_name(dataset).endswith(
        ('MNIST', 'CIFAR10', 'CIFAR100'))
    remote = (dataset.get('backend_args') or {}).get('backend',
                                                     'local') != 'local'
    if not root or '://' in root or downloads or remote:
        return
    root = osp.expanduser(root)  # as mmpretrain's data sets
    if _needs_root(dataset) and not (osp.isdir(root) and os.listdir(root)):
        raise UserError(f'The data set must be at {osp.abspath(root)!r}, but '
                        'there is no such folder, or nothing in it. Put it '
                        'there, or set `data_root` in the config'
                        f'{_started_in(root)}.')
    name = osp.expanduser(dataset.get('ann_file') or '')
    annotations = osp.join(root, name)
    if name and '://' not in annotations and not osp.exists(annotations):
        raise UserError('The annotations of the data set must be at '
                        f'{osp.abspath(annotations)!r}, but there is no such '
                        'file. Put it there, or set `ann_file` in the config'
                        f'{_started_in(annotations)}.')


def _needs_root(dataset: dict) -> bool:
    """Whether a path of ``dataset`` hangs on its ``data_root``: mmengine joins
    it with those that are not absolute."""
    prefix = dataset.get('data_prefix')
    paths = [*(prefix.values() if isinstance(prefix, dict) else [prefix]),
             *filter(None, [dataset.get('ann_file')])]
    return not paths or not all(
        isinstance(path, str) and is_abs(osp.expanduser(path))
        for path in paths)


def _started_in(path: str) -> str:
    """What a user must know of a ``path`` of the config that is relative."""
    return ('' if osp.isabs(path) else f': {path!r} is relative to the '
            'folder where the command was started')


def import_this_package(cfg: Config) -> None:
    """Add this package to the `custom_imports` of ``cfg``, so that the host's
    own tools can run it, too, and what a Runner writes of it."""
    own = __package__.partition('.')[0]
    given = cfg.get('custom_imports') or {}
    names = given.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    if own not in names:
        cfg.custom_imports = dict(given, imports=[*names, own])
        cfg.custom_imports.setdefault('allow_failed_imports', False)


def scales_settings(model: Any, scales: Sequence[int],
                    path: str = 'model') -> dict[str, list]:
    """The settings by which the config ``model`` fits a checkpoint that has
    ``scales``, one for each SSBN in it: ``{'model.a.b.scales': [224]}``."""
    found: dict[str, list] = {}
    if isinstance(model, dict):
        if type_name(model).endswith(('SSBN', 'SSBN1d', 'SSBN3d')):
            found[f'{path}.scales'] = list(scales)
        for name, value in model.items():
            found.update(scales_settings(value, scales, f'{path}.{name}'))
    elif isinstance(model, (list, tuple)):
        for index, value in enumerate(model):
            found.update(scales_settings(value, scales, f'{path}.{index}'))
    return found


def check_test_set(cfg: Config) -> None:
    """Refuse a config without a test set. Its files are not looked for.

    Raises:
        UserError, ValueError: for a config without a test set, and for a data
            set without a pipeline.
    """
    loader = cfg.get('test_dataloader')
    if not loader or not isinstance(loader, dict):
        raise UserError('The config must have a `test_dataloader`, a dict, '
                        f'but got {loader!r}. Set it, e.g. to the '
                        '`val_dataloader`.')
    list(pipelines_in(loader.get('dataset')))


def check_test_data(cfg: Config) -> None:
    """Refuse a config whose test set is not there, before it is read.

    Raises:
        UserError, ValueError: as :func:`check_test_set` and
            :func:`check_data`.
    """
    check_test_set(cfg)
    check_data(cfg.test_dataloader)
