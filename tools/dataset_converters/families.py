"""Group files of one design or subject, and divide the groups among splits,
so that no split shows what another has, for glyphs.py and photos.py."""
import hashlib
import re
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from sct_mm.utils.errors import UserError


class Member(Protocol):
    """A file: the name of its ``family``, and ``shapes`` (K, D), its looks:
    K maps with mean 0 and norm 1."""

    @property
    def family(self) -> str: ...

    @property
    def shapes(self) -> np.ndarray: ...


M = TypeVar('M', bound=Member)


def first_word(family: str) -> str:
    return ''.join(re.findall(r'[^\W_]+', family.lower())[:1])


def families(members: Sequence[M], alike: float) -> list[list[M]]:
    """Groups of ``members`` whose families begin with the same word
    (Liberation Sans, Liberation Mono), or that look alike: whose maps have a
    mean correlation above ``alike``."""
    if not members:
        return []
    words = np.unique([first_word(member.family) for member in members],
                      return_inverse=True)[1]
    flat = np.stack([member.shapes.ravel() for member in members])
    linked = ((words[:, None] == words)
              | (flat @ flat.T > alike * len(members[0].shapes)))
    first = np.arange(len(members))
    while True:  # `first` becomes the first member of each group
        nearer = np.where(linked, first, len(members)).min(1)
        if (nearer == first).all():
            break
        first = nearer
    return [[members[i] for i in np.flatnonzero(first == start)]
            for start in np.unique(first)]


def divide(groups: Sequence[list[M]], shares: dict[str, float], seed: int,
           what: str) -> dict[str, list[list[M]]]:
    """{split: groups}: each split gets its share of the groups, at least one,
    and 'train' the rest. The order of the groups depends on their names and
    ``seed``: another member moves few groups.

    Args:
        what: what an error calls the members.

    Raises:
        UserError: if there are fewer groups than splits.
    """
    if len(groups) <= len(shares):
        raise UserError(
            f'{what.capitalize()} of at least {len(shares) + 1} families are '
            f'needed, but got {len(groups)} that can be read. Give more '
            f'{what}.')

    def place(group: list[M]) -> bytes:
        return hashlib.sha256(f'{seed} {group[0].family}'.encode()).digest()

    order = sorted(groups, key=place)
    divided = {}
    for split, share in shares.items():
        count = max(round(share * len(groups)), 1)
        divided[split], order = order[:count], order[count:]
    return {**divided, 'train': order}
