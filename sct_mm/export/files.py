"""Where files go: nothing is replaced unasked, nothing half-written stays."""
import contextlib
import hashlib
import os
import os.path as osp
from collections.abc import Sequence

from ..utils.checkpoint import AtomicLocalBackend
from ..utils.errors import UserError
from .formats import FORMATS

MANIFEST = 'manifest.json'
NEW = '.new'  # of a file that waits for the others


def paths_of(out: str, kind: str, sizes: Sequence[int], label: str,
             every: bool) -> dict[int, str]:
    """Size -> path of its file: ``out`` itself, or, for ``every`` size, one a
    size in the folder ``out``.

    Raises:
        UserError: for a file that is named as one of another format.
    """
    if not every:
        kind_of = next((name for name, (end, _) in FORMATS.items()
                        if out.endswith(end)), kind)
        # torch's weights and its graphs are called .pt and .pth alike.
        if kind_of != kind and not {kind, kind_of} <= {'pth', 'torchscript'}:
            raise UserError(f'The output {out!r} has the ending of '
                            f'{kind_of}, but the format is {kind}. Give '
                            f'--format {kind_of}, or end the name by '
                            f'{FORMATS[kind][0]}.')
        return {sizes[0]: out}
    return {size: osp.join(out, f'{label}-{size}px{FORMATS[kind][0]}')
            for size in sizes}


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def told_of(data: bytes, path: str) -> dict:
    """What a manifest says of a file."""
    return dict(file=osp.basename(path), bytes=len(data),
                sha256=sha256_of(data))


def write_all(files: dict[str, bytes]) -> None:
    """Write {path: data}, all or none: what stood there stays until all are
    on the disk.

    Raises:
        WriteError: naming the file that could not be written.
    """
    try:
        for path, data in files.items():
            AtomicLocalBackend().put(data, path + NEW)
        for path in files:
            os.replace(path + NEW, path)
    finally:
        for path in files:
            with contextlib.suppress(OSError):
                os.remove(path + NEW)
