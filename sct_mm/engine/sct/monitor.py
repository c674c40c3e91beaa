"""What a training step reports of its passes, each with its scale: losses in
the log, a loss that is NaN or inf, and a pass that raises."""
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_NEVER = 2**62  # a step that no run reaches
_NAMES = r'\bs[0-9]+/'  # how the names of log_name() begin


def log_name(scale: int, name: str) -> str:
    """The name under which one scale's loss or metric is logged.

    It carries the scale and not the word "loss": mmengine's ``parse_losses``
    adds up every key that contains it. ``loss`` becomes ``s128/total``,
    ``loss_cls`` ``s128/cls``, ``accuracy_top-1`` ``s128/accuracy_top-1``.

    A step that does not train the scale gives the name no value, and each
    line of the log has every scale: see :func:`log_means`.
    """
    name = name.replace('loss_', '').replace('loss', '').strip('_.')
    return f's{scale}/{name or "total"}'


def log_means(processor: Any) -> None:
    """Let mmengine's ``LogProcessor`` show, under the names of
    :func:`log_name`, means over the last steps that trained the scale, as
    many (`window_size`) as it takes for ``loss``.

    By itself it would show the value of the last one of these steps, which
    may be long ago and is that of a single batch.
    """
    pattern = getattr(processor, 'mean_pattern', None)
    if pattern is not None and _NAMES not in pattern.pattern:
        processor.mean_pattern = re.compile(
            f'{pattern.pattern}|{_NAMES}', pattern.flags)


def logged(scale: int, log_vars: dict[str, Tensor]) -> dict[str, Tensor]:
    """The losses and metrics of one pass, under the names of ``scale``."""
    return {log_name(scale, name): value.detach()
            for name, value in log_vars.items()}


def joined(passes: list[tuple[float, dict[str, Tensor]]]
           ) -> dict[str, Tensor | float]:
    """The values of several passes by name; of passes that log under one
    name, as at sizes nearest to one scale, the mean by their weights.

    Args:
        passes: weight of the loss, and values, of each.
    """
    found: dict[str, list] = {}
    for weight, values in passes:
        for name, value in values.items():
            found.setdefault(name, []).append((weight, value))
    return {name: _mean(values) for name, values in found.items()}


def _mean(values: list[tuple[float, Tensor]]) -> Tensor | float:
    if len(values) == 1:
        return values[0][1]
    total = sum(weight for weight, _ in values)
    if total == 0:
        return sum(value for _, value in values) / len(values)
    return sum(weight * value for weight, value in values) / total


class NotFiniteError(RuntimeError):
    """A loss is NaN or inf."""


class FiniteLosses:
    """Stops a training at a loss that is NaN or inf, naming scale and step.

    A loss on a CPU is looked at before it is differentiated. On a GPU a
    tensor keeps the first step at which a scale's loss was not finite, and
    only :meth:`settle` waits for it.
    """

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}  # scale -> its first bad step

    def watch(self, loss: Tensor, where: str, step: int) -> None:
        """Look at the ``loss`` of one pass; ``where`` names the pass.

        Raises:
            NotFiniteError: on a CPU, if it is not finite.
        """
        finite = torch.isfinite(loss.detach()).all()
        if loss.device.type == 'cpu':
            if not finite:
                self._stop(where, step)
            return
        bad = torch.full_like(finite, step, dtype=torch.long).masked_fill(
            finite, _NEVER)
        first = self._first.get(where)
        self._first[where] = bad if first is None else torch.minimum(first,
                                                                     bad)

    def settle(self) -> None:
        """Wait for the GPU.

        Raises:
            NotFiniteError: if a loss was not finite since the last call.
        """
        if not self._first:
            return
        names = list(self._first)
        steps = torch.stack([self._first[name] for name in names]).tolist()
        self._first = {}
        step, where = min(zip(steps, names, strict=True))
        if step < _NEVER:
            self._stop(where, step)

    @staticmethod
    def _stop(where: str, step: int) -> None:
        raise NotFiniteError(f'The loss of {where} is NaN or inf at step '
                             f'{step}. Lower the learning rate, clip '
                             'gradients, or set check_finite=False in '
                             'SCTLossHook to go on as AMP does, which skips '
                             'such steps.')


def name_pass(where: str, smaller: bool = False) -> None:
    """Add ``where``, such as "scale 128", to the message of the exception
    that is being handled; its type stays. Below the base (``smaller``), an
    error of a host may mean that the network does not take the size."""
    error = sys.exc_info()[1]
    text = f'(in the pass of SCTLossHook at {where})'
    if error is None or not isinstance(error, Exception):
        return
    # Not of a full memory, and not of a message that has a fix.
    if smaller and type(error) in (RuntimeError, AssertionError) and (
            '`' not in str(error)):
        text += ('. If the host fixes the network to one size, or its stride '
                 f'does not divide it, leave {where} out of `scales`.')
    if len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f'{error.args[0]} {text}', )
    elif not error.args:
        error.args = (text, )
    elif hasattr(error, 'add_note'):  # Python 3.11
        error.add_note(text)


@contextmanager
def named(where: str, smaller: bool = False) -> Iterator[None]:
    """Exceptions of the ``with`` block name the pass that runs in it."""
    try:
        yield
    except Exception:
        name_pass(where, smaller)
        raise
