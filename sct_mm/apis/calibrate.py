"""Re-estimate the statistics of a checkpoint from training images."""
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.logging import MessageHub, MMLogger, print_log
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import save_checkpoint
from torch import nn

from ..datasets.base_size import BaseSize, base_size
from ..datasets.last_stage import (
    STAGES,
    last_stage,
    sizes_in_training,
    smallest_in_training,
    without_batch_mixes,
)
from ..engine.load_model import loaded_model
from ..engine.loops import failing_at
from ..engine.resume import find_checkpoint
from ..engine.sct.resize import batch_transform_of
from ..engine.training_images import build_loader, prepared, seeded_images
from ..models import precise_bn
from ..models.size_selection import scales_of
from ..utils.arguments import StrPath, check_int, check_path
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
    hub = MessageHub.get_current_instance()
    for name in ('epoch', 'iter'):  # of a Runner: mmyolo's losses ask for it
        if hub.get_info(name) is None:
            hub.update_info(name, 0)
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


def estimate(model: nn.Module, cfg: Config, dataset: Any,
             sizes: Sequence[int], base: BaseSize, images: int | slice) -> int:
    """Re-estimate the statistics of ``model`` at each of ``sizes``; a size
    that is not a scale becomes one.

    Args:
        dataset: of :func:`~sct_mm.engine.training_images.seeded_images`.
        sizes: scales, trained or not.
        base: of the network, by the images that the training pipeline makes.
        images: see :func:`~sct_mm.engine.training_images.batches_of`.

    Returns:
        int: how many images gave the statistics of each size.

    Raises:
        UserError: for a size that the network does not take.
    """
    loader, seen = build_loader(cfg.train_dataloader, dataset, images), 0

    def batches(size: int) -> Iterator[dict]:
        return prepared(loader, model, size, base.train,
                        smallest_in_training(cfg), batch_transform_of(cfg))

    scales = scales_of(model) or ()
    precise_bn.record_base(model, batches(scales[0]))
    for size in sizes:
        if size not in scales:
            precise_bn.add_scale(model, size)
        with failing_at(base.size_of(size), model):
            seen = precise_bn.calibrate(model, batches(size), size)
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
def calibrate(config: StrPath, checkpoint: StrPath, sizes: Sizes,
              out: StrPath, images: int = 2048, force: bool = False,
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
    config, out = check_path('config', config), check_path('out', out)
    checkpoint = check_path('checkpoint', checkpoint)
    images = check_int('images', images, 1, 'The default is 2048.')
    every = isinstance(sizes, str) and sizes == 'all'
    sizes = sizes if every else expand_sizes(sizes)
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
    seen = estimate(model, cfg, seeded_images(cfg.train_dataloader),
                    check_sizes(sizes, model, base), base, images)
    save_weights(model, out, meta_of(weights))
    scales = scales_of(model) or ()
    return dict(out=out, images=seen, scales=scales,
                settings=scales_settings(cfg.model, scales))
