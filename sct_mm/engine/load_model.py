"""Build the network of a config and load a checkpoint into it, without a
Runner."""
import copy
import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterator
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..models.size_selection import ScaleSpecific
from ..utils.errors import UserError


def state_in(checkpoint: dict, path: str) -> dict:
    """The weights in ``checkpoint``: its ``state_dict``, or all of it.

    Raises:
        UserError: if that is no state dict.
    """
    state: Any = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, dict) or not all(
            isinstance(name, str) for name in state) or not any(
            isinstance(value, Tensor) for value in state.values()):
        found = ', '.join(map(repr, list(checkpoint)[:4])) or 'nothing'
        raise UserError(f'The checkpoint {path!r} must hold weights by their '
                        'names, as they are or in `state_dict`, but holds '
                        f'{found}. Name one that a training or an export '
                        'wrote, or write its weights so.')
    return state


def without_wrapper(state: dict) -> OrderedDict:
    """A state dict without the prefix and the own entries of a wrapper, be it
    for several processes or for an average of weights."""
    wrapped = any(name.startswith('module.') for name in state)
    weights = OrderedDict((name.removeprefix('module.'), value)
                          for name, value in state.items()
                          if name.startswith('module.') or not wrapped)
    vars(weights)['_metadata'] = getattr(state, '_metadata', {})
    return weights


def differing_tensors(state: dict[str, Tensor], other: dict[str, Tensor]
                      ) -> list[str]:
    """The names of the tensors that are not equal to the bit in two state
    dicts, or that one of them does not have."""
    return [name for name in {**state, **other} if not (
        name in state and name in other
        and torch.equal(state[name].cpu(), other[name].cpu()))]


def _load(model: nn.Module, weights: dict) -> tuple[list[str], str | None]:
    """Load ``weights`` into ``model``; returns the names that it has no place
    for, and, if the weights do not fit or are not enough, the cause.

    Raises:
        ValueError: for a checkpoint with another number of scales.
    """
    try:
        missing, more = model.load_state_dict(weights, strict=False)
    except ValueError:  # from SSBN, whose message says what to do
        raise
    except Exception as error:  # a host's conversion may raise anything
        lines = [line.strip(' \t.') for line in str(error).splitlines()]
        return [], (lines[1] if ''.join(lines[:1]).startswith('Error(s) in')
                    else f'{type(error).__name__}: {"".join(lines[:1])}')
    tensors = dict(_learned(model, remove_duplicate=False))
    loaded = {id(value) for name, value in tensors.items()
              if name not in set(missing)}
    for name, value in _learned(model):
        if id(value) not in loaded:
            return more, (f'{name} of shape {tuple(value.shape)} is missing '
                          'there')
    return more, None


def _learned(model: nn.Module, remove_duplicate: bool = True
             ) -> Iterator[tuple[str, Tensor]]:
    """The parameters and statistics, by name. A checkpoint may lack other
    buffers, which a model may compute."""
    yield from model.named_parameters(remove_duplicate=remove_duplicate)
    for path, layer in model.named_modules(remove_duplicate=remove_duplicate):
        if isinstance(layer, _BatchNorm):
            for name in ('running_mean', 'running_var'):
                if layer._buffers.get(name) is not None:
                    yield f'{path}.{name}'.lstrip('.'), getattr(layer, name)


def _layers_in(model: nn.Module, weights: dict, name: str
               ) -> Iterator[tuple[ScaleSpecific, Tensor]]:
    """The SSBN layers, each with its tensor ``name`` in ``weights``."""
    for path, layer in model.named_modules():
        value = weights.get(f'{path}.{name}'.lstrip('.'))
        if isinstance(layer, ScaleSpecific) and isinstance(value, Tensor):
            yield layer, value


def check_scales_of(model: nn.Module, weights: dict, path: str) -> None:
    """Refuse a checkpoint with as many scales as the model, but others, which
    would load by their order. The extra state of a layer names its scales.

    Raises:
        UserError: naming the scales of both.
    """
    for layer, record in _layers_in(model, weights, '_extra_state'):
        if record.dim() == 2:
            # An average of state dicts holds them as floats.
            scales = tuple(record[:, 0].nan_to_num().round().int().tolist())
            if scales != layer.scales:
                raise UserError(
                    f'{path!r} was trained at the scales {scales}, but the '
                    f'config has {layer.scales}. Set the `scales` of its '
                    '`norm_cfg` to those of the checkpoint.')


def is_of_one_size(model: nn.Module, state: dict) -> bool:
    """Whether ``state`` is of a network for one size, whose normalization
    parameters SSBN loads for all scales."""
    return any(
        len(layer.scales) > 1 and value.dim() == 1 for layer, value
        in _layers_in(model, without_wrapper(state), 'running_mean'))


def warn_one_row(model: nn.Module, state: dict, path: str) -> None:
    """Warn if a checkpoint of a network for one size was loaded into SSBN."""
    if is_of_one_size(model, state):
        warnings.warn(f'{path!r} is of a network for one size: the '
                      'normalization parameters of all scales are the same. '
                      'Train or calibrate them.', stacklevel=2)


def _broken(name: str, value: Any, learned: Collection[str]) -> str:
    """'NaN' or 'inf' if ``value`` holds it and must not; '' if not. Buffers
    that are not learned, such as a mask, may hold inf."""
    if not (isinstance(value, Tensor) and value.is_floating_point()
            and value.layout == torch.strided and not value.is_meta
            and not value.is_nested):
        return ''
    if value.isnan().any():
        return 'NaN'
    return 'inf' if name in learned and value.isinf().any() else ''


def check_fits(model: nn.Module, state: dict, path: str) -> list[str]:
    """Load weights into ``model``, and refuse what mmengine would accept:
    weights that are missing or of other shapes, which it would leave as they
    were initialised, and other scales, which it would load by their order.

    The weights are checked by loading them, since hosts convert some: a
    position embedding for another image size, names of an older version.

    Returns:
        list: names of the weights that ``model`` has no place for. If there
        are any, the checkpoint may be of a deeper network of the same family,
        and the shallower one that it fills computes nothing of use.

    Raises:
        UserError: for weights that do not fit, other scales, NaN and inf.
        ValueError: for another number of scales.
    """
    weights = without_wrapper(state)
    more, misfit = _load(model, weights)
    if misfit:
        raise UserError(f'{path!r} does not fit the config: {misfit}. Name '
                        'the config it was trained with.')
    check_scales_of(model, weights, path)
    learned = dict(_learned(model, remove_duplicate=False))
    for name, value in model.state_dict().items():
        broken = name in weights and _broken(name, value, learned)
        if broken:
            raise UserError(f'The weights in {path!r} must be numbers, but '
                            f'{name} holds {broken}: the training had '
                            'diverged, or the type of the file is too small. '
                            'Name another checkpoint.')
    return [name for name in more if isinstance(weights.get(name), Tensor)
            and not name.endswith('_extra_state')]


def check_is_of(model: nn.Module, checkpoint: dict, path: str) -> None:
    """Load ``checkpoint`` into ``model``, and refuse one that holds less or
    more than the weights of ``model``.

    Raises:
        UserError: as :func:`check_fits`, and for weights without a place.
    """
    more = check_fits(model, state_in(checkpoint, path), path)
    if more:
        raise UserError(f'{path!r} does not fit the config: the network has '
                        f'no place for {more[0]}. Name the config it was '
                        'trained with.')


def built_model(cfg: Config) -> nn.Module:
    """The network of ``cfg`` as its Runner builds it, on the CPU; its weights
    are not initialised."""
    config = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        config.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(config)


def loaded_model(cfg: Config, checkpoint: dict, path: str) -> nn.Module:
    """The network of ``cfg`` (:func:`built_model`) with the weights of
    ``checkpoint``, in evaluation mode.

    Args:
        checkpoint: the content of ``path``, as
            :func:`~sct_mm.utils.checkpoint.check_checkpoint` reads it.

    Raises:
        UserError: for a checkpoint that holds less or more than the network,
            or tensors of other shapes.
    """
    model = built_model(cfg)
    check_is_of(model, checkpoint, path)
    return model.eval()
