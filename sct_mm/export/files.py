"""Name the exported files, and write them all or none."""
import contextlib
import hashlib
import os
import os.path as osp
from collections.abc import Sequence

from ..utils.checkpoint import AtomicLocalBackend
from ..utils.errors import UserError
from .formats import FORMATS

MANIFEST = 'manifest.json'
_NEW = '.new'  # ends the name of a file until all are on the disk


def paths_of(out: str, kind: str, sizes: Sequence[int | str], label: str,
             every: bool) -> dict[int | str, str]:
    """The path of each size's file: ``out`` itself, or, for ``every`` size,
    a file a size in the folder ``out``.

    Raises:
        UserError: if the ending of ``out`` is that of another format.
    """
    if not every:
        kind_of = next((name for name, (end, _) in FORMATS.items()
                        if out.endswith(end)), kind)
        # Both .pt and .pth are usual for torch's weights and for graphs.
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


def file_entry(data: bytes, path: str) -> dict:
    """The name, length and checksum of a file, for the manifest."""
    return dict(file=osp.basename(path), bytes=len(data),
                sha256=sha256_of(data))


def write_all(files: dict[str, bytes]) -> None:
    """Write {path: data}, all or none: the files that they replace stay until
    all are on the disk.

    Raises:
        WriteError: naming the file that could not be written.
    """
    try:
        for path, data in files.items():
            AtomicLocalBackend().put(data, path + _NEW)
        for path in files:
            os.replace(path + _NEW, path)
    finally:
        for path in files:
            with contextlib.suppress(OSError):
                os.remove(path + _NEW)
