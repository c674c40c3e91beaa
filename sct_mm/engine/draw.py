"""How likely a step trains each scale, and the draw of it.

Pure functions of (seed, step): every process agrees, and a resumed run goes
on as the unbroken one would.
"""
from typing import Dict, Tuple

import torch

GOLDEN = (5**0.5 - 1) / 2  # its multiples spread evenly over [0, 1)
_ONE = 2**53  # ints of this size divide exactly, whatever the seed
SCALE, BETWEEN, *SIZE = (int(stride % 1 * _ONE) for stride in (
    GOLDEN, 2**0.5, 3**0.5, 7**0.5))


def _chances(weights: Dict[int, float], count: int) -> Dict[int, float]:
    """How likely each of the smaller scales is in a step of ``count``: in
    proportion to its weight, at most 1; they sum up to ``count - 1``."""
    base, others = max(weights), dict(weights)
    others.pop(base)
    chances: Dict[int, float] = {}
    left = count - 1
    while left > 0 and sum(others.values()) > 0:
        total = sum(others.values())
        sure = [s for s, w in others.items() if w * left >= total]
        if not sure:
            chances.update({s: w * left / total for s, w in others.items()})
            break
        chances.update(dict.fromkeys(sure, 1.0))
        left -= len(sure)
        for scale in sure:
            others.pop(scale)
    return {s: p for s, p in chances.items() if p > 0}


def evenly(seed: int, step: int, stride: int) -> float:
    """A point in [0, 1) for each step: those of steps in a row are spread
    evenly, as coin flips are not.

    Args:
        stride: an irrational part of ``_ONE``. Points of two strides that no
            fractions relate are independent of each other (Weyl).
    """
    return (step + seed * 1_000_003) * stride % _ONE / _ONE


def _one_scale(weights: Dict[int, float], point: float) -> int:
    """The scale at ``point`` of [0, 1), of which each has its share."""
    drawn = [scale for scale, weight in weights.items() if weight > 0]
    reached, total = 0.0, sum(weights.values())
    for scale in drawn:
        reached += weights[scale] / total
        if point < reached:
            return scale
    return drawn[-1]  # the sum is 1 but for rounding


def scales_of_step(weights: Dict[int, float], count: int, seed: int,
                   step: int) -> Tuple[int, ...]:
    """The scales that a step trains, from the largest down.

    Of several, the base and ``count - 1`` of the others, drawn by their
    weights without repetition (systematic sampling in a random order; our
    choice: US-Nets, arXiv 1903.05134, keep the smallest too and draw those
    between). One is drawn by the weights, evenly over the steps.
    """
    if count == len(weights):
        return tuple(sorted(weights, reverse=True))
    if count == 1:
        return (_one_scale(weights, evenly(seed, step, SCALE)), )
    chances = _chances(weights, count)
    generator = torch.Generator().manual_seed(
        (seed * 1_000_003 + step) % 2**63)
    order = torch.randperm(len(chances), generator=generator).tolist()
    point = torch.rand((), generator=generator, dtype=torch.float64).item()
    drawn, reached = [max(weights)], 0.0
    names = list(chances)
    for i in order:
        reached += chances[names[i]]
        if i == order[-1]:
            reached = round(reached)  # it is an int but for rounding
        if reached > point:
            drawn.append(names[i])
            point += 1
    return tuple(sorted(drawn, reverse=True))


def weights_of_step(weights: Dict[int, float], count: int) -> Dict[int, float]:
    """lambda_s of a step in which scale s is drawn: such that the mean over
    the steps is the loss of all scales, and each step weighs the same."""
    base = max(weights)
    if count == len(weights):
        return dict(weights)
    if count == 1:
        total = sum(weights.values())
        return {s: total for s, weight in weights.items() if weight > 0}
    return {base: weights[base],
            **{s: weights[s] / chance
               for s, chance in _chances(weights, count).items()}}


def smallest_first(weights: Dict[int, float]) -> Dict[int, float]:
    """lambda_s of the steps that learn from small pictures first: of each
    scale that ``weights`` train in proportion to (base / s)**4, the square of
    what a pass at the base costs more. Their sum is that of ``weights``.

    Our choice. That it helps was seen on 10,000 training pictures of
    Fashion-MNIST held out (docs/results.md); other powers were not compared.
    """
    base = max(weights)
    counted = {scale: (base / scale)**4 if weight else 0.0
               for scale, weight in weights.items()}
    factor = sum(weights.values()) / sum(counted.values())
    return {scale: weight * factor for scale, weight in counted.items()}
