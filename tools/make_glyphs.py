"""Draw letters and digits of free fonts: a data set for classification at 96
pixels, in the files of MNIST (290 MB).

The fonts come from Debian's packages, which are not installed, or by --fonts.
"""
import argparse
import os
import os.path as osp
import tempfile
from typing import List

from sct_mm.utils.cli import cli
from sct_mm.datasets.debian import download, unpack_package
from glyphs import is_complete, make_glyphs
from sct_mm.utils.errors import UserError

# All are free; 38 MB. Those that are copies of another are left out.
PACKAGES = [f'fonts-{name}' for name in '''
    adf-accanthis adf-baskervald adf-berenis adf-gillius adf-ikarius
    adf-irianis adf-libris adf-mekanus adf-oldania adf-romande adf-solothurn
    adf-switzera adf-tribun adf-universalis adf-verana aenigma allerta
    anonymous-pro apropal averia-gwf b612 bajaderka bebas-neue beteckna breip
    bwht cabin cabinsketch cantarell clear-sans comfortaa comic-neue
    courier-prime crosextra-caladea dancingscript dejavu-core
    dkg-handwriting dosis dustin ebgaramond ecolier-court engadget essays1743
    eurofurence fantasque-sans femkeklaver freefont-ttf georgewilliams
    gfs-artemisia gfs-didot gfs-neohellenic go havana humor-sans inconsolata
    isabella junction jura karla kaushanscript klaudia-berenika kristi lato
    league-spartan leckerli-one liberation linex linuxlibertine lobster
    lobstertwo manrope monofur national-park ocr-a ocr-b okolaks oldstandard
    open-sans opendin opendyslexic oxygen paratype pc play povray quattrocento
    quicksand radisnoir roadgeek roboto-slab roboto-unhinted rufscript
    sil-gentium-basic sjfonts staypuft summersby tiresias tuffy vollkorn
    yanone-kaffeesatz'''.split()]
SUFFIXES = ('.ttf', '.otf')
GIVE = ('Give a folder of fonts (.ttf, .otf) or of such packages (.deb) by '
        '--fonts.')


def files_in(folder: str, suffixes: tuple) -> List[str]:
    return sorted(osp.join(where, name) for where, _, names in os.walk(folder)
                  for name in names if name.lower().endswith(suffixes))


def unpack_all(packages: List[str], folder: str) -> None:
    for package in packages:
        if not unpack_package(package, folder):
            raise UserError(f'The package {package!r} cannot be unpacked by '
                            'dpkg-deb. Unpack it, and give the folder by '
                            '--fonts.')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('target', nargs='?', default='data/glyphs',
                        help='where the data set goes')
    parser.add_argument('--fonts', metavar='FOLDER',
                        help='fonts or packages to draw with, in place of '
                        "Debian's")
    parser.add_argument('--train', type=int, default=24000,
                        help='number of pictures to train on')
    parser.add_argument('--val', type=int, default=3000,
                        help='number of pictures to choose settings by')
    parser.add_argument('--test', type=int, default=4000,
                        help='number of pictures to test on')
    parser.add_argument('--seed', type=int, default=0)
    args = vars(parser.parse_args())
    target, fonts = args.pop('target'), args.pop('fonts')
    if not fonts and is_complete(target, **args):
        print(f'The pictures are in {target}.')
        return
    if fonts and not osp.isdir(fonts):
        raise UserError(f'--fonts must be a folder, but got {fonts!r}. {GIVE}')
    with tempfile.TemporaryDirectory() as folder:
        if not fonts:
            print(f'Downloading {len(PACKAGES)} packages of fonts: 38 MB.',
                  flush=True)
            if not download(PACKAGES, folder):
                raise UserError('The fonts of Debian\'s packages could not be '
                                f'had by apt-get. {GIVE}')
        unpack_all(files_in(fonts or folder, ('.deb', )), folder)
        paths = files_in(folder, SUFFIXES)
        if fonts:
            paths += files_in(fonts, SUFFIXES)
        make_glyphs(paths, target, **args)


if __name__ == '__main__':
    cli(main)
