"""What comes with the package: configs, tools, cards; and who finds them."""
import importlib.util
import os.path as osp
import sys
from collections.abc import Callable
from functools import wraps
from importlib.abc import MetaPathFinder
from typing import Any

from mmengine.config import Config

NAME = __package__.partition('.')[0]
PREFIX = f'{NAME}::'
CARDS = osp.join('configs', 'metafile-{}.yml')
_HUB = 'mmpretrain.apis.model'
# A strict editable install has links to the repository's files.
_PACKAGE = osp.dirname(osp.dirname(osp.realpath(__file__)))


_INSTALLED = osp.join(_PACKAGE, '.mim')


def is_installed() -> bool:
    """Whether this is a package on its own, without its repository."""
    return osp.isdir(_INSTALLED)


def shipped(*parts: str) -> str:
    """Path of what comes with the package: with an installed one it lies in
    ``.mim``, where openmim looks; else in the repository, beside the
    package."""
    return osp.join(_INSTALLED if is_installed() else
                    osp.dirname(_PACKAGE), *parts)


def tool_command(tool: str, python: str = 'python') -> list[str]:
    """How a user runs a tool: in the repository, or from anywhere."""
    if is_installed():
        return [python, '-m', f'{NAME}.tools.{tool}']
    return [python, osp.join('tools', f'{tool}.py')]


def config_path(path: str) -> str:
    """The path of a config; ``sct_mm::NAME.py`` is the one of this package,
    ``mmpretrain::FOLDER/NAME.py`` of another, as in ``_base_``."""
    if path.startswith(PREFIX):
        return shipped('configs', *path.removeprefix(PREFIX).split('/'))
    if '::' in path:
        try:
            return Config._get_cfg_path(path, '')[0]
        except (AssertionError, ImportError, OSError):  # no such package, file
            pass
    return path


def _knows_us(host: Callable) -> Callable:
    """mmengine's reader of ``_base_``, which knows OpenMMLab's packages
    alone, and of those no config that lies in no subfolder.

    Nor does it give types of ours a scope: SSBN is registered in mmengine's,
    and other types are of the config's own ``default_scope``.
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

    get_cfg_path.knows_us = True
    return get_cfg_path


def _add_cards(hub: Any) -> None:
    """Tell mmpretrain's ``ModelHub`` of our classifiers."""
    cards = shipped(CARDS.format('classification'))
    if osp.isfile(cards) and not hub.has('sct_resnet50_8xb32_in1k'):
        hub.register_model_index(cards, config_prefix=shipped())


class _AfterImport(MetaPathFinder):
    """Adds our cards to mmpretrain's hub when that is imported, since to
    import it takes seconds, and who trains does not need it."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None
                  ) -> Any:
        if fullname != _HUB:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None:
            load = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                load(module)
                _add_cards(module.ModelHub)

            spec.loader.exec_module = exec_module
        return spec


def introduce() -> None:
    """Let the hosts find what comes with the package: mmengine
    ``sct_mm::NAME.py`` in ``_base_``, and mmpretrain's ``get_model`` the
    names of our classifiers. May be called again."""
    if not hasattr(Config._get_cfg_path, 'knows_us'):
        Config._get_cfg_path = staticmethod(_knows_us(Config._get_cfg_path))
    if _HUB in sys.modules:
        _add_cards(sys.modules[_HUB].ModelHub)
    elif not any(isinstance(finder, _AfterImport)
                 for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
