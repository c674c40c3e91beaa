"""Read fonts whose capitals and digits are legible, for glyphs.py."""
import functools
import hashlib
import io
import os.path as osp
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from families import first_word
from PIL import Image, ImageFont

CHARACTERS = string.ascii_uppercase + string.digits
TALL = 64  # pixels of the em at which fonts are compared
GRID = 16  # edge of the map of a glyph by which shapes are compared
# Least share of characters that are recognised. Fonts of symbols (Symmetry
# BRK) have less than 0.1, letters that are hard to read less than 0.4.
LEGIBLE = 0.5
# Least correlation of two fonts of one design: Hack and DejaVu Sans Mono, its
# origin, have 0.987, Verana and DejaVu 0.997, but FreeSans and Switzera, both
# like Helvetica, less than 0.93.
ALIKE = 0.95


class Font(NamedTuple):
    """A legible font: ``data`` are the bytes of its file, ``shapes`` (36, 256)
    the maps of its characters with mean 0 and norm 1."""
    file: str
    family: str
    style: str
    data: bytes
    shapes: np.ndarray

    def at(self, pixels: int) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(io.BytesIO(self.data), pixels,
                                  layout_engine=ImageFont.Layout.BASIC)


class Refused(ValueError):
    """A font is not used; the text is the reason."""


def shape_of(size: tuple[int, int], pixels: bytes) -> np.ndarray:
    """The map (256,) of a glyph whose ``pixels`` are grey levels."""
    glyph = Image.frombytes('L', size, pixels)
    glyph = glyph.crop(glyph.getbbox()).resize((GRID, GRID), Image.BOX)
    levels = np.asarray(glyph, np.float32).ravel()
    levels = levels - levels.mean()
    return levels / max(float(np.linalg.norm(levels)), 1e-6)


def glyphs_of(font: ImageFont.FreeTypeFont) -> list[tuple]:
    """Size and pixels of each character.

    Raises:
        Refused: if a character is missing, or if two look the same, such as
            O and 0.
    """
    def drawn(text: str) -> tuple:
        mask = font.getmask(text, mode='L')
        return mask.size, bytes(mask)

    glyphs = [drawn(character) for character in CHARACTERS]
    if not all(any(pixels) for _, pixels in glyphs):
        raise Refused('a character is blank')
    if drawn('\U0010fffe') in glyphs:  # by Unicode, no font has it
        raise Refused('a character is missing')
    if len(set(glyphs)) < len(glyphs):
        raise Refused('two characters look the same')
    return glyphs


@functools.lru_cache(maxsize=1)
def reference() -> np.ndarray:
    """Maps (36, 256) of fonts of matplotlib, by which characters are
    recognised."""
    folder = osp.join(matplotlib.get_data_path(), 'fonts', 'ttf')
    fonts = [ImageFont.truetype(osp.join(folder, f'DejaVu{name}.ttf'), TALL)
             for name in ('Sans', 'SansMono', 'Serif', 'Sans-Bold')]
    return np.mean([[shape_of(*glyph) for glyph in glyphs_of(font)]
                    for font in fonts], axis=0)


def read_font(path: str) -> Font:
    """The font in the file at ``path``.

    Raises:
        Refused: see :func:`glyphs_of`, and if less than LEGIBLE of its
            characters are recognised.
    """
    with open(path, 'rb') as file:
        data = file.read()
    try:
        font = ImageFont.truetype(io.BytesIO(data), TALL)
        family, style = font.getname()
        glyphs = glyphs_of(font)
    except (OSError, SyntaxError, MemoryError):  # of FreeType and Pillow
        raise Refused('the file cannot be read') from None
    if not first_word(family or ''):
        raise Refused('the font has no name')
    shapes = np.stack([shape_of(*glyph) for glyph in glyphs])
    known = reference() / np.linalg.norm(reference(), axis=1, keepdims=True)
    right = (shapes @ known.T).argmax(1) == np.arange(len(CHARACTERS))
    if right.mean() < LEGIBLE:
        raise Refused('the characters are hard to read')
    return Font(osp.basename(path), family, style or '', data, shapes)


def read_fonts(paths: Sequence[str]) -> tuple[list[Font], dict[str, int]]:
    """The legible fonts, in an order that does not depend on their folder, and
    {reason: number of fonts that were refused}."""
    fonts, refused = [], Counter()
    for path in paths:
        try:
            fonts.append(read_font(path))
        except Refused as reason:
            refused[str(reason)] += 1
    fonts.sort(key=lambda font: (font.family, font.style, font.file,
                                 hashlib.sha256(font.data).digest()))
    return fonts, dict(sorted(refused.items()))
