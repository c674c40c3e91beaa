"""Check arguments: each error names the argument, what it must be, what it is.

Numbers are returned as Python's own, because numpy's overflow.
"""
import math
import os
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

INFINITY = math.inf
StrPath = str | os.PathLike[str]


def check_number(name: str, value: Any, low: float, hint: str,
                 high: float = INFINITY) -> float:
    """``value`` as a float, if it is a finite number from ``low`` to ``high``.

    Raises:
        TypeError, ValueError: otherwise, with ``name``, ``value`` and the
            sentence ``hint``.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f'`{name}` must be a number, but got {value!r}. '
                        f'{hint}')
    try:
        number = float(value)
    except OverflowError:
        number = INFINITY
    if not math.isfinite(number) or not low <= number <= high:
        span = ('' if low == -INFINITY else f' of at least {low}'
                if high == INFINITY else f' from {low} to {high}')
        raise ValueError(f'`{name}` must be a finite number{span}, but got '
                         f'{value!r}. {hint}')
    return number


def check_int(name: str, value: Any, low: int, hint: str,
              high: int = 2**31 - 1) -> int:
    """``value`` as an int, if it is one from ``low`` to ``high``.

    Raises:
        TypeError, ValueError: as :func:`check_number`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f'`{name}` must be an int, but got {value!r}. {hint}')
    if not low <= int(value) <= high:
        raise ValueError(f'`{name}` must be an int from {low} to {high}, but '
                         f'got {value!r}. {hint}')
    return int(value)


def check_path(name: str, value: Any) -> str:
    """``value`` as a str, if it is a path.

    Raises:
        TypeError: otherwise, with ``name`` and ``value``.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f'`{name}` must be a path, but got {value!r}. Give a '
                        'str or a pathlib.Path.')
    return str(os.fspath(value))


def optional_path(name: str, value: Any) -> str | None:
    """As :func:`check_path`; None for None."""
    return None if value is None else check_path(name, value)


def check_flag(name: str, value: Any) -> None:
    """Refuse a ``value`` that is no bool.

    Raises:
        TypeError: with ``name`` and ``value``.
    """
    if not isinstance(value, bool):
        raise TypeError(f'`{name}` must be True or False, but got {value!r}. '
                        'Leave it out for the default.')


def optional_dict(name: str, value: Any, hint: str) -> dict:
    """``value``, a dict; an empty one for None.

    Raises:
        TypeError: otherwise, with ``name``, ``value`` and the sentence
            ``hint``.
    """
    if not isinstance(value, dict | None):
        raise TypeError(f'`{name}` must be a dict, but got {value!r}. {hint}')
    return dict(value or {})


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse a ``value`` that is none of ``choices``.

    Raises:
        ValueError: with ``name``, ``value`` and ``choices``.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f'`{name}` must be one of {", ".join(choices)}, but '
                         f'got {value!r}. Leave it out for {choices[0]!r}.')
