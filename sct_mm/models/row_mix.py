"""The linear mix of two rows, which serves the sizes between their scales.

A *row* is what a layer has for one scale: gamma, beta, running mean, running
variance and the counter of batches. SAN ("interpolated") mixes the rows of a
network that was trained at the scales alone; SSBN also trains through the mix.

Variances are mixed linearly: standard deviations, logarithms and inverse
deviations gave the same accuracy at sizes between the scales.
"""
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Tensor | None]
Present = dict[str, Any]  # a Row, read only where it has a tensor
AFFINE = ('weight', 'bias')
STATISTICS = ('running_mean', 'running_var')
COUNTER = 'num_batches_tracked'


def rows_serving(scales: Sequence[int],
                 size: float) -> tuple[tuple[int, float], ...]:
    """The scales whose rows serve an input of ``size`` pixels, as pairs of a
    scale and its share: the scale itself, the two around ``size`` with the
    weights of a linear interpolation, or the largest or smallest scale.

    Args:
        scales: from the largest down.
    """
    if size >= scales[0]:
        return ((scales[0], 1.0), )
    for larger, smaller in itertools.pairwise(scales):
        if size == smaller:
            return ((smaller, 1.0), )
        if size > smaller:
            share = (size - smaller) / (larger - smaller)
            return ((larger, share), (smaller, 1 - share))
    return ((scales[-1], 1.0), )


def mixed(larger: Row, smaller: Present, share: float) -> Row:
    """The mix of two rows, differentiable in weight and bias; its counter is
    that of the nearer row.

    Args:
        larger: row of the larger scale, as ``SSBN.row`` returns it.
        share: of ``larger`` in the mix, in (0, 1).
    """
    row: Row = {}
    for name, value in larger.items():
        other = smaller[name]
        if value is None or name == COUNTER:
            row[name] = value if share >= 0.5 else other
        else:
            row[name] = torch.lerp(other, value, share)
    return row


def is_built(row: Present) -> bool:
    """Whether the statistics of ``row`` are as a layer is built with. It
    waits for a GPU."""
    mean, var = (row[name] for name in STATISTICS)
    return (mean is not None and row[COUNTER] is not None
            and not row[COUNTER] and bool((mean == 0).all())
            and bool((var == 1).all()))


def unseen(scales: Sequence[int], mean: Tensor | None, var: Tensor | None,
           counter: Tensor | None) -> tuple[int, ...]:
    """Those of ``scales`` whose rows are as they were built, while others have
    seen batches. It waits for a GPU.

    Args:
        mean, var, counter: of all scales, (S, C), (S, C) and (S,); None if
            the layer has none.
    """
    if mean is None or var is None or counter is None:
        return ()
    try:
        counts = counter.tolist()
        if 0 not in counts or not any(counts):
            return ()
        untouched = ((mean == 0) & (var == 1)).all(1).tolist()
    except RuntimeError:  # meta and fake tensors have no values
        return ()
    return tuple(scale for scale, count, built in zip(
        scales, counts, untouched, strict=True) if built and not count)


@torch.no_grad()
def spread(before: Present, after: Present, larger: Present,
           smaller: Present, share: float) -> None:
    """Add to both rows, in place and by their shares, the change that a
    training step has made to the statistics of their mix.

    So both rows learn what the mix lacks. They do not move towards the
    statistics of the size between, which would spoil the rows at their own
    scales (our choice).

    Args:
        before: the mix before the step.
        after: the mix after the step.
        share: of ``larger`` in the mix; ``smaller`` has the rest.
    """
    steps = None
    if after[COUNTER] is not None:
        # Computed first: the counter of `before` is a view of one of the rows.
        steps = after[COUNTER] - before[COUNTER]
    for row, part in ((larger, share), (smaller, 1 - share)):
        # `.data`, since passes whose backward is to come have saved the
        # buffers for it, although they do not read them.
        mean, var = (row[name].data for name in STATISTICS)
        mean.add_(after['running_mean'] - before['running_mean'], alpha=part)
        old, new = before['running_var'], after['running_var']
        moved = var + (new - old) * part
        # A variance that is smaller than its mix must stay positive: it falls
        # by the factor of the mix at most.
        var.copy_(torch.where(new < old, torch.maximum(moved, var * new / old),
                              moved))
        if steps is not None:
            row[COUNTER].add_(steps)
