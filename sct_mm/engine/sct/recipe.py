"""Recipes: names for arguments of SCTLossHook that belong together."""
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

# Bases of the networks that are trained as detectors, by the name of the
# class: mmdet's, from which those of mmyolo and mmrotate derive.
_DETECTORS = ('BaseDetector', )
# The weights of the classifiers in docs/results.md, by the number of scales:
# chosen by hand, that of six beside nine others. They follow from no formula.
_CHOSEN = {4: (0.45, 0.2, 0.15, 0.2),
           6: (0.45, 0.13, 0.12, 0.1, 0.08, 0.12)}


class Recipe(NamedTuple):
    """The arguments of ``SCTLossHook`` that any number of scales has."""
    scales_per_step: int | None = None
    progressive: float = 0.0
    shared_affine: bool = False


# Without a recipe, arguments that are not given have the values of 'paper'.
RECIPES = {'any-size': Recipe(1, 0.65, True), 'paper': Recipe()}


def recipe_of(name: str | None, adapt: bool | str = False) -> Recipe:
    """The recipe ``name``; None is that of no name.

    Raises:
        ValueError: for another name, and beside ``adapt``.
    """
    if name is None:
        return Recipe()
    if not isinstance(name, str) or name not in RECIPES:
        raise ValueError(f'`recipe` must be one of {", ".join(RECIPES)}, but '
                         f'got {name!r}. Leave it out to give the arguments '
                         'one by one.')
    if adapt:
        raise ValueError('`recipe` trains the whole network, and `adapt` '
                         f'keeps the base scale, but got recipe={name!r} '
                         f'and adapt={adapt!r}. Leave one of them out.')
    return RECIPES[name]


def detects(model: nn.Module) -> bool:
    """Whether ``model`` is a detector of mmdet or of a host that derives its
    detectors from mmdet's."""
    return any(each.__name__ in _DETECTORS for each in type(model).__mro__)


def at_scales(name: str | None, scales: Sequence[int], detector: bool,
              **given: Any) -> dict[str, Any]:
    """The arguments of ``SCTLossHook`` that depend on the scales:
    ``loss_weights``, ``between`` and ``size_divisor``.

    'any-size' trains sizes between the scales in 35 % of the steps. For a
    detector it trains none: each size that is tested is a scale, which was
    more accurate (docs/results.md).

    Args:
        name: of the recipe; None and 'paper' leave the defaults.
        scales: in pixels, from the largest down.
        given: those that the user has set; None stands for not set.

    Raises:
        ValueError: for a single scale.
    """
    given = {key: value for key, value in given.items() if value is not None}
    chosen: dict[str, Any] = dict(
        loss_weights=None, between=0.0, size_divisor=1)
    if name == 'any-size':
        if len(scales) < 2:
            raise ValueError("recipe='any-size' must have two scales or more, "
                             f'but got {tuple(scales)}. Give the norm more '
                             '`scales`.')
        chosen['loss_weights'] = weights_for(len(scales), detector)
        chosen['between'] = given.get('between', 0.0 if detector else 0.35)
        if chosen['between']:
            chosen['size_divisor'] = divisor_for(scales)
    return {**chosen, **given}


def weights_for(count: int, detector: bool) -> tuple[float, ...]:
    """lambda_s of 'any-size' for ``count`` scales, from the largest down.

    The base has 0.45, and the others share the rest evenly. Two exceptions
    are our choice and follow from no rule: classifiers with four and with six
    scales have the weights that were set by hand for docs/results.md, and
    from six scales on, the base of a detector has 0.35, which was not run.
    """
    if not detector and count in _CHOSEN:
        return _CHOSEN[count]
    base = 0.35 if detector and count > 5 else 0.45
    return (base, *[(1 - base) / (count - 1)] * (count - 1))


def divisor_for(scales: Sequence[int]) -> int:
    """The ``size_divisor`` of 'any-size', in pixels: half of the greatest
    common divisor of the scales, so that each gap has a multiple of it in the
    middle, and maps of a strided network are rounded in few ways; 1 if the
    divisor is odd. Our choice."""
    common = math.gcd(*scales)
    return 1 if common % 2 else common // 2
