"""A copy of a network for passes that must leave no trace in it."""
import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import CellType, FunctionType
from typing import Any, TypeVar

import numpy as np
import torch
from mmengine.hooks import Hook
from torch import Tensor, nn

from .size_selection import scale_specific

Network = TypeVar('Network', bound=nn.Module)


def copied(model: Network) -> Network:
    """A copy of ``model``, also of one that has trained: torch refuses to copy
    what has a graph, as outputs which a pass has left in attributes of a head
    (mmdet's CondInst); they are copied without it."""
    return copy.deepcopy(model, _left_by_passes(model))


def _left_by_passes(model: nn.Module) -> dict[int, Tensor]:
    """The memo for ``copy.deepcopy`` with which it copies these outputs."""
    memo: dict[int, Tensor] = {}
    held: list[Any] = [vars(module) for module in model.modules()]
    seen = set(map(id, held))
    for value in held:  # it grows
        if isinstance(value, Tensor):
            if not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        elif isinstance(value, (dict, list, tuple)):
            inner = [each for each in (dict.values(value) if isinstance(
                value, dict) else value) if id(each) not in seen]
            seen.update(map(id, inner))
            held += inner
    return memo


def scratch_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that shares the parameters that train and the
    records of its layers, but no other state: no buffer, no attribute of
    a head that counts, no variable of a forward hook, no frozen parameter,
    which a pass may write (momentum encoders). So it takes the memory of
    these.

    Raises:
        Exception: whatever an attribute that cannot be copied raises.
    """
    shared: list[Any] = [p for p in model.parameters() if p.requires_grad]
    for layer in scale_specific(model):
        shared += layer.extents, getattr(layer, 'process_group', None)
    memo: dict[int, Any] = {**_left_by_passes(model),
                            **{id(each): each for each in shared}}
    for module in model.modules():
        for hook in (*module._forward_pre_hooks.values(),
                     *module._forward_hooks.values()):
            owner = getattr(hook, '__self__', None)
            if isinstance(owner, Hook):  # it may hold the Runner
                memo[id(owner)] = copy.copy(owner)
    scratch = copy.deepcopy(model, memo)
    for module in scratch.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in hooks.items():
                if isinstance(hook, FunctionType) and hook.__closure__:
                    hooks[key] = _copied(hook, memo)
    return scratch


def _copied(function: FunctionType, memo: dict) -> FunctionType:
    """``function`` with a copy of its variables; deepcopy() leaves them."""
    new = FunctionType(
        function.__code__, function.__globals__, function.__name__,
        function.__defaults__, tuple(
            CellType(copy.deepcopy(cell.cell_contents, memo))
            for cell in function.__closure__ or ()))
    new.__kwdefaults__ = function.__kwdefaults__
    return new


@contextmanager
def keeping_random_state(model: nn.Module) -> Iterator[None]:
    """Put the random numbers of Python, NumPy and torch back after a ``with``
    block, on the CPU and on the GPUs of ``model``."""
    python, numpy = random.getstate(), np.random.get_state()
    gpus = {p.device for p in model.parameters() if p.device.type == 'cuda'}
    try:
        with torch.random.fork_rng(devices=sorted(gpus, key=str)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
