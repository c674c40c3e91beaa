"""Smaller sizes for a trained network of any config, in one call."""
import os
import os.path as osp
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import barrier, is_main_process
from mmengine.model import is_model_wrapper
from torch import nn

from ..datasets.multi_scale_batch import padding_of
from ..engine.hooks.sct_loss_hook import SCTLossHook
from ..engine.load_model import loaded_model
from ..engine.resume import ADAPTED, candidates, find_checkpoint
from ..engine.sct.adapt_step import check_adaptable
from ..engine.sct.checks import check_pipeline
from ..engine.sct.schedule import sizes_between
from ..models.extract import extract_scale
from ..models.size_selection import check_scales, scales_of
from ..utils.arguments import check_int, check_number
from ..utils.checkpoint import (
    AtomicLocalBackend,
    check_checkpoint,
    make_folder,
    meta_of,
)
from ..utils.config import config_name, load_config, scales_settings
from ..utils.config_walk import type_name
from ..utils.errors import UserError
from ..utils.safe_load import protected_loading
from ..utils.sizes import Sizes, expand_sizes
from .calibrate import estimate, prepare_run, save_weights
from .train import train

_START = 'calibrated.pth'
_IMAGES = 'sct_images'  # in its meta, how many gave the statistics
# Of its config what a run cannot change in the middle.
_ITS_OWN = ('model', 'data_preprocessor', 'train_cfg', 'optim_wrapper',
            'param_scheduler', 'custom_hooks')


def check_stock(cfg: Config) -> None:
    """Whether the network of ``cfg`` is one for a single size.

    Raises:
        UserError: if it has SSBN, or is trained by SCTLossHook.
    """
    hooks = [type_name(hook) for hook in cfg.get('custom_hooks') or []]
    if (scales_settings(cfg.model, ()) or 'SCTLossHook' in hooks
            or type_name(cfg.model) == 'WithSSBN'):
        raise UserError('The config must be that of a network for one size, '
                        f'but {cfg.filename!r} is an SCT config already. Give '
                        'it more sizes by tools/calibrate.py, or set '
                        "custom_hooks=[dict(type='SCTLossHook', adapt=True)] "
                        'in it.')


def check_sizes_more(sizes: Sizes, scales: Sequence[int]
                     ) -> tuple[int, ...]:
    """``sizes`` to give statistics beside ``scales``, the largest first.

    Raises:
        UserError: for one that is a scale, or larger than the base.
    """
    if not isinstance(sizes, (list, tuple)) or sizes:
        sizes = expand_sizes(sizes)
    for size in sizes:
        if size in scales or size > scales[0]:
            raise UserError('`sizes` must be below the base and none of the '
                            f'scales {tuple(scales)}, but got {size}. Leave '
                            'it out.')
    return sizes


def _optimizer(cfg: Config, lr: float) -> dict:
    """AdamW for the rows: its steps do not depend on how large a network's
    losses are. They do not decay: they start where the network was."""
    wrapper = cfg.get('optim_wrapper') or {}
    amp = (type_name(wrapper) == 'AmpOptimWrapper'
           and get_device() != 'cpu')  # which mmengine refuses there
    kept = {key: wrapper[key] for key in ('type', 'dtype', 'loss_scale')
            if amp and key in wrapper}
    return {'type': 'OptimWrapper', **kept, 'optimizer': dict(
        type='AdamW', lr=lr, weight_decay=0.0)}


def adapted_config(cfg: Config, scales: Sequence[int], epochs: int,
                   lr: float, between: float = 0.0) -> Config:
    """The config that adapts the network of ``cfg`` to ``scales``, and with
    which it is tested, exported and loaded afterwards.

    Model, images and test stay. There is no validation, and no average over
    the steps (EMA), which would lag behind in a training this short.
    """
    options = cfg.to_dict()
    hooks = [hook for hook in options.get('custom_hooks') or []
             if type_name(hook) not in ('EMAHook', 'EpochSeedHook')]
    imports = options.get('custom_imports') or {}
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    loader = options['train_dataloader']
    if 'Infinite' in type_name(loader.get('sampler') or {}):
        loader['sampler'] = dict(type='DefaultSampler', shuffle=True)
    options.update(
        custom_imports=dict(imports=[*dict.fromkeys([*names, 'sct_mm'])],
                            allow_failed_imports=False),
        model=dict(type='WithSSBN', scales=list(scales),
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
                      dict(type='SCTLossHook', adapt=True,
                           between=between)])
    options.setdefault('default_hooks', {})['checkpoint'] = dict(
        type='CheckpointHook', interval=1)
    return Config(options)


def differing(ours: nn.Module, theirs: nn.Module) -> list[str]:
    """The tensors in which two state dicts are not equal to the bit."""
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return [name for name in {**ours, **theirs} if name not in ours
            or name not in theirs
            or not torch.equal(ours[name].cpu(), theirs[name].cpu())]


def _check_output(out: str, force: bool, resume: bool) -> None:
    """Whether ``out`` may become, or is, the folder of an adaptation."""
    found = osp.join(out, ADAPTED)
    if osp.exists(found) and not (force or resume):
        raise UserError(f'{found!r} exists. Give --force to overwrite it, or '
                        'another --out.')
    if osp.isfile(out):
        raise UserError(f'--out must be a folder, but {out!r} is a file. '
                        'Name another.')
    others = candidates(Config(dict(work_dir=out)))
    if others and not osp.isfile(osp.join(out, _START)):
        raise UserError('--out must be a folder of its own, but '
                        f'{others[0].path!r} of another training is there, '
                        'and would be overwritten. Name another.')


def _check_same(made: str, adapted: Config, sizes: Sequence[int],
                stock: nn.Module, images: int) -> None:
    """Whether the run to go on with is that of ``adapted`` and ``stock``:
    mmengine takes the schedule of what it resumes, and rows by their rank.

    Args:
        made: path of the config that the run wrote.

    Raises:
        UserError: if not.
    """
    start = osp.join(osp.dirname(made), _START)
    if not (osp.isfile(made) and osp.isfile(start)):
        return  # it begins
    before = Config.fromfile(made)
    scales = [s for s in before.model.scales if s not in sizes]
    before.model.scales = scales  # at the end it has the sizes, too
    differs = [name for name in _ITS_OWN if before.get(name) != adapted.get(
        name)]
    weights = check_checkpoint(start)
    if meta_of(weights).get(_IMAGES, images) != images:
        differs.append(f'number of images, {images},')
    if not differs and differing(
            extract_scale(loaded_model(adapted, weights, start), scales[0]),
            stock):
        differs = ['checkpoint']
    if differs:
        raise UserError('--resume must have the arguments of the run that it '
                        f'goes on with, but its {differs[0]} is another than '
                        f'in {made!r}. Give the same, or --force without '
                        '--resume.')


def _write(model: nn.Module, adapted: Config, made: str, path: str,
           meta: dict) -> None:
    """What the training starts from: rows with statistics, and the config.
    An `adapted.pth` of before, maybe of other scales, does not stay beside."""
    adapted.work_dir = osp.dirname(made)
    adapted.load_from = osp.join(adapted.work_dir, _START)
    save_weights(model, adapted.load_from, meta)
    if is_main_process():
        if osp.exists(path):
            os.remove(path)
        AtomicLocalBackend().put_text(adapted.pretty_text, made)
    barrier()


def _add_sizes(model: nn.Module, adapted: Config, made: str,
               sizes: Sequence[int], base: int, images: int) -> None:
    """Rows for ``sizes``, with statistics; the config names them."""
    estimate(model, adapted, sizes, base, images)
    adapted.model.scales = scales_of(model)
    if is_main_process():
        AtomicLocalBackend().put_text(adapted.pretty_text, made)


def _check_kept(model: nn.Module, stock: nn.Module, base: int) -> None:
    changed = differing(extract_scale(model, base), stock)
    if changed:
        raise RuntimeError(f'The network must answer as before at {base}, but '
                           f'{changed[0]} has changed. Remove the hook from '
                           '`custom_hooks` that does it.')


def _check_scales(scales: Sizes) -> tuple[int, ...]:
    scales = check_scales(expand_sizes(scales, 'scales'))
    if len(scales) < 2:
        raise UserError("`scales` must be the network's own size and smaller "
                        f'ones, but got {scales}. Write e.g. --scales 224 192 '
                        '160 128.')
    return scales


@protected_loading()
def adapt_checkpoint(config: str, checkpoint: str, scales: Sizes,
                     epochs: int = 2, out: str | None = None,
                     images: int = 2048, lr: float = 0.08,
                     sizes: Sizes = (), force: bool = False,
                     resume: bool = False,
                     cfg_options: dict | None = None,
                     launcher: str = 'none',
                     between: float = 0.0) -> dict[str, Any]:
    """Give a trained network smaller sizes, and leave what it answers at its
    own as it is, to the bit: what tools/adapt.py does.

    The norms get rows for each of ``scales``, whose statistics are estimated
    from training images (:func:`~sct_mm.models.precise_bn.calibrate`); then
    weight and bias of the smaller scales' rows train, see
    ``SCTLossHook(adapt=True)``. Between them two rows are mixed that were not
    trained to be, but for ``between``: give ``sizes`` statistics of their own,
    at no training. At the end everything else is compared with the checkpoint.

    Args:
        config: of the network, without a line about SCT.
        scales: the network's own size, that of its training pipeline, and
            smaller ones, also as ranges such as ``'128:224:16'``.
        epochs: 0 for statistics alone.
        out: a folder; by default `work_dirs/adapt_NAME_OF_CONFIG`. It gets
            the config to test with, `adapt_NAME_OF_CONFIG.py`, the checkpoint
            `adapted.pth`, and what a training leaves there.
        images: of the training set, for statistics.
        lr: of AdamW, the highest; our choice, see docs/adapt.md.
        sizes: more scales in the end: mixes with statistics of their own.
        force: overwrite an `adapted.pth`.
        resume: go on with the run in ``out``, if there is one.
        between: the share of the steps between them, see ``SCTLossHook``.

    Returns:
        dict: ``config``, ``checkpoint`` (paths) and ``scales``.

    Raises:
        UserError: for what is missing, does not fit, or stands in the way.
        ValueError: for a network that cannot be adapted.
        RuntimeError: if something has changed the base after all.
    """
    scales = _check_scales(scales)
    sizes = check_sizes_more(sizes, scales)
    epochs = check_int('epochs', epochs, 0, 'The default is 2.')
    images = check_int('images', images, 1, 'The default is 2048.')
    lr = check_number('lr', lr, 0, 'The default is 0.08.')
    between = SCTLossHook(adapt=True, between=between).between
    name = f'adapt_{config_name(config)}'
    out = out or osp.join('work_dirs', name)
    _check_output(out, force, resume)
    cfg = load_config(config, cfg_options)
    cfg.launcher = launcher
    checkpoint = find_checkpoint(checkpoint, cfg)
    weights = check_checkpoint(checkpoint)
    check_stock(cfg)
    prepare_run(cfg)
    check_pipeline(cfg.train_dataloader, scales[0])
    stock = loaded_model(cfg, weights, checkpoint)
    adapted = adapted_config(cfg, scales, epochs, lr, between)
    model = loaded_model(adapted, weights, checkpoint).to(get_device())
    check_adaptable(model, scales, (1, ) * len(scales))
    if between:
        sizes_between(scales, padding_of(model).get('size_divisor', 1))
    made, path = osp.join(out, f'{name}.py'), osp.join(out, ADAPTED)
    if resume:
        _check_same(made, adapted, sizes, stock, images)
    make_folder(out, '--out')
    estimate(model, adapted, scales[1:], scales[0], images)
    meta = meta_of(weights)
    _write(model, adapted, made, path, {**meta, _IMAGES: images})
    if epochs:
        adapted = load_config(made)  # which tells a run its name
        model = train(adapted, 'auto' if resume else None).model
        model = model.module if is_model_wrapper(model) else model
    if sizes:
        _add_sizes(model, adapted, made, sizes, scales[0], images)
    _check_kept(model, stock, scales[0])
    save_weights(model, path, meta)
    return dict(config=made, checkpoint=path, scales=scales_of(model))
