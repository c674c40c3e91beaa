"""Early exit over sizes, tested: thresholds, accuracy, cost, time."""
import itertools
import os.path as osp
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..datasets.size_switch import SizeSwitch
from ..engine.loops import unwrapped
from ..engine.resume import find_checkpoint
from ..evaluation.early_exit import (
    METRIC,
    auroc,
    cheapest,
    curve_of,
    decided_at,
    mean_gflops,
    shares_of,
)
from ..evaluation.held_out import (
    HeldOut,
    check_held_out,
    held_out,
    loader_like,
)
from ..evaluation.measure import (
    Workload,
    first_images,
    flops_of,
    kept_batch,
    measure_times,
    progress_bar,
    spread_of,
    timed,
)
from ..models.cascade import (
    Cascade,
    check_cascade_sizes,
    check_thresholds,
    confidence,
)
from ..models.pinning import use_scale
from ..utils.arguments import check_number
from ..utils.checkpoint import check_checkpoint
from ..utils.config import check_test_data, config_name, load_config
from ..utils.errors import UserError
from ..utils.safe_load import protected_loading
from .test import (
    KEPT,
    loaded_runner,
    serving_scales,
    test_config,
    trained_sizes,
    warn_untrained,
)

TIMED = 8  # batches: the images of one may be more or less certain
DRAWN = 200  # points of a curve, at most


class Answers(NamedTuple):
    """Of N images at S sizes: ``confidences`` and whether each answer is
    ``right``, both (S, N)."""
    confidences: Tensor
    right: Tensor


class Passes(Workload):
    """The time of a cascade: of several batches together, since it depends on
    how many images go on.

    Args:
        batches: collated batches of the largest size.
    """

    def __init__(self, model: nn.Module, batches: list[dict]) -> None:
        super().__init__(model, model.sizes[-1], batches[0], batches[0])
        self.all = batches

    @torch.no_grad()
    def turn(self) -> None:
        self.model.test_step(self.all[0])  # the others were in the caches
        self.batches.append(sum(timed(
            lambda batch=batch: self.model.test_step(batch))
            for batch in self.all))

    def times(self) -> dict:
        images = sum(len(batch['inputs']) for batch in self.all)
        return spread_of('images', 'per_s',
                         [images / seconds for seconds in self.batches])


def labels_of(samples: Sequence[Any]) -> Tensor:
    """(N,) class of each sample.

    Raises:
        UserError: for samples that have not one class each.
    """
    labels = [getattr(sample, 'gt_label', None) for sample in samples]
    if any(label is None or torch.as_tensor(label).numel() != 1
           for label in labels):
        raise UserError('A cascade is tested on images of one class each, '
                        f'but got {type(samples[0]).__name__} without one '
                        '`gt_label`. Test another network by --scales.')
    return torch.tensor([int(label) for label in labels])


@torch.no_grad()
def answers_of(cascade: Cascade, loader: DataLoader, title: str) -> Answers:
    """What the network says of each image at each size of ``cascade``,
    resized as it resizes them."""
    found: list[tuple[Tensor, Tensor]] = []
    with progress_bar() as bar:
        for batch in bar.track(loader, description=title):
            data = cascade.data_preprocessor(batch, False)
            inputs, samples = data['inputs'], data['data_samples']
            labels, all_of_it = labels_of(samples), torch.arange(len(inputs))
            scores = torch.stack([
                cascade.at(index, inputs, None, all_of_it)[1].cpu()
                for index in range(len(cascade.sizes))])
            found.append((confidence(scores), scores.argmax(-1) == labels))
    return Answers(*(torch.cat(parts, 1) for parts in zip(*found,
                                                          strict=True)))


def size_row(model: nn.Module, size: int, loader: DataLoader,
             limit: int) -> tuple[dict, Workload]:
    """The row of one size, whose images the data set makes, without
    metrics, and what its times are measured on: as :func:`test_at`."""
    one = first_images(loader, 1)
    batch = first_images(loader, min(loader.batch_size or 1,
                                       len(loader.dataset)))
    served_by = serving_scales(model, size)
    # Outside of the scales a size is told of once, not at each turn.
    pin = served_by[0] if served_by and len(served_by) == 1 else size
    with use_scale(model, pin):
        row = dict(scale=size, served_by=served_by,
                   gflops=flops_of(lambda: model.test_step(one)) / 1e9)
    return row, Workload(model, pin, one, kept_batch(loader, batch, limit))


def timed_batches(loader: DataLoader, limit: int) -> list[dict]:
    """The first batches of ``loader``, up to :data:`TIMED`, of at most
    ``limit`` bytes each."""
    batches = itertools.islice(loader, TIMED)
    return [kept_batch(loader, batch, limit) for batch in batches]


def fitted(cascade: Cascade, images: HeldOut, loader: DataLoader,
           gflops: Sequence[float], target: float) -> dict:
    """Set the threshold of ``cascade`` by held-out images, one for all
    sizes (:func:`cheapest`): a threshold for each, on the same images, was
    at most 0.05 points better with 14, 21, 28 from 0.55 of the GFLOPs on.

    Returns:
        dict: what it was found on, and what it does there.
    """
    answers = answers_of(cascade, loader_like(loader, images.images),
                         'held-out images')
    curve = curve_of(*answers, gflops)
    base = 100 * float(answers.right[-1].double().mean())
    place = cheapest(curve, base, target)
    cascade.thresholds = check_thresholds(float(curve.thresholds[place]),
                                          cascade.sizes)
    return dict(source=images.source, images=len(images.images),
                trained_on=images.trained, target=target,
                base_accuracy=base, accuracy=float(curve.accuracy[place]),
                gflops=float(curve.gflops[place]))


def summary(answers: Answers, rows: list[dict],
            thresholds: Sequence[float]) -> dict:
    """What ``thresholds`` make of ``answers``; fills the metrics of ``rows``,
    the smallest size first, and what each decides."""
    gflops = [row['gflops'] for row in rows]
    decided = decided_at(answers.confidences, thresholds)
    shares = shares_of(decided, len(rows))
    for row, confidences, right, share in zip(rows, *answers, shares,
                                              strict=True):
        row['metrics'] = {METRIC: 100 * float(right.double().mean())}
        row['share_decided'] = float(share)
        row['auroc'] = auroc(confidences, right)
    hits = answers.right.gather(0, decided[None]).double()
    cost = mean_gflops(shares, gflops)
    curve = curve_of(*answers, gflops)
    places = torch.linspace(0, len(curve.thresholds) - 1, DRAWN).long()
    return dict(
        metrics={METRIC: 100 * float(hits.mean())}, gflops=cost,
        gflops_ratio=cost / gflops[-1],
        random=dict(
            metrics={METRIC: sum(row['metrics'][METRIC]
                                 * row['share_decided'] for row in rows)},
            gflops=sum(row['gflops'] * row['share_decided']
                       for row in rows)),
        curve=torch.stack(curve[:3], 1)[places.unique()].tolist())


def run_cascade(runner: Runner, cascade: Cascade, dataset: dict,
                images: HeldOut | None, target: float) -> dict:
    """Test ``cascade``, whose network is that of ``runner``; ``dataset`` is
    the config of the test set."""
    model, sizes = cascade.model, cascade.sizes
    runner.call_hook('before_test_epoch')  # that of EMA changes the weights
    loader = runner.test_loop.dataloader
    switch = SizeSwitch(loader.dataset, dataset, sizes)
    one = first_images(loader, 1)
    warn_untrained(model, sizes, one['inputs'][0].shape[0])
    with switch.at(sizes[-1]):  # a network that is none is told at once
        answers_of(cascade, [first_images(loader, 1)], 'one image')
    rows, works = [], []
    for size in sizes:
        with switch.at(size):
            row, work = size_row(model, size, loader, KEPT // len(sizes))
        rows.append(row)
        works.append(work)
    found = images and fitted(cascade, images, loader,
                                [row['gflops'] for row in rows], target)
    with switch.at(sizes[-1]):
        answers = answers_of(cascade, loader, 'test')
        batches = timed_batches(loader, KEPT // TIMED)
    result = dict(sizes=sizes, thresholds=cascade.thresholds, held_out=found,
                  **summary(answers, rows, cascade.thresholds))
    works.append(Passes(cascade, batches))
    measure_times(works)
    for row, work in zip([*rows, result], works, strict=True):
        row.update(work.times())
    return dict(rows=rows[::-1], cascade=result)


@protected_loading()
def test_cascade(config: str, checkpoint: str, sizes: Sequence[int],
                 thresholds: float | Sequence[float] | None = None,
                 target: float | None = None,
                 count: int | None = None, out: str | None = None,
                 cfg_options: dict | None = None) -> dict:
    """Test early exit over ``sizes``: what tools/test.py --cascade prints.

    All images are those of the largest size, resized as :class:`Cascade`
    resizes them: a smaller size's accuracy may differ from that of
    :func:`test_scales`, whose pipeline resizes the original.

    Args:
        config: path of the config of a classifier.
        checkpoint: path of the checkpoint, or a work directory.
        sizes: pixels, at least two, the smallest first.
        thresholds: from 0 to 1, for each size but the largest, or one for
            all; None: found on held-out training images
            (:func:`held_out`) for ``target``.
        target: points of top-1 that the threshold may cost (%): see
            :func:`cheapest`; None: 0.
        count: held-out images; None: all that are left out.

    Returns:
        dict: as :func:`test_scales`; a row has ``share_decided`` and
        ``auroc`` of its confidence over all images, too. ``cascade`` has
        ``sizes``, ``thresholds``, ``held_out`` (None with given thresholds),
        ``metrics``, mean ``gflops`` and ``gflops_ratio`` to the largest
        size's, ``images_per_s`` of the real thing, in batches; ``random``,
        the accuracy and GFLOPs of sizes drawn by chance with the same shares;
        and ``curve``, thresholds, accuracy and GFLOPs on the test set.

    Raises:
        UserError, TypeError, ValueError: for what is missing or does not fit,
            before any image is read; and a network that is no classifier.
    """
    sizes = check_cascade_sizes(sizes)
    given = thresholds is not None
    if given and (target is not None or count is not None):
        raise UserError('A threshold is given or found on held-out images '
                        'for a target, but got both. Leave one out.')
    thresholds = check_thresholds(1.0 if thresholds is None else thresholds,
                                  sizes)
    target = check_number('target', target or 0.0, 0,
                          'Give points of top-1, in %.', 100)
    label = config_name(config)
    cfg = load_config(config, cfg_options)
    if cfg.get('default_scope') == 'mmdet':  # others are told by an image
        raise UserError('A cascade serves classifiers, but the config is of '
                        "mmdet's detectors. Test it by --scales.")
    check_test_data(cfg)
    if not given:
        check_held_out(cfg, count)
    checkpoint = find_checkpoint(checkpoint, cfg)
    weights = check_checkpoint(checkpoint)  # before any data set is read
    run = loaded_runner(test_config(cfg, out or osp.join('work_dirs', label)),
                        weights, checkpoint)
    model = unwrapped(run.model)
    images = None if given else held_out(
        cfg, sizes[-1], count, run.test_loop.dataloader.dataset)
    result = run_cascade(run, Cascade(model, sizes, thresholds),
                         run.cfg.test_dataloader.dataset, images, target)
    return dict(label=label, config=config, checkpoint=checkpoint,
                cfg_options=cfg_options or {},
                trained=trained_sizes(cfg, model), **result)
