"""Checkpoints that today's torch loads, and that are whole or absent."""
import os
import os.path as osp
import pickle
from pathlib import Path
from typing import Any, Union

import mmengine
import numpy as np
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import _load_checkpoint

from .config import UserError


def _history_method(owner: type, name: str) -> Any:
    """``getattr`` as mmengine's checkpoints need it, and no further."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(
        f'A checkpoint may name the statistics of HistoryBuffer, but got '
        f'{owner!r}.{name}. Do not load it unless you trust its source.')


def allow_checkpoint_types() -> None:
    """Let ``torch.load`` read mmengine's checkpoints with ``weights_only`` on.

    torch >= 2.6 refuses what it does not know. The message hub in mmengine's
    checkpoints (0.10.7) holds arrays, numpy scalars, and the statistics of
    ``HistoryBuffer``, which it pickles as ``getattr`` calls.
    """
    array = np.array([0.0])
    rebuild_array = array.__reduce__()[0]
    rebuild_scalar = array[0].__reduce__()[0]
    names = [(rebuild_array, '_reconstruct'), (rebuild_scalar, 'scalar')]
    torch.serialization.add_safe_globals([
        HistoryBuffer, np.ndarray, np.dtype,
        (_history_method, 'builtins.getattr'),
        *((f, f'numpy.{core}.multiarray.{name}')
          for f, name in names for core in ('core', '_core')),
        *{type(np.dtype(t)) for t in ('f8', 'f4', 'i8', 'i4', '?')},
    ])


@register_backend('atomic_local')
class AtomicLocalBackend(LocalBackend):
    """mmengine's local file backend, whose files are whole or absent.

    It writes beside the target and renames, which POSIX does at once: a run
    killed while it saves leaves the checkpoint before untouched. Use it as
    ``CheckpointHook(backend_args=dict(backend='atomic_local'))``.
    """

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        partial = f'{filepath}.partial'
        super().put(obj, partial)
        os.replace(partial, filepath)


def check_checkpoint(path: str) -> dict:
    """Load the checkpoint at ``path`` on the CPU, or say why it cannot be."""
    if '://' not in path and not osp.isfile(path):
        raise UserError(f'The checkpoint must be a file, but got {path!r}. '
                        'Train first, or name another.')
    try:
        checkpoint = _load_checkpoint(path, map_location='cpu')
    except Exception as error:  # each format and torch version has its own
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f'The checkpoint {path!r} cannot be read ({cause}). '
                        'It is damaged or no checkpoint: name another, or '
                        'resume from the one before.') from error
    if not isinstance(checkpoint, dict):
        raise UserError(f'The checkpoint {path!r} must hold a dict, but got '
                        f'a {type(checkpoint).__name__}. Name another.')
    return checkpoint


def dump(data: dict, path: str) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    text = mmengine.dump(data, file_format='json', indent=2)
    AtomicLocalBackend().put(text.encode(), path)
