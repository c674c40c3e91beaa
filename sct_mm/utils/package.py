"""Where the configs and tools of this package lie, in the repository or in an
installed package, and how mmengine finds the configs."""
import os.path as osp
from collections.abc import Callable
from functools import wraps

import torch
from mmengine.config import Config

# From 2.6, torch.load runs no code of a checkpoint; from 2.7, a layer can ask
# torch whether it is exported.
TORCH = (2, 7)
NAME = __package__.partition('.')[0]
PREFIX = f'{NAME}::'
# A strict editable install has links to the repository's files.
_PACKAGE = osp.dirname(osp.dirname(osp.realpath(__file__)))
# openmim looks here for the configs and tools of an installed package.
_INSTALLED = osp.join(_PACKAGE, '.mim')


def is_installed() -> bool:
    """Whether the package is installed without its repository."""
    return osp.isdir(_INSTALLED)


def shipped(*parts: str) -> str:
    """The path of a config or a tool: below ``.mim`` of an installed package,
    else in the repository, beside the package."""
    return osp.join(_INSTALLED if is_installed() else
                    osp.dirname(_PACKAGE), *parts)


def tool_command(tool: str, python: str = 'python') -> list[str]:
    """The words by which a user starts a tool: in the root of the repository,
    or with an installed package from any folder."""
    if is_installed():
        return [python, '-m', f'{NAME}.tools.{tool}']
    return [python, osp.join('tools', f'{tool}.py')]


def config_path(path: str) -> str:
    """The file of a config. ``sct_mm::NAME.py`` is a config of this package,
    ``mmpretrain::FOLDER/NAME.py`` one of another, as in ``_base_``."""
    if path.startswith(PREFIX):
        return shipped('configs', *path.removeprefix(PREFIX).split('/'))
    if '::' in path:
        try:
            return Config._get_cfg_path(path, '')[0]
        except (AssertionError, ImportError, OSError):  # no such package, file
            pass
    return path


def _knows_us(host: Callable) -> Callable:
    """``host``, mmengine's function that finds a config of ``_base_``, for
    configs of this package, too. It knows OpenMMLab's packages only, and their
    configs only in subfolders.

    The configs get no scope of this package: its types are registered in
    mmengine, and other types belong to the config's own ``default_scope``.
    """

    @wraps(host)
    def get_cfg_path(cfg_path: str, filename: str
                     ) -> tuple[str, str | None]:
        if not cfg_path.startswith(PREFIX):
            return host(cfg_path, filename)
        path = config_path(cfg_path)
        if not osp.isfile(path):
            raise FileNotFoundError(
                f'`_base_` must name a config of {NAME}, but got '
                f'{cfg_path!r}. They are in {shipped("configs")}.')
        return path, None

    vars(get_cfg_path)['knows_us'] = True
    return get_cfg_path


def check_torch(version: str = torch.__version__) -> None:
    """Refuse a torch that is older than :data:`TORCH`.

    Raises:
        ImportError: naming both versions.
    """
    if tuple(map(int, version.split('.')[:2])) < TORCH:
        raise ImportError(f'torch must be of version {TORCH[0]}.{TORCH[1]} at '
                          f'least, but is {version}')


def introduce() -> None:
    """Let ``_base_`` of a config take ``sct_mm::NAME.py``. May be called
    again."""
    if not hasattr(Config._get_cfg_path, 'knows_us'):
        Config._get_cfg_path = staticmethod(_knows_us(Config._get_cfg_path))
