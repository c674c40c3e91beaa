"""What a training step logs of each scale."""
from typing import Dict

from torch import Tensor


def log_name(scale: int, name: str) -> str:
    """The name under which one scale's loss or metric is logged.

    It carries the scale and not the word "loss": mmengine's ``parse_losses``
    adds up every key that contains it. ``loss`` becomes ``s128/total``,
    ``loss_cls`` ``s128/cls``, ``accuracy_top-1`` ``s128/accuracy_top-1``.

    mmengine shows the last value of such a name: with ``scales_per_step``
    that of the last step which trained the scale, so that each line of the
    log has every scale.
    """
    name = name.replace('loss_', '').replace('loss', '').strip('_.')
    return f's{scale}/{name or "total"}'


def logged(scale: int, log_vars: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The losses and metrics of the pass at ``scale``, for the log."""
    return {log_name(scale, name): value.detach()
            for name, value in log_vars.items()}
