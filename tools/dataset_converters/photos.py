"""Compose images without labels from drawings, cut-outs and wallpapers.

A drawing (Debian's openclipart-png) stands on a colour or on a part of a
wallpaper; a cut-out of an animal, a plant, food or a thing
(tuxpaint-stamps-default) on a part of a wallpaper. The test images show
drawings, cut-outs and wallpapers that no training image shows.
"""
import argparse
import hashlib
import io
import json
import os
import os.path as osp
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import mmengine
import numpy as np
from debian import download, files_in, unpack_all
from photo_sources import (
    KINDS,
    Groups,
    Source,
    divide_sources,
    read_sources,
    resized,
    threads,
)
from PIL import Image
from rich.progress import track

from sct_mm.utils.arguments import check_int
from sct_mm.utils.cli import cli
from sct_mm.utils.errors import UserError

VERSION = 1  # another one composes other images from the same seed
EDGE = 320  # pixels
# {split: numbers of images of drawings, and of stamps}
COUNTS = dict(train=(4000, 1000), test=(1200, 300))
IMAGES = ('drawings', 'stamps')
SUMMARY = 'photos.json'
GIVE = (f'Give a folder with {", ".join(KINDS)} in it, each a folder of '
        'images or of packages (.deb), by --sources.')


def one_of(groups: Groups, index: int) -> Source:
    """A source for image ``index``: all families in turn, and of each its
    members in turn, so that a long series shows as often as a single one."""
    group = groups[index % len(groups)]
    return group[index // len(groups) % len(group)]


class Composer:
    """Composes images of one split; ``groups`` are {kind: families}."""

    def __init__(self, groups: dict[str, Groups]) -> None:
        self.groups = groups
        with threads() as pool:  # the others are small, and read when needed
            self.wallpapers = [
                list(pool.map(lambda source: source.image('wallpapers'),
                              group)) for group in groups['wallpapers']]

    def ground(self, rng: np.random.Generator) -> Image.Image:
        """A square part of a wallpaper, RGBA, EDGE x EDGE."""
        group = self.wallpapers[rng.integers(len(self.wallpapers))]
        image = group[rng.integers(len(group))]
        short = min(image.size)
        edge = int(short * rng.uniform(min(EDGE / short, 1), 1))
        x, y = (int(rng.integers(side - edge + 1)) for side in image.size)
        part = image.resize((EDGE, EDGE), Image.BICUBIC,
                            (x, y, x + edge, y + edge))
        return (part.transpose(Image.FLIP_LEFT_RIGHT) if rng.integers(2)
                else part)

    def put(self, rng: np.random.Generator, image: Image.Image, kind: str,
            index: int, low: float, high: float) -> None:
        """Put a source onto ``image``, in place, at a random position; its
        longer edge is a share of EDGE from ``low`` to ``high``."""
        front = one_of(self.groups[kind], index).image(kind)
        front = front.crop(front.getchannel('A').getbbox())
        ratio = EDGE * rng.uniform(low, high) / max(front.size)
        front = resized(front, min(ratio, 3))  # larger, it is a blur
        x, y = (int(rng.integers(EDGE - side + 1)) for side in front.size)
        image.alpha_composite(front, (x, y))

    def drawings(self, rng: np.random.Generator, index: int) -> Image.Image:
        """A drawing on white, on another colour, or on a wallpaper."""
        ground = rng.integers(4)
        colour = (255, 255, 255) if ground < 2 else tuple(
            rng.integers(0, 256, 3).tolist())
        image = (self.ground(rng) if ground == 3 else
                 Image.new('RGBA', (EDGE, EDGE), (*colour, 255)))
        self.put(rng, image, 'drawings', index, 0.6, 1)
        return image

    def stamps(self, rng: np.random.Generator, index: int) -> Image.Image:
        """A large cut-out, and half the time a small one, on a wallpaper."""
        image = self.ground(rng)
        if rng.integers(2):
            self.put(rng, image, 'stamps', int(rng.integers(1 << 16)), 0.2,
                     0.4)
        self.put(rng, image, 'stamps', index, 0.5, 0.95)
        return image


def write(data: bytes, path: str) -> None:
    mmengine.fileio.put(data, path,
                        backend_args=dict(backend='atomic_local'))


def compose(folder: str, composer: Composer, split: str,
            counts: Sequence[int], seed: int) -> None:
    """Compose those images of a split that are not in ``folder`` yet."""
    makers = (composer.drawings, composer.stamps)

    def make(task: tuple[int, int]) -> None:
        kind, index = task
        path = osp.join(folder, f'{IMAGES[kind]}_{index:05}.jpg')
        if not osp.isfile(path):
            rng = np.random.default_rng(
                (seed, list(COUNTS).index(split), kind, index))
            file = io.BytesIO()
            makers[kind](rng, index).convert('RGB').save(file, 'JPEG',
                                                         quality=92)
            write(file.getvalue(), path)

    tasks = [(kind, index) for kind, count in enumerate(counts)
             for index in range(count)]
    with threads() as pool:
        for _ in track(pool.map(make, tasks), f'composing {split}',
                       len(tasks)):
            pass


def is_complete(target: str, settings: dict[str, Any],
                text: str | None = None) -> bool:
    """Whether ``target`` has a data set of these settings, composed of any
    sources or, with ``text``, of those that it names."""
    try:
        with open(osp.join(target, SUMMARY)) as file:
            found = file.read()
        if json.loads(found)['settings'] != settings:
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return text in (None, found) and all(
        len(files_in(osp.join(target, split), ('.jpg', )))
        == sum(settings[split]) for split in COUNTS)


def checked(seed: int, **counts: Sequence[int]) -> dict[str, Any]:
    """The settings of a data set, as its summary holds them.

    Raises:
        TypeError, ValueError: for a count below 1 or a seed below 0.
    """
    settings: dict[str, Any] = {
        split: [check_int(split, count, 1, 'Leave it out for the default.')
                for count in pair] for split, pair in counts.items()}
    return dict(settings, seed=check_int('seed', seed, 0, 'The default is 0.'),
                version=VERSION)


def make_photos(folders: Sequence[str], target: str,
                train: Sequence[int] = COUNTS['train'],
                test: Sequence[int] = COUNTS['test'], seed: int = 0) -> None:
    """Compose the data set in the folders `train` and `test` of ``target``.

    Image i of a split depends on the sources and (seed, i) only. The splits
    share no family of sources. A run that was interrupted goes on.

    Args:
        folders: each with the folders `drawings`, `stamps` and `wallpapers`,
            or some of them.
        train, test: how many images of drawings, and of stamps.

    Raises:
        TypeError, ValueError: for a count below 1 or a seed below 0.
        UserError: if there are too few families of sources.
    """
    settings = checked(seed, train=train, test=test)
    divided = divide_sources(read_sources(folders), seed)
    text = json.dumps(dict(settings=settings, sources={
        split: {kind: [[f'{source.file}, sha256 {source.digest[:16]}'
                        for source in group] for group in groups]
                for kind, groups in kinds.items()}
        for split, kinds in divided.items()}), indent=1)
    if is_complete(target, settings, text):
        print(f'The images are in {target}.')
        return
    summary = osp.join(target, SUMMARY)
    if osp.exists(summary):
        os.remove(summary)  # of other images
    parts = osp.join(
        target, f'parts-{hashlib.sha256(text.encode()).hexdigest()[:8]}')
    for split, kinds in divided.items():
        compose(osp.join(parts, split), Composer(kinds), split,
                settings[split], seed)
    for split in COUNTS:
        shutil.rmtree(osp.join(target, split), ignore_errors=True)
        os.rename(osp.join(parts, split), osp.join(target, split))
    write(text.encode(), summary)  # last: it marks the data set as complete
    os.rmdir(parts)


def fetch_sources(given: str | None, folder: str) -> list[str]:
    """Unpack the packages in ``given``, or those of Debian, which are
    downloaded, into ``folder``; returns the folders that hold sources.

    Raises:
        UserError: if a kind of sources cannot be had.
    """
    if given and not any(osp.isdir(osp.join(given, kind)) for kind in KINDS):
        raise UserError('--sources must be a folder of sources, but got '
                        f'{given!r}. {GIVE}')
    for name, kind in KINDS.items():
        where = osp.join(folder, name)
        os.makedirs(where)
        if not given:
            print(f'Downloading {", ".join(kind.packages)}.', flush=True)
            if not download(kind.packages, where):
                raise UserError(f'The {name} of Debian\'s packages could not '
                                f'be had by apt-get. {GIVE}')
        unpack_all(files_in(osp.join(given or folder, name), ('.deb', )),
                   where, '--sources')
    return [given, folder] if given else [folder]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('target', nargs='?', default='data/photos',
                        help='folder for the data set')
    parser.add_argument('--sources', metavar='FOLDER',
                        help=f'with {", ".join(KINDS)} in it, each a folder '
                        "of images or packages, instead of Debian's")
    for split, counts in COUNTS.items():
        parser.add_argument(f'--{split}', type=int, nargs=2, default=counts,
                            metavar=('DRAWINGS', 'STAMPS'),
                            help='numbers of images; default: '
                            f'{counts[0]} {counts[1]}')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def main() -> None:
    settings = vars(parse_args())
    target, sources = settings.pop('target'), settings.pop('sources')
    if not sources and is_complete(target, checked(**settings)):
        print(f'The images are in {target}.')
        return
    with tempfile.TemporaryDirectory() as folder:
        make_photos(fetch_sources(sources, folder), target, **settings)


if __name__ == '__main__':
    cli(main)
