"""Load checkpoints without running code in them, and build configs without
calling anything that is not registered."""
import os
import pickle
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import mmengine.registry.registry as host_registry
import mmengine.runner.checkpoint as host
import numpy as np
import torch
from mmengine import registry
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim.scheduler import param_scheduler
from torch import nn

from .errors import UserError

_FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
_FORCE_NOT = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
_ONE_CYCLE = param_scheduler.OneCycleParamScheduler


class _Owner:
    """Stands for a class of which a checkpoint may name functions, but which
    it may not call."""

    def __init__(self, owner: type) -> None:
        self.owner = owner


# mmengine pickles the function of a class as getattr(class, name).
_ONE_CYCLE_OWNER = _Owner(_ONE_CYCLE)
_FUNCTIONS = {
    HistoryBuffer: (HistoryBuffer, ('min', 'max', 'current', 'mean')),
    _ONE_CYCLE_OWNER: (_ONE_CYCLE, ('_annealing_cos', '_annealing_linear'))}


def _function_of(owner: Any, name: str) -> Callable:
    """``getattr``, restricted to what mmengine's checkpoints need."""
    if isinstance(owner, (type, _Owner)) and owner in _FUNCTIONS:
        kind, names = _FUNCTIONS[owner]
        if name in names:
            return getattr(kind, name)
    raise pickle.UnpicklingError(
        'A checkpoint may name the statistics of HistoryBuffer and the '
        f'annealing of OneCycle, but got {owner!r}.{name}.')


def _load(file: Any, map_location: Any = None,
          weights_only: bool | None = None) -> Any:
    return torch.load(file, map_location=map_location, weights_only=True)


def allow_checkpoint_types() -> None:
    """Let ``torch.load`` read mmengine's checkpoints with ``weights_only`` on.

    torch >= 2.6 refuses types that are not on its list. The message hub in
    checkpoints of mmengine (0.10.7; OneDL's 0.10.12) holds arrays and scalars
    of numpy and the statistics of ``HistoryBuffer``; those of 2022 hold the
    hub as an object. ``OneCycleLR`` saves its annealing function.
    """
    array = np.array([0.0])
    rebuild_array = array.__reduce__()[0]
    rebuild_scalar = array[0].__reduce__()[0]
    names = [(rebuild_array, '_reconstruct'), (rebuild_scalar, 'scalar')]
    torch.serialization.add_safe_globals([
        HistoryBuffer, MessageHub, np.ndarray, np.dtype, slice,
        (_function_of, 'builtins.getattr'),
        (_ONE_CYCLE_OWNER,  # type: ignore[list-item]  # any object may be one
         f'{_ONE_CYCLE.__module__}.{_ONE_CYCLE.__name__}'),
        *((f, f'numpy.{core}.multiarray.{name}')
          for f, name in names for core in ('core', '_core')),
        *{type(np.dtype(kind)) for kind in '?bBhHiIlLqQefd'},
    ])
    # OneDL's mmengine allows all of `getattr` while it loads, by which a
    # checkpoint reaches any function. Afterwards it removes its types, which
    # are also ours, from torch's list. What torch refuses it loads again
    # unprotected.
    if hasattr(host, '_safe_torch_load'):
        host._safe_torch_load = _load
    _guard_loaders()


class _Protection:
    """The number of open ``protected_loading`` of all threads, and the
    environment variables before the first of them."""
    lock = threading.Lock()
    open = 0
    before: dict = {}


@contextmanager
def protected_loading() -> Iterator[None]:
    """Within this context, ``torch.load`` runs no code of a checkpoint, even
    if its caller passes ``weights_only=False``.

    OneDL's mmengine falls back to that, and torch.hub, which loads from a URL,
    has it as its default. It nests, over threads too, and is a decorator.
    Subprocesses inherit the protection.
    """
    with _Protection.lock:
        if not _Protection.open:
            _Protection.before = {name: os.environ.pop(name, None)
                                  for name in (_FORCE, _FORCE_NOT)}
            os.environ[_FORCE] = '1'
        _Protection.open += 1
    try:
        yield
    finally:
        with _Protection.lock:
            _Protection.open -= 1
            if not _Protection.open:
                os.environ.pop(_FORCE, None)
                os.environ.update({name: value for name, value in
                                   _Protection.before.items()
                                   if value is not None})


def cause_of(error: Exception) -> str:
    """The cause of ``error`` of a checkpoint, without torch's advice to turn
    the protection off."""
    text = str(error)
    name = re.search(r'GLOBAL (\S+)', text)
    if name:
        return f'it holds {name[1]}, which no checkpoint needs'
    detail = re.search(r'WeightsUnpickler error:\s*(\S.*)', text)
    if detail:
        return detail[1]
    if 'weights_only' in text:
        return 'it is an archive of another kind, or holds forbidden objects'
    line = (text.strip() or type(error).__name__).splitlines()[0]
    return re.split(r'[.] [A-Z]', line)[0]  # of several, the first sentence


def unreadable(path: str, error: Exception) -> UserError:
    """The error for a checkpoint that ``torch.load`` cannot read."""
    return UserError(
        f'The checkpoint {path!r} cannot be read ({cause_of(error)}). It is '
        'damaged, unsafe or no checkpoint: name another, or resume from the '
        'one before.')


def _guarded(loader: Callable) -> Callable:
    """``loader`` of mmengine under :func:`protected_loading`. An error becomes
    one sentence."""

    @wraps(loader)
    def load(filename: str, *args, **kwargs):
        refusal = None
        with protected_loading():
            try:
                checkpoint = loader(filename, *args, **kwargs)
            except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
                refusal = unreadable(str(filename), error)
        if refusal:  # outside of `except`, whose error has torch's advice
            raise refusal
        return without_code(checkpoint)

    vars(load)['guarded'] = True
    return load


def _guard_loaders() -> None:
    """Protect mmengine's loaders, of files, URLs and model zoos."""
    loader = host.CheckpointLoader
    for prefix, load in list(loader._schemes.items()):
        if not hasattr(load, 'guarded'):
            loader.register_scheme(prefix, _guarded(load), force=True)


def without_code(checkpoint: Any) -> Any:
    """``checkpoint`` without ``meta['config']``, the text of a config of
    mmcv 1, which mmengine's ``Runner.resume`` runs as Python."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict):
        meta.pop('config', None)
    return checkpoint


_LOCK = threading.RLock()


def is_registered(found: Any) -> bool:
    """Whether ``found`` is in a registry of any host, or is a class of torch
    modules."""
    if isinstance(found, type) and issubclass(found, nn.Module):
        return True
    roots = [each for each in vars(registry).values()
             if isinstance(each, registry.Registry)]
    while roots:
        each = roots.pop()
        if any(found is kind for kind in each.module_dict.values()):
            return True
        roots.extend(each.children.values())
    return False


@contextmanager
def registered_only() -> Iterator[None]:
    """Within this context, a ``type`` in a config must be registered.

    mmengine takes the path of any function or class of any installed package
    as well, such as ``subprocess.Popen``, and calls it. Paths of registered
    types and of torch modules are allowed: `read_base` configs name classes
    in this way. Other threads are not restricted.

    Raises:
        UserError: if another ``type`` was named.
    """
    refused: list[str] = []
    own = threading.get_ident()

    def get_registered(name: str) -> Any:
        if threading.get_ident() != own:
            return before(name)
        # To import a package runs its code.
        known = name.partition('.')[0] in sys.modules
        found = before(name) if known else None
        if found is not None and is_registered(found):
            return found
        refused.append(name)
        return None

    with _LOCK:
        before = host_registry.get_object_from_string
        host_registry.get_object_from_string = get_registered
        try:
            yield
        except Exception as error:  # each builder has its own
            if not refused:
                raise
            raise UserError(
                'A `type` of the config must be a module, or registered, but '
                f'got {refused[0]!r}. Import the package that registers it '
                'first, or take a config that you trust.') from error
        finally:
            host_registry.get_object_from_string = before
