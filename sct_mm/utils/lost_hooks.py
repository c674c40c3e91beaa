"""Which hooks of its base configs a config has dropped."""
import ast
import importlib.util
import os.path as osp
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from .config_walk import type_name


def lost_hooks(cfg: Config) -> list[str]:
    """The types in `custom_hooks` of the base configs of ``cfg``, at any
    depth, that it has not: a config replaces the list of its base.

    What the base of another package has dropped itself is not lost.
    """
    if not (cfg.filename and osp.isfile(cfg.filename)):
        return []
    kept = _names(cfg)
    return [name for name in dict.fromkeys(_hooks_of_bases(cfg.filename))
            if name not in kept]


def _names(cfg: Config) -> list[str]:
    return [type_name(hook) for hook in cfg.get('custom_hooks') or ()]


def _hooks_of_bases(file: str) -> Iterator[str]:
    for base, is_own in _bases(file):
        yield from _names(Config.fromfile(base, import_custom_modules=False))
        if is_own:
            yield from _hooks_of_bases(base)


def _bases(file: str) -> Iterator[tuple[str, bool]]:
    """The files that ``file`` names as its bases, and whether each is of its
    own project."""
    if not Config._is_lazy_import(file):
        for name in Config._get_base_files(file):
            yield Config._get_cfg_path(name, file)[0], '::' not in name
        return
    # `with read_base(): from .a import *`
    code = ast.parse(Path(file).read_text(encoding='utf-8'))
    for module in Config._get_base_modules(code.body):
        name = module.lstrip('.')
        if level := len(module) - len(name):
            yield osp.join(osp.dirname(file), *['..'] * (level - 1),
                           *name.split('.')) + '.py', True
        else:
            spec = importlib.util.find_spec(module)
            if spec is not None and spec.origin:
                yield spec.origin, False
