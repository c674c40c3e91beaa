"""Let one data set make images of several sizes, one size at a time."""
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.config_walk import pipelines_in
from ..utils.errors import EMPTY
from .rescale_pipeline import (
    Limits,
    limits_of,
    nominal_size,
    rescale_pipeline,
)


class SizedPipeline:
    """The pipelines of one data set for several sizes; one of them runs.

    Args:
        pipelines: callables, one a size.
        ratios: of each size to that of the first pipeline.
        divisor: of the shapes of batches that a data set of mmyolo writes
            beside an image when it is built (``BatchShapePolicy``).
        chosen: () index of the one that runs, in memory that the workers of
            a data loader share: persistent workers see a change, too.
    """

    def __init__(self, pipelines: Sequence[Callable],
                 ratios: Sequence[float], chosen: Tensor,
                 divisor: int = 32) -> None:
        self.pipelines = list(pipelines)
        self.ratios = list(ratios)
        self.chosen = chosen
        self.divisor = divisor

    def __call__(self, data: Any) -> Any:
        index = int(self.chosen)
        shape = data.get('batch_shape') if isinstance(data, dict) else None
        if index and shape is not None:
            edges = np.asarray(shape) * self.ratios[index] / self.divisor
            data = {**data, 'batch_shape': np.ceil(edges).astype(int)
                    * self.divisor}
        return self.pipelines[index](data)

    def __getattr__(self, name: str) -> Any:
        # Hosts read `pipeline.transforms`. Unpickling asks before __init__.
        if name in ('pipelines', 'ratios', 'chosen'):
            raise AttributeError(name)
        return getattr(self.pipelines[int(self.chosen)], name)


def parts_at(dataset: Any, path: tuple) -> list[Any]:
    """The data sets at ``path`` within ``dataset``: one, whose pipeline is
    callable, or those to which it hands its pipeline (mmocr).

    Raises:
        ValueError: for one that runs its transforms in another way.
    """
    if type(dataset).__name__ == '_SlicedDataset':  # num_batch_per_epoch
        dataset = dataset._dataset
    for key in path:
        dataset = (dataset[key] if isinstance(key, int)
                   else getattr(dataset, key))
    if not hasattr(dataset, 'pipeline') and getattr(dataset, 'datasets', None):
        return [part for i in range(len(dataset.datasets))
                for part in parts_at(dataset, ('datasets', i))]
    if not callable(getattr(dataset, 'pipeline', None)):
        raise ValueError('A data set that is tested at several sizes must '
                         'have a `pipeline` that can be called, but got '
                         f'{type(dataset).__name__}. Test at each size by a '
                         'config of its own.')
    return [dataset]


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
        base: the size that ``config`` tests at
            (:func:`~sct_mm.datasets.base_size.test_base`); None: that of its
            images.

    Raises:
        ValueError: if the data set is empty, or a pipeline cannot be
            rewritten, or does not make images of the size; see
            :func:`rescale_pipeline`.
    """

    def __init__(self, dataset: Any, config: dict, sizes: Sequence[int],
                 base: int | None = None) -> None:
        if not len(dataset):
            raise ValueError(EMPTY)
        self.sizes = tuple(sizes)
        self.chosen = torch.tensor(0).share_memory_()
        self.parts = [(part, pipeline)
                      for path, pipeline in pipelines_in(config)
                      for part in parts_at(dataset, path)]
        # What images of each size may measure, for each part.
        self.limits: list[dict[int, Limits | None]] = []
        sized = []
        for part, pipeline in self.parts:
            own = nominal_size(pipeline) if base is None else base
            scaled = [rescale_pipeline(pipeline, size, own)
                      for size in self.sizes]
            self.limits.append({
                size: limits_of(each)
                for size, each in zip(self.sizes, scaled, strict=True)})
            build = type(part.pipeline)  # Compose, or the host's own
            shapes = getattr(part, 'batch_shapes_cfg', None) or {}
            sized.append(SizedPipeline(
                [part.pipeline, *map(build, scaled)],
                [1.0, *(size / own for size in self.sizes)], self.chosen,
                shapes.get('size_divisor', 32)))
        for (part, _), switched in zip(self.parts, sized, strict=True):
            part.pipeline = switched
        for size in self.sizes:
            with self.at(size):
                for (part, _), limits in zip(self.parts, self.limits,
                                             strict=True):
                    if len(part):
                        check_image(part[0], size, [limits[size]])

    @contextmanager
    def at(self, size: int) -> Iterator[None]:
        """Make images of ``size`` pixels within a ``with`` block."""
        self.chosen.fill_(1 + self.sizes.index(size))
        try:
            yield
        finally:
            self.chosen.zero_()

    def check_batch(self, batch: Any, size: int) -> None:
        """Measure the images of a collated batch that is tested at ``size``.

        Raises:
            ValueError: if one has another size.
        """
        inputs = batch.get('inputs') if isinstance(batch, dict) else None
        for image in inputs if isinstance(inputs, (list, tuple,
                                                   Tensor)) else ():
            check_image(dict(inputs=image), size,
                        [limits[size] for limits in self.limits])


def check_image(sample: Any, size: int,
                limits: Sequence[Limits | None]) -> None:
    """Refuse an image that has not the size of a test at ``size`` pixels.

    Args:
        sample: an item of the data set.
        limits: one of which must admit the image; None admits all.

    Raises:
        ValueError: for an image of another size.
    """
    image = sample.get('inputs') if isinstance(sample, dict) else None
    views = image if isinstance(image, (list, tuple)) else [image]
    edges = [tuple(view.shape[-2:]) for view in views
             if isinstance(view, Tensor) and view.dim() > 1]
    if not edges:
        return
    largest = max(edges, key=min)
    short, long = min(largest), max(largest)
    known = [each for each in limits if each is not None]
    if len(known) < len(limits) or any(each.admits(short, long)
                                       for each in known):
        return
    raise ValueError(f'The images of a test at {size} pixels must have a '
                     f'shorter edge of {known[0].short}, but the pipeline '
                     f'makes {short} x {long}. A transform sets the size '
                     'that is not known here: use Resize, or ResizeEdge and '
                     'CenterCrop.')
