"""A trained network with all its scales as a folder: weights and config.

config.json and model.safetensors, as a hub wants them. The config is whole:
the folder needs no other config, and nothing in it is unpickled or run.
"""
import json
import os.path as osp
from importlib.util import find_spec
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..engine.load_model import loaded_model
from ..engine.resume import find_checkpoint
from ..export.files import sha256_of, write_all
from ..export.formats import check_format, weight_bytes, weights_in
from ..export.stock_config import plain_data
from ..models.size_selection import scales_of
from ..utils.checkpoint import check_checkpoint, check_outputs, meta_of
from ..utils.config import config_name, load_config
from ..utils.errors import UserError
from ..utils.safe_load import protected_loading, registered_only

CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
VERSION = 1
_TUPLE = '__tuple__'  # JSON has none, and some hosts ask for one


def packed(value: Any, where: str = 'the config') -> Any:
    """``value`` of a config as JSON holds it.

    Raises:
        UserError: naming the place of what it cannot hold.
    """
    if isinstance(value, (list, tuple)):
        items = [packed(child, f'{where}[{index}]')
                 for index, child in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {name: packed(child, f'{where}.{name}')
                for name, child in value.items()}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise UserError(f'{CONFIG} holds texts, numbers, lists and dicts with '
                    f'names, but {where} is {value!r}. Write it as one of '
                    'those, or delete it by --cfg-options.')


def unpacked(value: Any) -> Any:
    """What was :func:`packed`."""
    if isinstance(value, list):
        return [unpacked(child) for child in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {_TUPLE}:
        return tuple(unpacked(child) for child in value[_TUPLE])
    return {name: unpacked(child) for name, child in value.items()}


def _network(told: dict, weights: dict[str, Tensor], folder: str
             ) -> nn.Module:
    """The network of a folder's ``config.json`` with its weights."""
    cfg = Config(told['config'])
    # mmengine asks for it, also where a config leaves it to the project.
    cfg.default_scope = told['default_scope']
    with registered_only():
        model = loaded_model(cfg, dict(state_dict=weights), folder)
    meta = told['dataset_meta']
    model._config, model._dataset_meta = cfg, meta  # mmpretrain's names
    model.cfg, model.dataset_meta = cfg, meta  # mmdet's
    return model


def _check_state(state: dict[str, Any]) -> None:
    """Refuse what safetensors cannot hold."""
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f'{WEIGHTS} holds tensors alone, but {name} is a '
                            f'{type(value).__name__}. Export one size, or '
                            'keep the checkpoint.')


def _check_same(state: dict[str, Tensor], model: nn.Module) -> None:
    """Whether a network that was read back is the one that was written.

    Raises:
        RuntimeError: if it is not.
    """
    read = model.state_dict()
    wrong: list[str] = [name for name in {**state, **read} if not (
        name in read and name in state
        and torch.equal(state[name], read[name]))]
    if wrong:
        raise RuntimeError(f'The folder must hold the network as it is, but '
                           f'{wrong[0]} differs when it is read back. No '
                           'file was written: export one size.')


@protected_loading()
def save_pretrained(config: str, checkpoint: str, folder: str, *,
                    force: bool = False, cfg_options: dict | None = None
                    ) -> dict:
    """Write a trained network, with all its scales, as a folder that
    :func:`from_pretrained` reads anywhere: what tools/hub.py does.

    It is read back and compared to the bit before anything is written.

    Args:
        config: path of the config; it goes into the folder whole.
        checkpoint: path or address of the checkpoint, or a work directory,
            whose newest whole one is taken.
        force: whether files that exist are replaced.
        cfg_options: ``{'a.b': value}``, settings that override the config.

    Returns:
        dict: what ``config.json`` says.

    Raises:
        UserError, RuntimeError: for what is missing, does not fit, or cannot
            be held by JSON or safetensors.
    """
    check_format('safetensors')
    paths = [osp.join(folder, name) for name in (WEIGHTS, CONFIG)]
    check_outputs(paths, force)
    cfg = load_config(config, cfg_options)
    weights = check_checkpoint(find_checkpoint(checkpoint, cfg))
    model = loaded_model(cfg, weights, checkpoint)
    state = model.state_dict()
    _check_state(state)
    meta = meta_of(weights).get('dataset_meta')
    data = weight_bytes('safetensors', state, dict(format='pt'))
    told = dict(library_name='sct_mm', version=VERSION,
                label=config_name(config), scales=scales_of(model),
                sha256=sha256_of(data), dataset_meta=plain_data(meta or {}),
                default_scope=cfg.default_scope, config=packed(cfg.to_dict()))
    text = json.dumps(told, indent=2)
    _check_same(state, _network(_checked(json.loads(text), CONFIG), weights_in(
        'safetensors', data), folder))
    write_all(dict(zip(paths, (data, text.encode()), strict=True)))
    return told


def _fetched(source: str, revision: str | None) -> str:
    """The folder of ``source``, by huggingface_hub unless it is one."""
    if osp.isdir(source):
        return source
    if not find_spec('huggingface_hub'):
        raise UserError(f'The source must be a folder, but got {source!r}. '
                        'Name one that tools/hub.py wrote, or run pip '
                        'install huggingface_hub and name OWNER/NAME.')
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    try:
        return snapshot_download(source, revision=revision,
                                 allow_patterns=[CONFIG, WEIGHTS])
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        cause = str(error).strip().splitlines()[0]
    raise UserError(f'The source must be a folder, or OWNER/NAME on the hub, '
                    f'but got {source!r} ({cause}). Name another.')


def _checked(told: Any, path: str) -> dict:
    """What ``config.json`` at ``path`` holds, unpacked.

    Raises:
        UserError: for one of another kind or version, or damaged.
    """
    names = ('config', 'default_scope', 'dataset_meta', 'sha256')
    if not isinstance(told, dict) or told.get('version') != VERSION or not (
            told.get('library_name') == 'sct_mm'
            and all(name in told for name in names)
            and isinstance(told['config'], dict)
            and isinstance(told['config'].get('model'), dict)):
        raise UserError(f'{path!r} is of another kind or version. Name a '
                        'folder that tools/hub.py of this version wrote.')
    try:
        config, meta = unpacked(told['config']), unpacked(told['dataset_meta'])
    except TypeError:
        meta = None
    if not (isinstance(meta, dict) and isinstance(config['model'], dict)
            and 'type' in config['model']):
        raise UserError(f'{path!r} is damaged. Name a folder that '
                        'tools/hub.py wrote, or copy it again.')
    return {**told, 'config': config, 'dataset_meta': meta}


def _told(folder: str) -> dict:
    """What ``config.json`` in ``folder`` says.

    Raises:
        UserError: if there is none, or one of another kind or version.
    """
    path = osp.join(folder, CONFIG)
    try:
        with open(path, encoding='utf-8') as file:
            told = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f'{path!r} cannot be read ({error}). Name a folder '
                        'that tools/hub.py wrote.') from None
    return _checked(told, path)


@protected_loading()
def from_pretrained(source: str, revision: str | None = None) -> nn.Module:
    """The network in a folder of :func:`save_pretrained`, or on a hub.

    Nothing in it is unpickled or run, and its config builds only what a
    registry holds: where that is of your own package, import it first.

    Args:
        source: the folder, or OWNER/NAME, which huggingface_hub downloads.
        revision: on the hub, a branch, tag or commit.

    Returns:
        nn.Module: in evaluation mode, on the CPU, with its config and the
        names of its classes where mmpretrain's and mmdet's inferencers look
        for them.

    Raises:
        UserError: for a folder of another kind or version, or damaged.
    """
    check_format('safetensors')
    folder = _fetched(source, revision)
    told = _told(folder)
    path = osp.join(folder, WEIGHTS)
    if not osp.isfile(path):
        raise UserError(f'The weights must be at {path!r}, but there is no '
                        'such file. Name a folder that tools/hub.py wrote.')
    with open(path, 'rb') as file:
        data = file.read()
    if sha256_of(data) != told['sha256']:
        raise UserError(f'{path!r} is damaged, or of another {CONFIG}: its '
                        'SHA-256 differs. Copy or download both again.')
    return _network(told, weights_in('safetensors', data), folder)
