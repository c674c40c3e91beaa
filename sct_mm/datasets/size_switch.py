"""Let one data set make images of several sizes, one size at a time."""
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..utils.config_walk import pipelines_in
from ..utils.errors import EMPTY
from .rescale_pipeline import keeps_ratio, rescale_pipeline


class SizedPipeline:
    """The pipelines of one data set for several sizes; one of them runs.

    Args:
        pipelines: callables, one a size.
        chosen: () index of the one that runs, in memory that the workers of
            a data loader share: persistent workers see a change, too.
    """

    def __init__(self, pipelines: Sequence[Callable],
                 chosen: Tensor) -> None:
        self.pipelines = list(pipelines)
        self.chosen = chosen

    def __call__(self, data: Any) -> Any:
        return self.pipelines[int(self.chosen)](data)

    def __getattr__(self, name: str) -> Any:
        # Hosts read `pipeline.transforms`. Unpickling asks before __init__.
        if name in ('pipelines', 'chosen'):
            raise AttributeError(name)
        return getattr(self.pipelines[int(self.chosen)], name)


def part_at(dataset: Any, path: tuple) -> Any:
    """The data set at ``path`` within ``dataset``; its pipeline is callable.

    Raises:
        ValueError: for one that runs its transforms in another way.
    """
    if type(dataset).__name__ == '_SlicedDataset':  # num_batch_per_epoch
        dataset = dataset._dataset
    for key in path:
        dataset = (dataset[key] if isinstance(key, int)
                   else getattr(dataset, key))
    if not callable(getattr(dataset, 'pipeline', None)):
        raise ValueError('A data set that is tested at several sizes must '
                         'have a `pipeline` that can be called, but got '
                         f'{type(dataset).__name__}. Test at each size by a '
                         'config of its own.')
    return dataset


class SizeSwitch:
    """Let ``dataset`` make images of any of ``sizes``.

    There is one data set, with its annotations and its workers; its pipeline
    is replaced by one that can change its size. Outside of :meth:`at` images
    have the size of the config.

    Args:
        dataset: a data set, also within ``ConcatDataset``, ``RepeatDataset``
            and other wrappers.
        config: the config that it was built from.
        sizes: nominal sizes in pixels.

    Raises:
        ValueError: if the data set is empty, or a pipeline cannot be
            rewritten, or does not make images of the size; see
            :func:`rescale_pipeline`.
    """

    def __init__(self, dataset: Any, config: dict,
                 sizes: Sequence[int]) -> None:
        if not len(dataset):
            raise ValueError(EMPTY)
        self.sizes = tuple(sizes)
        self.chosen = torch.tensor(0).share_memory_()
        self.parts = [(part_at(dataset, path), pipeline)
                      for path, pipeline in pipelines_in(config)]
        sized = []
        for part, pipeline in self.parts:
            build = type(part.pipeline)  # Compose, or the host's own
            sized.append(SizedPipeline(
                [part.pipeline, *(build(rescale_pipeline(pipeline, size))
                                  for size in self.sizes)], self.chosen))
        for (part, _), switched in zip(self.parts, sized, strict=True):
            part.pipeline = switched
        self._check_images()

    @contextmanager
    def at(self, size: int) -> Iterator[None]:
        """Make images of ``size`` pixels within a ``with`` block."""
        self.chosen.fill_(1 + self.sizes.index(size))
        try:
            yield
        finally:
            self.chosen.zero_()

    def _check_images(self) -> None:
        for size in self.sizes:
            with self.at(size):
                for part, pipeline in self.parts:
                    if len(part):
                        check_image(part[0], size, keeps_ratio(pipeline))


def check_image(sample: Any, size: int, narrow: bool) -> None:
    """Refuse an image that has not ``size`` pixels.

    Args:
        sample: an item of the data set.
        narrow: whether the short edge of a long image may be less.
    """
    image = sample.get('inputs') if isinstance(sample, dict) else None
    if not isinstance(image, Tensor):
        return
    edge = min(image.shape[-2:])
    if edge != size and not (narrow and edge < size):
        raise ValueError(f'The test pipeline must make images of {size} '
                         f'pixels, but makes {edge}. A transform sets the '
                         'size that is not known here: use Resize, or '
                         'ResizeEdge and CenterCrop.')
