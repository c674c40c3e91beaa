"""Which passes each training step runs, at which sizes and on which images:
pure functions of (seed, step)."""
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ...utils.arguments import check_flag, check_int, check_number

GOLDEN = (5**0.5 - 1) / 2  # its multiples spread evenly over [0, 1)
_ONE = 2**53  # ints of this size divide exactly, whatever the seed
SCALE, BETWEEN, *SIZE = (int(stride % 1 * _ONE) for stride in (
    GOLDEN, 2**0.5, 3**0.5, 7**0.5))


class Pass(NamedTuple):
    """One forward pass of a step."""
    scale: int
    size: int  # pixels that it runs at: the scale, or some above it
    weight: float  # of its loss
    share: slice | None  # of the batch; None for all of it

    @property
    def where(self) -> str:
        """What a message calls it."""
        return (f'scale {self.scale}' if self.size == self.scale
                else f'size {self.size}')


class Schedule(NamedTuple):
    """What each step of a training trains.

    The fields without a comment are arguments of ``SCTLossHook``.
    """
    weights: dict[int, float]  # {scale: lambda_s}, from the largest down
    # Scales a step, the base included even if it does not train.
    count: int  # type: ignore[assignment]  # hides tuple.count()
    seed: int = 0
    partition: bool = False
    between: float = 0.0
    divisor: int = 1  # of which the sizes between the scales are multiples
    base_trains: bool = True
    progressive: float = 0.0
    steps: int = 0  # of the training; 0 without ``progressive``

    def described(self) -> dict[str, str]:
        """Each field as text, which any checkpoint may hold."""
        return {name: repr(value) for name, value in self._asdict().items()}

    def weights_at(self, step: int) -> dict[int, float]:
        """lambda_s that the scales of ``step`` are drawn by."""
        if step < self.progressive * self.steps:
            return smallest_first(self.weights)
        return self.weights

    def _trained(self, weights: dict[int, float]) -> dict[int, float]:
        base = max(self.weights)
        return {scale: weight for scale, weight in weights.items()
                if self.base_trains or scale != base}

    def drawn_at(self, step: int) -> dict[int, float]:
        """How likely a step as ``step`` changes the normalization parameters
        of each scale that trains; a pass between two scales changes both."""
        weights = self.weights_at(step)
        if self.count == len(weights):
            drawn = dict.fromkeys(weights, 1.0)
        elif self.count == 1:
            total = sum(weights.values())
            drawn = {scale: w / total for scale, w in weights.items()}
        else:
            drawn = {**dict.fromkeys(weights, 0.0),
                     **_chances(weights, self.count), max(weights): 1.0}
        if self.between:
            drawn.update({larger: max(drawn[larger], self.between * drawn[s])
                          for larger, s in itertools.pairwise(tuple(drawn))})
        return self._trained(drawn)

    def expected(self, steps: int) -> dict[int, float]:
        """How many of ``steps`` may be expected to train each scale."""
        early = self.progressive * steps
        first, later = self.drawn_at(0), self.drawn_at(max(steps, self.steps))
        return {scale: early * first[scale] + (steps - early) * later[scale]
                for scale in later}

    def relative_cost(self) -> float:
        """Pixels that the passes of a training take, divided by those of as
        many steps at the base scale alone: what the FLOPs of a convolutional
        network are in proportion to."""
        images, steps, base = 1000, 4000, max(self.weights)
        sample = self._replace(steps=steps)
        return sum(
            len(range(images)[p.share or slice(None)]) / images
            * (p.size / base)**2 for step in range(steps)
            for p in sample.passes(images, step)) / steps

    def check_batch(self, images: int) -> None:
        """As :func:`check_shares`, of a batch of ``images``."""
        # Those of the first step and of the last.
        for step in (0, self.steps) if self.partition else ():
            check_shares(images, self._trained(
                weights_of_step(self.weights_at(step), self.count)))

    def passes(self, images: int, step: int) -> list[Pass]:
        """The passes of a step on a batch of ``images``, from the largest
        scale down."""
        drawn_by = self.weights_at(step)
        of_scale = weights_of_step(drawn_by, self.count)
        weights = self._trained({
            scale: of_scale[scale] for scale in scales_of_step(
                drawn_by, self.count, self.seed, step)})
        shares: dict[int, slice | None] = dict.fromkeys(weights)
        if self.partition:
            parts = shares_of_step(images, weights, step)
            weights = weights_of_shares(parts, sum(weights.values()))
            shares = {**parts}
        sizes = sizes_of_step(tuple(self.weights), self.between, self.divisor,
                              self.seed, step)
        return [Pass(scale, sizes[scale], weights[scale], share)
                for scale, share in shares.items()]


def make_schedule(scales: Sequence[int],
                  loss_weights: Sequence[float] | None = None,
                  scales_per_step: int | None = None,
                  base_trains: bool = True,
                  steps: int = 0,
                  **options: Any) -> Schedule:
    """The schedule of a training at ``scales``, from the largest down.

    Args:
        steps: of the training, which ``progressive`` needs.
        options: the other fields of :class:`Schedule`.

    Raises:
        ValueError: for arguments that do not fit the scales or each other.
    """
    weights = check_loss_weights(loss_weights, scales,
                                 options.get('partition', False))
    trained = scales if base_trains else scales[1:]
    count = (check_scales_per_step(scales_per_step, trained)
             + len(scales) - len(trained))
    schedule = Schedule(dict(zip(scales, weights, strict=True)), count,
                        base_trains=base_trains, steps=steps, **options)
    if schedule.between:
        sizes_between(scales, schedule.divisor)
    if schedule.progressive and not steps:
        raise ValueError('`progressive` is a share of the training, whose '
                         'steps attach() was not told. Give it `steps`.')
    return schedule


def check_weights(weights: Sequence[float] | None) -> tuple | None:
    """``loss_weights`` of SCTLossHook as a tuple of floats.

    Raises:
        TypeError, ValueError: if they are no numbers >= 0.
    """
    if weights is None:
        return None
    if not isinstance(weights, (tuple, list)):
        raise TypeError('`loss_weights` must be a tuple of one number per '
                        f'scale, but got {weights!r}. Leave it out for 1/S.')
    return tuple(
        check_number('loss_weights', weight, 0, 'Give one number >= 0 per '
                     'scale, or leave it out for 1/S.', 3e38)
        for weight in weights)


def check_loss_weights(weights: Sequence[float] | None,
                       scales: Sequence[int],
                       partition: bool = False) -> tuple[float, ...]:
    """lambda_s for each of ``scales``; 1/S each by default.

    Raises:
        ValueError: if there is not one finite number >= 0 per scale, or all
            are 0; with ``partition``, if one is.
    """
    if weights is None:
        return (1 / len(scales), ) * len(scales)
    if len(weights) != len(scales) or sum(weights) == 0:
        raise ValueError('`loss_weights` must be one finite number >= 0 per '
                         f'scale of {tuple(scales)}, not all 0, but got '
                         f'{tuple(weights)}. Leave it out for those of the '
                         'recipe, or 1/S each.')
    if partition and not all(weights):
        raise ValueError('`loss_weights` must be > 0 with partition=True, '
                         f'which gives shares by them, but got {weights}. '
                         'Train without partition, or with less scales.')
    return tuple(weights)


def check_scales_per_step(count: int | None,
                          scales: Sequence[int]) -> int:
    """How many of ``scales`` a step trains; None means all of them.

    Raises:
        ValueError: if it is no int from 1 to S.
    """
    if count is None:
        return len(scales)
    if isinstance(count, bool) or not isinstance(
            count, int) or not 1 <= count <= len(scales):
        raise ValueError('`scales_per_step` must be an int from 1 to the '
                         f'{len(scales)} scales {tuple(scales)}, but got '
                         f'{count!r}. Leave it out to train all of them.')
    return count


def check_count(scales_per_step: int | None, partition: bool) -> int | None:
    """``scales_per_step`` of SCTLossHook, beside ``partition``.

    Raises:
        TypeError, ValueError: for values of another type or range, and for
            one scale that the batch would be divided over.
    """
    check_flag('partition', partition)
    if scales_per_step is None:
        return None
    count = check_int('scales_per_step', scales_per_step, 1,
                      'Leave it out to train all scales.')
    if partition and count == 1:
        raise ValueError('`partition` divides a batch over the scales of '
                         'a step, but got scales_per_step=1. Leave one of '
                         'them out.')
    return count


def check_progressive(share: float, partition: bool,
                      scales_per_step: int | None, adapt: Any) -> float:
    """``progressive`` of SCTLossHook as a float.

    Raises:
        TypeError, ValueError: if it is no share, or no scale of a step can
            be left out for a smaller one.
    """
    share = check_number('progressive', share, 0, 'Give the share of the '
                         'steps that prefer small scales.', 1)
    if share and (adapt or not (partition or scales_per_step == 1)):
        raise ValueError('`progressive` spends the compute of the base scale '
                         'on smaller ones, but got '
                         + (f'adapt={adapt!r}' if adapt else
                            'a schedule that trains the base in each step')
                         + '. Set scales_per_step=1 or partition=True without '
                         'adapt, or progressive=0.')
    return share


def weights_of_step(weights: dict[int, float], count: int) -> dict[int, float]:
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


def _chances(weights: dict[int, float], count: int) -> dict[int, float]:
    """How likely each of the smaller scales is in a step of ``count``: in
    proportion to its weight, at most 1; they sum up to ``count - 1``."""
    base, others = max(weights), dict(weights)
    others.pop(base)
    chances: dict[int, float] = {}
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


def smallest_first(weights: dict[int, float]) -> dict[int, float]:
    """lambda_s of the steps that learn from small images first: of each
    scale that ``weights`` train in proportion to (base / s)**4, the square of
    what a pass at the base costs more. Their sum is that of ``weights``.

    Our choice. That it helps was seen on 10,000 training images of
    Fashion-MNIST held out (docs/results.md); other powers were not compared.
    """
    base = max(weights)
    counted = {scale: (base / scale)**4 if weight else 0.0
               for scale, weight in weights.items()}
    factor = sum(weights.values()) / sum(counted.values())
    return {scale: weight * factor for scale, weight in counted.items()}


def scales_of_step(weights: dict[int, float], count: int, seed: int,
                   step: int) -> tuple[int, ...]:
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


def _one_scale(weights: dict[int, float], point: float) -> int:
    """The scale at ``point`` of [0, 1), of which each has its share."""
    drawn = [scale for scale, weight in weights.items() if weight > 0]
    reached, total = 0.0, sum(weights.values())
    for scale in drawn:
        reached += weights[scale] / total
        if point < reached:
            return scale
    return drawn[-1]  # the sum is 1 but for rounding


def evenly(seed: int, step: int, stride: int) -> float:
    """A point in [0, 1) for each step: those of steps in a row are spread
    evenly, as coin flips are not.

    Args:
        stride: an irrational part of ``_ONE``. Points of two strides that no
            fractions relate are independent of each other (Weyl).
    """
    return (step + seed * 1_000_003) * stride % _ONE / _ONE


def sizes_of_step(scales: Sequence[int], between: float, divisor: int,
                  seed: int, step: int) -> dict[int, int]:
    """{scale: size of its pass in pixels}.

    In a share ``between`` of the steps, spread evenly, each smaller scale
    gives its pass to a size between it and the next larger scale, a multiple
    of ``divisor``; the base stays. So each gap is trained, and nothing below
    the smallest scale.

    Sizes in the middle of a gap, far from both scales, are drawn more often
    than those next to a scale (triangularly; our choice, which was more
    accurate between the scales than a uniform draw, compared with one seed).
    """
    sizes = dict(zip(scales, scales, strict=True))
    if evenly(seed, step, BETWEEN) >= between:
        return sizes
    points = [evenly(seed, step, stride) for stride in SIZE]
    for rank, (scale, choices) in enumerate(sizes_between(
            scales, divisor).items()):
        # Apart from each other within a step, and even over the steps.
        part = sum((point + rank * GOLDEN) % 1 for point in points) / 2
        sizes[scale] = choices[int(part * len(choices))]
    return sizes


def _gap(larger: int, smaller: int, divisor: int) -> range:
    """The multiples of ``divisor`` between two scales."""
    return range((smaller // divisor + 1) * divisor, larger, divisor)


def sizes_between(scales: Sequence[int], divisor: int) -> dict[int, range]:
    """The sizes that may stand in for each smaller scale: the multiples of
    ``divisor`` between it and the next larger one.

    Raises:
        ValueError: for a gap without any, and for a single scale.
    """
    if len(scales) < 2:
        raise ValueError('`between` needs two scales to train between, but '
                         f'got {tuple(scales)}. Leave it out.')
    sizes = {scale: _gap(larger, scale, divisor)
             for larger, scale in itertools.pairwise(scales)}
    for larger, scale in itertools.pairwise(scales):
        if not sizes[scale]:
            raise ValueError(f'`between` needs a multiple of {divisor} '
                             f'between {larger} and {scale}, but there is '
                             'none. Set between=0, leave out one of these '
                             'scales, or set a smaller size_divisor, also in '
                             'the data preprocessor.')
    return sizes


def halfway(scales: Sequence[int], divisor: int) -> list[int]:
    """For each two neighbours of ``scales``, the multiple of ``divisor`` in
    the middle of those between them; none where there is none."""
    gaps = (_gap(larger, smaller, divisor)
            for larger, smaller in itertools.pairwise(scales))
    return [gap[len(gap) // 2] for gap in gaps if gap]


def check_shares(images: int, weights: dict[int, float]) -> None:
    """Whether each scale gets its share of a batch of ``images``.

    Raises:
        ValueError: if that of one is less than two images: batches would
            leave it out.
    """
    smallest = min(weights, key=weights.__getitem__)
    part = max(weights[smallest] / sum(weights.values()), 1e-9)
    if images * part < 2 - 1e-6:
        raise ValueError(f'partition=True gives scale {smallest} a share of '
                         f'{part:.2f} of the {images} images of a batch, '
                         'but batch statistics need two. Set batch_size to '
                         f'{math.ceil(2 / part - 1e-6)} or more, or train '
                         'without partition.')


def shares_of_step(images: int, weights: dict[int, float],
                   step: int) -> dict[int, slice]:
    """Divide a batch over the scales of ``weights``: {scale: its images}.

    Shares are proportional to the weights; how they are rounded changes with
    ``step`` and evens out over the steps. A scale with less than two
    images, which batch statistics need, leaves them to the next larger one;
    a base with less takes all. Only a short last batch is that small, see
    :func:`check_shares`.
    """
    phase = step * GOLDEN % 1
    total = sum(weights.values())
    sizes, end, reached = {}, 0, 0.0
    for scale in sorted(weights):  # the base is the last: it takes the rest
        reached += weights[scale] / total
        sizes[scale] = int(images * reached + phase) - end
        if sizes[scale] < 2:
            sizes[scale] = 0
        end += sizes[scale]
    base = max(weights)
    sizes[base] += images - end
    if sizes[base] < 2:
        sizes = {base: images}
    shares, end = {}, images
    for scale, size in sizes.items():
        if size:
            shares[scale] = slice(end - size, end)
        end -= size
    return {scale: shares[scale] for scale in weights if scale in shares}


def weights_of_shares(shares: dict[int, slice],
                      total: float) -> dict[int, float]:
    """lambda_s that make each image of a divided batch count the same, also
    where a short batch leaves scales out; they sum up to ``total``."""
    sizes = {scale: share.stop - share.start
             for scale, share in shares.items()}
    images = sum(sizes.values())
    return {scale: total * size / images for scale, size in sizes.items()}
