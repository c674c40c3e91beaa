"""Read drawings, cut-outs and wallpapers, and divide them among splits, for
photos.py."""
import hashlib
import io
import os
import os.path as osp
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from debian import files_in
from families import divide, families
from PIL import Image
from rich.progress import track

SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp')
LARGEST = 40_000_000  # pixels of a source
TEST = 0.2  # share of the families
GRID = 12  # edge of the map by which looks are compared
# Least correlation of two sources of one family: drawings that differ in a
# colour have more. From 0.95 down, most drawings become one family.
ALIKE = 0.97
# Parts of the path of a wallpaper that do not say what it shows.
NAMELESS = re.compile(r'\d.*|contents|images(_dark)?')


class Kind(NamedTuple):
    """Where sources of a kind come from, and which are of use."""
    packages: tuple[str, ...]  # of Debian
    least: int  # pixels of the shorter edge
    most: int  # ... to which larger ones are reduced
    left_out: str = '(?!)'  # pattern of their paths


KINDS = dict(
    drawings=Kind(('openclipart-png', ), 64, 320),
    # The symbols are letters, numbers and coins.
    stamps=Kind(('tuxpaint-stamps-default', ), 40, 320, '/symbols/'),
    wallpapers=Kind(('gnome-backgrounds', 'mate-backgrounds',
                     'plasma-workspace-wallpapers', 'lomiri-wallpapers'),
                    600, 720))


class Source(NamedTuple):
    """A file to compose images of."""
    file: str  # path below the folder of its kind
    path: str
    family: str
    digest: str
    shapes: np.ndarray  # (1, GRID * GRID * 4), see looks_of

    def image(self, kind: str) -> Image.Image:
        with open(self.path, 'rb') as file:
            return read(file.read(), KINDS[kind].most)


Groups = Sequence[Sequence[Source]]


def threads() -> ThreadPoolExecutor:
    """Pillow decodes, resizes and encodes without Python's lock."""
    return ThreadPoolExecutor(os.cpu_count() or 1)


def family_of(file: str) -> str:
    """What a source shows, by the name of its file or of a folder of it,
    without numbers."""
    *folders, name = osp.splitext(file)[0].split('/')
    name = next((part for part in (name, *folders[::-1])
                 if not NAMELESS.fullmatch(part)), name)
    return re.sub(r'\d+', ' ', name).strip(' _-') or name


def resized(image: Image.Image, ratio: float) -> Image.Image:
    """``image``, RGBA, at ``ratio`` of its size. Pillow weights colours by
    their opacity, so that no colour of a transparent pixel shows."""
    w, h = (max(round(edge * ratio), 1) for edge in image.size)
    return image.resize((w, h), Image.BICUBIC)


def read(data: bytes, most: int) -> Image.Image:
    """The image in a file's ``data``, RGBA; one whose shorter edge is above
    ``most`` pixels is reduced to it.

    Raises:
        ValueError: if it cannot be read, or is too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about its size and its chunks
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > LARGEST:
                raise ValueError('the image is too large')
            image = image.convert('RGBA')
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError('the image cannot be read') from error
    ratio = most / min(image.size)
    return image if ratio >= 1 else resized(image, ratio)


def looks_of(image: Image.Image) -> np.ndarray:
    """The map (1, GRID * GRID * 4) of an image's colours and outline, by which
    sources are compared: mean 0, norm 1."""
    levels = np.asarray(image.resize((GRID, GRID), Image.BOX),
                        np.float32) / 255
    colours, opacity = levels[..., :3], levels[..., 3:]
    # The outline counts more than a colour.
    levels = np.concatenate([colours * opacity, 2 * opacity], -1)
    levels = (levels - levels.mean((0, 1))).reshape(1, -1)
    return levels / max(float(np.linalg.norm(levels)), 1e-6)


def source_of(path: str, folder: str, kind: Kind) -> Source | None:
    """The source in the file at ``path``; None if it is of no use: a link, too
    small, too large, not legible, or blank."""
    file = osp.relpath(path, folder).replace(os.sep, '/')
    if osp.islink(path) or re.search(kind.left_out, f'/{file}'):
        return None
    with open(path, 'rb') as opened:
        data = opened.read()
    try:
        image = read(data, kind.most)
    except ValueError:
        return None
    x, y, right, bottom = image.getchannel('A').getbbox() or (0, 0, 0, 0)
    if min(right - x, bottom - y) < kind.least:
        return None
    return Source(file, path, family_of(file),
                  hashlib.sha256(data).hexdigest(), looks_of(image))


def read_sources(folders: Sequence[str]) -> dict[str, list[Source]]:
    """{kind: sources} in the folders that each of ``folders`` has for a kind:
    each image once, in an order that does not depend on where they lie."""
    found = {}
    for name, kind in KINDS.items():
        sources = []
        for folder in (osp.join(each, name) for each in folders):
            paths = files_in(folder, SUFFIXES)
            with threads() as pool:
                sources += track(
                    pool.map(partial(source_of, folder=folder, kind=kind),
                             paths), f'reading {name}', len(paths))
        once: dict[str, Source] = {}
        for source in sorted((source for source in sources if source),
                             key=lambda source: source.file):
            once.setdefault(source.digest, source)
        found[name] = list(once.values())
    return found


def divide_sources(found: dict[str, list[Source]], seed: int
                   ) -> dict[str, dict[str, Groups]]:
    """{split: {kind: families}}: each family is in one split.

    Raises:
        UserError: if there are fewer than two families of a kind.
    """
    divided: dict[str, dict[str, Groups]] = dict(train={}, test={})
    for kind, sources in found.items():
        for split, groups in divide(families(sources, ALIKE),
                                    dict(test=TEST), seed, kind).items():
            divided[split][kind] = groups
            print(f'{split}: {len(groups)} families of '
                  f'{sum(map(len, groups))} {kind}')
    return divided
