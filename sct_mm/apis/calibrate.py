"""Re-estimate the statistics of a checkpoint from training images."""
import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.logging import MMLogger, print_log
from mmengine.model import BaseModel
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    FUNCTIONS,
    TRANSFORMS,
    init_default_scope,
)
from mmengine.runner import set_random_seed
from mmengine.runner.checkpoint import save_checkpoint
from rich.progress import Progress
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from ..datasets.base_size import BaseSize, base_size
from ..datasets.last_stage import (
    STAGES,
    last_stage,
    sizes_in_training,
    smallest_in_training,
    without_batch_mixes,
)
from ..datasets.multi_scale_batch import padding_of
from ..engine.load_model import loaded_model
from ..engine.resume import find_checkpoint
from ..engine.sct.step import check_images
from ..models import precise_bn
from ..models.size_selection import scales_of
from ..utils.arguments import check_int
from ..utils.checkpoint import check_checkpoint, check_outputs, meta_of
from ..utils.config import (
    check_data,
    join_processes,
    load_config,
    scales_settings,
    set_loader_defaults,
)
from ..utils.config_walk import type_name
from ..utils.errors import UserError
from ..utils.safe_load import protected_loading
from ..utils.sizes import Sizes, expand_sizes


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
        with torch.random.fork_rng(devices=[]):
            set_random_seed((self.seed * 1_000_003 + index) % 2**32)
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


def batches_of(config: dict, dataset: Any, images: int,
               seed: int = 0) -> list[list[int]]:
    """Draw ``images`` from ``dataset``, and return their indices in the
    batches that the data loader of ``config`` would make; all processes draw
    the same.

    Raises:
        UserError: for less than two batches.
    """
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(len(dataset), generator=generator)[:images]
    size, sampler = config.get('batch_size') or 1, config.get('batch_sampler')
    if sampler is None:
        batches = [part.tolist() for part in indices.split(size)]
    else:
        batches = list(DATA_SAMPLERS.build(sampler, default_args=dict(
            sampler=_Chosen(dataset, indices.tolist()), batch_size=size)))
    batches = [batch for batch in batches if len(batch) > 1 or size == 1]
    if len(batches) < 2:
        raise UserError('Statistics need at least two batches, but '
                        f'{len(indices)} of {len(dataset)} images make '
                        f'{len(batches)} of {size}. Give --images '
                        f'{2 * size} or more, or set a smaller '
                        'train_dataloader.batch_size.')
    return batches


def build_loader(config: dict, images: int) -> DataLoader:
    """This process's share of the batches of :func:`batches_of`."""
    dataset = SeededImages(DATASETS.build(config['dataset']))
    if hasattr(dataset.dataset, 'full_init'):
        dataset.dataset.full_init()
    batches = batches_of(config, dataset, images)
    collate = dict(config.get('collate_fn') or dict(type='pseudo_collate'))
    kind = collate.pop('type')
    function = FUNCTIONS.get(kind) if isinstance(kind, str) else kind
    return DataLoader(dataset, collate_fn=partial(function, **collate),
                      batch_sampler=batches[get_rank()::get_world_size()],
                      num_workers=config.get('num_workers', 0))


def check_sizes(sizes: Sizes, model: nn.Module,
                base: BaseSize) -> tuple[int, ...]:
    """The scales to calibrate, the largest first, for tests at ``sizes``.

    Raises:
        UserError: for a model without SSBN, and for what is no size or is
            larger than that of the ``base``.
    """
    scales = scales_of(model)
    if scales is None:
        raise UserError('The config must have SSBN to calibrate, but '
                        f'{type(model).__name__} has none. Make it a '
                        'network for several sizes by tools/adapt.py.')
    if sizes == 'all':
        return scales
    sizes = expand_sizes(sizes)
    if sizes[0] > base.test:
        raise UserError('`sizes` must be at most those of the images that '
                        f'the training pipeline makes, {base.test} pixels'
                        f'{in_a_test(base)}, but got {sizes[0]}. Leave it '
                        "out, or enlarge the pipeline's.")
    return tuple(map(base.scale_at, sizes))


def in_a_test(base: BaseSize) -> str:
    """Where the sizes of training and test differ: what a size is."""
    return '' if base.train == base.test else (
        f' in a test ({base.train} in training)')


def prepared(loader: DataLoader, model: BaseModel, size: int, base: int,
             smallest: int | None = None) -> Iterator[dict]:
    """The batches of ``loader``, preprocessed, at ``size`` pixels.

    Args:
        smallest: see :func:`check_images`.

    Raises:
        ValueError: for images of another size than ``base``.
    """
    resize = TRANSFORMS.build({**padding_of(model), 'type': 'MultiScaleBatch',
                               'scale': size, 'base_scale': base})
    with Progress(transient=True, disable=not is_main_process()) as bar:
        for batch in bar.track(loader, description=f'Statistics at {size}'):
            # In training only: batch augments that resize or pad, and
            # mmyolo's collated samples.
            batch = model.data_preprocessor(batch, True)
            check_images(batch, base, smallest)
            yield resize(batch)


def prepare_run(cfg: Config) -> None:
    """Check the training images of ``cfg``, change it in place to those of
    its :func:`last_stage`, without mixes of a batch, and set up what a Runner
    would: the loader's defaults, processes, the log and the scope of
    registries.

    Raises:
        UserError: for a config without training images.
    """
    if not cfg.get('train_dataloader'):
        raise UserError('The config must have a `train_dataloader`, whose '
                        'images give the statistics, but got '
                        f'{cfg.get("train_dataloader")!r}. Set it.')
    check_data(cfg.train_dataloader)
    cfg.train_dataloader.dataset, names = last_stage(cfg)
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or ()
                        if type_name(hook) not in STAGES]
    clean, mixes = without_batch_mixes(cfg)
    cfg.update({**clean})
    if names + mixes:
        print_log('Left out of the training images: '
                  f'{", ".join(names + mixes)}. No test image shows what they '
                  'do.', 'current')
    set_loader_defaults(cfg.train_dataloader, cfg)
    join_processes(cfg)
    if not MMLogger.check_instance_created(__name__):
        # The hosts' messages go to this logger, which prints errors alone.
        MMLogger.get_instance(__name__, log_level='ERROR')
    init_default_scope(cfg.get('default_scope') or 'mmengine')


def train_base(cfg: Config, scale: int) -> BaseSize:
    """The base of a network, by the images of its training.

    Args:
        scale: the edge in pixels of training images whose size the config
            does not show.
    """
    sizes = sizes_in_training(cfg)
    return base_size(cfg, (max((s for each in sizes for s in each),
                               default=scale), ))


def estimate(model: nn.Module, cfg: Config, sizes: Sequence[int], base: int,
             images: int) -> int:
    """Re-estimate the statistics of ``model`` at each of ``sizes``; a size
    that is not a scale becomes one.

    Args:
        base: the size of the images that the training pipeline makes, pixels.
        images: how many to draw from the training set.

    Returns:
        int: how many images gave the statistics of each size.
    """
    loader, seen = build_loader(cfg.train_dataloader, images), 0
    for size in sizes:
        if size not in (scales_of(model) or ()):
            precise_bn.add_scale(model, size)
        seen = precise_bn.calibrate(
            model, prepared(loader, model, size, base,
                            smallest_in_training(cfg)), size)
    return seen


def save_weights(model: nn.Module, path: str, meta: dict) -> None:
    """Write a checkpoint of the weights and ``meta``, from the main process,
    whole or not at all."""
    if is_main_process():
        save_checkpoint(
            dict(meta=meta, state_dict={
                name: value.cpu()
                for name, value in model.state_dict().items()}),
            path, backend_args=dict(backend='atomic_local'))


@protected_loading()
def calibrate(config: str, checkpoint: str, sizes: Sizes, out: str,
              images: int = 2048, force: bool = False,
              cfg_options: dict | None = None,
              launcher: str = 'none') -> dict[str, Any]:
    """Re-estimate the statistics of a checkpoint at ``sizes`` from images
    of the training set: what tools/calibrate.py calls. The function on a
    model, with batches of your own, is ``sct_mm.calibrate``.

    The statistics of each size are estimated separately, from the same
    images, with the augmentation of the training's last stage
    (:func:`last_stage`), resized as SCTLossHook resizes. A size that is not a
    scale becomes one (:func:`~sct_mm.models.precise_bn.add_scale`). The file
    does not depend on the number of processes.

    Args:
        config: path of the config.
        checkpoint: path or address of the checkpoint, or a work directory,
            whose newest whole one is taken.
        sizes: pixels of a test (:class:`~sct_mm.datasets.base_size.BaseSize`),
            also as ranges such as ``'128:224:16'``
            (:func:`~sct_mm.utils.sizes.expand_sizes`), or 'all' for those
            that the trained scales serve.
        out: path of the checkpoint to write, which holds the weights alone.
        images: how many to draw from the training set.
        force: whether ``out`` is overwritten.
        cfg_options: ``{'a.b': value}``, settings that override the config.
        launcher: mmengine's: 'none', 'pytorch', 'slurm' or 'mpi'.

    Returns:
        dict: ``out``; ``images``, how many gave the statistics of each size;
        ``scales`` of the checkpoint; and ``settings``, which the config needs
        to load it: ``{'model.backbone.norm_cfg.scales': [224, 176]}``.

    Raises:
        UserError: for what is missing, does not fit, or stands in the way.
    """
    images = check_int('images', images, 1, 'The default is 2048.')
    sizes = sizes if sizes == 'all' else expand_sizes(sizes)
    check_outputs([out], force)
    if out.endswith('.safetensors'):
        raise UserError('The output must be a checkpoint of torch, but got '
                        f'{out!r}. Name a .pth; tools/hub.py and '
                        'tools/export.py write safetensors.')
    cfg = load_config(config, cfg_options)
    cfg.launcher = launcher
    checkpoint = find_checkpoint(checkpoint, cfg)
    weights = check_checkpoint(checkpoint)
    prepare_run(cfg)
    model = loaded_model(cfg, weights, checkpoint).to(get_device())
    base = train_base(cfg, (scales_of(model) or [0])[0])
    seen = estimate(model, cfg, check_sizes(sizes, model, base), base.train,
                    images)
    save_weights(model, out, meta_of(weights))
    scales = scales_of(model) or ()
    return dict(out=out, images=seen, scales=scales,
                settings=scales_settings(cfg.model, scales))
