"""The batch that each scale of a step trains on."""
from typing import Callable, Dict, Sequence

from mmengine.registry import TRANSFORMS

from ..datasets.data_samples import private_copy
from .sct.schedule import Pass


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


class Resize:
    """A batch at any size, by batch transforms that are built as they are
    asked for.

    Args:
        config: of the batch transform, without its scales.
        base: scale of the batches given, in pixels.
    """

    def __init__(self, config: dict, base: int) -> None:
        self._config, self._base = config, base
        self._transforms: Dict[int, Callable[[dict], dict]] = {}
        try:
            self.at(base)  # a bad config is told before the training
        except (KeyError, TypeError) as error:
            if '`' in str(error).partition(' ')[0]:  # of MultiScaleBatch
                raise
            raise ValueError(
                '`batch_transform` must be the config of a batch transform '
                f'that takes scale and base_scale, but got {config!r} '
                f'({str(error).partition(". ")[0]}). Write e.g. '
                "dict(type='MultiScaleBatch', antialias=True).") from error

    def at(self, size: int) -> Callable[[dict], dict]:
        """The transform to ``size`` pixels."""
        if size not in self._transforms:
            self._transforms[size] = TRANSFORMS.build(dict(
                self._config, scale=size, base_scale=self._base))
        return self._transforms[size]

    def __call__(self, size: int, batch: dict) -> dict:
        return self.at(size)(batch)


def parts_of_batch(batch: dict, passes: Sequence[Pass],
                   transform: Callable[[int, dict], dict]) -> Dict[int, dict]:
    """One batch for each of ``passes``, by its scale, in their order.

    All are made before the first is used: what one scale's pass writes into
    its inputs or samples is in no other, and a sample that cannot be resized
    is refused before anything has changed.

    Args:
        batch: ``inputs`` (N, C, H, W), ``data_samples`` and ``mode``.
        transform: (size in pixels, batch) -> the batch at that size.
    """
    shares = divided(batch, passes)
    parts = {p.scale: transform(p.size, shares[p.scale]) for p in passes}
    for p in passes[1:]:
        # MultiScaleBatch shares what has no size: labels, scores.
        if p.share is None and 'data_samples' in parts[p.scale]:
            parts[p.scale]['data_samples'] = private_copy(
                parts[p.scale]['data_samples'])
    return parts
