"""Read the sizes that a user types: ints, and ranges such as 128:224:16."""
import re
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from .errors import UserError

Sizes = str | Sequence[int | str]  # what expand_sizes() takes
_RANGE = re.compile('([0-9]+)(?::([0-9]+)(?::([0-9]+))?)?')
_MOST = 1000  # sizes in one range: more are a typing error


def expand_sizes(sizes: Sizes, name: str = 'sizes') -> tuple[int, ...]:
    """The sizes in pixels that ints and ranges name, the largest first.

    ``'128:224:16'`` is 128, 144, ..., 224: from the first number to the
    second, up or down, in steps of the third, which is 1 if left out. The
    second is in the range only if a step meets it. ``'176'`` is one size.

    Raises:
        UserError: for anything else; it calls the argument ``name``.
    """
    items = [sizes] if isinstance(sizes, str) else sizes
    if not isinstance(items, (list, tuple, range)) or not items:
        raise _no_sizes(sizes, name)
    found: set[int] = set()
    for item in items:
        if isinstance(item, str):
            found.update(_sizes_of(item, name))
        elif isinstance(item, Integral) and not isinstance(item, bool):
            found.add(int(item))
        else:
            raise _no_sizes(sizes, name)
    if min(found) <= 0:
        raise _no_sizes(sizes, name)
    return tuple(sorted(found, reverse=True))


def _sizes_of(text: str, name: str) -> range:
    """The sizes that one number or range names."""
    match = _RANGE.fullmatch(text.strip())
    if not match:
        raise _no_sizes(text, name)
    start = int(match[1])
    end, step = int(match[2] or start), int(match[3] or 1)
    if not step:
        raise UserError(f'`{name}` must have ranges with a step of at least '
                        f'1, but got {text!r}. Leave the step out for 1.')
    sign = 1 if end >= start else -1
    sizes = range(start, end + sign, sign * step)
    if len(sizes) > _MOST:
        raise UserError(f'`{name}` must have ranges of at most {_MOST} sizes, '
                        f'but got {text!r}, which are {len(sizes)}. Take a '
                        'larger step.')
    return sizes


def _no_sizes(value: Any, name: str) -> UserError:
    return UserError(f'`{name}` must be positive ints (pixels) or ranges '
                     f'FIRST:LAST:STEP of them, but got {value!r}. Write e.g. '
                     f"{name}=(224, '128:192:16').")
