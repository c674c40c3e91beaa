"""Compare what was measured on images that are held out."""
import math
from collections.abc import Callable, Sequence
from typing import Any

from ...utils.errors import UserError

# The metric of a classifier that decides: :func:`with_weighed` adds it.
_WEIGHED = 'agreement/weighed'
# Metrics whose mean decides, by their end; more is better.
_DECIDING = (_WEIGHED, 'bbox_mAP', 'mIoU')
_PARTS = 10  # of the images: each is left out once, to tell what is chance


def with_weighed(metrics: dict[str, float], images: int) -> dict[str, float]:
    """``metrics`` of FidelityMetric on so many ``images``, and those of
    classifiers also joined: the agreement in % if images of which the base is
    sure count twice (our choice: they matter more, but where they are few,
    their share alone is uncertain)."""
    found = dict(metrics)
    for name, sure in metrics.items():
        task = name.removesuffix('sure_images')
        if task != name:
            right = images * metrics[f'{task}agreement/all'] + (
                sure * metrics[f'{task}agreement/sure'] if sure else 0)
            found[f'{task}{_WEIGHED}'] = right / (images + sure)
    return found


def score(metrics: dict[str, float]) -> float:
    """One number by which metrics of :meth:`HeldOutImages.measure` compare:
    the mean of the weighed agreements, mAP or mIoU, or minus the loss;
    more is better, NaN counts as the worst."""
    if 'loss' in metrics:
        value = -metrics['loss']
    else:
        found = [value for name, value in metrics.items()
                 if name.endswith(_DECIDING) and not math.isnan(value)]
        value = sum(found) / len(found) if found else math.nan
    return -math.inf if math.isnan(value) else value


def is_worse(after: dict[str, float], before: dict[str, float],
             share: float = 0.02) -> bool:
    """Whether ``after`` is behind ``before`` by more than ``share`` of the
    latter's :func:`score` (our choice by default: less is chance)."""
    return score(after) < score(before) - share * abs(score(before))


class Measured(dict[str, float]):
    """Metrics on images that are held out.

    Attributes:
        others: the :func:`score` on all images but a tenth, for each tenth,
            as far as they can be divided.
    """
    others: tuple[float, ...] = ()


def measured(items: Sequence[Any], compute: Callable[[Sequence[Any]],
                                                     dict[str, float]]
             ) -> Measured:
    """The metrics that ``compute`` makes of ``items``, one of an image or of
    a batch."""
    found = Measured(compute(items))
    parts = min(_PARTS, len(items))
    found.others = tuple(
        _score_of([item for index, item in enumerate(items)
                   if index % parts != part], compute)
        for part in range(parts)) if parts > 1 else ()
    return found


def _score_of(items: Sequence[Any], compute: Callable[
        [Sequence[Any]], dict[str, float]]) -> float:
    try:
        return score(compute(items))
    except UserError:  # the base finds no object in any of them
        return -math.inf


def is_gain(after: Measured, before: Measured) -> bool:
    """Whether ``after`` is ahead of ``before`` by more than half of the
    standard error of that. Of what does not gain this takes three of ten by
    chance; more than one error would leave real gains (our choice,
    docs/results.md). The error is estimated by the jackknife: the scores of
    tenths alone differ more, where few images make them."""
    gain = score(after) - score(before)
    gains = [ours - theirs for ours, theirs in zip(
        after.others, before.others, strict=True)
        if not ours == theirs == -math.inf]
    if len(gains) < 2 or not math.isfinite(score(before)):
        return gain > 0
    mean = sum(gains) / len(gains)
    variance = (len(gains) - 1) / len(gains) * sum(
        (each - mean) ** 2 for each in gains)
    return gain > math.sqrt(variance) / 2  # not of NaN


def best(candidates: dict[str, Measured]) -> str:
    """The name of the best of ``candidates``, ``{name: metrics}``, whose first
    one is the network as it was: that unless another :func:`is_gain`."""
    before = next(iter(candidates))
    most = max(candidates, key=lambda name: score(candidates[name]))
    return most if is_gain(candidates[most], candidates[before]) else before
