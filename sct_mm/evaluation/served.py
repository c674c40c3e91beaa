"""What serves the sizes of a test, and what the network was trained at."""
import warnings
from typing import Dict, List, Optional, Sequence, Tuple

from mmengine.config import Config
from torch import nn

from ..datasets.rescale_pipeline import train_sizes
from ..models.size_selection import rows_serving, scales_of
from ..utils.config_walk import pipeline_of, type_name
from .measure import network_stride


def trained_sizes(cfg: Config, model: nn.Module) -> Tuple[int, ...]:
    """The sizes that a network was trained at, as far as can be told: the
    scales of its SSBN, else of the config's SCTLossHook, else the sizes of its
    training pipeline."""
    scales = scales_of(model)
    for hook in cfg.get('custom_hooks') or ():
        if scales is None and isinstance(hook, dict) and (
                type_name(hook) == 'SCTLossHook'):
            scales = hook.get('scales')
    return tuple(scales or train_sizes(
        pipeline_of(cfg.get('train_dataloader') or {}) or []))


def serving_scales(model: nn.Module, size: int) -> Optional[List[int]]:
    """The scales whose rows serve ``size``, two between them; None without
    SSBN."""
    scales = scales_of(model)
    return None if scales is None else [
        scale for scale, _ in rows_serving(scales, size)]


def listed(sizes: Sequence[int]) -> str:
    return ', '.join(map(str, sizes))


def warn_untrained(model: nn.Module, sizes: Sequence[int],
                   channels: int) -> None:
    """Say what serves each of ``sizes`` that is no scale, and which may cost
    accuracy.

    Args:
        channels: of the pictures.
    """
    groups: Dict[Tuple[int, ...], List[int]] = {}
    for size in sizes:
        rows = serving_scales(model, size)
        if rows not in (None, [size]):
            groups.setdefault(tuple(rows), []).append(size)
    if not groups:
        return
    for rows, group in groups.items():
        if len(rows) > 1:  # for the others set_scale() warns
            warnings.warn(f'{listed(group)} pixels lie between the scales '
                          f'{rows[0]} and {rows[1]}, whose rows are mixed.',
                          stacklevel=2)
    stride = None
    if getattr(model.data_preprocessor, 'pad_size_divisor', 1) == 1:
        stride = network_stride(model, channels)
    odd = [size for group in groups.values() for size in group
           if stride and size % stride]
    if odd:
        warnings.warn(
            f'{listed(odd)} pixels are no multiple of the stride '
            f'{stride} of the network, which costs accuracy.', stacklevel=2)
