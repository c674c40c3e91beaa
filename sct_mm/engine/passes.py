"""The forward passes of a training step, each pinned to its scale."""
import sys
from typing import Any, Callable, Dict, Optional

import torch
from torch import Tensor, nn

from ..models.scale import ssbn_layers, use_scale
from .backward import BACKWARDS
from .checks import check_gradients, check_pictures, warn_if_frozen
from .finite import FiniteLosses, name_scale, named
from .log import logged
from .parts import parts_of_batch
from .schedule import Schedule

_ARGUMENTS = ('inputs', 'data_samples', 'mode')


def runs_within_itself(model: nn.Module) -> bool:
    """Whether a call of ``model`` is within another one of it; read off the
    call stack."""
    calls, frame = 0, sys._getframe(1)
    while frame is not None:
        calls += (frame.f_code.co_name == '_call_impl'
                  and frame.f_locals.get('self') is model)
        frame = frame.f_back
    return calls > 1


class Passes:
    """What SCTLossHook does to a model's pass with ``mode='loss'``: the pass
    itself runs at the largest scale of the step, the others follow.

    Args:
        transforms: {scale: the batch transform to it}, from the base down.
        backward: a key of ``BACKWARDS``.
        scaler: the ``GradScaler`` of the training loop, if it has one.
        finite: watches the losses; None does not.
    """

    def __init__(self, model: nn.Module, schedule: Schedule,
                 transforms: Dict[int, Callable[[dict], dict]],
                 backward: str = 'per_scale', scaler: Optional[Any] = None,
                 finite: Optional[FiniteLosses] = None) -> None:
        self.model = model
        self.schedule = schedule
        self.taken = False  # whether there was a pass to act on
        self.shares_fit = False  # whether a batch has a share for each scale
        self._base = max(schedule.weights)
        self._transforms = transforms
        self._backward = BACKWARDS[backward]
        self._by_scale = backward == 'per_scale'
        self._scaler, self._finite = scaler, finite
        self._norms = nn.ModuleList(ssbn_layers(model))
        self._parts: Dict[int, dict] = {}  # {scale: batch}, of this step
        self._pin = None  # the open use_scale() of the model's own pass
        self._busy = False  # within a pass that is started here
        # Under torch.compile the passes are compiled, not what joins them.
        self._losses_of_step = torch.compiler.disable(
            self._losses_of_step, recursive=False)
        for name in ('_take', '_prepare'):
            setattr(self, name, torch.compiler.disable(getattr(self, name)))

    def before(self, args: tuple, kwargs: dict, step: int) -> Optional[tuple]:
        """What the pass that starts runs on; None leaves it as it is.

        Raises:
            TypeError, ValueError: for a batch that cannot be trained on.
        """
        batch = {**dict(zip(_ARGUMENTS, args)), **kwargs}
        if self._pin is not None and not self._busy and (
                not runs_within_itself(self.model)):
            self.unpin()  # of a pass that Ctrl-C ended
        if not self._trains(batch):
            return None
        if len(args) > len(_ARGUMENTS):
            raise TypeError(f'SCTLossHook knows {_ARGUMENTS} of a model, but '
                            f'got {len(args)} arguments. Leave others out.')
        self._prepare(batch, step)
        scale, part = next(iter(self._parts.items()))
        self._pin = self._pinned(scale, part)
        self._pin.__enter__()
        return (), part

    def after(self, kwargs: dict, losses: Optional[dict]) -> Optional[dict]:
        """The losses that the pass returns instead of its own.

        Args:
            losses: its own; None if it raised.
        """
        if not self._trains(kwargs) or self._pin is None:
            return None
        try:
            if losses is None:
                name_scale(next(iter(self._parts)))
                return None
            return self._losses_of_step(losses)
        finally:
            self.unpin()
            self._parts = {}

    def unpin(self) -> None:
        """Free the layers from the scale of the model's own pass."""
        if self._pin is not None:
            self._pin.__exit__(None, None, None)
        self._pin = None

    def _trains(self, batch: dict) -> bool:
        return (batch.get('mode') == 'loss' and self.model.training
                and torch.is_grad_enabled() and not self._busy)

    def _prepare(self, batch: dict, step: int) -> None:
        """Check the batch, and make each scale's part of it."""
        check_pictures(batch, self._base)
        if self._by_scale:
            check_gradients(batch)
        pictures = len(batch['inputs'])
        if not self.shares_fit:  # no sampler told: the first batch does
            self.schedule.check_batch(pictures)
            self.shares_fit = True
        passes = self.schedule.passes(pictures, step)
        self._step, self._weights = step, {p.scale: p.weight for p in passes}
        self._parts = parts_of_batch(batch, passes, self._transforms)
        if not self.taken:
            self.taken = True
            warn_if_frozen(self._norms)

    def _pinned(self, scale: int, part: dict):
        return use_scale(self._norms, scale, record=True,
                         edge=min(part['inputs'].shape[-2:]))

    def _losses_of_step(self, losses: dict) -> dict:
        """The loss to minimise and each scale's values for the log."""
        first, *others = self._parts
        with self._backward(self.model, self._scaler) as backward:
            logs = self._take(backward, losses, first)
            self.unpin()
            self._busy = True
            try:
                for scale in others:
                    part = self._parts.pop(scale)
                    with named(scale), self._pinned(scale, part):
                        losses = self.model(**part)
                        logs.update(self._take(backward, losses, scale))
            finally:
                self._busy = False
            return dict(logs, loss=backward.total())

    def _take(self, backward, losses: dict, scale: int) -> Dict[str, Tensor]:
        """Hand one scale's weighted loss to ``backward``; its log values."""
        loss, log_vars = self.model.parse_losses(losses)
        if self._finite is not None:
            self._finite.watch(loss, scale, self._step)
        backward.add(self._weights[scale] * loss, scale)
        return logged(scale, log_vars)
