"""The config by which a network is adapted, tested and exported."""
import math
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_world_size

from ..datasets.image_folder import (
    check_images,
    folder_dataset,
    train_pipeline,
)
from ..datasets.last_stage import STAGES, last_stage, without_batch_mixes
from ..datasets.rescale_pipeline import resizes
from ..utils.config import import_this_package
from ..utils.config_walk import type_name, without_pretrained


def train_on_folder(cfg: Config, folder: str, indices: Any = None) -> None:
    """Let the images within ``folder``, which need no labels, be the training
    set of ``cfg``, prepared by
    :func:`~sct_mm.datasets.image_folder.train_pipeline`. They are not read
    before :func:`check_folder`.

    Args:
        indices: see :func:`~sct_mm.datasets.image_folder.folder_dataset`.

    Raises:
        UserError: for a config without a pipeline, or one of videos.
    """
    training = cfg.get('train_dataloader') or {}
    loader = training or cfg.get('test_dataloader') or {}
    kept = {key: loader[key] for key in ('num_workers', 'collate_fn')
            if key in loader}
    cfg.train_dataloader = dict(
        batch_size=training.get('batch_size') or 32, **kept, dataset=(
            folder_dataset(cfg, folder, train_pipeline(cfg), (),
                           test_mode=False, indices=indices)))


def check_folder(cfg: Config, edge: int) -> None:
    """Read the images of :func:`train_on_folder` once, and leave out those
    that cannot be used.

    Args:
        edge: shorter edge in pixels that images must have if no transform of
            ``cfg`` sets it.

    Raises:
        UserError: as :func:`~sct_mm.datasets.image_folder.check_images`.
    """
    dataset = cfg.train_dataloader.dataset
    dataset.skip = check_images(
        dataset.folder, None if resizes(dataset.pipeline) else edge)


def _optimizer(cfg: Config, lr: float) -> dict:
    """AdamW, whose steps do not depend on the magnitude of a network's
    losses. Nothing decays: what trains starts at the trained network."""
    wrapper = cfg.get('optim_wrapper') or {}
    amp = (type_name(wrapper) == 'AmpOptimWrapper'
           and get_device() != 'cpu')  # where mmengine refuses it
    kept = {key: wrapper[key] for key in ('type', 'dtype', 'loss_scale')
            if amp and key in wrapper}
    return {'type': 'OptimWrapper', **kept, 'optimizer': dict(
        type='AdamW', lr=lr, weight_decay=0.0)}


def steps_of(loader: dict, images: int, epochs: int) -> int:
    """How many steps ``epochs`` of a training on ``images`` take, with the
    batches of ``loader`` in each of the processes."""
    batch = (loader.get('batch_size') or 1) * get_world_size()
    return epochs * math.ceil(images / batch)


def warm_up(steps: int) -> int:
    """Over how many of ``steps`` the learning rate rises: 50, but at most
    three tenths of a short training, which would end before it has risen
    (our choice)."""
    return max(min(50, 3 * steps // 10), 2)


def adapted_config(cfg: Config, scales: Sequence[int], epochs: int,
                   lr: float, between: float = 0.0, rank: int = 0,
                   held_out: int = 0, steps: int = 1000,
                   max_images: int | None = None) -> Config:
    """The config that adapts the network of ``cfg`` to ``scales``, and by
    which it is tested, exported and loaded afterwards.

    Model and test stay as they are, but no file is loaded to initialise the
    model, since the checkpoint has all weights. The images are those of the
    training's last stage (:func:`last_stage`), without mixes of a batch. There
    is no validation, and no moving average of the weights (EMA), which would
    lag behind in a training this short.

    Args:
        held_out: how many of them no step trains on.
        steps: of the training.
        max_images: how many of the images are taken; None: all.
    """
    options = cfg.to_dict()
    hooks = [hook for hook in options.get('custom_hooks') or []
             if type_name(hook) not in ('EMAHook', 'EpochSeedHook', *STAGES)]
    options['train_dataloader']['dataset'], _ = last_stage(options)
    options, _ = without_batch_mixes(options)
    options['train_dataloader']['sampler'] = dict(type='WithoutHeldOut',
                                                  held_out=held_out,
                                                  max_images=max_images)
    for name in ('num_batch_per_epoch', 'drop_last'):  # all images train
        options['train_dataloader'].pop(name, None)
    options.update(
        model=dict(type='WithSSBN', scales=list(scales), rank=rank,
                   model=without_pretrained(options['model'])),
        optim_wrapper=_optimizer(cfg, lr),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.05, by_epoch=False,
                 end=warm_up(steps)),
            dict(type='CosineAnnealingLR', T_max=epochs,
                 convert_to_iter_based=True)],
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        val_cfg=None, val_dataloader=None, val_evaluator=None,
        auto_scale_lr=dict(enable=False), resume=False,
        sync_bn=None, efficient_conv_bn_eval=None,  # which know no scales
        randomness={'seed': 0, **(options.get('randomness') or {})},
        custom_hooks=[*hooks, dict(type='EpochSeedHook'),
                      dict(type='SCTLossHook', adapt=True, norm_eval=False,
                           between=between)])
    options.setdefault('default_hooks', {}).update(
        checkpoint=dict(type='CheckpointHook', interval=1),
        # mmyolo's own sets the learning rate itself.
        param_scheduler=dict(type='ParamSchedulerHook'))
    made = Config(options)
    import_this_package(made)
    return made
