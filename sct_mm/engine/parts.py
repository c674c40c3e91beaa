"""The batch that each scale of a step trains on."""
from typing import Callable, Dict, Sequence

from ..datasets.samples import private_copy
from .schedule import Pass


def divided(batch: dict, passes: Sequence[Pass]) -> Dict[int, dict]:
    """The pictures and samples of each pass' share, one batch a scale."""
    def at(share: slice) -> dict:
        if share is None:
            return batch
        part = {**batch, 'inputs': batch['inputs'][share]}
        if batch.get('data_samples') is not None:
            part['data_samples'] = batch['data_samples'][share]
        return part

    return {p.scale: at(p.share) for p in passes}


def parts_of_batch(batch: dict, passes: Sequence[Pass],
                   transforms: Dict[int, Callable[[dict], dict]]
                   ) -> Dict[int, dict]:
    """One batch for each of ``passes``, by its scale, in their order.

    All are made before the first is used: what one scale's pass writes into
    its inputs or samples is in no other, and a sample that cannot be resized
    is refused before anything has changed.

    Args:
        batch: ``inputs`` (N, C, H, W), ``data_samples`` and ``mode``.
        transforms: {scale: the batch transform to it}.
    """
    parts = {scale: transforms[scale](part)
             for scale, part in divided(batch, passes).items()}
    for p in passes[1:]:
        # MultiScaleBatch shares what has no size: labels, scores.
        if p.share is None and 'data_samples' in parts[p.scale]:
            parts[p.scale]['data_samples'] = private_copy(
                parts[p.scale]['data_samples'])
    return parts
