"""A batch at any size, by the batch transform that SCTLossHook is given."""
from collections.abc import Callable

from mmengine.registry import TRANSFORMS


def check_batch_transform(config: dict | None) -> dict:
    """``batch_transform`` of SCTLossHook; MultiScaleBatch by default.

    Raises:
        TypeError, ValueError: if it is no config of a batch transform, or
            has the scales that the hook sets.
    """
    if config is None:
        return dict(type='MultiScaleBatch')
    if not isinstance(config, dict) or 'type' not in config:
        raise TypeError('`batch_transform` must be the config of a batch '
                        f'transform, but got {config!r}. Write '
                        "e.g. dict(type='MultiScaleBatch', antialias=True).")
    if {'scale', 'base_scale'} & set(config):
        raise ValueError('`batch_transform` must leave scale and base_scale '
                         f'to SCTLossHook, but got {config!r}. Remove them.')
    return config


class Resize:
    """A batch at any size, by batch transforms that are built when a size is
    first asked for.

    Args:
        config: of the batch transform, without its scales.
        base: scale of the batches given, in pixels.
    """

    def __init__(self, config: dict, base: int) -> None:
        self._config, self._base = config, base
        self._transforms: dict[int, Callable[[dict], dict]] = {}
        try:
            self.at(base)  # a bad config is refused before the training
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

    def __repr__(self) -> str:
        return repr(self._config)
