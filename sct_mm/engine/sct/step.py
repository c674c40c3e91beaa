"""The forward passes of a training step, each pinned to its scale."""
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import (
    Any,
)

import torch
from mmengine.registry import TRANSFORMS
from torch import Tensor, nn

from ...datasets.data_samples import private_copy
from ...models.pinning import use_scale
from ...models.size_selection import serving_scale, ssbn_layers
from .backward import BACKWARDS, OpenPin
from .checks import check_gradients, check_images, warn_if_frozen
from .first_look import record, unrecorded
from .monitor import FiniteLosses, joined, logged, name_pass, named
from .schedule import Pass, Schedule

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
        resize: (size in pixels, batch) -> the batch at that size.
        backward: a key of ``BACKWARDS``.
        scaler: the ``GradScaler`` of the training loop, if it has one.
        finite: watches the losses; None does not.
    """

    def __init__(self, model: nn.Module, schedule: Schedule,
                 resize: Callable[[int, dict], dict],
                 backward: str = 'per_scale', scaler: Any | None = None,
                 finite: FiniteLosses | None = None) -> None:
        self.model = model
        self.schedule = schedule
        self.taken = False  # whether there was a pass to act on
        self.shares_fit = False  # whether a batch has a share for each scale
        self._base = max(schedule.weights)
        self._resize = resize
        self._backward = BACKWARDS[backward]
        self._by_scale = backward == 'per_scale'
        self._scaler, self._finite = scaler, finite
        self._norms = nn.ModuleList(ssbn_layers(model))
        self._passes: list[Pass] = []  # of this step
        self._parts: dict[int, dict] = {}  # {scale: batch} of each
        self._mode = 'loss'  # that the passes run in
        self._pin = None  # the open use_scale() of the model's own pass
        self._last_pin: OpenPin | None = None  # of the pass that ran last
        self._busy = False  # within a pass that is started here
        # Under torch.compile the passes are compiled, not what joins them.
        self._losses_of_step = torch.compiler.disable(
            self._losses_of_step, recursive=False)
        for name in ('_take', '_start', '_conclude', 'close'):
            setattr(self, name, torch.compiler.disable(getattr(self, name)))

    def before(self, args: tuple, kwargs: dict, step: int) -> tuple | None:
        """What the pass that starts runs on; None leaves it as it is.

        Raises:
            TypeError, ValueError: for a batch that cannot be trained on.
        """
        batch = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
        if self._pin is not None and not self._busy and (
                not runs_within_itself(self.model)):
            self.close()  # of a pass that Ctrl-C ended
        if not self._trains(batch):
            return None
        if len(args) > len(_ARGUMENTS):
            raise TypeError(f'SCTLossHook knows {_ARGUMENTS} of a model, but '
                            f'got {len(args)} arguments. Leave others out.')
        return (), self._start(batch, step)

    def after(self, kwargs: dict, output: Any) -> dict | None:
        """The losses that the pass returns instead of its own output.

        Args:
            output: None if the pass raised.
        """
        if self._pin is None or self._busy or (
                kwargs.get('mode') != self._mode):
            return None
        try:
            if output is None:
                name_pass(self._passes[0].where)
                return None
            return self._losses_of_step(output)
        finally:
            self.close()

    def close(self) -> None:
        """The end of a step; the model is as before it."""
        self._unpin()
        self._parts = {}

    def release(self) -> None:
        """The end of the training; the model is as before it."""
        self.close()

    def restore(self, copies: Iterable[nn.Module] = ()) -> None:
        """Put back what a step must not change in the model, and in its
        ``copies``."""

    def _unpin(self) -> None:
        """Free the layers from the scale of the model's own pass."""
        if self._pin is not None:
            self._pin.__exit__(None, None, None)
        self._pin = None

    def _trains(self, batch: dict) -> bool:
        return (batch.get('mode') == 'loss' and self.model.training
                and torch.is_grad_enabled() and not self._busy)

    def _start(self, batch: dict, step: int) -> dict:
        """Pin the first pass of the step; the batch that it runs on."""
        self._prepare(batch, step)
        part = self._parts.pop(self._passes[0].scale)
        self._pin = self._pin_of(self._passes[0], part)()
        self._pin.__enter__()
        return part

    def _prepare(self, batch: dict, step: int) -> None:
        """All that comes before the first pass of the step."""
        self._divide(batch, step)
        if not self.taken:
            self._look(batch)

    def _divide(self, batch: dict, step: int) -> None:
        """Check the batch, and make each scale's part of it."""
        check_images(batch, self._base)
        if self._by_scale:
            check_gradients(batch)
        images = len(batch['inputs'])
        if not self.shares_fit:  # no sampler told: the first batch does
            self.schedule.check_batch(images)
            self.shares_fit = True
        self._step = step
        self._passes = self.schedule.passes(images, step)
        self._parts = parts_of_batch(batch, self._passes, self._resize)

    def _look(self, batch: dict) -> None:
        """Look at the layers in the first step; let them see the scales that
        no pass of it runs at."""
        self.taken = True
        warn_if_frozen(self._norms)
        ran = {p.size for p in self._passes}
        scales = [s for s in unrecorded(self._norms, self.schedule.weights)
                  if s not in ran]
        self._busy = True
        try:
            record(self.model, self._norms, batch, self._resize, scales)
        finally:
            self._busy = False

    def _pin_of(self, p: Pass, part: dict) -> OpenPin:
        """What pins the pass ``p`` on ``part``, now and when activation
        checkpointing runs it again."""
        self._last_pin = partial(use_scale, self._norms, p.size, record=True,
                                 edge=min(part['inputs'].shape[-2:]))
        return self._last_pin

    def _losses_of_step(self, output: Any) -> dict:
        """The loss to minimise and each scale's values for the log."""
        first, *others = self._passes
        with self._backward(self.model, self._scaler) as backward:
            logs = [self._take(backward, output, first)]
            self._unpin()
            self._busy = True
            try:
                for p in others:
                    part = self._parts.pop(p.scale)
                    with named(p.where), self._pin_of(p, part)():
                        output = self.model(**part)
                        logs.append(self._take(backward, output, p))
            finally:
                self._busy = False
            logs += self._conclude(backward)
            return dict(joined(logs), loss=backward.total())

    def _take(self, backward, losses: dict, p: Pass) -> tuple[float, dict]:
        """Hand the weighted loss of a pass to ``backward``; its weight, and
        its values for the log."""
        loss, log_vars = self._loss_of(losses, p)
        self._add(backward, loss, p)
        return self._logged(log_vars, p)

    def _loss_of(self, losses: dict, p: Pass) -> tuple[Tensor, dict]:
        """The loss of a pass, and its values for the log.

        Raises:
            TypeError: for a model that gives none.
        """
        if not isinstance(losses, dict) or not any(
                'loss' in str(name) for name in losses):
            got = (f'the keys {list(losses)}' if isinstance(losses, dict)
                   else f'a {type(losses).__name__}')
            raise TypeError(
                f"{type(self.model).__name__} must return with mode='loss' a "
                f"dict with a key that contains 'loss', but got {got}. Name "
                'what is minimised so.')
        if not hasattr(self.model, 'parse_losses'):
            raise TypeError(
                f'{type(self.model).__name__} must be a BaseModel of '
                'mmengine, whose parse_losses() adds up what it returns, but '
                'has none. Derive it from BaseModel, or attach the hook to '
                'the `module` within a wrapper.')
        return self.model.parse_losses(losses)

    def _add(self, backward, loss: Tensor, p: Pass) -> None:
        if self._finite is not None:
            self._finite.watch(loss, p.where, self._step)
        backward.add(p.weight * loss, self._last_pin)

    def _logged(self, log_vars: dict, p: Pass) -> tuple[float, dict]:
        nearest = serving_scale(tuple(self.schedule.weights), p.size)
        return p.weight, logged(nearest, log_vars)

    def _conclude(self, backward) -> list[tuple[float, dict]]:
        """What comes after the last pass of the step; more for the log."""
        return []


def divided(batch: dict, passes: Sequence[Pass]) -> dict[int, dict]:
    """The images and samples of each pass' share, one batch a scale."""
    def at(share: slice) -> dict:
        if share is None:
            return batch
        part = {**batch, 'inputs': batch['inputs'][share]}
        if batch.get('data_samples') is not None:
            part['data_samples'] = batch['data_samples'][share]
        return part

    return {p.scale: at(p.share) for p in passes}


class Resize:
    """A batch at any size, by batch transforms that are built as they are
    asked for.

    Args:
        config: of the batch transform, without its scales.
        base: scale of the batches given, in pixels.
    """

    def __init__(self, config: dict, base: int) -> None:
        self._config, self._base = config, base
        self._transforms: dict[int, Callable[[dict], dict]] = {}
        try:
            self.at(base)  # a bad config is told before the training
        except (KeyError, TypeError) as error:
            if '`' in str(error).partition(' ')[0]:  # of MultiScaleBatch
                raise
            raise ValueError(
                '`batch_transform` must be the config of a batch transform '
                f'that takes scale and base_scale, but got {config!r} '
                f'({str(error).partition(". ")[0]}). Write e.g. '
                "dict(type='MultiScaleBatch', antialias=True).") from error

    def at(self, size: int) -> Callable[[dict], dict]:
        """The transform to ``size`` pixels."""
        if size not in self._transforms:
            self._transforms[size] = TRANSFORMS.build(dict(
                self._config, scale=size, base_scale=self._base))
        return self._transforms[size]

    def __call__(self, size: int, batch: dict) -> dict:
        return self.at(size)(batch)


def parts_of_batch(batch: dict, passes: Sequence[Pass],
                   transform: Callable[[int, dict], dict]) -> dict[int, dict]:
    """One batch for each of ``passes``, by its scale, in their order.

    All are made before the first is used: what one scale's pass writes into
    its inputs or samples is in no other, and a sample that cannot be resized
    is refused before anything has changed.

    Args:
        batch: ``inputs`` (N, C, H, W), ``data_samples`` and ``mode``.
        transform: (size in pixels, batch) -> the batch at that size.
    """
    shares = divided(batch, passes)
    parts = {p.scale: transform(p.size, shares[p.scale]) for p in passes}
    for p in passes[1:]:
        # MultiScaleBatch shares what has no size: labels, scores.
        if p.share is None and 'data_samples' in parts[p.scale]:
            parts[p.scale]['data_samples'] = private_copy(
                parts[p.scale]['data_samples'])
    return parts
