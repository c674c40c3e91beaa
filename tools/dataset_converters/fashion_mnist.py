"""Put Fashion-MNIST (70,000 images, MIT licence, 31 MB) into a folder.

The files come from Debian's package dataset-fashion-mnist, if it is installed,
or else from a download of that package, or of mmpretrain.
"""
import argparse
import gzip
import os.path as osp
import tempfile
from pathlib import Path

from debian import download, unpack_package

from sct_mm.utils.checkpoint import AtomicLocalBackend
from sct_mm.utils.cli import cli
from sct_mm.utils.errors import UserError

FILES = ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte',
         't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte')
INSTALLED = '/usr/share/datasets/fashion-mnist'


def from_folder(source: str, target: str) -> bool:
    """Unpack the files of Debian's package; False if they are missing."""
    archives = [osp.join(source, f'{name}.gz') for name in FILES]
    if not all(osp.isfile(archive) for archive in archives):
        return False
    for name, archive in zip(FILES, archives, strict=True):
        with gzip.open(archive) as f:
            AtomicLocalBackend().put(f.read(), osp.join(target, name))
    return True


def from_package(target: str) -> bool:
    """Download Debian's package, without installing it; False if that
    fails."""
    with tempfile.TemporaryDirectory() as folder:
        if not download(['dataset-fashion-mnist'], folder):
            return False
        package = next(Path(folder).glob('*.deb'))
        return (unpack_package(str(package), folder)
                and from_folder(folder + INSTALLED, target))


def from_mmpretrain(target: str) -> bool:
    """Download by mmpretrain; False if that fails."""
    from mmpretrain.datasets import FashionMNIST
    try:
        FashionMNIST(data_root=target, split='train', lazy_init=False)
    except Exception as error:  # any failure of the network or the archive
        print(f'mmpretrain could not download it: {error}')
        return False
    return True


def fetch(folder: str) -> None:
    """Put Fashion-MNIST into ``folder`` in the first way that works.

    Raises:
        UserError: if none works.
    """
    if all(osp.isfile(osp.join(folder, name)) for name in FILES):
        print(f'Fashion-MNIST is in {folder}.')
        return
    for way, get in (
            ('files of Debian\'s package',
             lambda: from_folder(INSTALLED, folder)),
            ('Debian\'s package', lambda: from_package(folder)),
            ('mmpretrain\'s download', lambda: from_mmpretrain(folder))):
        print(f'Fashion-MNIST: trying {way} ...', flush=True)
        if get():
            print(f'Fashion-MNIST is in {folder}.')
            return
    raise UserError(
        f'Fashion-MNIST could not be had. Put {", ".join(FILES)} into '
        f'{folder!r}, or install the Debian package dataset-fashion-mnist.')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', help='for the data set')
    return parser.parse_args()


def main() -> None:
    fetch(parse_args().folder)


if __name__ == '__main__':
    cli(main)
