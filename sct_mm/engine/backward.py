"""How the losses of several scales become gradients."""
from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..models.scale import preceding


class _RecallScale(torch.autograd.Function):
    """The identity; its backward says at which scale layers run again.

    Activation checkpointing calls layers a second time in the backward pass,
    the last block first, when no pin is left: one that cannot tell the scale
    from its input needs to be told.
    """

    @staticmethod
    def forward(ctx, loss: Tensor, scale: int) -> Tensor:
        ctx.scale = scale
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tuple[Tensor, None]:
        preceding.size = ctx.scale
        return grad, None


class _HandOver(torch.autograd.Function):
    """A loss whose gradients are at hand: backward gives them out once.

    ``gradients`` are those of ``unit`` times the loss.
    """

    @staticmethod
    def forward(ctx, loss: Tensor, unit: Tensor, gradients: List[Tensor],
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
        self._losses: List[Tensor] = []

    def __enter__(self) -> 'JointBackward':
        return self

    def __exit__(self, *error) -> None:
        pass

    def add(self, loss: Tensor, scale: int) -> None:
        """Take the weighted ``loss`` of the pass at ``scale`` that has just
        ended: before the next one starts, since autograd runs the node of
        _RecallScale after those of later passes and before this pass' own."""
        self._losses.append(_RecallScale.apply(loss, scale))

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
        self._unit: Optional[Tensor] = None

    def __enter__(self) -> 'PerScaleBackward':
        self._set_aside = [p.grad for p in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return self

    def __exit__(self, *error) -> None:
        for parameter, grad in zip(self._parameters, self._set_aside):
            parameter.grad = grad

    def add(self, loss: Tensor, scale: int) -> None:
        """Differentiate the weighted ``loss`` of the pass at ``scale``."""
        if self._unit is None:
            self._check_hooks()
            self._sum = torch.zeros_like(loss.detach())
            self._unit = torch.ones_like(self._sum)
            if self._scaler is not None:
                self._unit = self._scaler.scale(self._unit)
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


BACKWARDS = dict(joint=JointBackward, per_scale=PerScaleBackward)
