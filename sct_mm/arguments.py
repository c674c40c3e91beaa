"""Arguments of the wrong type or out of range: one sentence for all parts."""
from numbers import Integral, Real
from typing import Any, Sequence

INFINITY = float('inf')


def check_number(name: str, value: Any, low: float, hint: str,
                 high: float = INFINITY) -> None:
    """Whether ``value`` is a finite number from ``low`` to ``high``.

    Raises:
        TypeError, ValueError: saying ``name``, the value and ``hint``.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f'`{name}` must be a number, but got {value!r}. '
                        f'{hint}')
    if not low <= value <= high or value == INFINITY:
        span = (f'at least {low}' if high == INFINITY
                else f'from {low} to {high}')
        raise ValueError(f'`{name}` must be a finite number, {span}, but got '
                         f'{value!r}. {hint}')


def check_int(name: str, value: Any, low: int, hint: str) -> None:
    """Whether ``value`` is an int of at least ``low``.

    Raises:
        TypeError, ValueError: saying ``name``, the value and ``hint``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f'`{name}` must be an int, but got {value!r}. {hint}')
    if value < low:
        raise ValueError(f'`{name}` must be an int of at least {low}, but got '
                         f'{value!r}. {hint}')


def check_flag(name: str, value: Any) -> None:
    """Whether ``value`` is a bool.

    Raises:
        TypeError: saying ``name`` and the value.
    """
    if not isinstance(value, bool):
        raise TypeError(f'`{name}` must be True or False, but got {value!r}. '
                        'Leave it out for the default.')


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Whether ``value`` is one of ``choices``.

    Raises:
        ValueError: saying ``name``, the value and the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f'`{name}` must be one of {", ".join(choices)}, but '
                         f'got {value!r}. Leave it out for {choices[0]!r}.')
