"""Write a trained network with all its scales as a folder, and read it.

The folder holds config.json and model.safetensors, the files that a hub
expects. It needs no other config, and nothing in it is unpickled or run.
"""
import json
import os.path as osp
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config
from torch import Tensor, nn

from ..engine.load_model import differing_tensors, loaded_model
from ..engine.resume import find_checkpoint
from ..export.files import sha256_of, write_all
from ..export.formats import check_format, weight_bytes, weights_in
from ..export.stock_config import plain_data
from ..models.size_selection import scales_of
from ..utils.arguments import StrPath, check_path
from ..utils.checkpoint import check_checkpoint, check_outputs, meta_of
from ..utils.config import config_name, load_config
from ..utils.errors import UserError
from ..utils.safe_load import protected_loading, registered_only

CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
VERSION = 1
_TUPLE = '__tuple__'  # JSON has no tuples, which some hosts require


def packed(value: Any, where: str = 'the config') -> Any:
    """``value`` of a config in a form that JSON can hold.

    Raises:
        UserError: naming the place of a value that JSON cannot hold.
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
    """The value that :func:`packed` was given."""
    if isinstance(value, list):
        return [unpacked(child) for child in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {_TUPLE}:
        return tuple(unpacked(child) for child in value[_TUPLE])
    return {name: unpacked(child) for name, child in value.items()}


def _network(document: dict, weights: dict[str, Tensor], folder: str
             ) -> nn.Module:
    """The network of a folder's ``config.json`` with its weights."""
    cfg = Config(document['config'])
    # mmengine needs it, also if the config leaves it to the project.
    cfg.default_scope = document['default_scope']
    with registered_only():
        model = loaded_model(cfg, dict(state_dict=weights), folder)
    meta = document['dataset_meta']
    # Where the inferencers of mmpretrain, and of mmdet, look for them.
    model._config, model._dataset_meta = cfg, meta
    model.cfg, model.dataset_meta = cfg, meta
    return model


def _check_state(state: dict[str, Any]) -> None:
    """Refuse state that safetensors cannot hold."""
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f'{WEIGHTS} holds tensors alone, but {name} is a '
                            f'{type(value).__name__}. Export one size, or '
                            'keep the checkpoint.')


def _check_same(state: dict[str, Tensor], model: nn.Module) -> None:
    """Check that a network that was read back has the tensors that were
    written.

    Raises:
        RuntimeError: naming one that differs.
    """
    wrong = differing_tensors(state, model.state_dict())
    if wrong:
        raise RuntimeError(f'The folder must hold the network as it is, but '
                           f'{wrong[0]} differs when it is read back. No '
                           'file was written: export one size.')


@protected_loading()
def save_pretrained(config: StrPath, checkpoint: StrPath, folder: StrPath, *,
                    force: bool = False, cfg_options: dict | None = None
                    ) -> dict:
    """Write a trained network, with all its scales, as a folder that
    :func:`from_pretrained` reads anywhere: what tools/hub.py calls.

    Before the files are written, they are read back and compared to the bit.

    Args:
        config: path of the config, which goes into the folder with all that
            it inherits.
        checkpoint: path or address of the checkpoint, or a work directory,
            whose newest whole one is taken.
        folder: gets config.json and model.safetensors.
        force: whether files that exist are replaced.
        cfg_options: ``{'a.b': value}``, settings that override the config.

    Returns:
        dict: the content of ``config.json``.

    Raises:
        UserError, RuntimeError: for what is missing, does not fit, or cannot
            be held by JSON or safetensors.
    """
    config, folder = check_path('config', config), check_path('folder', folder)
    checkpoint = check_path('checkpoint', checkpoint)
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
    document = dict(
        library_name='sct_mm', version=VERSION, label=config_name(config),
        scales=scales_of(model), sha256=sha256_of(data),
        dataset_meta=plain_data(meta or {}), default_scope=cfg.default_scope,
        config=packed(cfg.to_dict()))
    text = json.dumps(document, indent=2)
    _check_same(state, _network(_checked(json.loads(text), CONFIG), weights_in(
        'safetensors', data), folder))
    write_all(dict(zip(paths, (data, text.encode()), strict=True)))
    return document


def _fetched(source: str, revision: str | None) -> str:
    """The folder ``source``, or the one to which huggingface_hub downloads
    the repository of that name."""
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


def _checked(document: Any, path: str) -> dict:
    """The content of the ``config.json`` at ``path``, unpacked.

    Raises:
        UserError: if it is damaged, or of another kind or version.
    """
    names = ('config', 'default_scope', 'dataset_meta', 'sha256')
    if not (isinstance(document, dict)
            and document.get('version') == VERSION
            and document.get('library_name') == 'sct_mm'
            and all(name in document for name in names)
            and isinstance(document['config'], dict)
            and isinstance(document['config'].get('model'), dict)):
        raise UserError(f'{path!r} is of another kind or version. Name a '
                        'folder that tools/hub.py of this version wrote.')
    try:
        config = unpacked(document['config'])
        meta = unpacked(document['dataset_meta'])
    except TypeError:
        meta = None
    if not (isinstance(meta, dict) and isinstance(config['model'], dict)
            and 'type' in config['model']):
        raise UserError(f'{path!r} is damaged. Name a folder that '
                        'tools/hub.py wrote, or copy it again.')
    return {**document, 'config': config, 'dataset_meta': meta}


def _read_document(folder: str) -> dict:
    """The content of ``config.json`` in ``folder``.

    Raises:
        UserError: if it is missing, damaged, or of another kind or version.
    """
    path = osp.join(folder, CONFIG)
    try:
        with open(path, encoding='utf-8') as file:
            document = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f'{path!r} cannot be read ({error}). Name a folder '
                        'that tools/hub.py wrote.') from None
    return _checked(document, path)


@protected_loading()
def from_pretrained(source: StrPath, revision: str | None = None) -> nn.Module:
    """Load the network that :func:`save_pretrained` wrote, from its folder or
    from a hub.

    Nothing in the folder is unpickled or run, and its config builds only what
    a registry holds. Import a package of your own that registers parts of it
    first.

    Args:
        source: the folder, or OWNER/NAME, which huggingface_hub downloads.
        revision: a branch, tag or commit on the hub.

    Returns:
        nn.Module: in evaluation mode, on the CPU, with its config and the
        names of its classes where mmpretrain's and mmdet's inferencers look
        for them.

    Raises:
        UserError: for a folder that is damaged, or of another kind or
            version.
    """
    check_format('safetensors')
    folder = _fetched(check_path('source', source), revision)
    document = _read_document(folder)
    path = osp.join(folder, WEIGHTS)
    if not osp.isfile(path):
        raise UserError(f'The weights must be at {path!r}, but there is no '
                        'such file. Name a folder that tools/hub.py wrote.')
    with open(path, 'rb') as file:
        data = file.read()
    if sha256_of(data) != document['sha256']:
        raise UserError(f'{path!r} is damaged, or of another {CONFIG}: its '
                        'SHA-256 differs. Copy or download both again.')
    return _network(document, weights_in('safetensors', data), folder)
