"""What a training step logs of each scale."""
from typing import Dict, List, Tuple

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
    """The losses and metrics of one pass, under the names of ``scale``."""
    return {log_name(scale, name): value.detach()
            for name, value in log_vars.items()}


def joined(passes: List[Tuple[float, Dict[str, Tensor]]]) -> Dict[str, Tensor]:
    """The values of several passes by name; of passes that log under one
    name, as at sizes nearest to one scale, the mean by their weights.

    Args:
        passes: weight of the loss, and values, of each.
    """
    found: Dict[str, list] = {}
    for weight, values in passes:
        for name, value in values.items():
            found.setdefault(name, []).append((weight, value))
    return {name: _mean(values) for name, values in found.items()}


def _mean(values: List[Tuple[float, Tensor]]) -> Tensor:
    if len(values) == 1:
        return values[0][1]
    total = sum(weight for weight, _ in values)
    if total == 0:
        return sum(value for _, value in values) / len(values)
    return sum(weight * value for weight, value in values) / total
