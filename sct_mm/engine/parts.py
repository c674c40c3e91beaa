"""The batch that each scale of a step trains on."""
from typing import Callable, Dict, Optional

from ..datasets.samples import private_copy


def divided(batch: dict, shares: Dict[int, slice]) -> Dict[int, dict]:
    """The pictures and samples of ``shares``, one batch a scale."""
    def at(share: slice) -> dict:
        part = {**batch, 'inputs': batch['inputs'][share]}
        if batch.get('data_samples') is not None:
            part['data_samples'] = batch['data_samples'][share]
        return part

    return {scale: at(share) for scale, share in shares.items()}


def parts_of_batch(batch: dict, transforms: Dict[int, Callable[[dict], dict]],
                   shares: Optional[Dict[int, slice]] = None
                   ) -> Dict[int, dict]:
    """One batch for each scale of ``transforms``, in their order.

    All are made before the first is used: what one scale's pass writes into
    its inputs or samples is in no other, and a sample that cannot be resized
    is refused before anything has changed.

    Args:
        batch: ``inputs`` (N, C, H, W), ``data_samples`` and ``mode``.
        shares: which of the pictures a scale trains on; all by default.
    """
    parts = (dict.fromkeys(transforms, batch) if shares is None
             else divided(batch, shares))
    parts = {scale: transforms[scale](part) for scale, part in parts.items()}
    for part in list(parts.values())[1:] if shares is None else ():
        # MultiScaleBatch shares what has no size: labels, scores.
        if 'data_samples' in part:
            part['data_samples'] = private_copy(part['data_samples'])
    return parts
