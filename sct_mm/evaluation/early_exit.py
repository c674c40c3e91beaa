"""Compute what early exit over sizes costs and gains at a threshold, from the
confidence of each image at each size.

There are S sizes, the smallest first, and N images: ``confidences`` and
``right``, whether each answer is right, are (S, N); ``gflops`` (S,) are those
of one image.
"""
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

METRIC = 'accuracy/top1'


def decided_at(confidences: Tensor, thresholds: Sequence[float]) -> Tensor:
    """(N,) index of the size that decides each image: the first whose
    confidence is above its threshold, or, if none is, the last."""
    sure = torch.ones_like(confidences, dtype=torch.bool)
    for row, threshold in enumerate(thresholds):
        sure[row] = confidences[row] > threshold
    return sure.int().argmax(0)  # the first of the largest


def shares_of(decided: Tensor, count: int) -> Tensor:
    """(S,) share of the images that each of ``count`` sizes decides."""
    return torch.bincount(decided, minlength=count) / len(decided)


def mean_gflops(shares: Tensor, gflops: Sequence[float]) -> float:
    """Mean GFLOPs of an image, with all sizes that it runs through."""
    passed = torch.tensor(gflops, dtype=torch.double).cumsum(0)
    return float((shares.double() * passed).sum())


def auroc(confidence: Tensor, right: Tensor) -> float:
    """The chance that a right answer has more confidence than a wrong one;
    ties count half. NaN if all answers are right, or all are wrong.

    Args:
        confidence: (N,). right: (N,), bool.
    """
    _, places, counts = confidence.unique(return_inverse=True,
                                          return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2).double()[places]
    positive = int(right.sum())
    pairs = positive * (len(right) - positive)
    above = float(ranks[right].sum()) - positive * (positive + 1) / 2
    return above / pairs if pairs else float('nan')


class Curve(NamedTuple):
    """Accuracy and cost at each of T thresholds, one for all sizes, from 0
    up; all (T,).

    ``accuracy`` in %; mean ``gflops`` of an image; ``error``, the standard
    error of the difference to the accuracy of the largest size.
    """
    thresholds: Tensor
    accuracy: Tensor
    gflops: Tensor
    error: Tensor


def curve_of(confidences: Tensor, right: Tensor,
             gflops: Sequence[float]) -> Curve:
    """The curve over every threshold that makes a difference, by one sort.

    An image leaves size s for the next when the threshold reaches its largest
    confidence up to s. Each such event changes the sums.
    """
    count = confidences.shape[1]
    # A confidence of NaN is never sure: the image leaves at any threshold.
    leaves = confidences[:-1].double().nan_to_num(0.0).cummax(0).values
    rights = right.double()
    apart = (rights != rights[-1]).double()
    events, order = leaves.flatten().sort()

    def sums(start: Tensor, change: Tensor) -> Tensor:
        return torch.cat([start.sum()[None], start.sum()
                          + change.flatten()[order].cumsum(0)]) / count

    price = torch.tensor(gflops, dtype=torch.double)
    accuracy = sums(rights[0], rights[1:] - rights[:-1])
    cost = sums(price[0].expand(count), price[1:, None].expand_as(leaves))
    differs = sums(apart[0], apart[1:] - apart[:-1]).clamp(min=0)
    thresholds = torch.cat([torch.zeros(1).double(), events])
    last = torch.ones(len(thresholds), dtype=torch.bool)
    last[:-1] = thresholds[1:] != thresholds[:-1]  # of equal ones, all leave
    return Curve(thresholds[last], 100 * accuracy[last], cost[last],
                 100 * (differs[last] / count).sqrt())


def cheapest(curve: Curve, accuracy: float, target: float) -> int:
    """Index in ``curve`` of the smallest, and so the cheapest, threshold that
    costs at most ``target`` points of ``accuracy`` (%), even if its accuracy
    is one standard error lower.

    Without the error, the luckiest of many thresholds would be taken
    (docs/early-exit.md). The threshold that leaves all images to the largest
    size has no error, so that one is always found.
    """
    good = curve.accuracy - curve.error >= accuracy - target - 1e-9
    return int(good.int().argmax())
