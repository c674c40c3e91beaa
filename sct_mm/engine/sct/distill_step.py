"""SCTLossHook(distill=...): scales that teach each other while they train, as
in RS-Nets."""
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from ...datasets.batch_forms import number_of_images
from ...utils.arguments import check_number
from .logits import HeadLogits, Logits, gives_numbers, makers_of_logits
from .schedule import Pass, Schedule
from .teacher import Loss, parsed

DISTILL = (False, True, 'larger', 'ensemble')
ENSEMBLE = 'sct_ensemble'  # key of a checkpoint
_RATE = 0.1  # of the descent of the ensemble's weights


class Distill(NamedTuple):
    """Arguments of ``SCTLossHook``, once they are checked."""
    teachers: str  # 'larger' or 'ensemble'
    weight: float = 1.0
    temperature: float = 1.0


def check_distill(distill: bool | str, weight: float,
                  temperature: float, adapt: bool | str = False,
                  partition: bool = False,
                  scales_per_step: int | None = None
                  ) -> Distill | None:
    """The arguments of ``SCTLossHook`` that distill; None if none does.

    Raises:
        TypeError, ValueError: naming the argument, its value and the fix.
    """
    if not isinstance(distill, (bool, str)) or distill not in DISTILL:
        raise ValueError("`distill` must be True, 'larger', 'ensemble' or "
                         f'False, but got {distill!r}. Leave it out to train '
                         'by the labels alone.')
    weight = check_number('distill_weight', weight, 0, 'The default is 1.',
                          1e6)
    temperature = check_number('temperature', temperature, 0.01,
                               'The default is 1.', 100)
    for name, value in (('distill_weight', weight),
                        ('temperature', temperature)):
        if not distill and value != 1:
            raise ValueError(f'`{name}` is one of `distill`, but got {value} '
                             'without it. Set distill=True, or leave it out.')
    if not distill:
        return None
    if adapt:
        raise ValueError('`adapt` has a teacher of its own, the base scale, '
                         f'but got distill={distill!r} too. Leave one of them '
                         'out.')
    if partition or scales_per_step == 1:
        other = 'partition=True' if partition else 'scales_per_step=1'
        raise ValueError('`distill` compares the logits of two scales on the '
                         f'same images, but {other} shows each image at '
                         "one. Leave distill out, or train all scales in each "
                         "step, as recipe='paper' does.")
    return Distill('larger' if distill is True else distill, weight,
                   temperature)


def check_distillable(model: nn.Module, weights: dict[int, float],
                      count: int, teachers: str) -> None:
    """Whether ``model`` has logits, and each step scales to compare.

    Args:
        weights: {scale: lambda_s}.
        count: scales a step.
        teachers: 'larger' or 'ensemble'.

    Raises:
        ValueError: if not.
    """
    name = type(model).__name__
    makers = makers_of_logits(model)
    if not makers:
        raise ValueError('`distill` needs a classifier, whose `head` makes '
                         f'logits (N, classes), but {name} has none. Leave it '
                         'out: detectors train by their losses alone.')
    if gives_numbers(model):
        raise ValueError('`distill` compares answers to classes, but the loss '
                         f'of {name} is of numbers. Leave it out.')
    if teachers == 'ensemble' and '' not in makers:
        raise ValueError("distill='ensemble' weighs the scales by one target "
                         f'an image, but {type(model.head).__name__} has '
                         "tasks. Set distill='larger'.")
    smaller = sum(w > 0 for s, w in weights.items() if s != max(weights))
    if (weights[max(weights)] > 0) + min(smaller, count - 1) < 2:
        raise ValueError('`distill` needs two scales with loss_weights > 0 in '
                         f'a step, but got {weights}, {count} a step. Leave '
                         'it out.')


def targets_of(batch: dict, several: bool) -> list[Tensor]:
    """What a cross-entropy compares the logits of ``batch`` with: for each
    image its scores (C,), as mixup and cutmix make them, or labels (1,).

    Args:
        several: an image may have any number of labels.

    Raises:
        ValueError: if not each sample has one.
    """
    samples = batch.get('data_samples') or []
    try:
        if 'gt_score' in samples[0]:
            return [s.gt_score.float() for s in samples]
        labels = [torch.as_tensor(s.gt_label).long().reshape(-1)
                  for s in samples]
        if len(labels) == number_of_images(batch) and (
                several or all(len(each) == 1 for each in labels)):
            return labels
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):
        pass
    raise ValueError("distill='ensemble' weighs the scales by one label or "
                     'score an image, but got samples without. Load them in '
                     "the pipeline, or set distill='larger'.")


def check_scores(batch: dict) -> None:
    """Whether the scores of each image add up to 1, as those of a softmax.

    Raises:
        ValueError: if not.
    """
    for sample in batch.get('data_samples') or ():
        if 'gt_score' in sample:
            total = float(sample.gt_score.sum())
            if total and abs(total - 1) > 1e-2:
                raise ValueError(
                    '`distill` compares the softmax of a head without a '
                    f'sigmoid in its loss, but got scores that add up to '
                    f'{total:.3g}. Set use_sigmoid=True in the loss, or leave '
                    'it out.')


def detached(logits: Logits) -> Logits:
    return {part: each.detach() for part, each in logits.items()}


class DistillTeacher:
    """The scales of a step teach each other, without a further pass, and
    without memory but for logits.

    The loss of scale s becomes, with the cross-entropy or whatever the head
    has,

        loss_s + distill_weight * 2 / (S + 1) * T^2 * sum_t KL(t || s)

    with T the temperature, S the scales of the step and the softmax of each
    teacher t detached; of the sigmoid of each class, summed, where the head's
    loss takes that (several labels an image, use_sigmoid=True). Of a head
    with several answers (Conformer's two, MultiTaskHead's tasks) it is the
    sum, of one with a margin (ArcFace) that of its logits without.
    loss_weights apply to it as a whole: with
    ``loss_weights=(1, ...)`` and 'ensemble' it is the loss of RS-Nets. A
    scale without weight neither teaches nor learns. A size `between` is the
    scale whose pass it takes.

    'larger': each larger scale is a teacher. The same for both `backward`;
    it needs no labels and leaves nothing to save, so True stands for it.

    'ensemble': so is the mix sum_j alpha_j * logits_j too. With 'joint' it is
    over all scales of the step, which is RS-Nets in full. With 'per_scale' a
    scale's graph is gone before smaller ones have run: the mix is over the
    larger ones and itself, their alpha divided by its sum, and the base
    learns nothing from it. That would take one more pass, without gradients,
    at each smaller scale: about a third of their FLOPs.

    alpha is the softmax of a vector with an entry a scale, zeros at first,
    which descends its own cross-entropy on labels, or soft labels, by 0.1 of
    the gradient a step, the mean over all processes. It trains nothing else
    and is in no loss. RS-Nets gives the vector to the network's optimizer; we
    keep it out of the network, whose state dict stays what it is.

    Logged beside the host's own losses: ``s128/distill``, as it is added to
    them, and ``s128/alpha``.

    Args:
        backward: 'per_scale' or 'joint'.
        ensemble: {scale: entry of the vector} that an earlier run has
            learned.
    """

    def __init__(self, model: nn.Module, schedule: Schedule,
                 distill: Distill, backward: str,
                 ensemble: dict[int, Tensor]) -> None:
        check_distillable(model, schedule.weights, schedule.count,
                          distill.teachers)
        self.arguments: dict[str, Any] = dict(distill=distill)
        self.ensemble = dict(ensemble)
        self._model, self._distill = model, distill
        self._by_scale = backward == 'per_scale'
        self._mixes = distill.teachers == 'ensemble'
        if self._mixes:  # else the gradients of both are the same
            self.arguments['backward'] = backward
        self._head = HeadLogits(model, '`distill`')
        self._looked = False  # at the scores of a first batch
        # Of the step that is under way:
        self._passes: Sequence[Pass] = ()
        self._logits: dict[int, Logits] = {}  # {scale: of its pass}
        self._targets: list[Tensor] = []

    @contextmanager
    def during(self, batch: dict, passes: Sequence[Pass]) -> Iterator[str]:
        if not self._looked and not self._head.several:
            check_scores(batch)
        self._looked = True
        if self._mixes:  # before a pass writes into the samples
            self._targets = targets_of(batch, self._head.several)
        self._passes = passes
        try:
            yield 'loss'
        finally:
            self._logits, self._targets = {}, []

    def around(self, p: Pass) -> AbstractContextManager:
        return self._head.catching()

    def losses(self, output: Any, p: Pass) -> Iterator[Loss]:
        loss, log_vars = parsed(self._model, output)
        logits = self._head.take()
        if p.weight > 0:
            self._logits[p.scale] = logits
            if self._by_scale:
                lesson = self._lesson(p)
                self._logits[p.scale] = detached(logits)
                if lesson is not None:
                    loss = loss + lesson
                    log_vars = dict(log_vars, distill=lesson)
        yield Loss(p, loss, log_vars)
        if p == self._passes[-1]:
            yield from self._conclude()

    def _conclude(self) -> Iterator[Loss]:
        """What needs all passes of the step."""
        for p in () if self._by_scale else self._passes:
            lesson = self._lesson(p)
            if lesson is not None:
                # Its nodes run first in the backward pass, and the logits
                # wait for those of the loss of their own pass, before which
                # the pin is that of the pass.
                yield Loss(p, lesson, dict(distill=lesson))
        if self._mixes:
            yield from self._learn()

    def _lesson(self, p: Pass) -> Tensor | None:
        """What the scales that have run teach that of ``p``."""
        teachers = [detached(logits) for scale, logits in
                    self._logits.items() if scale > p.scale]
        if self._mixes and len(self._logits) > 1:
            teachers.append(self._mix(self._vector()))
        if not teachers or not self._logits.get(p.scale):
            return None
        scales = sum(other.weight > 0 for other in self._passes)
        return self._distill.weight * 2 / (scales + 1) * reduce(add, (
            self._head.divergence(teacher, self._logits[p.scale],
                                  self._distill.temperature)
            for teacher in teachers))

    def _vector(self) -> Tensor:
        """The entries of the scales that have run."""
        some = next(iter(next(iter(self._logits.values())).values()))
        return torch.stack([
            self.ensemble.get(scale, some.new_zeros((), dtype=torch.float32)
                             ).to(some.device) for scale in self._logits])

    def _mix(self, vector: Tensor) -> Logits:
        """The logits of the ensemble."""
        several = list(self._logits.values())
        return {part: sum(
            alpha * logits[part].detach().float()
            for alpha, logits in zip(vector.softmax(0), several, strict=True))
            for part in several[0]}

    def _learn(self) -> Iterator[Loss]:
        """One step of the vector; alpha before it, for the log."""
        vector = self._vector().requires_grad_()
        gradient, = torch.autograd.grad(self._head.cross_entropy(
            self._mix(vector), self._targets), vector)
        all_reduce(gradient, 'mean')
        # AMP skips a step that overflows.
        after = vector.detach() - _RATE * gradient.nan_to_num(0, 0, 0)
        self.ensemble.update(zip(self._logits, after, strict=True))
        for scale, alpha in zip(self._logits, vector.softmax(0), strict=True):
            p = next(p for p in self._passes if p.scale == scale)
            # alpha is of the scale, whatever size its pass ran at.
            yield Loss(p._replace(size=scale), None, dict(alpha=alpha))
