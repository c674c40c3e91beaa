"""Draw letters and digits of many fonts on cluttered images of 96 pixels.

Small characters are legible at 96 pixels, but not at 36. The files have the
format of MNIST, which mmpretrain's ``MNIST`` reads.
"""
import argparse
import hashlib
import json
import os
import os.path as osp
import shutil
import struct
import tempfile
from collections.abc import Iterable, Sequence

import cv2
import mmengine
import numpy as np
from debian import download, files_in, unpack_all
from families import divide, families
from glyph_fonts import ALIKE, CHARACTERS, Font, read_fonts
from PIL import features
from rich.progress import track

from sct_mm.utils.arguments import check_int
from sct_mm.utils.cli import cli
from sct_mm.utils.errors import UserError

VERSION = 1  # another one draws other images from the same seed
EDGE = 96  # pixels
SMALL, LARGE = 20, 80  # least and largest longer edge of a character, pixels
FINE = 2  # images are drawn so many times larger, then reduced
PART = 1000  # most images that an interruption loses
SHARES = dict(test=0.2, val=0.1)  # of the families; the others are for 'train'
SPLITS = ('train', 'val', 'test')
FILES = {'train': ('train', 'val'), 't10k': ('test', )}  # {file: its splits}
SUMMARY = 'glyphs.json'
# Free fonts of Debian, 38 MB, without copies of another of them.
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
Families = Sequence[Sequence[Font]]


def mask_of(rng: np.random.Generator, groups: Families, character: str,
            pixels: float) -> np.ndarray:
    """A character of a random font, a little rotated, slanted and stretched:
    coverage (h, w) from 0 to 1, with a longer edge of ``pixels``."""
    group = groups[rng.integers(len(groups))]
    font = group[rng.integers(len(group))].at(LARGE * FINE)
    mask = font.getmask(character, mode='L')
    glyph = np.frombuffer(bytes(mask), np.uint8).reshape(mask.size[::-1])
    angle = np.deg2rad(rng.normal(0, 6))
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = (np.array([[cos, -sin], [sin, cos]])
              @ np.array([[rng.uniform(0.8, 1.2), rng.normal(0, 0.1)],
                          [0, 1]]))
    h, w = glyph.shape
    corners = matrix @ np.array([[0, w, 0, w], [0, 0, h, h]])
    scale = pixels / np.ptp(corners, axis=1).max()
    shift = -scale * corners.min(1)
    edges = np.ceil(scale * np.ptp(corners, axis=1)).astype(int).tolist()
    # warpAffine does not average: a glyph that shrinks is averaged before.
    reduced = min(scale * 1.2, 1)
    glyph = cv2.resize(glyph, None, fx=reduced, fy=reduced,
                       interpolation=cv2.INTER_AREA)
    return cv2.warpAffine(
        glyph, np.c_[scale / reduced * matrix, shift], edges,
        flags=cv2.INTER_LINEAR).astype(np.float32) / 255


def background(rng: np.random.Generator, groups: Families,
               contrast: float) -> np.ndarray:
    """Levels (EDGE * FINE, EDGE * FINE) from ``-contrast`` to ``contrast``: a
    gradient, lines and fragments of characters."""
    edge = EDGE * FINE
    coarse = rng.normal(0, contrast / 4, (3, 3)).astype(np.float32)
    levels = cv2.resize(coarse, (edge, edge), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(0, 4)):
        ends = rng.integers(0, edge, (2, 2)).tolist()
        line = np.zeros((edge, edge), np.uint8)
        cv2.line(line, *ends, 255, int(rng.integers(1, 5)), cv2.LINE_AA)
        levels += line * np.float32(rng.uniform(-1, 1) * contrast / 255)
    for _ in range(rng.integers(0, 6)):
        character = CHARACTERS[rng.integers(len(CHARACTERS))]
        piece = mask_of(rng, groups, character,
                        FINE * rng.uniform(SMALL, LARGE))
        # A quarter of a character cannot be recognised.
        h, w = (max(side // 2, 1) for side in piece.shape)
        y = rng.integers(0, piece.shape[0] - h + 1)
        x = rng.integers(0, piece.shape[1] - w + 1)
        piece = piece[y:y + h, x:x + w]
        y, x = rng.integers(0, edge - h + 1), rng.integers(0, edge - w + 1)
        levels[y:y + h, x:x + w] += piece * np.float32(
            rng.uniform(-1, 1) * contrast)
    return levels.clip(-contrast, contrast)


def draw(rng: np.random.Generator, groups: Families,
         character: str) -> np.ndarray:
    """An image (EDGE, EDGE), uint8, with ``character`` at a random place and
    with more contrast than the background."""
    # Uniform in the logarithm: as many small ones as large ones.
    pixels = FINE * np.exp(rng.uniform(np.log(SMALL), np.log(LARGE)))
    mask = mask_of(rng, groups, character, pixels)
    contrast = rng.uniform(50, 180)
    image = background(rng, groups, contrast / 3)
    h, w = mask.shape
    y = rng.integers(0, image.shape[0] - h + 1)
    x = rng.integers(0, image.shape[1] - w + 1)
    place = image[y:y + h, x:x + w]
    place += mask * (contrast - place)
    image = cv2.resize(image, (EDGE, EDGE), interpolation=cv2.INTER_AREA)
    image *= rng.choice([-1, 1])
    room = max(255 - contrast, 0) / 2
    image += 128 - image.mean() + rng.uniform(-room, room)
    image += rng.normal(0, rng.uniform(0, 10), image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def labels_of(count: int) -> bytes:
    """The classes of ``count`` images, each equally often."""
    return bytes(i % len(CHARACTERS) for i in range(count))


def write(data: bytes, path: str) -> None:
    mmengine.fileio.put(data, path,
                        backend_args=dict(backend='atomic_local'))


def draw_part(path: str, split: str, groups: Families, indices: range,
              seed: int) -> bytes:
    """Images ``indices`` of a split: read from the file at ``path``, or drawn
    and written there."""
    if osp.isfile(path):
        with open(path, 'rb') as file:
            return file.read()
    data = b''.join(
        draw(np.random.default_rng((seed, SPLITS.index(split), i)), groups,
             CHARACTERS[i % len(CHARACTERS)]).tobytes() for i in indices)
    write(data, path)
    return data


def idx_of(parts: Iterable[bytes], *shape: int) -> bytes:
    """The file of MNIST's format for an array of ``shape``, uint8."""
    header = struct.pack(f'>{1 + len(shape)}i', 0x800 + len(shape), *shape)
    return b''.join([header, *parts])


def describe_fonts(divided: dict[str, Families]) -> dict[str, list[str]]:
    return {split: [f'{font.family}, {font.style} ({font.file}, sha256 '
                    f'{hashlib.sha256(font.data).hexdigest()[:16]})'
                    for group in groups for font in group]
            for split, groups in divided.items()}


def is_complete(target: str, **settings: int) -> bool:
    """Whether ``target`` has a data set of these counts and this seed, drawn
    with any fonts."""
    try:
        with open(osp.join(target, SUMMARY)) as file:
            found = json.load(file)['settings']
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return (found == dict(settings, version=VERSION)
            and _has_files(target, settings))


def _has_files(target: str, counts: dict[str, int]) -> bool:
    """Whether the four files are there and have the right size."""
    for name, splits in FILES.items():
        count = sum(counts[split] for split in splits)
        for kind, size in (('images-idx3', 16 + count * EDGE**2),
                           ('labels-idx1', 8 + count)):
            path = osp.join(target, f'{name}-{kind}-ubyte')
            if not osp.isfile(path) or osp.getsize(path) != size:
                return False
    return True


def divide_fonts(paths: Sequence[str], seed: int
                 ) -> tuple[dict[str, Families], dict[str, int]]:
    """{split: families}, and {reason: number of fonts that were left out}."""
    fonts, refused = read_fonts(paths)
    divided = divide(families(fonts, ALIKE), SHARES, seed, 'fonts')
    for split in SPLITS:
        print(f'{split}: {len(divided[split])} families of '
              f'{sum(map(len, divided[split]))} fonts')
    for reason, count in refused.items():
        print(f'{count} fonts are left out: {reason}.')
    return divided, refused


def draw_splits(folder: str, divided: dict[str, Families],
                counts: dict[str, int], seed: int) -> dict[str, list[bytes]]:
    """{split: images}, as parts of (n, EDGE, EDGE), n at most PART. The parts
    are kept in ``folder``, where an interrupted run goes on."""
    tasks = [(split, range(start, min(start + PART, counts[split])))
             for split in SPLITS for start in range(0, counts[split], PART)]
    parts: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    total = sum(counts.values())
    for split, indices in track(tasks, f'drawing {total} images'):
        path = osp.join(folder, f'{split}-{indices.start}')
        parts[split].append(draw_part(path, split, divided[split], indices,
                                      seed))
    return parts


def write_files(target: str, images: dict[str, list[bytes]]) -> None:
    """Write the four files of MNIST into the folder ``target``."""
    for name, splits in FILES.items():
        counts = [sum(map(len, images[split])) // EDGE**2
                  for split in splits]
        write(idx_of([data for split in splits for data in images[split]],
                     sum(counts), EDGE, EDGE),
              osp.join(target, f'{name}-images-idx3-ubyte'))
        write(idx_of(map(labels_of, counts), sum(counts)),
              osp.join(target, f'{name}-labels-idx1-ubyte'))


def make_glyphs(paths: Sequence[str], target: str, train: int = 24000,
                val: int = 3000, test: int = 4000, seed: int = 0) -> None:
    """Draw the data set into the folder ``target``.

    Image i of a split depends on the fonts and (seed, i) only. The splits
    share no family of fonts. MNIST's training file has first the images of
    ``train``, then those of ``val``; a data set selects them by ``indices``.
    A run that was interrupted goes on.

    Args:
        paths: files of fonts; those that are not legible are left out.

    Raises:
        TypeError, ValueError: for a count below 1 or a seed below 0, and if
            too few families of fonts are legible.
    """
    counts = dict(train=train, val=val, test=test)
    for name, count in counts.items():
        check_int(name, count, 1, 'Leave it out for the default.')
    check_int('seed', seed, 0, 'The default is 0.')
    divided, refused = divide_fonts(paths, seed)
    text = json.dumps(dict(
        settings=dict(counts, seed=seed, version=VERSION), classes=CHARACTERS,
        freetype=features.version('freetype2'), left_out=refused,
        fonts=describe_fonts(divided)), indent=2).encode()
    summary = osp.join(target, SUMMARY)
    if osp.exists(summary):
        with open(summary, 'rb') as file:
            if file.read() == text and _has_files(target, counts):
                print(f'The images are in {target}.')
                return
        os.remove(summary)  # of other images
    folder = osp.join(target, f'parts-{hashlib.sha256(text).hexdigest()[:8]}')
    write_files(target, draw_splits(folder, divided, counts, seed))
    write(text, summary)  # last: it marks the data set as complete
    shutil.rmtree(folder)


def fetch_and_draw(fonts: str | None, target: str, **settings: int) -> None:
    """Draw with the fonts and packages in the folder ``fonts``, or with those
    of Debian, which are downloaded.

    Raises:
        UserError: if there are no fonts, or a package cannot be unpacked.
    """
    if fonts and not osp.isdir(fonts):
        raise UserError(f'--fonts must be a folder, but got {fonts!r}. {GIVE}')
    with tempfile.TemporaryDirectory() as folder:
        if not fonts:
            print(f'Downloading {len(PACKAGES)} packages of fonts: 38 MB.',
                  flush=True)
            if not download(PACKAGES, folder):
                raise UserError('The fonts of Debian\'s packages could not be '
                                f'had by apt-get. {GIVE}')
        unpack_all(files_in(fonts or folder, ('.deb', )), folder,
                   '--fonts')
        paths = files_in(folder, SUFFIXES)
        if fonts:
            paths += files_in(fonts, SUFFIXES)
        make_glyphs(paths, target, **settings)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('target', nargs='?', default='data/glyphs',
                        help='folder for the data set')
    parser.add_argument('--fonts', metavar='FOLDER',
                        help='of fonts or packages to draw with, instead of '
                        "Debian's")
    parser.add_argument('--train', type=int, default=24000,
                        help='number of images to train on')
    parser.add_argument('--val', type=int, default=3000,
                        help='number of images to choose settings by')
    parser.add_argument('--test', type=int, default=4000,
                        help='number of images to test on')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def main() -> None:
    settings = vars(parse_args())
    target, fonts = settings.pop('target'), settings.pop('fonts')
    if not fonts and is_complete(target, **settings):
        print(f'The images are in {target}.')
    else:
        fetch_and_draw(fonts, target, **settings)


if __name__ == '__main__':
    cli(main)
