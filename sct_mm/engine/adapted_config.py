"""The config by which a network is adapted, tested and exported."""
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.device import get_device

from ..datasets.image_folder import check_images, folder_dataset
from ..datasets.last_stage import STAGES, last_stage, without_batch_mixes
from ..utils.config_walk import pipelines_of, type_name


def train_on_folder(cfg: Config, folder: str) -> None:
    """Let the images within ``folder``, which need no labels, be the training
    set of ``cfg``. They are prepared as its own are; as those of its test if
    it has none.

    Raises:
        UserError: as :func:`~sct_mm.datasets.image_folder.check_images`.
    """
    training = cfg.get('train_dataloader') or {}
    pipeline = next(iter(pipelines_of(training)), None)
    loader = training or cfg.get('test_dataloader') or {}
    kept = {key: loader[key] for key in ('num_workers', 'collate_fn')
            if key in loader}
    cfg.train_dataloader = dict(
        batch_size=training.get('batch_size') or 32, **kept, dataset=(
            folder_dataset(cfg, folder, pipeline, check_images(folder),
                           test_mode=False)))


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


def adapted_config(cfg: Config, scales: Sequence[int], epochs: int,
                   lr: float, between: float = 0.0, rank: int = 0,
                   held_out: int = 0) -> Config:
    """The config that adapts the network of ``cfg`` to ``scales``, and by
    which it is tested, exported and loaded afterwards.

    Model and test stay as they are. The images are those of the training's
    last stage (:func:`last_stage`), without mixes of a batch. There is no
    validation, and no moving average of the weights (EMA), which would lag
    behind in a training this short.

    Args:
        held_out: how many of them no step trains on.
    """
    options = cfg.to_dict()
    hooks = [hook for hook in options.get('custom_hooks') or []
             if type_name(hook) not in ('EMAHook', 'EpochSeedHook', *STAGES)]
    imports = options.get('custom_imports') or {}
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    options['train_dataloader']['dataset'], _ = last_stage(options)
    options, _ = without_batch_mixes(options)
    options['train_dataloader']['sampler'] = dict(type='WithoutHeldOut',
                                                  held_out=held_out)
    options.update(
        custom_imports=dict(imports=[*dict.fromkeys([*names, 'sct_mm'])],
                            allow_failed_imports=False),
        model=dict(type='WithSSBN', scales=list(scales), rank=rank,
                   model=options['model']),
        optim_wrapper=_optimizer(cfg, lr),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=50),
            dict(type='CosineAnnealingLR', T_max=epochs,
                 convert_to_iter_based=True)],
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        val_cfg=None, val_dataloader=None, val_evaluator=None,
        auto_scale_lr=dict(enable=False), resume=False,
        randomness={'seed': 0, **(options.get('randomness') or {})},
        custom_hooks=[*hooks, dict(type='EpochSeedHook'),
                      dict(type='SCTLossHook', adapt=True, norm_eval=False,
                           between=between)])
    options.setdefault('default_hooks', {})['checkpoint'] = dict(
        type='CheckpointHook', interval=1)
    return Config(options)
