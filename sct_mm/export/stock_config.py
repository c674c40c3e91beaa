"""Make a config for one size that needs no sct_mm, to put into a file."""
import copy
import math
import warnings
from typing import Any

from mmengine.config import Config

from ..datasets.base_size import test_base
from ..datasets.rescale_pipeline import rescale_pipeline
from ..models.extract import _plain_config
from ..models.host_sizes import host_sizes_config
from ..utils.config_walk import pipelines_in, type_name

# The settings that inference and a test need.
_KEPT = ('default_scope', 'custom_imports', 'env_cfg', 'model',
         'data_preprocessor', 'test_dataloader', 'test_evaluator', 'test_cfg',
         'vis_backends', 'visualizer')


def _unwrapped(value: Any) -> Any:
    """``value`` with the inner model in place of each ``WithSSBN``."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_unwrapped, value))
    if not isinstance(value, dict):
        return value
    if type_name(value) == 'WithSSBN':
        inner = dict(value['model'])
        if value.get('data_preprocessor') is not None:
            inner.setdefault('data_preprocessor', value['data_preprocessor'])
        return _unwrapped(inner)
    return {name: _unwrapped(child) for name, child in value.items()}


def plain_config(cfg: Config, size: int) -> Config:
    """The settings of ``cfg`` that test its network at ``size`` pixels, with
    the layers and the loop of the hosts alone."""
    tested = test_base(cfg, (cfg.get('test_dataloader') or {}).get('dataset'))
    kept = {name: copy.deepcopy(value) for name, value
            in cfg._cfg_dict.to_dict().items()
            if name in _KEPT and value is not None}
    kept['model'] = host_sizes_config(
        _plain_config(_unwrapped(kept['model'])), size / tested)
    own = __package__.partition('.')[0]
    imports = kept.pop('custom_imports', None)
    if imports:
        names = imports['imports']
        names = [names] if isinstance(names, str) else names
        names = [n for n in names if n.partition('.')[0] != own]
        if names:
            kept['custom_imports'] = dict(imports, imports=names)
    if type_name(kept.get('test_cfg') or {}) == 'ScalesTestLoop':
        kept['test_cfg'] = dict(fp16=kept['test_cfg'].get('fp16', False))
    for _, pipeline in pipelines_in(kept['test_dataloader'].get('dataset')):
        pipeline[:] = rescale_pipeline(pipeline, size, tested)
    return Config(kept)


def config_text(cfg: Config, size: int) -> str:
    """:func:`plain_config` as the text that mmengine keeps in checkpoints;
    '' if a text cannot hold it, e.g. for a config with functions."""
    text = plain_config(cfg, size).pretty_text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # from the hosts' own imports
            Config.fromstring(text, '.py')
    except Exception:  # the text is Python code, which may raise anything
        return ''
    return text


def plain_data(value: Any) -> Any:
    """``value`` with nothing but lists, dicts and scalars, which any reader of
    checkpoints and of JSON allows; everything else, as NaN, becomes None."""
    if isinstance(value, dict):
        return {str(key): plain_data(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool)) else None
