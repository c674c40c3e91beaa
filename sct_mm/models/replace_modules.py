"""Replace layers wherever a model holds them; shared tensors stay shared."""
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

from mmengine.model import BaseAveragedModel
from torch import Tensor, nn

Pair = tuple[nn.Module, nn.Module]  # a layer, and what replaces it
# Attributes of torch in each module: tensors, hooks and registered modules.
_OF_TORCH = frozenset(vars(nn.Module()))


def replace_modules(
        model: nn.Module,
        swap: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Replace every module m for which swap(m) is not None by swap(m), under
    each of its names, and in lists, tuples and dicts of any depth. Bound
    methods of m that a module keeps are replaced, too. Returns the model.

    Tensors of m that a module keeps in a list or dict, as mmengine's averaged
    models do, become those of swap(m). Lists and dicts are changed in place;
    whatever holds nothing that is replaced stays the same object. If replaced
    modules share a tensor, the modules that replace them share one. An error
    leaves the model as it is.

    Raises:
        ValueError: if a tensor that a new module has in another form is
            shared with a module that stays.
    """
    pairs = [(old, new) for old in model.modules()
             for new in (swap(old), ) if new is not None]
    _share(model, pairs)
    # By id, with the object itself: an id that is free is given again.
    known: dict[int, tuple[Any, Any]] = {
        id(old): (old, new) for old, new in pairs}
    known.update((id(before), (before, after)) for pair in pairs
                 for _, before, after, _ in _slots(pair)
                 if before is not None and before is not after)
    found: list[nn.Module] = []
    root = _replaced(model, known, found)
    found += [new for _, new in pairs]
    for module in found:  # it grows
        for name, child in module._modules.items():
            module._modules[name] = _replaced(child, known, found)
        for name, value in vars(module).items():
            if name not in _OF_TORCH:
                module.__dict__[name] = _replaced(value, known, found)
    return root


def refresh_averages(model: nn.Module) -> None:
    """Let the averaged models within ``model``, as momentum encoders are, list
    the tensors that their module has: mmengine's list them once, when they
    are built."""
    for module in model.modules():
        if isinstance(module, BaseAveragedModel):
            module.avg_parameters = (
                module.module.state_dict() if module.update_buffers
                else dict(module.module.named_parameters()))


def _replaced(value: Any, known: dict[int, tuple[Any, Any]],
              found: list[nn.Module]) -> Any:
    """The object that replaces ``value``, or ``value`` itself. A module that
    was not ``known`` is appended to ``found``."""
    if id(value) in known:
        return known[id(value)][1]
    if isinstance(value, MethodType) and id(value.__self__) in known:
        old, new = known[id(value.__self__)]
        if new is old:
            return value
        if getattr(type(old), value.__name__, None) is value.__func__:
            return getattr(new, value.__name__)
        return MethodType(value.__func__, new)  # not a method of its class
    if not isinstance(value, (nn.Module, dict, list, tuple)):
        return value
    known[id(value)] = value, value  # it may hold itself
    if isinstance(value, nn.Module):
        found.append(value)
    elif isinstance(value, tuple):
        new = [_replaced(item, known, found) for item in value]
        if any(a is not b for a, b in zip(new, value, strict=True)):
            make = getattr(value, '_make', type(value))  # of a namedtuple
            known[id(value)] = value, make(new)
    else:
        # Not by the items() of a subclass: a config's imports what it names.
        for key, item in list(dict.items(value) if isinstance(value, dict)
                              else enumerate(value)):
            new = _replaced(item, known, found)
            if new is not item:
                value[key] = new
    return known[id(value)][1]


def _slots(pair: Pair) -> Iterator[tuple[str, Tensor | None, Tensor, dict]]:
    """(name, old tensor, new tensor, dict of the new one) of each tensor of a
    layer."""
    old, new = pair
    for before, after in ((old._parameters, new._parameters),
                          (old._buffers, new._buffers)):
        for name, tensor in after.items():
            if tensor is not None:
                yield name, before[name], tensor, after


def _share(model: nn.Module, pairs: list[Pair]) -> None:
    """Let the new layers of ``pairs`` share tensors as the old ones do."""
    changed: dict[int, Tensor] = {}  # id of a tensor before -> after
    for pair in pairs:
        for name, before, tensor, after in list(_slots(pair)):
            if tensor is not before:
                after[name] = changed.setdefault(id(before), tensor)
    moved = {(id(pair[0]), name) for pair in pairs
             for name, before, tensor, _ in _slots(pair)
             if tensor is not before}
    places = [(id(tensor), f'{path}.{name}'.lstrip('.'),
               (id(module), name) in moved)
              for path, module in model.named_modules()
              for name, tensor in (*module._parameters.items(),
                                   *module._buffers.items())]
    own = {key: name for key, name, is_moved in places if is_moved}
    for key, name, is_moved in places:
        if key in own and not is_moved:
            raise ValueError(f'`model` shares {own[key]} with {name}, which '
                             'has no rows for scales. Give each a tensor of '
                             'its own first.')
