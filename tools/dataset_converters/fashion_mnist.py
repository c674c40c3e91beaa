"""Put Fashion-MNIST (70,000 images, MIT licence, 31 MB) into a folder.

Tries the files of Debian's package dataset-fashion-mnist, then the package
itself, then the download of mmpretrain.
"""
import argparse
import gzip
import os.path as osp
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sct_mm.utils.checkpoint import AtomicLocalBackend
from sct_mm.utils.cli import cli
from sct_mm.utils.errors import UserError

FILES = ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte',
         't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte')
INSTALLED = '/usr/share/datasets/fashion-mnist'


def unpack(source: str, target: str) -> bool:
    """Unpack the files of Debian's package; False if they are not there."""
    archives = [osp.join(source, f'{name}.gz') for name in FILES]
    if not all(osp.isfile(archive) for archive in archives):
        return False
    for name, archive in zip(FILES, archives, strict=True):
        with gzip.open(archive) as f:
            AtomicLocalBackend().put(f.read(), osp.join(target, name))
    return True


def from_package(target: str) -> bool:
    """Download Debian's package, without installing it; False if one can't."""
    with tempfile.TemporaryDirectory() as folder:
        if not download(['dataset-fashion-mnist'], folder):
            return False
        package = next(Path(folder).glob('*.deb'))
        return (unpack_package(str(package), folder)
                and unpack(folder + INSTALLED, target))


def from_mmpretrain(target: str) -> bool:
    from mmpretrain.datasets import FashionMNIST
    try:
        FashionMNIST(data_root=target, split='train', lazy_init=False)
    except Exception as error:  # any failure of the network or the archive
        print(f'mmpretrain could not download it: {error}')
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', help='where the data set goes')
    folder = parser.parse_args().folder
    if all(osp.isfile(osp.join(folder, name)) for name in FILES):
        print(f'Fashion-MNIST is in {folder}.')
        return
    for way, fetch in (
            ('files of Debian\'s package', lambda: unpack(INSTALLED, folder)),
            ('Debian\'s package', lambda: from_package(folder)),
            ('mmpretrain\'s download', lambda: from_mmpretrain(folder))):
        print(f'Fashion-MNIST: trying {way} ...', flush=True)
        if fetch():
            print(f'Fashion-MNIST is in {folder}.')
            return
    raise UserError(
        f'Fashion-MNIST could not be had. Put {", ".join(FILES)} into '
        f'{folder!r}, or install the Debian package dataset-fashion-mnist.')


# Root downloads too, into a folder that apt's own user may not write to.
DOWNLOAD = ('apt-get', '-o', 'APT::Sandbox::User=root', 'download')


def run(*command: str, folder: str) -> str | None:
    """What a command says; None if it failed, or did not end in time."""
    try:
        done = subprocess.run(command, cwd=folder, timeout=600, text=True,
                              capture_output=True)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


def download(packages: Sequence[str], folder: str) -> bool:
    """Put those of ``packages`` that this release of Debian has into
    ``folder``, as files, from the mirrors that apt uses.

    Returns:
        bool: whether there is one; without apt, there is none.
    """
    for _ in range(2):
        known = (run('apt-cache', 'pkgnames', folder=folder) or '').split()
        names = [name for name in packages if name in set(known)]
        if names and run(*DOWNLOAD, *names, folder=folder) is not None:
            return True
        # The lists may be old, or none. Only this needs root.
        run('apt-get', 'update', folder=folder)
    return False


def unpack_package(package: str, folder: str) -> bool:
    """Put the files of a package into ``folder``; False if one can't."""
    return run('dpkg-deb', '-x', osp.abspath(package), '.',
               folder=folder) is not None


if __name__ == '__main__':
    cli(main)
