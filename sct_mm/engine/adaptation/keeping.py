"""What each smaller size keeps of an adaptation: what was trained, the
statistics alone, or nothing, by the images that are held out."""
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from ...datasets.multi_scale_batch import padding_of
from ...evaluation.adapted_report import (
    MIXED,
    NOTHING,
    STATISTICS,
    TRAINED,
)
from ...models import precise_bn
from ...models.row_mix import Present
from ...models.scratch_copy import copied
from ...models.size_selection import scales_of, ssbn_layers
from ...models.weight_change import changed_layers
from ..sct.schedule import halfway
from .gains import Measured, best, is_worse, score
from .held_out import Case, HeldOutImages


@torch.no_grad()
def copy_row(model: nn.Module, source: nn.Module, scale: int,
             of: int) -> None:
    """Give ``model`` at ``scale`` the normalization parameters and statistics
    that ``source``, a network of the same layers, has at scale ``of``."""
    for ours, theirs in zip(ssbn_layers(model), ssbn_layers(source),
                            strict=True):
        row: Present = theirs.row(of)
        for name, value in ours.row(scale).items():
            if value is not None:
                value.copy_(row[name])


@torch.no_grad()
def drop_change(model: nn.Module, scale: int) -> None:
    """Leave the weights of ``model`` at ``scale`` as they are at the base."""
    for layer in changed_layers(model):
        layer.changes[0][layer.scales.index(scale) - 1].zero_()


class Keeping:
    """What was measured at each smaller size, and what it keeps by that.

    Its methods are called in the order in which they stand, each with the
    network as it is then; those that keep change it in place.

    Args:
        held_out: the images to measure on.
        scales: the base, and the smaller ones that train.
        sizes: those that get statistics but no training.
    """

    def __init__(self, held_out: HeldOutImages, scales: Sequence[int],
                 sizes: Sequence[int]) -> None:
        self._held_out = held_out
        self._scales, self._sizes = scales, sizes
        # {scale: {what it may keep: its metrics}}
        self._found: dict[int, dict[str, Measured]] = {}

    def measure_start(self, model: nn.Module) -> None:
        """Measure the smaller sizes as they are, and by the statistics that
        were estimated for them."""
        base, *own = self._scales
        found = self._held_out.measure(model, [
            *(Case(size, base) for size in (*own, *self._sizes)),
            *(Case(size, size) for size in own)], 'As it is')
        self._held_out.check_answers()
        for case, metrics in found.items():
            name = NOTHING if case.scale == base else STATISTICS
            self._found.setdefault(case.size, {})[name] = metrics
        if doubt := self._held_out.doubt():
            warnings.warn(doubt, stacklevel=2)
        self._start = copied(model)

    def choose_statistics(self, model: nn.Module) -> bool:
        """Whether the training keeps the statistics of the base, which serve
        the smaller sizes better than those that were estimated; then they get
        them back."""
        base, *own = self._scales
        gains = sum(score(self._found[scale][STATISTICS])
                    - score(self._found[scale][NOTHING]) for scale in own)
        keep = not gains > 0
        for scale in own if keep else ():
            copy_row(model, self._start, scale, base)
        return keep

    def measure_trained(self, model: nn.Module) -> None:
        found = self._held_out.measure(model, [
            Case(size, size) for size in self._scales[1:]], 'Adapted')
        for case, metrics in found.items():
            self._found[case.size][TRAINED] = metrics

    def keep_best(self, model: nn.Module) -> None:
        """Undo what did not gain, at each scale by itself."""
        base, *own = self._scales
        for scale in own:
            kept = best(self._found[scale])
            if kept != TRAINED:
                drop_change(model, scale)
                copy_row(model, self._start, scale,
                         base if kept == NOTHING else scale)

    def add_sizes(self, model: nn.Module,
                  estimate: Callable[[], None]) -> None:
        """Make the sizes that are not trained scales: each serves the mix of
        its neighbours, gets statistics of its own by ``estimate``, or stays as
        it was, whichever is best."""
        for size in self._sizes:
            precise_bn.add_scale(model, size)
        mixed = copied(model)
        cases = [Case(size, size) for size in self._sizes]
        before = self._held_out.measure(model, cases, 'Mixed')
        estimate()
        after = self._held_out.measure(model, cases, 'Between')
        for case in cases:
            found = self._found[case.size]
            found.update({MIXED: before[case], STATISTICS: after[case]})
            kept = best(found)
            if kept == NOTHING:
                drop_change(model, case.size)
            if kept != STATISTICS:
                copy_row(model, mixed, case.size, self._scales[0]
                         if kept == NOTHING else case.size)

    def between(self, model: nn.Module) -> list[dict[str, Any]]:
        """What was measured half-way between two scales: the ``size``, the
        network as it was ``before``, and the mix ``after``, which no image may
        have trained and which may be ``worse``. A size that the network does
        not take, for which nobody has asked, is left out."""
        rows = []
        for size in halfway(scales_of(model) or (), padding_of(model).get(
                'size_divisor', 1)):
            cases = Case(size, self._scales[0]), Case(size, size)
            try:
                found = self._held_out.measure(model, cases,
                                               f'Between, {size}')
            except Exception as error:  # of any kind, by the host's layers
                print_log(f'adapt does not measure {size} px, between two '
                          f'scales: {error}', 'current')
                continue
            before, after = (found[case] for case in cases)
            rows.append(dict(size=size, before=before, after=after,
                             worse=is_worse(after, before)))
        return rows

    def row(self, scale: int) -> dict[str, Any]:
        """What was ``found`` at ``scale``, ``before`` and ``after``, and what
        it ``keeps``."""
        found = self._found[scale]
        kept = best(found)
        return dict(scale=scale, keeps=kept, before=found[NOTHING],
                    after=found[kept], found=found)
