"""Test early exit over sizes: thresholds, accuracy, GFLOPs, throughput."""
import itertools
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import torch
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

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
    held_out_images,
    loader_like,
)
from ..evaluation.measure import (
    Timer,
    first_images,
    kept_batch,
    measure_times,
    progress_bar,
)
from ..models.cascade import Cascade, confidence
from ..utils.arguments import StrPath, check_number, check_path
from ..utils.cascades import check_cascade_sizes, check_thresholds
from ..utils.checkpoint import check_checkpoint
from ..utils.config import check_test_data, config_name, load_config
from ..utils.errors import UserError
from ..utils.safe_load import protected_loading
from .test import (
    KEPT,
    cost_at,
    folder_of,
    loaded_runner,
    test_config,
    trained_sizes,
    warn_untrained,
)

TIMED = 8  # batches: one alone may have images more certain than most
DRAWN = 200  # points of a curve, at most


class Answers(NamedTuple):
    """Of N images at S sizes: ``confidences`` and whether each answer is
    ``right``, both (S, N)."""
    confidences: Tensor
    right: Tensor


def labels_of(samples: Sequence[Any]) -> Tensor:
    """(N,) class of each sample.

    Raises:
        UserError: unless each sample has one class.
    """
    labels = [getattr(sample, 'gt_label', None) for sample in samples]
    if any(label is None or torch.as_tensor(label).numel() != 1
           for label in labels):
        raise UserError('A cascade is tested on images of one class each, '
                        f'but got {type(samples[0]).__name__} without one '
                        '`gt_label`. Test another network by --scales.')
    return torch.tensor([int(sample.gt_label) for sample in samples])


@torch.no_grad()
def answers_of(cascade: Cascade, loader: Iterable[dict],
               title: str) -> Answers:
    """The answers of the network at each size of ``cascade``, which resizes
    the images of ``loader``."""
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


def whole_timer(cascade: Cascade, loader: DataLoader) -> Timer:
    """The time of the first batches of ``loader`` together, since it depends
    on how many images go on to a larger size."""
    batches = [kept_batch(loader, batch, KEPT // TIMED)
               for batch in itertools.islice(loader, TIMED)]
    return Timer(lambda: [cascade.test_step(batch) for batch in batches],
                 sum(len(batch['inputs']) for batch in batches),
                 warm_up=lambda: cascade.test_step(batches[0]))


def fitted(cascade: Cascade, images: HeldOut, loader: DataLoader,
           gflops: Sequence[float], target: float) -> dict:
    """Set the threshold of ``cascade``, one for all sizes, by held-out
    images (:func:`cheapest`, docs/early-exit.md).

    Returns:
        dict: the images that it was found on, accuracy and GFLOPs there.
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
    """The result of a cascade with ``thresholds``; also writes the metrics
    of ``rows``, the smallest size first, and the share that each decides."""
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


def run_cascade(runner: Runner, cascade: Cascade, images: HeldOut | None,
                target: float) -> dict:
    """Test ``cascade``; ``runner`` has its network, and a test loop over its
    sizes."""
    runner.call_hook('before_test_epoch')  # that of EMA changes the weights
    loop, loader = runner.test_loop, runner.test_loop.dataloader
    warn_untrained(cascade.model, loop)
    with loop.switch.at(cascade.sizes[-1]):
        one = first_images(loader, 1)
        answers_of(cascade, [one], 'one image')  # refuse what is no classifier
        cascade.test_step(one)  # refuse images of another size, as padded ones
    rows, works = [], []
    with closing(loop.each_size()) as sizes:
        for size in sizes:
            batch = first_images(loader, min(loader.batch_size or 1,
                                             len(loader.dataset)))
            row, work = cost_at(size, loop, cascade.model, batch)
            rows.append(row)
            works.append(work)
    ascending = rows[::-1]
    found = images and fitted(cascade, images, loader,
                              [row['gflops'] for row in ascending], target)
    with loop.switch.at(cascade.sizes[-1]):
        answers = answers_of(cascade, loader, 'test')
        whole = whole_timer(cascade, loader)
    result = dict(sizes=cascade.sizes, thresholds=cascade.thresholds,
                  held_out=found,
                  **summary(answers, ascending, cascade.thresholds))
    measure_times([*itertools.chain(*works), whole])
    for row, work in zip(rows, works, strict=True):
        row.update(work.times())
    return dict(rows=rows, cascade={**result, **whole.throughput()})


@protected_loading()
def test_cascade(config: StrPath, checkpoint: StrPath, sizes: Sequence[int],
                 thresholds: float | Sequence[float] | None = None,
                 target: float | None = None,
                 count: int | None = None, out: StrPath | None = None,
                 cfg_options: dict | None = None) -> dict:
    """Test early exit over ``sizes``: what tools/test.py --cascade prints.

    All images are those of the largest size, resized as :class:`Cascade`
    resizes them: a smaller size's accuracy may differ from that of
    :func:`test`, whose pipeline resizes the original.

    Args:
        config: path of the config of a classifier.
        checkpoint: path of the checkpoint, or a work directory.
        sizes: pixels, at least two, the smallest first.
        thresholds: from 0 to 1, for each size but the largest, or one for
            all; None: found on held-out training images
            (:func:`held_out_images`) for ``target``.
        target: points of top-1 that the threshold may cost (%): see
            :func:`cheapest`; None: 0.
        count: held-out images; None: all that are left out.

    Returns:
        dict: a result of :func:`test`, whose rows also have
        ``share_decided``, and ``auroc`` of the confidence over all images.
        Its ``cascade`` has ``sizes``, ``thresholds``, ``held_out`` (None with
        given thresholds), ``metrics``, mean ``gflops`` and ``gflops_ratio``
        to the largest size's, ``images_per_s`` measured in batches;
        ``random``, the accuracy and GFLOPs of sizes drawn by chance with the
        same shares; and ``curve``, thresholds, accuracy and GFLOPs on the
        test set.

    Raises:
        UserError, TypeError, ValueError: for what is missing or does not fit,
            before any image is read; and a network that is no classifier.
    """
    config = check_path('config', config)
    checkpoint = check_path('checkpoint', checkpoint)
    folder = folder_of(out, config)
    sizes = check_cascade_sizes(sizes)
    given = thresholds is not None
    if given and (target is not None or count is not None):
        raise UserError('A threshold is given or found on held-out images '
                        'for a target, but got both. Leave one out.')
    thresholds = check_thresholds(1.0 if thresholds is None else thresholds,
                                  sizes)
    target = check_number('target', target or 0.0, 0,
                          'Give points of top-1, in %.', 100)
    cfg = load_config(config, cfg_options)
    if cfg.get('default_scope') == 'mmdet':  # the first image tells others
        raise UserError('A cascade serves classifiers, but the config is of '
                        "mmdet's detectors. Test it by --scales.")
    check_test_data(cfg)
    if not given:
        check_held_out(cfg, count)
    checkpoint = find_checkpoint(checkpoint, cfg)
    weights = check_checkpoint(checkpoint)  # before any data set is read
    cfg.test_cfg = {}  # a cascade is no loop of the host
    runner = loaded_runner(
        test_config(cfg, folder, sizes), weights, checkpoint)
    model = unwrapped(runner.model)
    images = None if given else held_out_images(
        cfg, sizes[-1], count, runner.test_loop.dataloader.dataset)
    scales = [runner.test_loop.base.scale_at(size) for size in sizes]
    result = run_cascade(runner, Cascade(model, sizes, thresholds, scales),
                         images, target)
    return dict(label=config_name(config), config=config,
                checkpoint=checkpoint, cfg_options=cfg_options or {},
                trained=trained_sizes(cfg, model), **result)
