"""A training step of SCT: the forward passes at its scales, and their loss."""
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
)
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...datasets.batch_forms import (
    check_batch,
    check_views,
    image_shape,
    nominal_shapes,
    number_of_images,
    pads_images,
    share_of,
    views_of,
)
from ...datasets.data_samples import private_copy
from ...models.pinning import pinned
from ...models.size_selection import (
    scale_specific,
    serving_scale,
    ssbn_layers,
)
from .adapt_step import Kept
from .averaged import at_rest, averaged_in
from .backward import BACKWARDS, OpenPin
from .checks import warn_if_frozen
from .first_look import record, unrecorded
from .monitor import FiniteLosses, joined, logged, name_pass, named
from .resize import Resize
from .schedule import Pass, Schedule
from .teacher import Teacher

_ARGUMENTS = ('inputs', 'data_samples', 'mode')  # of a model's forward


class SCTStep:
    """One training step after another of ``model``: its own pass with
    ``mode='loss'`` runs at the largest scale of the step, and is followed by
    a pass at each of the others.

    This object owns all that a step knows: its number, whether a pass was
    taken, what the teacher has learned, and the monitor of finite losses.
    :meth:`before` and :meth:`after` are called around each call of the model.

    Args:
        resize: (size in pixels, batch) -> the batch at that size.
        teacher: gives the loss of each pass.
        kept: what the training must not change; None if all may change.
        backward: a key of ``BACKWARDS``.
        scaler: the ``GradScaler`` of the training loop, if it has one.
        check_finite: stop at a loss that is NaN or inf.
        smallest: nominal size of the smallest images, see
            :func:`check_images`.
    """

    def __init__(self, model: nn.Module, schedule: Schedule,
                 resize: Resize, teacher: Teacher, kept: Kept | None = None,
                 backward: str = 'per_scale', scaler: Any | None = None,
                 check_finite: bool = True,
                 smallest: int | None = None) -> None:
        self.model = model
        self.schedule = schedule
        self.teacher = teacher
        self.number = 0  # of the step, from 0
        self._counts = True  # each pass that trains is a step
        self._taken = False  # whether a pass has trained
        self._shares_fit = False  # whether a batch has a share for each scale
        self._resize = resize
        self._smallest = smallest
        self._kept = kept
        self._backward = BACKWARDS[backward]
        self._by_scale = backward == 'per_scale'
        self._scaler = scaler
        self._finite = FiniteLosses() if check_finite else None
        self._layers = scale_specific(model)
        self._averaged = averaged_in(model)
        # Of the step that is under way:
        self._passes: list[Pass] = []
        self._parts: dict[int, dict] = {}  # {scale: batch} still to run
        self._during = ExitStack()  # the teacher's context
        self._pin: OpenPin = nullcontext  # opens that of the model's own pass
        # Contexts of the model's own pass and of the calls within it.
        self._calls: list[AbstractContextManager] = []
        self._thread = 0  # that runs it
        self._busy = False  # whether a pass that is started here runs
        # Under torch.compile the passes are compiled, not what joins them.
        for name in ('_losses_of_step', '_take', '_start', '_nest', '_leave',
                     '_is_elsewhere', 'close'):
            setattr(self, name, torch.compiler.disable(
                getattr(self, name), recursive=name != '_losses_of_step'))

    def begin(self, number: int) -> None:
        """Say which step the next passes belong to; sharpness-aware
        minimisation takes two in a step. If this is never called, each pass
        that trains is a step of its own."""
        self.number, self._counts = number, False

    def before(self, args: tuple, kwargs: dict) -> tuple | None:
        """The arguments on which the call of the model that starts runs; None
        leaves them as they are.

        Raises:
            TypeError, ValueError: for a batch that cannot be trained on.
        """
        if self._busy:
            return None
        batch = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
        if not (batch.get('mode') == 'loss' and self.model.training
                and torch.is_grad_enabled()):
            if self._calls and not self._is_elsewhere():
                self._nest()
            return None
        if len(args) > len(_ARGUMENTS):
            raise TypeError(f'SCTLossHook knows {_ARGUMENTS} of a model, but '
                            f'got {len(args)} arguments. Leave others out.')
        return (), self._start(batch)

    def after(self, output: Any) -> dict | None:
        """The losses that the call of the model returns in place of its own
        ``output``, which is None if it raised; None leaves it as it is."""
        if self._busy or not self._calls or self._is_elsewhere():
            return None
        if len(self._calls) > 1:  # a call within the model's own pass
            self._leave()
            return None
        try:
            if output is None:
                name_pass(self._passes[0].where,
                          self._is_smaller(self._passes[0]))
                return None
            return self._losses_of_step(output)
        finally:
            self.close()

    def check_taken(self) -> None:
        """Whether the training step called the model as it should.

        Raises:
            RuntimeError: if no pass has trained yet.
        """
        if not self._taken:
            name = type(self.model).__name__
            raise RuntimeError(f'The train_step of {name} must call '
                               "model(..., mode='loss'), on which SCTLossHook "
                               'acts, but has not: it trained the base scale '
                               'alone. Use a train_step that does, as '
                               "mmengine's BaseModel has.")

    def check_shares(self, images: int) -> None:
        """Whether a batch of ``images`` has a share for each scale. Only the
        first one counts, since the last of an epoch may be short.

        Raises:
            ValueError: if it has not.
        """
        if not self._shares_fit:
            self.schedule.check_batch(images)
            self._shares_fit = True

    def restore(self, copies: Iterable[nn.Module] = ()) -> None:
        """Put back what the training must not change in the model and in
        ``copies`` of it."""
        if self._kept is not None:
            self._kept.restore(copies)

    def settle(self) -> None:
        """Wait for the GPU to say whether the losses were finite.

        Raises:
            RuntimeError: naming the first scale and step at which one was
                not.
        """
        if self._finite is not None:
            self._finite.settle()

    def described(self) -> dict[str, str]:
        """What decides which losses each step minimises, by name, as text."""
        teaching = dict(adapt=False, distill=None) | self.teacher.arguments
        return {**self.schedule.described(), 'resize': repr(self._resize),
                **{name: repr(value) for name, value in teaching.items()}}

    def ensemble(self) -> dict[int, Tensor]:
        """{scale: number} that the teacher has learned, on the CPU."""
        return {scale: point.cpu()
                for scale, point in self.teacher.ensemble.items()}

    def close(self) -> None:
        """The end of a step: the model is as before it."""
        while self._calls:
            self._leave()
        self._during.close()
        self._parts = {}

    def release(self) -> None:
        """The end of the training: the model is as before it."""
        self.close()
        if self._kept is not None:
            self._kept.release()

    def _is_elsewhere(self) -> bool:
        """Whether another thread than that of the open step calls."""
        return threading.get_ident() != self._thread

    def _is_smaller(self, p: Pass) -> bool:
        return p.size < max(self.schedule.weights)

    def _nest(self) -> None:
        """A call of the model starts while its own pass is open.

        Either the model calls itself, or Ctrl-C has ended that pass: torch
        calls no hook at a KeyboardInterrupt, so that the two look alike. What
        the model calls in training mode stays in the pass and its pin. A call
        in evaluation mode runs as without a step, at the size that its caller
        has pinned or its input has.
        """
        ours = self._layers and (
            self._layers[0].pinned_size == self._passes[0].size)
        self._enter(pinned(self._layers, None)
                    if ours and not self.model.training else nullcontext())

    def _enter(self, context: AbstractContextManager) -> None:
        context.__enter__()
        self._calls.append(context)

    def _leave(self) -> None:
        self._calls.pop().__exit__(None, None, None)

    def _start(self, batch: dict) -> dict:
        """Pin the model for its own pass; the batch that it runs on."""
        self.close()  # of a step that Ctrl-C ended
        if self._kept is not None:
            self._kept.hold()
        self._divide(batch)
        with ExitStack() as stack:
            mode = stack.enter_context(self.teacher.during(batch,
                                                           self._passes))
            for part in self._parts.values():
                part['mode'] = mode
            if not self._taken:
                self._taken = True
                self._look({**batch, 'mode': mode})
            part = self._parts.pop(self._passes[0].scale)
            self._pin = self._pin_of(self._passes[0], part)
            self._enter(self._pin())
            self._thread = threading.get_ident()
            self._during = stack.pop_all()
        return part

    def _divide(self, batch: dict) -> None:
        """Check the batch, and make each scale's part of it."""
        check_images(batch, max(self.schedule.weights), self._smallest)
        check_views(batch, self.model)
        if self._by_scale:
            check_gradients(batch)
        images = number_of_images(batch)
        self.check_shares(images)
        self._passes = self.schedule.passes(images, self.number)
        self._parts = parts_of_batch(batch, self._passes, self._resize)

    def _look(self, batch: dict) -> None:
        """Look at the layers in the first step, and let them see the scales
        that no pass of it runs at."""
        norms = ssbn_layers(self.model)
        warn_if_frozen(norms)
        ran = {p.size for p in self._passes}
        record(self.model, self._layers, batch, self._resize, [
            s for s in unrecorded(norms, self.schedule.weights)
            if s not in ran])

    def _pin_of(self, p: Pass, part: dict) -> OpenPin:
        """Opens the context within which the pass ``p`` runs on ``part``, at
        first and when activation checkpointing runs it again."""
        return partial(self._within, p, min(image_shape(part)))

    @contextmanager
    def _within(self, p: Pass, edge: int) -> Iterator[None]:
        with pinned(self._layers, p.size, record=True, edge=edge), \
                self.teacher.around(p):
            yield

    def _losses_of_step(self, output: Any) -> dict:
        """The loss to minimise, and each scale's values for the log."""
        first, *others = self._passes
        with self._backward(self.model, self._scaler) as backward:
            logs = self._take(backward, output, first, self._pin)
            self._leave()
            self._busy = True
            try:
                for p in others:
                    part = self._parts.pop(p.scale)
                    pin = self._pin_of(p, part)
                    with named(p.where, self._is_smaller(p)), pin(), at_rest(
                            self._averaged):
                        output = self.model(**part)
                        logs += self._take(backward, output, p, pin)
            finally:
                self._busy = False
            self.number += self._counts
            return dict(joined(logs), loss=backward.total())

    def _take(self, backward, output: Any, p: Pass,
              pin: OpenPin) -> list[tuple[float, dict]]:
        """Hand the weighted losses of a pass to ``backward``; their weights,
        and their values for the log."""
        logs = []
        for of, loss, log_vars in self.teacher.losses(output, p):
            if loss is not None:
                if self._finite is not None:
                    self._finite.watch(loss, of.where, self.number)
                backward.add(of.weight * loss, pin)
            nearest = serving_scale(tuple(self.schedule.weights), of.size)
            logs.append((of.weight, logged(nearest, log_vars)))
        return logs


def check_images(batch: dict, base: int, smallest: int | None = None
                 ) -> None:
    """Compare a batch with what MultiScaleBatch takes, and the base scale
    with its images.

    Args:
        smallest: nominal size in pixels of the smallest images that the
            pipeline makes; None: ``base``; 0: any.

    Raises:
        TypeError: as :func:`check_batch`.
        ValueError: if the shorter edge of the images is not ``base``
            pixels. Of padded images (detection) none may be larger; long
            ones are narrower than the nominal scale, but not shorter.
    """
    check_batch(batch)
    shapes = nominal_shapes(batch)
    edge, longest = max(map(min, shapes)), max(map(max, shapes))
    least = base if smallest is None else smallest
    if edge != base and not (pads_images(batch) and edge < base
                             and longest >= least):
        raise ValueError('The base scale must be the size of the images '
                         f'that the training pipeline makes, but got scale '
                         f'{base} and images of {edge} pixels. Change '
                         '`scales`, or the crop or resize of the pipeline.')


def check_gradients(batch: dict) -> None:
    """Whether a batch may be differentiated once a scale.

    Raises:
        ValueError: if the images themselves require gradients.
    """
    if any(view.requires_grad for view in views_of(batch)):
        raise ValueError("`backward='per_scale'` differentiates once a scale, "
                         'but got images that require gradients. Set '
                         "backward='joint'.")


def parts_of_batch(batch: dict, passes: Sequence[Pass],
                   transform: Callable[[int, dict], dict]) -> dict[int, dict]:
    """One batch for each of ``passes``, by its scale, in their order.

    All are made before the first is used: what one scale's pass writes into
    its inputs or samples is in no other, and a sample that cannot be resized
    is refused before anything has changed.

    Args:
        batch: ``inputs``, ``data_samples`` and ``mode``.
        transform: (size in pixels, batch) -> the batch at that size.
    """
    parts = {p.scale: transform(p.size, batch if p.share is None
                                else share_of(batch, p.share))
             for p in passes}
    for p in passes[1:]:
        # MultiScaleBatch shares what has no size: labels, scores.
        if p.share is None and 'data_samples' in parts[p.scale]:
            parts[p.scale]['data_samples'] = private_copy(
                parts[p.scale]['data_samples'])
    return parts
