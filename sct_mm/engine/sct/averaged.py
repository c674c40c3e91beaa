"""Momentum encoders within a network move once a step."""
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.model import BaseAveragedModel
from torch import nn

_NEVER = 2**62  # updates


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Within it, the averaged models inside of ``model`` stay as they are.

    BYOL and MoCo of mmpretrain update theirs in each pass and count the
    updates, by which BYOL raises its momentum over the training. A step of
    several scales has several passes, and must count as one.
    """
    averaged = [(m, m.interval, m.steps.clone()) for m in model.modules()
                if isinstance(m, BaseAveragedModel)]
    try:
        for module, *_ in averaged:
            module.interval = _NEVER
        yield
    finally:
        for module, interval, steps in averaged:
            module.interval = interval
            module.steps.copy_(steps)
