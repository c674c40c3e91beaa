"""Give a trained network of any config smaller sizes, and change nothing of
what it answers at its own."""
import copy
import os
import os.path as osp
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import (
    barrier,
    broadcast_object_list,
    get_world_size,
    is_main_process,
)
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from ..datasets.base_size import BaseSize
from ..datasets.image_folder import folder_loader, given_indices
from ..datasets.last_stage import smallest_in_training
from ..datasets.multi_scale_batch import padding_of
from ..datasets.real_images import RealImages, training_images
from ..engine.adaptation.held_out import (
    LEAST,
    HeldOutImages,
    number_held_out,
)
from ..engine.adaptation.keeping import Keeping
from ..engine.adaptation.own_size import served_otherwise
from ..engine.adaptation.rates import RATES, find_rate
from ..engine.adapted_config import (
    adapted_config,
    check_folder,
    steps_of,
    train_on_folder,
)
from ..engine.hooks.sct_loss_hook import SCTLossHook
from ..engine.load_model import differing_tensors, loaded_model
from ..engine.resume import ADAPTED, candidates, find_checkpoint
from ..engine.same_run import (
    check_same_network,
    check_same_run,
    images_in_meta,
)
from ..engine.sct.adapt_step import check_adaptable
from ..engine.sct.checks import check_pipeline
from ..engine.sct.logits import makers_of_logits
from ..engine.sct.monitor import NotFiniteError
from ..engine.sct.resize import batch_transform_of, nearest_kernel
from ..engine.sct.schedule import sizes_between
from ..engine.training_images import (
    SeededImages,
    build_loader,
    seeded_images,
)
from ..models.extract import extract_scale
from ..models.size_selection import check_scales, scales_of
from ..models.weight_change import (
    ChangedLayer,
    check_rank,
    noting_unread,
)
from ..utils.arguments import (
    StrPath,
    check_int,
    check_number,
    check_path,
    optional_path,
)
from ..utils.checkpoint import (
    AtomicLocalBackend,
    check_checkpoint,
    check_place,
    dump,
    make_folder,
    meta_of,
)
from ..utils.config import config_name, load_config, scales_settings
from ..utils.config_walk import type_name
from ..utils.errors import UserError
from ..utils.safe_load import protected_loading
from ..utils.sizes import Sizes, expand_sizes
from .calibrate import (
    estimate,
    in_a_test,
    prepare_run,
    save_weights,
    train_base,
)
from .train import train

_START = 'calibrated.pth'  # the checkpoint that the training starts from
_IMAGES = 1024  # that give the statistics, if there are as many
RESULTS = 'adapted.json'
_TRIALS = 'trials'  # of learning rates, in the meta of _START
_KERNEL_IMAGES = 16  # by which a resize is compared with that of a test


def check_rate(lr: float | None) -> float | None:
    """``lr`` as a float, if it is one above 0; None for none.

    Raises:
        TypeError, ValueError: otherwise.
    """
    hint = 'Leave it out, to find one on held-out images.'
    if lr is None:
        return None
    rate = check_number('lr', lr, 0, hint)
    if not rate:
        raise ValueError(f'`lr` must be above 0, but got {lr!r}. {hint}')
    return rate


def check_stock(cfg: Config) -> None:
    """Check that the network of ``cfg`` is an ordinary one, for one size.

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


def check_more_sizes(sizes: Sizes, scales: Sequence[int]) -> tuple[int, ...]:
    """The sizes that get statistics but no training, the largest first.

    Raises:
        UserError: for one that is among ``scales``, or larger than the base.
    """
    if isinstance(sizes, (list, tuple)) and not sizes:
        return ()
    expanded = expand_sizes(sizes)
    for size in expanded:
        if size in scales or size > scales[0]:
            raise UserError('`sizes` must be below the base and none of the '
                            f'scales {tuple(scales)}, but got {size}. Leave '
                            'it out.')
    return expanded


def _remove(*paths: str) -> None:
    """Remove files, those that are there."""
    for path in paths if is_main_process() else ():
        if osp.exists(path):
            os.remove(path)


class Adaptation:
    """One run of :func:`adapt`, whose arguments it takes and checks.

    Its phases are the methods :meth:`read`, :meth:`check_output`,
    :meth:`load`, :meth:`prepare`, :meth:`train` and :meth:`verify`, in this
    order. Nothing is written before ``prepare``, and ``adapted.pth`` by
    ``verify`` alone.
    """
    cfg: Config  # of the adapted network
    model: nn.Module  # the network that is adapted
    stock: nn.Module  # the network of the checkpoint, which stays as it is
    base: BaseSize
    scales: tuple[int, ...]  # that serve the sizes of the test, then
    sizes: tuple[int, ...]  # those that get statistics but no training
    meta: dict  # of the checkpoint
    dataset: SeededImages  # the training images
    total: int  # of the training images, how many are taken
    held_out: HeldOutImages  # those of them that nothing trains on
    count: int  # of these
    keeping: Keeping  # what was measured on them, and decided by that
    between_found: list[dict[str, Any]]  # in the result
    batch: int  # images in a step of one process
    steps: int  # of the training

    def __init__(self, config: str, scales: Sizes, epochs: int,
                 out: str | None, images: str | None, lr: float | None,
                 sizes: Sizes, resume: bool, between: float,
                 rank: int, max_images: int | None) -> None:
        self.tested = check_scales(expand_sizes(scales, 'scales'))
        if len(self.tested) < 2:
            raise UserError("`scales` must be the network's own size and "
                            f'smaller ones, but got {self.tested}. Write e.g. '
                            '--scales 224 192 160 128.')
        self.tested_more = check_more_sizes(sizes, self.tested)
        self.epochs = check_int('epochs', epochs, 0, 'The default is 2.')
        self.images = images
        self.lr = check_rate(lr)
        self.between = SCTLossHook(
            adapt=True, between=between).between or 0.0
        self.rank = check_rank(rank)
        self.max_images = None if max_images is None else check_int(
            'max_images', max_images, 2 * LEAST,
            'Leave it out for all images.')
        self.resume = resume
        self.trials: dict[str, Any] = {}  # of learning rates
        # At the base, a batch each, made as a test makes them.
        self.images_of_test: list[Tensor] = []
        name = f'adapt_{config_name(config)}'
        self.out = out or osp.join('work_dirs', name)
        self.config_path = osp.join(self.out, f'{name}.py')
        self.start_path = osp.join(self.out, _START)
        self.result_path = osp.join(self.out, ADAPTED)

    def read(self, cfg: Config, indices: Any) -> None:
        """Change the user's config in place to one whose training set is that
        of the adaptation, and compare the scales with it. No image is read.

        Args:
            indices: of the images of a folder.

        Raises:
            UserError, ValueError: for a config that cannot be adapted, and
                for scales that do not fit it.
        """
        check_stock(cfg)
        if self.images is not None:
            train_on_folder(cfg, self.images, indices)
        prepare_run(cfg)
        self._find_scales(cfg)
        check_pipeline(cfg.train_dataloader, self.scales[0], cfg)

    def check_output(self, force: bool) -> None:
        """Check that the folder may get, or has, the files of this run.

        Raises:
            UserError: if another file, run or training is in the way, and
                as :func:`~sct_mm.utils.checkpoint.check_place`.
        """
        if osp.isfile(self.out):
            raise UserError(f'--out must be a folder, but {self.out!r} is a '
                            'file. Name another.')
        for path in (self.config_path, self.start_path):
            check_place(path)
        begun = osp.isfile(self.start_path)
        others = candidates(Config(dict(work_dir=self.out)))
        if others and not begun:
            raise UserError('--out must be a folder of its own, but '
                            f'{others[0].path!r} of another training is '
                            'there, and would be overwritten. Name another.')
        if force or self.resume:
            return
        if osp.exists(self.result_path):
            raise UserError(f'{self.result_path!r} exists. Give --force to '
                            'overwrite it, or another --out.')
        if begun:
            raise UserError('--out must have no run that has not ended, but '
                            f'{self.start_path!r} is of one. Give --resume to '
                            'go on, or --force to start over.')

    def load(self, cfg: Config, checkpoint: str) -> None:
        """Build the stock network and the one to adapt, from the config of
        :meth:`read` and the user's checkpoint.

        Raises:
            UserError, ValueError: for a network that cannot be adapted.
        """
        checkpoint = find_checkpoint(checkpoint, cfg)
        if osp.realpath(checkpoint) in map(osp.realpath, self._trained()):
            raise UserError('--out must be a folder of its own, but holds the '
                            f'checkpoint {checkpoint!r}. Name another.')
        weights = check_checkpoint(checkpoint)
        self.meta = meta_of(weights)
        if self.images is not None:
            check_folder(cfg, self.base.train)
        self.stock = loaded_model(cfg, weights, checkpoint)
        if self.images is not None and not makers_of_logits(self.stock):
            raise UserError(
                f'{type(self.stock).__name__} adapts by its losses, for which '
                'the images of a folder have no labels. Leave --images out, '
                'to take the training set of the config.')
        self.dataset = seeded_images(cfg.train_dataloader)
        if self.images is not None:
            self.dataset[0]  # refuses a pipeline that needs annotations
        self.batch = cfg.train_dataloader.get('batch_size') or 1
        self.total = min(len(self.dataset),
                         self.max_images or len(self.dataset))
        self.count = count = number_held_out(
            self.total, self.batch * get_world_size(),
            get_world_size())
        self.steps = steps_of(cfg.train_dataloader, self.total - count,
                              self.epochs)
        self.cfg = adapted_config(
            cfg, self.scales, self.epochs, self.lr or 0.0, self.between,
            self.rank, count, self.steps, self.max_images)
        self.cfg.custom_hooks[-1].batch_transform = dict(
            type='MultiScaleBatch', **self._kernel(cfg))
        self.model = loaded_model(self.cfg, weights, checkpoint).to(
            get_device())
        if any(type_name(hook) == 'ChannelsLastHook'
               for hook in self.cfg.custom_hooks):  # measure as it trains
            cast(Any, self.model).to(memory_format=torch.channels_last)
        self.held_out = HeldOutImages(
            build_loader(self.cfg.train_dataloader, self.dataset,
                         slice(count), divided=False),
            self.scales[0], smallest_in_training(self.cfg),
            batch_transform_of(self.cfg))
        check_adaptable(self.model, self.scales, (1, ) * len(self.scales))
        if self.between:
            sizes_between(self.scales, padding_of(self.model).get(
                'size_divisor', 1))

    def _kernel(self, cfg: Config) -> dict:
        """How batches are resized so that they are nearest to what a test
        makes of the training images; {}: by default, where no test does."""
        try:
            if self.images is None:
                images = training_images(cfg, self.tested, _KERNEL_IMAGES)
            else:
                cfg, dataset = copy.deepcopy(cfg), cfg.train_dataloader.dataset
                cfg.test_dataloader = folder_loader(
                    cfg, self.images, dataset.skip, dataset.get('indices'))
                images = RealImages(cfg, self.tested, _KERNEL_IMAGES)
            found = {size: images.batches(self.stock, size)
                     for size in self.tested}
            self.images_of_test = found[self.base.test][1:]
        except (UserError, ValueError) as error:
            print_log('adapt cannot compare its images with those of a test: '
                      f'{error}', 'current')
            return {}
        return nearest_kernel(found, self.base.test)

    def _find_scales(self, cfg: Config) -> None:
        """Find the scales that serve the sizes of the test that were named.

        Raises:
            UserError: if the first is not the network's own, or one scale
                serves two.
        """
        self.base = base = train_base(cfg, self.tested[0])
        if self.tested[0] != base.test:
            raise UserError('`scales` must begin with the size that the '
                            f'network is tested at, {base.test} pixels'
                            f'{in_a_test(base)}, but got {self.tested[0]}. '
                            'Name that, then smaller ones.')
        named = (*self.tested, *self.tested_more)
        scales = tuple(map(base.scale_at, named))
        if len(set(scales)) < len(scales):
            raise UserError(f'`scales` and `sizes` {named} must differ in '
                            f'training, too, but make {scales} there. Leave '
                            'one out.')
        self.scales = scales[:len(self.tested)]
        self.sizes = scales[len(self.tested):]

    def prepare(self) -> None:
        """Estimate the statistics of the smaller scales, measure them, and
        write what the training starts from: ``calibrated.pth`` and the
        config.

        Raises:
            UserError: if the folder holds a run that cannot be resumed so.
        """
        if self.resume:
            self._go_on()
        make_folder(self.out, '--out')
        with noting_unread(self.model) as unread:
            self._estimate(self.scales[1:])
        self._leave_unchanged(unread)
        self.keeping = Keeping(self.held_out, self.scales, self.sizes)
        self.keeping.measure_start(self.model)
        self._keep_statistics(self.keeping.choose_statistics(self.model))
        if self.lr is None and self.epochs:
            rate, self.trials = find_rate(self.model, self.cfg, self.held_out,
                                          self.steps, self.batch)
            self._set_lr(rate)
        elif self.lr is None:
            self._set_lr(RATES[0])
        self.cfg.work_dir = osp.dirname(self.config_path)
        self.cfg.load_from = self.start_path
        if is_main_process() and not self.resume:
            # A run that is killed before its first checkpoint must not go on
            # with one of those.
            _remove(osp.join(self.out, 'last_checkpoint'), *self._trained())
        save_weights(self.model, self.start_path, {
            **self.meta, _TRIALS: self.trials,
            **images_in_meta(self.dataset, self.count)})
        # It may have other scales than the config to be written.
        _remove(self.result_path, osp.join(self.out, RESULTS))
        self._write_config()
        barrier()

    def _trained(self) -> list[str]:
        """The checkpoints of a training in the folder."""
        return [each.path for each in candidates(Config(dict(
            work_dir=self.out))) if each.at_home]

    def _estimate(self, sizes: Sequence[int]) -> None:
        estimate(self.model, self.cfg, self.dataset, sizes, self.base,
                 slice(self.count, min(self.count + _IMAGES, self.total)))

    def _leave_unchanged(self, names: list[str]) -> None:
        """Give the layers of these ``names`` no change: it would not be
        applied, and DDP would wait for their gradients."""
        shared = [names]
        broadcast_object_list(shared)
        names = shared[0]
        if not names:
            return
        for name in names:
            cast(ChangedLayer, self.model.get_submodule(name)).stop_changes()
        self.cfg.model.unchanged = names
        print_log(f'{len(names)} layers get no change of their weights, which '
                  f'their modules read themselves: {", ".join(names)}.',
                  'current')

    def _set_lr(self, lr: float) -> None:
        self.lr = self.cfg.optim_wrapper.optimizer.lr = lr

    def _keep_statistics(self, keep: bool) -> None:
        self.cfg.custom_hooks[-1].norm_eval = keep

    def train(self) -> None:
        """Train the smaller scales for ``epochs``, and let each keep what
        serves it best; then estimate statistics for the sizes that are not
        trained, which become scales."""
        if self.epochs:
            # mmengine names the run by the file that its config is read from.
            self.cfg = load_config(self.config_path)
            try:
                model = train(self.cfg, 'auto' if self.resume else None).model
            except NotFiniteError as error:
                raise UserError(
                    'The adaptation must not diverge, but did with a learning '
                    f'rate of {self.lr:g}, and nothing is kept: {error} Give '
                    'a smaller --lr, or leave it out, and --force.'
                ) from error
            self.model = model.module if is_model_wrapper(model) else model
            self.keeping.measure_trained(self.model)
        self.keeping.keep_best(self.model)
        if self.sizes:
            self.keeping.add_sizes(self.model, partial(self._estimate,
                                                       self.sizes))
            self.cfg.model.scales = scales_of(self.model)
            self._write_config()
        self.between_found = [
            {**row, 'size': self.base.size_of(row['size'])}
            for row in self.keeping.between(self.model)]

    def verify(self) -> dict[str, Any]:
        """Compare the network at the base with the checkpoint, and write
        ``adapted.pth``; returns what :func:`adapt` returns.

        Raises:
            RuntimeError: if a tensor differs; nothing is written then.
        """
        changed = differing_tensors(
            extract_scale(self.model, self.scales[0]).state_dict(),
            self.stock.state_dict())
        if changed:
            raise RuntimeError(
                f'The network must answer as before at {self.base.test}, but '
                f'{changed[0]} has changed. Remove the hook from '
                '`custom_hooks` that does it.')
        rows = [{'size': self.base.size_of(scale), **self.keeping.row(scale)}
                for scale in (scales_of(self.model) or ())[1:]]
        save_weights(self.model, self.result_path, self.meta)
        if is_main_process():
            dump(dict(base=self.base.test, lr=self.lr, rank=self.rank,
                      norm_eval=self.cfg.custom_hooks[-1].norm_eval,
                      trials=self.trials, sure=self.held_out.sure,
                      held_out=self.count, rows=rows,
                      between=self.between_found),
                 osp.join(self.out, RESULTS))
        self._warn_of_pin()  # nothing is lost if it is made an error
        return dict(config=self.config_path, checkpoint=self.result_path,
                    scales=tuple(map(self.base.size_of,
                                     scales_of(self.model) or ())),
                    held_out=self.count, rows=rows,
                    between=self.between_found, lr=self.lr,
                    trials=self.trials, steps=self.steps)

    def _warn_of_pin(self) -> None:
        """Warn where the network must be told its own size."""
        scale, images = self.scales[0], self.images_of_test
        found = served_otherwise(self.model, images, scale)
        if found and is_main_process():
            edge = min(found[0].shape[-2:])
            warnings.warn(
                f'Unpinned, the network answers {len(found)} of {len(images)} '
                'images, made as a test makes them, otherwise than before: '
                f'their shorter edge, as {edge} pixels, is nearer to a '
                f'smaller scale than to its own, {scale}. Pin it, as '
                f'tools/test.py does: `with use_scale(model, {scale})`.',
                stacklevel=2)

    def _write_config(self) -> None:
        if is_main_process():
            AtomicLocalBackend().put_text(self.cfg.pretty_text,
                                          self.config_path)

    def _go_on(self) -> None:
        """Check that the run in the folder is one of these arguments, and
        take from it what was chosen by measurements.

        Raises:
            UserError: as :func:`~sct_mm.engine.same_run.check_same_run`.
        """
        if not (osp.isfile(self.config_path) and osp.isfile(self.start_path)):
            return  # there is no run yet
        before = Config.fromfile(self.config_path)
        # The config of a finished run names the sizes among the scales.
        before.model.scales = [s for s in before.model.scales
                               if s not in self.sizes]
        if self.lr is None:
            self._set_lr(before.optim_wrapper.optimizer.lr)
        self._keep_statistics(before.custom_hooks[-1].get('norm_eval', False))
        if 'unchanged' in before.model:
            self.cfg.model.unchanged = before.model.unchanged
        start = check_checkpoint(self.start_path)
        self.trials = meta_of(start).get(_TRIALS, {})
        check_same_run(before, self.cfg, self.base, start, self.dataset,
                       self.count)
        check_same_network(loaded_model(self.cfg, start, self.start_path),
                           self.stock, self.scales[0], self.start_path)


@protected_loading()
def adapt(config: StrPath, checkpoint: StrPath, scales: Sizes,
          epochs: int = 2, out: StrPath | None = None,
          images: StrPath | None = None, lr: float | None = None,
          sizes: Sizes = (), force: bool = False, resume: bool = False,
          cfg_options: dict | None = None, launcher: str = 'none',
          between: float = 0.0, rank: int = 8,
          max_images: int | None = None) -> dict[str, Any]:
    """Give a trained network smaller sizes, and keep its answers at its own
    size to the bit: what tools/adapt.py calls.

    Each of ``scales`` gets normalization parameters of its own, and each
    smaller one a private change of the weights. The smaller ones get
    statistics from training images, and then train, see
    ``SCTLossHook(adapt=True)``; nothing else trains. Images that are held out
    decide whether a size keeps what it has trained, the statistics alone, or
    nothing. At the end everything else is compared with the checkpoint.

    A size between two scales takes the mix of their parameters. To serve it
    better, name it in ``sizes``, which gives it statistics of its own without
    training, or set ``between``, which trains such sizes.

    Args:
        config: path of the network's own config, without a line about SCT.
        checkpoint: path or address of the checkpoint, or a work directory,
            whose newest whole one is taken.
        scales: the size at which the network is tested, and smaller ones
            (:class:`~sct_mm.datasets.base_size.BaseSize`), also as ranges
            such as ``'128:224:16'``.
        epochs: how many to train; 0 estimates statistics alone.
        out: a folder; by default `work_dirs/adapt_NAME_OF_CONFIG`. It gets
            the config to test with, `adapt_NAME_OF_CONFIG.py`, the checkpoint
            `adapted.pth`, and the logs and checkpoints of the training.
        images: path of a folder of images, which need no labels; None: the
            training set of the config. Of all of them
            :func:`~sct_mm.engine.adaptation.held_out.number_held_out` are
            measured on and not trained on.
        lr: the highest learning rate, of AdamW; None: the best of ``RATES``
            on held-out images, by short trials.
        sizes: more sizes below the base, as ``scales``.
        force: start over in a folder that has a run.
        resume: go on with the run in ``out``, if there is one.
        cfg_options: ``{'a.b': value}``, settings that override the config.
        launcher: mmengine's: 'none', 'pytorch', 'slurm' or 'mpi'.
        between: the share of the steps that train sizes between the scales,
            see ``SCTLossHook``.
        rank: of the private change of the weights at each smaller scale, see
            :func:`~sct_mm.convert_to_ssbn`; 0: none.
        max_images: how many of the images to take, drawn at random; None: all.

    Returns:
        dict: ``config`` and ``checkpoint``, paths; ``scales``; ``held_out``,
        how many images were measured on; ``rows``, for each smaller size
        what was measured ``before`` and ``after``, and what it ``keeps``;
        ``between``, the same half-way between two sizes, whose mix may be
        ``worse`` than the network as it was;
        ``lr``; ``steps`` of the training; and ``trials`` of learning rates,
        {} if there was no choice: of how many ``steps``, 0 if the training
        is too short for any, and their ``scores``, None where it diverged.

    Raises:
        UserError: for what is missing, does not fit, or stands in the way.
        ValueError: for a network that cannot be adapted.
        RuntimeError: if the network at its own size has changed.
    """
    config = check_path('config', config)
    checkpoint = check_path('checkpoint', checkpoint)
    run = Adaptation(config, scales, epochs, optional_path('out', out),
                     optional_path('images', images), lr, sizes, resume,
                     between, rank, max_images)
    cfg = load_config(config, cfg_options)
    cfg.launcher = launcher
    run.read(cfg, given_indices(cfg_options, 'train_dataloader'))
    run.check_output(force)
    run.load(cfg, checkpoint)
    run.prepare()
    run.train()
    return run.verify()
