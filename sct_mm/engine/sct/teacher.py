"""What teaches the passes of a training step: the labels, unless
``SCTLossHook(adapt=..., distill=...)`` says otherwise."""
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from .schedule import Pass


class Loss(NamedTuple):
    """A part of the loss of a step."""
    of: Pass  # weighs it, and names it in the log
    value: Tensor | None  # to be minimised; None for what is only logged
    log_vars: dict[str, Tensor]


class Teacher(Protocol):
    """What a training step minimises, and in which mode its passes run.

    Attributes:
        arguments: of ``SCTLossHook`` that choose this teacher, for the record
            in a checkpoint.
        ensemble: {scale: number} that it learns, which a checkpoint keeps.
    """
    arguments: dict[str, Any]
    ensemble: dict[int, Tensor]

    def during(self, batch: dict,
               passes: Sequence[Pass]) -> AbstractContextManager[str]:
        """A context within which all ``passes`` of a step on ``batch`` run;
        entering it gives the ``mode`` that they call the model with.

        Raises:
            ValueError: for a batch or a model that it cannot teach.
        """

    def around(self, p: Pass) -> AbstractContextManager:
        """A context within which the pass ``p`` runs, and runs again where
        activations are checkpointed."""

    def losses(self, output: Any, p: Pass) -> Iterator[Loss]:
        """What the ``output`` of the pass ``p`` adds to the step; after the
        last pass also what needs all of them."""


class Labels:
    """The labels of the batch alone teach: the losses are the model's own."""

    def __init__(self, model: nn.Module) -> None:
        self.arguments: dict[str, Any] = {}
        self.ensemble: dict[int, Tensor] = {}
        self._model = model

    def during(self, batch: dict,
               passes: Sequence[Pass]) -> AbstractContextManager[str]:
        return nullcontext('loss')

    def around(self, p: Pass) -> AbstractContextManager:
        return nullcontext()

    def losses(self, output: Any, p: Pass) -> Iterator[Loss]:
        yield Loss(p, *parsed(self._model, output))


def parsed(model: nn.Module, losses: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the ``losses`` that ``model`` returned, and its values for
    the log.

    Raises:
        TypeError: if they are no losses, or the model cannot add them up.
    """
    if not isinstance(losses, dict) or not any(
            'loss' in str(name) for name in losses):
        got = (f'the keys {list(losses)}' if isinstance(losses, dict)
               else f'a {type(losses).__name__}')
        raise TypeError(
            f"{type(model).__name__} must return with mode='loss' a "
            f"dict with a key that contains 'loss', but got {got}. Name "
            'what is minimised so.')
    parse = getattr(model, 'parse_losses', None)
    if parse is None:
        raise TypeError(
            f'{type(model).__name__} must be a BaseModel of '
            'mmengine, whose parse_losses() adds up what it returns, but '
            'has none. Derive it from BaseModel, or attach the hook to '
            'the `module` within a wrapper.')
    return parse(losses)
