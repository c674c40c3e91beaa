"""Fetch and unpack packages of Debian, for the converters beside it."""
import os
import os.path as osp
import subprocess
from collections.abc import Sequence

from sct_mm.utils.errors import UserError

# As root, apt downloads by a user of its own, who cannot write to our folders.
DOWNLOAD = ('apt-get', '-o', 'APT::Sandbox::User=root', 'download')


def output_of(*command: str, folder: str) -> str | None:
    """The output of a command; None if it fails, or does not end in time."""
    try:
        done = subprocess.run(command, cwd=folder, timeout=600, text=True,
                              capture_output=True)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


def download(packages: Sequence[str], folder: str) -> bool:
    """Download those of ``packages`` that this release of Debian has into
    ``folder``, as files, from the mirrors of apt.

    Returns:
        bool: whether one was downloaded; False without apt.
    """
    for _ in range(2):
        known = output_of('apt-cache', 'pkgnames', folder=folder) or ''
        names = [name for name in packages if name in set(known.split())]
        if names and output_of(*DOWNLOAD, *names, folder=folder) is not None:
            return True
        # apt's lists may be old or missing. Only this needs root.
        output_of('apt-get', 'update', folder=folder)
    return False


def unpack_package(package: str, folder: str) -> bool:
    """Put the files of a package into ``folder``; False if that fails."""
    return output_of('dpkg-deb', '-x', osp.abspath(package), '.',
                     folder=folder) is not None


def unpack_all(packages: Sequence[str], folder: str, option: str) -> None:
    """Put the files of all ``packages`` into ``folder``.

    Raises:
        UserError: if one cannot be unpacked; it names the ``option`` of the
            tool that takes a folder of files instead.
    """
    for package in packages:
        if not unpack_package(package, folder):
            raise UserError(f'The package {package!r} cannot be unpacked by '
                            'dpkg-deb. Unpack it, and give the folder by '
                            f'{option}.')


def files_in(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """The paths of the files below ``folder`` with one of ``suffixes``."""
    return sorted(osp.join(where, name) for where, _, names in os.walk(folder)
                  for name in names if name.lower().endswith(suffixes))
