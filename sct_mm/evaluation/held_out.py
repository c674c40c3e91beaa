"""Take training images that a network was not trained on, to find the
threshold of a cascade on them."""
import copy
import hashlib
import os.path as osp
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from torch.utils.data import DataLoader, Dataset, Subset

from ..datasets.base_size import test_base
from ..datasets.rescale_pipeline import rescale_pipeline
from ..utils.arguments import check_int
from ..utils.config import check_data, check_range
from ..utils.config_walk import pipelines_in, type_name
from ..utils.errors import UserError

# Keys of a data set's config that do not say which images there are.
_VIEW = ('indices', 'pipeline', 'lazy_init', 'serialize_data', 'max_refetch')


class HeldOut(NamedTuple):
    """``images``, made by the test pipeline; whether the network was
    ``trained`` on them; ``source``, where they are from, in words."""
    images: Any  # a data set
    trained: bool
    source: str


def innermost(dataset: dict) -> dict:
    """The config of a data set within wrappers such as RepeatDataset.

    Raises:
        UserError: for several data sets in one.
    """
    while 'pipeline' not in dataset and isinstance(dataset.get('dataset'),
                                                   dict):
        dataset = dataset['dataset']
    if dataset.get('datasets') or 'type' not in dataset:
        raise UserError('Held-out images are taken from one training set, '
                        f'but got {dataset.get("type")!r}. Give --threshold.')
    return dataset


def left_out(indices: Any, total: int) -> list[int]:
    """Which of ``total`` images a data set with ``indices`` leaves out.

    mmengine's BaseDataset takes the first ones, the last ones (negative),
    those of a list, or all (None).

    Raises:
        UserError: for a list of more than there are.
    """
    check_range(indices, total)
    used = (range(total) if indices is None
            else range(total)[:indices] if isinstance(indices, int)
            and indices >= 0
            else range(total)[indices:] if isinstance(indices, int)
            else [index % total for index in indices])
    return sorted(set(range(total)) - set(used))


def spread_over(indices: list[int], count: int | None) -> list[int]:
    """``count`` of ``indices``, spread evenly; all of them if ``count`` is
    None or too large."""
    total = len(indices)
    if count is None or count >= total:
        return indices
    return [indices[place * total // count] for place in range(count)]


def identities(dataset: Any) -> list[Any]:
    """The path of the file of each image of ``dataset``, or a digest of its
    pixels; empty for a data set that has neither."""
    found = []
    for index in range(len(dataset) if hasattr(dataset, 'get_data_info')
                       else 0):
        info = dataset.get_data_info(index)
        if info.get('img_path') is not None:
            found.append(osp.abspath(info['img_path']))
        elif isinstance(info.get('img'), np.ndarray):
            found.append(hashlib.sha1(info['img'].tobytes()).digest())
        else:
            return []
    return found


def untested(chosen: list[int], dataset: Any, tested: Any) -> list[int]:
    """Those of ``chosen`` that are not among the images of ``tested``.

    Raises:
        UserError: if all are.
    """
    known: set[Any] = set(identities(tested))
    own = identities(dataset) if known else []
    left = [i for i in chosen if not own or own[i] not in known]
    if chosen and not left:
        raise UserError(f'The {len(chosen)} training images that a '
                        'threshold could be found on are in the test set. '
                        'Give --threshold, or test on others.')
    return left


def check_held_out(cfg: Config, count: int | None) -> tuple[dict, dict]:
    """The configs of the training set and of the test set.

    Raises:
        UserError: if no image can be held out: without a training set, if it
            is the test set, or if all of its images are trained on and
            ``count`` does not ask for some of them.
    """
    if count is not None:
        check_int('held_out', count, 1, 'Leave it out for all that are left.')
    train = (cfg.get('train_dataloader') or {}).get('dataset')
    if not train:
        raise UserError('A threshold is found on held-out training images, '
                        'but the config has no `train_dataloader`. Set it, '
                        'or give --threshold.')
    train, test = innermost(train), cfg.test_dataloader.dataset
    if type_name(train) == 'ImageFolder':  # of adapt --images
        raise UserError('A threshold is found by labels, but the training '
                        'images, those of the folder '
                        f'{train.get("folder")!r}, have none. Give '
                        '--threshold.')
    while 'pipeline' not in test and isinstance(test.get('dataset'), dict):
        test = test['dataset']
    own, other = ({name: value for name, value in dataset.items()
                   if name not in _VIEW} for dataset in (train, test))
    if own == other:
        raise UserError('A threshold is found on held-out training images, '
                        'but the training set is the test set. Give '
                        '--threshold.')
    if train.get('indices') is None and count is None:
        raise UserError('A threshold is found on training images that the '
                        'network was not trained on, but the config has no '
                        '`indices` that leave some out. Give --held-out N '
                        'to take N that it was trained on, or --threshold.')
    check_data(cfg.train_dataloader)
    return train, test


def held_out_images(cfg: Config, size: int, count: int | None,
                    tested: Any = None) -> HeldOut:
    """Training images to find a threshold on, without images of the test.

    They are images that the training set's ``indices`` leave out. If it has
    no ``indices``, they are images that the network was trained on. The test
    pipeline makes them, at ``size`` pixels.

    Args:
        count: how many, spread evenly; None: all that are left out.
        tested: the data set of the test; none of its images is taken.

    Raises:
        UserError: as :func:`check_held_out`, and for an empty set.
    """
    train, test = check_held_out(cfg, count)
    pipeline = rescale_pipeline(next(pipelines_in(test))[1], size,
                                test_base(cfg, test))
    whole = copy.deepcopy(dict(train, pipeline=pipeline))
    indices = whole.pop('indices', None)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        dataset = DATASETS.build(whole)
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    left = left_out(indices, len(dataset))
    trained = indices is None
    chosen = list(range(len(dataset))) if trained else left
    if tested is not None:
        chosen = untested(chosen, dataset, tested)
    chosen = spread_over(chosen, count)
    if not chosen:
        raise UserError('A threshold is found on held-out training images, '
                        f'but `indices` leave out none of {len(dataset)}. '
                        'Leave `indices` out and give --held-out N, to take '
                        'N that the network was trained on, or --threshold.')
    source = (f'{len(chosen)} training images '
              + ('on which the network was trained: it is over-confident on '
                 'them' if trained else 'that `indices` leave out'))
    return HeldOut(Subset(dataset, chosen), trained, source)


def loader_like(loader: DataLoader, dataset: Dataset) -> DataLoader:
    """A loader of ``dataset`` in order, in batches like those of ``loader``.
    """
    return DataLoader(dataset, batch_size=loader.batch_size or 1,
                      num_workers=loader.num_workers,
                      collate_fn=loader.collate_fn)
