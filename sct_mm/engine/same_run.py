"""Whether the run of tools/adapt.py that --resume goes on with is one of the
same arguments, images and network."""
import hashlib
import os.path as osp
from collections.abc import Iterable
from typing import Any

import numpy as np
from mmengine.config import Config
from torch import nn

from ..datasets.base_size import BaseSize
from ..models.extract import extract_scale
from ..utils.checkpoint import meta_of
from ..utils.errors import UserError
from .load_model import differing_tensors
from .training_images import drawn

_COUNTED, _DIGEST = 'images', 'held_out'  # in the meta of a checkpoint
_SAME = 'Give the same, or --force without --resume to start over.'
# Settings of the adapted config that must not change when a run is resumed.
_FIXED = ('model', 'data_preprocessor', 'train_cfg', 'optim_wrapper',
          'param_scheduler', 'custom_hooks')


def _arguments_of(cfg: Config, base: BaseSize) -> dict[str, Any]:
    """The arguments of tools/adapt.py of which ``cfg`` was made, in a user's
    words: those that a run must keep when it is resumed.

    Args:
        base: by which scales are sizes of the test.
    """
    dataset = cfg.train_dataloader.dataset
    most = cfg.train_dataloader.sampler.get('max_images')
    folder = dataset.get('folder')
    scales = map(base.size_of, cfg.model.scales)
    return {
        '--scales and --sizes': ' '.join(map(str, scales)),
        '--epochs': cfg.train_cfg.max_epochs,
        '--rank': cfg.model.get('rank', 0),
        '--lr': cfg.optim_wrapper.optimizer.lr,
        '--between': cfg.custom_hooks[-1].between,
        # Whether it ends in `/`, or is relative, is no difference.
        '--images': osp.realpath(folder) if folder else 'left out',
        '--max-images': 'left out' if most is None else most,
        'train_dataloader.dataset.indices': dataset.get('indices', 'left out')}


def digest_of(dataset: Any, indices: Iterable[int]) -> str:
    """A SHA-256 of images: of their files, or of the pixels that ``dataset``
    holds. It is the same for a data set that has moved. Where neither is
    known, as of videos, it says nothing."""
    found = hashlib.sha256()
    read = getattr(dataset, 'get_data_info', None)
    if read is None:
        return ''
    for index in indices:
        info = read(int(index))
        path, image = info.get('img_path'), info.get('img')
        if isinstance(image, np.ndarray):
            found.update(image.tobytes())
        elif isinstance(path, str) and osp.isfile(path):
            with open(path, 'rb') as file:
                found.update(file.read())
    return found.hexdigest()


def images_in_meta(dataset: Any, held_out: int) -> dict[str, Any]:
    """What the checkpoint that a training starts from records of its images:
    their number, and a digest of the ``held_out``, which a resumed run must
    not train on. If others take their places, or stand before them in the
    order of the data set, it is another."""
    return {_COUNTED: len(dataset),
            _DIGEST: digest_of(dataset, drawn(dataset)[:held_out])}


def check_same_run(before: Config, cfg: Config, base: BaseSize,
                   start: dict, dataset: Any, held_out: int) -> None:
    """Check that a run has the arguments and images of the one before.
    mmengine would go on with the old schedule, and load parameters of other
    scales by their order.

    Args:
        before: the adapted config of the run before, ``cfg`` that of this
            one.
        start: the checkpoint that the run before began with.
        dataset: the images of this run, of which ``held_out`` are.

    Raises:
        UserError: naming the first that differs.
    """
    had = _arguments_of(before, base)
    for name, value in _arguments_of(cfg, base).items():
        if had[name] != value:
            raise UserError(
                f'`{name}` must be {had[name]}, as in the run that '
                f'--resume goes on with, but got {value}. {_SAME}')
    meta, images = meta_of(start), images_in_meta(dataset, held_out)
    count = meta.get(_COUNTED, len(dataset))
    if count != len(dataset):  # others would be held out
        raise UserError(
            f'The images must be the {count} of the run that --resume '
            f'goes on with, but are {len(dataset)}. {_SAME}')
    if meta.get(_DIGEST, images[_DIGEST]) != images[_DIGEST]:
        raise UserError(
            'The images must be those of the run that --resume goes on '
            f'with, but others are held out. {_SAME}')
    for name in _FIXED:
        if before.get(name) != cfg.get(name):
            raise UserError(
                f'The setting `{name}` must be as in the run that '
                f'--resume goes on with, {before.filename!r}, but is '
                f'another. {_SAME}')


def check_same_network(model: nn.Module, stock: nn.Module, base: int,
                       path: str) -> None:
    """Check that ``model``, with which the run before began, answers at its
    scale ``base`` as ``stock``.

    Args:
        path: of the checkpoint of ``model``, for the error.

    Raises:
        UserError: if a tensor differs.
    """
    if differing_tensors(extract_scale(model, base).state_dict(),
                         stock.state_dict()):
        raise UserError(
            'The checkpoint must be that of the run that --resume goes on '
            f'with, whose weights are in {path!r}, but has '
            f'others. {_SAME}')
