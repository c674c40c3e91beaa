"""Images of a training set, the same in each process, as a network trains on
them: to estimate statistics on, and to compare answers."""
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.model import BaseModel
from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS
from rich.progress import Progress
from torch.utils.data import DataLoader, Dataset, Sampler

from ..datasets.multi_scale_batch import padding_of
from ..utils.errors import UserError
from .sct.resize import Resize, check_batch_transform
from .sct.step import check_images


class SeededImages(Dataset):
    """``dataset`` with random augmentations that depend on an image's index
    alone, so that each process and worker loads the same image."""

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:  # samplers ask for metainfo
        if name == 'dataset':
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: int) -> Any:
        before = random.getstate(), np.random.get_state()
        seed = (self.seed * 1_000_003 + index) % 2**32
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)
            # Without the generators of GPUs, which torch.manual_seed() seeds:
            # no transform draws from them, and they would not be put back.
            torch.default_generator.manual_seed(seed)
            item = self.dataset[index]
        random.setstate(before[0])
        np.random.set_state(before[1])
        return item


class _Chosen(Sampler):
    """A sampler of given indices, in the form that the hosts' batch samplers
    take."""

    def __init__(self, dataset: Any, indices: list[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def drawn(dataset: Any, seed: int = 0) -> torch.Tensor:
    """The indices of ``dataset`` in a random order, the same in all
    processes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(len(dataset), generator=generator)


def batches_of(config: dict, dataset: Any, images: int | slice,
               least: int = 2) -> list[list[int]]:
    """Draw ``images`` from ``dataset``, and return their indices in the
    batches that the data loader of ``config`` would make, but smaller ones
    where they would be less than ``least``; all processes draw the same.

    Args:
        images: how many, or which part of those that are :func:`drawn`.
        least: how many batches there must be. Statistics need two, and leave
            out one of a single image.

    Raises:
        UserError: for fewer.
    """
    part = images if isinstance(images, slice) else slice(images)
    indices = drawn(dataset)[part]
    size, sampler = config.get('batch_size') or 1, config.get('batch_sampler')
    size = min(size, max(len(indices) // least, 2))
    if sampler is None:
        batches = [part.tolist() for part in indices.split(size)]
    else:
        batches = list(DATA_SAMPLERS.build(sampler, default_args=dict(
            sampler=_Chosen(dataset, indices.tolist()), batch_size=size)))
    batches = [batch for batch in batches
               if len(batch) > 1 or 1 in (size, least)]
    if len(batches) < least:
        raise UserError('Statistics need at least two batches, but '
                        f'{len(indices)} of {len(dataset)} images make '
                        f'{len(batches)} of {size}. Give {2 * size} images '
                        'or more, or set a smaller '
                        'train_dataloader.batch_size.')
    return batches


def seeded_images(config: dict) -> SeededImages:
    """The data set of the data loader of ``config``."""
    dataset = DATASETS.build(config['dataset'])
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    return SeededImages(dataset)


def build_loader(config: dict, dataset: Any, images: int | slice,
                 divided: bool = True) -> DataLoader:
    """A loader of the batches of :func:`batches_of`.

    Args:
        dataset: of :func:`seeded_images`.
        divided: whether each process gets its share alone, for statistics;
            else all get all of them.
    """
    batches = batches_of(config, dataset, images, 2 if divided else 1)
    collate = dict(config.get('collate_fn') or dict(type='pseudo_collate'))
    kind = collate.pop('type')
    function = FUNCTIONS.get(kind) if isinstance(kind, str) else kind
    return DataLoader(dataset, collate_fn=partial(function, **collate),
                      batch_sampler=(batches[get_rank()::get_world_size()]
                                     if divided else batches),
                      num_workers=config.get('num_workers', 0))


def prepared(loader: DataLoader, model: BaseModel, size: int, base: int,
             smallest: int | None = None, transform: dict | None = None
             ) -> Iterator[dict]:
    """The batches of ``loader``, preprocessed, at ``size`` pixels, with a
    bar that shows the progress.

    Args:
        smallest: see :func:`check_images`.
        transform: config of the batch transform; by default
            MultiScaleBatch.

    Raises:
        ValueError: for images of another size than ``base``.
    """
    resize = Resize({**padding_of(model), **check_batch_transform(transform)},
                    base).at(size)
    with Progress(transient=True, disable=not is_main_process()) as bar:
        for batch in bar.track(loader, description=f'Statistics at {size}'):
            # In training only: batch augments that resize or pad, and
            # mmyolo's collated samples.
            batch = model.data_preprocessor(batch, True)
            check_images(batch, base, smallest)
            yield resize(batch)
