"""Write files whole or not at all; read checkpoints only if they are whole."""
import contextlib
import errno
import math
import os
import os.path as osp
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.runner.checkpoint import _load_checkpoint

from .errors import UserError
from .safe_load import protected_loading, unreadable, without_code

PARTIAL = '.partial'
# Bytes that an output must leave: a file has a longer name until it is whole
# ('.new.partial'), and mmengine makes folders for logs within that of a run.
_NAME_ROOM, _PATH_ROOM = 12, 128


class WriteError(OSError, UserError):
    """A file that could not be written; the one before it is kept."""


def _sync_folder(path: str) -> None:
    """Wait until new names in the folder ``path`` are on the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        # Some network file systems cannot do this.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(folder)


def _write(obj: bytes, path: str) -> None:
    """Write ``obj`` to ``path``, whole or not at all."""
    partial = path + PARTIAL
    try:
        with open(partial, 'wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise
    _sync_folder(osp.dirname(path))


def make_folder(path: str, name: str) -> None:
    """Make the folder ``path`` before the work whose result goes into it.

    Args:
        name: what an error calls the folder.

    Raises:
        UserError: if it cannot be made, or cannot be written to.
    """
    try:
        os.makedirs(path, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f'{name} must be a folder that can be written to, but '
                        f'got {path!r} ({error.strerror}). Name another.'
                        ) from error


def _limit(folder: str, name: str) -> float:
    """What ``os.pathconf`` knows of ``folder``; inf where its file system
    has no limit (-1) or does not know it."""
    try:
        found = os.pathconf(folder, name)
    except OSError:
        return math.inf
    return found if found > 0 else math.inf


def check_place(path: str) -> None:
    """Check, before the work begins, that a file can be written to ``path``,
    whose folders need not be there.

    Raises:
        UserError: for a folder that cannot be written to, and for a name that
            is too long for its file system.
    """
    folder = osp.dirname(osp.abspath(path))
    while not osp.lexists(folder):
        folder = osp.dirname(folder)
    if not osp.isdir(folder) or not os.access(folder, os.W_OK):
        raise UserError(f'The output {path!r} cannot be written: '
                        f'{folder!r} is no folder that can be written '
                        'to. Name another.')
    whole = os.fsencode(osp.abspath(path))
    *folders, name = whole.split(b'/')
    longest = _limit(folder, 'PC_NAME_MAX')
    for text, most in (
            (name, longest - _NAME_ROOM),
            *((each, longest) for each in folders),
            (whole, _limit(folder, 'PC_PATH_MAX') - _PATH_ROOM)):
        if len(text) > most:
            raise UserError(
                f'The output must have a {"path" if text is whole else "name"}'
                f' of at most {most} bytes, but {os.fsdecode(text)!r} has '
                f'{len(text)}. Name a shorter one.')


def meta_of(checkpoint: dict) -> dict:
    """The ``meta`` of ``checkpoint``; empty if it has none."""
    meta = checkpoint.get('meta')
    return meta if isinstance(meta, dict) else {}


def check_outputs(paths: Sequence[str], force: bool,
                  ending: str = '') -> None:
    """Refuse, before the work begins, outputs that cannot be written.

    Raises:
        UserError: for a file that exists, unless ``force``; for a folder of
            that name; for a name without ``ending``; and as
            :func:`check_place`.
    """
    for path in paths:
        if osp.isdir(path) or not osp.basename(path):
            raise UserError(f'The output must be a file, but {path!r} is a '
                            'folder. Name a file in it.')
        if not path.endswith(ending):
            raise UserError(f'The output must be a {ending}, but got '
                            f'{path!r}. Name one.')
        if osp.lexists(path) and not force:
            raise UserError(f'The output {path!r} exists already. Name '
                            'another, or replace it by --force.')
        check_place(path)


@register_backend('atomic_local')
class AtomicLocalBackend(LocalBackend):
    """mmengine's local file backend, with files that are whole or absent.

    A file is written beside its target, synchronised with the disk, and then
    renamed, which POSIX does at once. If a run is killed while it saves, or
    the machine loses power, the checkpoint before stays as it is. Use it as
    ``CheckpointHook(backend_args=dict(backend='atomic_local'))``.

    ``CheckpointHook`` removes the oldest checkpoint, or the best one, before
    it saves the next. Here ``remove`` waits until the next file is in the
    folder, so that a full disk loses nothing. The disk needs room for one
    checkpoint more than ``max_keep_ckpts``.
    """

    # Shared by all instances: the hook removes by one, and saves by another.
    _to_remove: dict[str, set[str]] = {}

    def put(self, obj: bytes, filepath: str | Path) -> None:
        path = osp.abspath(filepath)
        folder = osp.dirname(path)
        try:
            os.makedirs(folder, exist_ok=True)
            _write(obj, path)
        except OSError as error:
            raise WriteError(
                f'{str(filepath)!r} cannot be written '
                f'({error.strerror or error}), and nothing older is lost. '
                'Make room, and run this again (a training by --resume).'
            ) from error
        for old in self._to_remove.pop(folder, set()) - {path}:
            with contextlib.suppress(FileNotFoundError):
                os.remove(old)

    def put_text(self, obj: str, filepath: str | Path,
                 encoding: str = 'utf-8') -> None:
        self.put(obj.encode(encoding), filepath)

    def remove(self, filepath: str | Path) -> None:
        """Remove a file when the next one is written into its folder.

        Raises:
            FileNotFoundError: if there is no such file.
            IsADirectoryError: if it is a folder.
        """
        if not self.exists(filepath):
            raise FileNotFoundError(f'There is no file {str(filepath)!r}.')
        if self.isdir(filepath):
            raise IsADirectoryError(f'{str(filepath)!r} is a folder.')
        path = osp.abspath(filepath)
        self._to_remove.setdefault(osp.dirname(path), set()).add(path)


def _damage(path: str) -> str | None:
    """The first record of the archive at ``path`` whose checksum is wrong.

    torch does not compare checksums: it reads a lost page as zeros.
    """
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def _load_file(path: str):
    """The checkpoint in a file; its tensors are read when they are used."""
    if not zipfile.is_zipfile(path):  # written by torch < 1.6, or damaged
        return torch.load(path, map_location='cpu', weights_only=True)
    record = _damage(path)
    if record is not None:
        raise UserError(f'the checksum of {record!r} is wrong')
    try:
        return torch.load(path, map_location='cpu', weights_only=True,
                          mmap=True)
    except RuntimeError:  # the file system cannot map files
        return torch.load(path, map_location='cpu', weights_only=True)


def _beside(path: str) -> str:
    """What to know of the folder of ``path``, which is missing."""
    folder = osp.dirname(osp.abspath(path))
    if not osp.isdir(folder):
        return f', as is its folder {folder!r}'
    names = sorted(name for name in os.listdir(folder)
                   if name.endswith('.pth'))
    more = f' and {len(names) - 5} more' if len(names) > 5 else ''
    return (f' from the folder {folder!r}, which has '
            f'{", ".join(names[:5]) or "no .pth"}{more}')


def check_checkpoint(path: str) -> dict:
    """Load the checkpoint at ``path`` on the CPU.

    A local file is compared with its checksums, and its tensors are mapped
    into memory, not read.

    Raises:
        UserError: if it is missing, damaged, unsafe or no checkpoint.
    """
    if path.endswith('.safetensors'):
        raise UserError(f'The checkpoint must be a file of torch, but got '
                        f'{path!r}, which mmengine does not load. Write it '
                        'anew: torch.save(dict(state_dict=safetensors.torch.'
                        'load_file(OLD)), NEW).')
    remote = '://' in path
    local = osp.expanduser(path)
    if not remote and osp.isdir(local):
        raise UserError(f'The checkpoint must be a file, but {path!r} is a '
                        'folder. Name a file in it.')
    if not remote and not osp.isfile(local):
        raise UserError(f'The checkpoint must be a file, but got {path!r}, '
                        f'which is missing{_beside(local)}. Train first, or '
                        'name another.')
    refusal = None
    with protected_loading():
        try:
            checkpoint = (_load_checkpoint(path, map_location='cpu') if remote
                          else without_code(_load_file(local)))
        except Exception as error:  # its type depends on format and torch
            refusal = unreadable(path, error)
    if refusal:  # raised here, a traceback does not show torch's advice
        raise refusal
    if not isinstance(checkpoint, dict):
        raise UserError(f'The checkpoint {path!r} must hold a dict, but got '
                        f'a {type(checkpoint).__name__}. Name another.')
    return checkpoint


def without_nan(value: Any) -> Any:
    """``value`` with None for each float in it that is not finite: JSON has
    neither NaN nor inf."""
    if isinstance(value, dict):
        return {name: without_nan(child) for name, child in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [without_nan(child) for child in value]
    return (None if isinstance(value, (float, np.floating))
            and not math.isfinite(value) else value)


def dump(data: Any, path: str) -> None:
    """Write ``data`` as JSON to ``path``, whole or not at all
    (:func:`without_nan`)."""
    text = mmengine.dump(without_nan(data), file_format='json', indent=2)
    AtomicLocalBackend().put(text.encode(), path)
