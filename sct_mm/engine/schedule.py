"""Which scales one training step runs, and on which of its pictures.

Pure functions of (seed, step): every process agrees, and a resumed run goes
on as the unbroken one would.
"""
import math
from typing import Dict, Optional, Sequence, Tuple

import torch

_GOLDEN = (5**0.5 - 1) / 2  # its multiples spread evenly over [0, 1)


def check_scales_per_step(count: Optional[int],
                          scales: Sequence[int]) -> int:
    """How many of ``scales`` a step trains; None means all of them.

    Raises:
        ValueError: if it is no int from 2 (the base and another) to S.
    """
    if count is None:
        return len(scales)
    if isinstance(count, bool) or not isinstance(
            count, int) or not 2 <= count <= len(scales):
        raise ValueError('`scales_per_step` must be an int from 2 to the '
                         f'{len(scales)} scales {tuple(scales)}, but got '
                         f'{count!r}. Leave it out to train all of them.')
    return count


def scales_of_step(scales: Sequence[int], count: int, seed: int,
                   step: int) -> Tuple[int, ...]:
    """The base scale and ``count - 1`` of the others, from the largest down.

    Each of the others is as likely as the next (our choice; US-Nets, arXiv
    1903.05134, keep the smallest too and draw those between).
    """
    if count == len(scales):
        return tuple(scales)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    drawn = torch.randperm(len(scales) - 1, generator=generator)[:count - 1]
    return (scales[0], *(scales[i + 1] for i in sorted(drawn.tolist())))


def weights_of_step(weights: Dict[int, float], count: int) -> Dict[int, float]:
    """lambda_s such that the mean over the steps is the loss of all scales:
    one drawn in (k - 1) of (S - 1) steps counts (S - 1)/(k - 1) times."""
    base = max(weights)
    factor = (len(weights) - 1) / (count - 1) if count > 1 else 1.0
    return {scale: weight if scale == base else weight * factor
            for scale, weight in weights.items()}


def check_shares(pictures: int, weights: Dict[int, float]) -> None:
    """Whether each scale gets its share of a batch of ``pictures``.

    Raises:
        ValueError: if that of one is less than two pictures: batches would
            leave it out.
    """
    smallest = min(weights, key=weights.get)
    part = weights[smallest] / sum(weights.values())
    if pictures * part < 2 - 1e-6:
        raise ValueError(f'partition=True gives scale {smallest} a share of '
                         f'{part:.2f} of the {pictures} pictures of a batch, '
                         'but batch statistics need two. Set batch_size to '
                         f'{math.ceil(2 / part - 1e-6)} or more, or train '
                         'without partition.')


def shares_of_step(pictures: int, weights: Dict[int, float],
                   step: int) -> Dict[int, slice]:
    """Divide a batch over the scales of ``weights``: {scale: its pictures}.

    Shares are proportional to the weights, so that each picture counts the
    same in the loss; how they are rounded changes with ``step`` and evens out
    over the steps. A scale with less than two pictures, which batch
    statistics need, leaves them to the next larger one; a base with less
    takes all. Only a short last batch is that small, see
    :func:`check_shares`.
    """
    phase = step * _GOLDEN % 1
    total = sum(weights.values())
    sizes, end, reached = {}, 0, 0.0
    for scale in sorted(weights):  # the base is the last: it takes the rest
        reached += weights[scale] / total
        sizes[scale] = int(pictures * reached + phase) - end
        if sizes[scale] < 2:
            sizes[scale] = 0
        end += sizes[scale]
    base = max(weights)
    sizes[base] += pictures - end
    if sizes[base] < 2:
        sizes = {base: pictures}
    shares, end = {}, pictures
    for scale, size in sizes.items():
        if size:
            shares[scale] = slice(end - size, end)
        end -= size
    return {scale: shares[scale] for scale in weights if scale in shares}
