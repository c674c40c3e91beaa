"""Momentum encoders within a network move once a step."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mmengine.model import BaseAveragedModel
from torch import nn

_NEVER = 2**62  # updates


def averaged_in(model: nn.Module) -> list[BaseAveragedModel]:
    """The averaged models inside of ``model``."""
    return [m for m in model.modules() if isinstance(m, BaseAveragedModel)]


@contextmanager
def at_rest(models: Sequence[BaseAveragedModel]) -> Iterator[None]:
    """Within it, the averaged ``models`` stay as they are.

    BYOL and MoCo of mmpretrain update theirs in each pass and count the
    updates, by which BYOL raises its momentum over the training. A step of
    several scales has several passes, and must count as one.
    """
    averaged = [(m, m.interval, m.steps.clone()) for m in models]
    try:
        for module, *_ in averaged:
            module.interval = _NEVER
        yield
    finally:
        for module, interval, steps in averaged:
            module.interval = interval
            module.steps.copy_(steps)
