"""A network of a config with the weights of a checkpoint, and no Runner."""
import copy

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from torch import Tensor, nn

from ..models.scale import scales_of, ssbn_layers
from .config import UserError

_MODULE = [(r'^module\.', '')]  # of a wrapper of several processes


def _without_wrapper(state: dict) -> dict:
    return {name.removeprefix('module.'): value
            for name, value in state.items()}


def check_fits(model: nn.Module, state: dict, path: str) -> None:
    """Refuse weights that are missing or of other shapes, which mmengine
    would leave as they were initialised.

    Raises:
        UserError: naming the first that differs.
    """
    state = {name: value.shape for name, value
             in _without_wrapper(state).items() if isinstance(value, Tensor)}
    rows = len(scales_of(model) or ())
    norms = {id(value) for layer in ssbn_layers(model)
             for value in (*layer.parameters(), *layer.buffers())}
    needed = dict(model.named_parameters())  # a buffer may be computed
    for name, value in (*needed.items(), *model.named_buffers()):
        if name in state:
            fits = value.shape == state[name] or (
                id(value) in norms
                and value.numel() in (state[name].numel(),
                                      rows * state[name].numel()))
            got = f'has shape {tuple(state[name])}'
        else:
            fits, got = name not in needed, 'is missing'
        if not fits:
            raise UserError(f'{path!r} does not fit the config: {name} of '
                            f'shape {tuple(value.shape)} {got} there. Name '
                            'the config it was trained with.')


def check_no_more(model: nn.Module, state: dict, path: str) -> None:
    """Refuse weights that the model has no place for: a deeper network of a
    family fills a shallower one, which then computes nothing of use.

    Raises:
        UserError: naming the first of them.
    """
    own = model.state_dict()
    for name, value in _without_wrapper(state).items():
        if name not in own and isinstance(value, Tensor) and (
                not name.endswith('_extra_state')):
            raise UserError(f'{path!r} does not fit the config: {name} of '
                            f'shape {tuple(value.shape)} is there, and not '
                            'in the network. Name the config it was trained '
                            'with.')


def loaded_model(cfg: Config, checkpoint: dict, path: str) -> nn.Module:
    """The network of ``cfg`` as its Runner builds it, with the weights of
    ``checkpoint``, in evaluation mode, on the CPU.

    Args:
        checkpoint: what :func:`check_checkpoint` read from ``path``.

    Raises:
        UserError: for a checkpoint that holds less or more than the network,
            or tensors of other shapes.
    """
    config = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        config.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(config)
    state = checkpoint.get('state_dict', checkpoint)
    check_fits(model, state, path)
    check_no_more(model, state, path)
    _load_checkpoint_to_model(model, checkpoint, revise_keys=_MODULE)
    return model.eval()
