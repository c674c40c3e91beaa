"""Check the sizes and the thresholds of a cascade."""
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from .arguments import check_int, check_number
from .errors import UserError


def check_cascade_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """``sizes`` as a tuple, at least two, the smallest first.

    Raises:
        UserError: for fewer, or another order.
    """
    given: Any = sizes if isinstance(sizes, Iterable) else ()
    if isinstance(given, str) or len(given := tuple(given)) < 2:
        raise UserError('A cascade must have at least two sizes, but got '
                        f'{sizes!r}. Write e.g. 14 28.')
    sizes = tuple(check_int('sizes', size, 1, 'Give them in pixels.')
                  for size in given)
    if sorted(set(sizes)) != list(sizes):
        raise UserError('The sizes of a cascade must ascend, but got '
                        f'{sizes}. Write the smallest first, each once.')
    return sizes


def check_thresholds(thresholds: float | Sequence[float],
                     sizes: Sequence[int]) -> tuple[float, ...]:
    """One threshold for each of ``sizes`` but the largest; a single one holds
    for all of them.

    Raises:
        TypeError, ValueError: for a threshold that is not from 0 to 1.
        UserError: for another number of thresholds.
    """
    given: Any = [thresholds] if isinstance(thresholds, Real) else thresholds
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError('`thresholds` must be a number or a list of them, but '
                        f'got {thresholds!r}. Give e.g. 0.9.')
    hint = 'A confidence above it decides: 0 decides all, 1 none.'
    found = [check_number('thresholds', each, 0, hint, 1)
             for each in given]
    if len(found) == 1:
        found *= len(sizes) - 1
    if len(found) != len(sizes) - 1:
        raise UserError('A cascade must have one threshold, or one for each '
                        f'size but the largest, but got {len(found)} for '
                        f'{len(sizes)} sizes. Give 1 or {len(sizes) - 1}.')
    return tuple(found)
