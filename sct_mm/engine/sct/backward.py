"""How the losses of several scales become gradients."""
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.function import once_differentiable

OpenPin = Callable[[], AbstractContextManager]  # opens use_scale() of a pass


class _RecallSize(torch.autograd.Function):
    """The identity; its backward pins the size at which layers run again.

    Activation checkpointing calls layers a second time in the backward pass,
    when the pin of their pass is gone.
    """

    @staticmethod
    def forward(ctx, loss: Tensor, pins: 'Pins', pin: OpenPin) -> Tensor:
        ctx.pins, ctx.pin = pins, pin
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        ctx.pins.hold(ctx.pin)
        return grad, None, None


class Pins:
    """The pin of the pass that a backward pass is at, and none after it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._waits = False  # for the end of the backward pass

    def hold(self, pin: OpenPin) -> None:
        """Exchange the pin for ``pin()``, until another call or the end of
        the backward pass from which this is called."""
        self._stack.close()
        self._stack.enter_context(pin())
        if not self._waits:
            self._waits = True
            # As DDP's: autograd calls it when the pass has ended.
            Variable._execution_engine.queue_callback(self._release)

    def _release(self) -> None:
        self._waits = False
        self._stack.close()


class _HandOver(torch.autograd.Function):
    """A loss whose gradients are at hand: backward gives them out once.

    ``gradients`` are those of ``unit`` times the loss.
    """

    @staticmethod
    def forward(ctx, loss: Tensor, unit: Tensor, gradients: list[Tensor],
                *parameters: Tensor) -> Tensor:
        ctx.unit, ctx.gradients = unit, gradients
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("The loss of SCTLossHook(backward='per_scale') "
                               'was differentiated before, and its gradients '
                               "are given out. Set backward='joint'.")
        factor = grad / ctx.unit
        return (None, None, None, *(g.mul_(factor) for g in gradients))


class JointBackward:
    """Sum the losses: the graphs of all scales live until the one backward
    pass, and the memory is that of all scales together."""

    def __init__(self, model: nn.Module, scaler=None) -> None:
        self._losses: list[Tensor] = []
        self._pins = Pins()

    def __enter__(self) -> 'JointBackward':
        return self

    def __exit__(self, *error) -> None:
        pass

    def add(self, loss: Tensor, pin: OpenPin) -> None:
        """Take the weighted ``loss`` of the pass within ``pin()`` that has
        just ended: before the next one starts, since autograd runs the node
        of _RecallSize after those of later passes and before its own."""
        self._losses.append(_RecallSize.apply(loss, self._pins, pin))

    def total(self) -> Tensor:
        """The loss to minimise; its backward gives every gradient."""
        return sum(self._losses[1:], self._losses[0])


class PerScaleBackward:
    """Differentiate each loss at once, so that its graph is freed before the
    next scale starts: peak memory is that of the base scale alone.

    The gradients gather in the parameters' ``grad``, which is set aside while
    the ``with`` block lasts. :meth:`total` returns a scalar whose backward
    hands them to the parameters in one go, scaled by what comes in: DDP,
    gradient accumulation and AMP's scaler all see one ordinary loss. DDP
    looks at gradients only after the forward pass in which all this happens.

    Args:
        scaler: AMP's ``GradScaler``, whose factor keeps the gradients of half
            precision from underflow; None without AMP.

    Raises:
        RuntimeError: in :meth:`add`, if a parameter has gradient hooks, which
            would act once more for each scale.
    """

    def __init__(self, model: nn.Module, scaler=None) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._scaler = scaler
        self._unit: Tensor | None = None

    def __enter__(self) -> 'PerScaleBackward':
        self._set_aside = [p.grad for p in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return self

    def __exit__(self, *error) -> None:
        for parameter, grad in zip(self._parameters, self._set_aside,
                                   strict=True):
            parameter.grad = grad

    def add(self, loss: Tensor, pin: OpenPin) -> None:
        """Differentiate the weighted ``loss`` of the pass within ``pin()``,
        which is open still."""
        if self._unit is None:
            self._check_hooks()
            self._sum = torch.zeros_like(loss.detach())
            self._unit = torch.ones_like(self._sum)
            if self._scaler is not None:
                self._unit = self._scaler.scale(self._unit)
        if loss.requires_grad:  # as of a detector that found nothing to train
            with torch.autocast(loss.device.type, enabled=False):
                loss.backward(self._unit.to(loss))
        self._sum += loss.detach()

    def total(self) -> Tensor:
        """The loss to minimise; its backward hands the gradients over."""
        given = [p for p in self._parameters if p.grad is not None]
        return _HandOver.apply(self._sum, self._unit,
                               [p.grad for p in given], *given)

    def _check_hooks(self) -> None:
        if any(p._backward_hooks or p._post_accumulate_grad_hooks
               for p in self._parameters):
            raise RuntimeError("`backward='per_scale'` differentiates once a "
                               'scale, but a parameter has gradient hooks, '
                               'which would act each time. Set '
                               "backward='joint'.")


BACKWARDS: dict[str, type[JointBackward] | type[PerScaleBackward]] = dict(
    joint=JointBackward, per_scale=PerScaleBackward)
