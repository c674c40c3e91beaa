"""What ``adapt`` measures on images that no training sees, and what each size
keeps by that."""
import copy
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATA_SAMPLERS, HOOKS
from mmengine.runner import Runner
from rich.progress import Progress
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler

from ..datasets.batch_forms import is_collated, number_of_images
from ..datasets.data_samples import private_copy
from ..datasets.multi_scale_batch import padding_of
from ..evaluation.adapted_report import FEWEST_STEPS
from ..evaluation.fidelity_metric import FidelityMetric, Reference
from ..models.pinning import use_scale
from ..models.row_mix import Present
from ..models.size_selection import ssbn_layers
from ..models.weight_change import changed_layers
from ..utils.errors import UserError
from .adapted_config import warm_up
from .sct.first_look import evaluating, leaves
from .sct.monitor import NotFiniteError
from .sct.resize import Resize, check_batch_transform
from .sct.step import check_images
from .training_images import drawn

LEAST, _MOST = 32, 1000  # images held out
# Metrics of FidelityMetric whose mean decides, by their end; more is better.
_DECIDING = ('agreement/all', 'agreement/sure', 'bbox_mAP', 'mIoU')
_ALIKE = 16  # images that have one class by more than chance
_SHORTEST_TRIAL, _LONGEST_TRIAL = 48, 64  # steps of one learning rate
_TRIAL_TRAINS = 512  # images, if the longest trial has as many
# The share of the best score by which a larger rate may be behind in a trial
# that is far shorter than the training (our choice: behind by 9 %, it was the
# worse in a whole training, docs/results.md).
_NEAR = 0.08
_PARTS = 10  # of the held-out images, whose differences tell what is chance
_SURE = 0.5  # share of the images below which they are of another kind


def number_held_out(images: int, batch: int = 1, processes: int = 1) -> int:
    """How many of ``images`` are held out: a tenth, between 32 and 1000, and
    those that would be alone in the last batch of an epoch, since a single
    image has no variance behind a pooling.

    Args:
        batch: images in a step, of all processes together.

    Raises:
        UserError: if less than as many again are left to train on.
    """
    if images < 2 * LEAST:
        raise UserError(f'An adaptation needs at least {2 * LEAST} images, '
                        f'of which it holds out {LEAST} to measure on, but '
                        f'got {images}. Give more.')
    count = min(max(images // 10, LEAST), _MOST)
    last = (images - count) % batch
    return count + (last if last <= processes < batch else 0)


@DATA_SAMPLERS.register_module()
class WithoutHeldOut(Sampler):
    """The images of ``dataset`` in an order of each epoch's own: those that
    :func:`drawn` puts in order, but for the first ``held_out``, and all behind
    the first ``max_images``. As mmengine's ``DefaultSampler``, each of several
    processes gets as many.

    Args:
        seed: of the order, the same for all processes.
    """

    def __init__(self, dataset: Any, held_out: int,
                 shuffle: bool = True, seed: int | None = None,
                 round_up: bool = True,
                 max_images: int | None = None) -> None:
        self.dataset = dataset
        self._of_part = DATA_SAMPLERS.get('DefaultSampler')(
            drawn(dataset)[held_out:max_images].tolist(), shuffle, seed,
            round_up)

    def __iter__(self):
        part = self._of_part.dataset
        return (part[index] for index in self._of_part)

    def __len__(self) -> int:
        return len(self._of_part)

    def set_epoch(self, epoch: int) -> None:
        self._of_part.set_epoch(epoch)


class Case(NamedTuple):
    """Images of ``size`` pixels, served by the parameters of ``scale``; both
    as the training counts them."""
    size: int
    scale: int


def score(metrics: dict[str, float]) -> float:
    """One number by which metrics of :meth:`HeldOutImages.measure` compare;
    more is better, NaN counts as the worst."""
    if 'loss' in metrics:
        value = -metrics['loss']
    else:
        found = [value for name, value in metrics.items()
                 if name.endswith(_DECIDING) and not math.isnan(value)]
        value = sum(found) / len(found) if found else math.nan
    return -math.inf if math.isnan(value) else value


def is_worse(after: dict[str, float], before: dict[str, float],
             share: float = 0.02) -> bool:
    """Whether ``after`` is behind ``before`` by more than ``share`` of the
    latter's :func:`score` (our choice by default: less is chance)."""
    return score(after) < score(before) - share * abs(score(before))


class Measured(dict[str, float]):
    """Metrics on images that are held out.

    Attributes:
        without: the :func:`score` on all images but those of one part, for
            each part; empty if they cannot be divided.
    """
    without: tuple[float, ...] = ()


def measured(items: Sequence[Any], compute: Callable[[Sequence[Any]],
                                                     dict[str, float]]
             ) -> Measured:
    """The metrics that ``compute`` makes of ``items``, one of an image or of
    a batch."""
    found = Measured(compute(items))
    parts = min(_PARTS, len(items))
    try:
        found.without = tuple(
            score(compute([item for index, item in enumerate(items)
                           if index % parts != part]))
            for part in range(parts if parts > 1 else 0))
    except UserError:  # one part has all objects that the base finds
        found.without = (math.nan, ) * parts
    return found


def is_gain(after: Measured, before: Measured) -> bool:
    """Whether ``after`` is ahead of ``before`` by more than the standard error
    of that, which is the jackknife's (our choice: more rarely than in one
    case of six by chance, docs/results.md)."""
    gain = score(after) - score(before)
    changes = [ours - theirs for ours, theirs in zip(
        after.without, before.without, strict=True)]
    if not changes or not math.isfinite(score(before)):
        return gain > 0
    mean = sum(changes) / len(changes)
    error = math.sqrt((len(changes) - 1) / len(changes) * sum(
        (change - mean) ** 2 for change in changes))
    return gain > error  # not if it cannot be told: NaN


def best(candidates: dict[str, Measured]) -> str:
    """The name of the best of ``candidates``, ``{name: metrics}``, whose first
    one is the network as it was: that unless another :func:`is_gain`."""
    before = next(iter(candidates))
    most = max(candidates, key=lambda name: score(candidates[name]))
    return most if is_gain(candidates[most], candidates[before]) else before


class HeldOutImages:
    """Images on which a network's answers at smaller sizes are compared with
    its own at the base, without labels.

    A network whose answers cannot be compared
    (:class:`~sct_mm.evaluation.fidelity_metric.FidelityMetric`) is measured
    by its own loss, for which the images need labels.

    Args:
        loader: makes batches of the images at the base.
        base: their size in pixels.
        smallest: see :func:`check_images`.
        transform: config of the batch transform; by default
            MultiScaleBatch.
    """

    def __init__(self, loader: DataLoader, base: int,
                 smallest: int | None = None,
                 transform: dict | None = None) -> None:
        self._loader, self._base, self._smallest = loader, base, smallest
        self._transform = check_batch_transform(transform)
        self._reference: Reference | None = None
        self.by_loss = False
        self.sure: float | None = None  # share of images, of a classifier

    def measure(self, model: Any, cases: Iterable[Case], title: str,
                images: int | None = None) -> dict[Case, Measured]:
        """The metrics of ``model`` in each of ``cases``; all processes get
        those of the first.

        Args:
            title: of the bar that shows the progress.
            images: how many to measure on, up to the end of a batch; not
                before all were measured on once.
        """
        cases = list(cases)
        with torch.no_grad(), evaluating(list(model.modules())):
            try:
                found = self._loop(model, cases, title, images)
            except UserError as error:
                if self.by_loss or self._reference is not None:
                    raise
                print_log(f'adapt measures by the loss: {error}', 'current')
                self.by_loss = True
                found = self._loop(model, cases, title, images)
        shared: list[Any] = [found, self.by_loss, self.sure]
        broadcast_object_list(shared)
        found, self.by_loss, self.sure = shared
        return found

    def _loop(self, model: Any, cases: Sequence[Case], title: str,
              images: int | None) -> dict[Case, Measured]:
        first = self._reference is None and not self.by_loss
        made = FidelityMetric()
        reference = self._reference or made.made
        base = Case(self._base, self._base)
        metrics = {case: FidelityMetric() for case in cases}
        for metric in metrics.values():
            metric.reference = reference
        resize = Resize({**padding_of(model), **self._transform}, self._base)
        losses: dict[Case, list[float]] = {case: [] for case in cases}
        seen = 0
        with Progress(transient=True,
                      disable=not is_main_process()) as bar:
            for batch in bar.track(self._loader, description=title):
                batch = model.data_preprocessor(batch, True)
                check_images(batch, self._base, self._smallest)
                if not self.by_loss and is_collated(batch.get(
                        'data_samples')):
                    raise UserError('Samples that are collated for a training '
                                    '(mmyolo) give no predictions.')
                for case, metric in (*(((base, made), ) if first else ()),
                                     *metrics.items()):
                    part = resize(case.size, batch)
                    if 'data_samples' in part:
                        part = dict(part, data_samples=private_copy(
                            part['data_samples']))
                    with use_scale(model, case.scale):
                        if self.by_loss:
                            losses[case].append(_loss_of(model, part))
                            continue
                        samples = model(**part, mode='predict')
                    metric.process({}, [each.to_dict() for each in samples])
                seen += number_of_images(batch)
                if images is not None and seen >= images:
                    break
        if self.by_loss:
            return {case: measured(values, _mean_loss)
                    for case, values in losses.items()}
        if first:
            own = made.compute_metrics(made.results)
            self._reference = reference
            counts = [value for name, value in own.items()
                      if name.endswith('sure_images')]
            if counts:
                self.sure = min(counts) / len(reference.answers)
        return {case: measured(metric.results, partial(_compared, metric))
                for case, metric in metrics.items()}

    def check_answers(self) -> None:
        """Refuse images that tell nothing of a classifier: where it gives all
        of them one class, as of noise, it seems to gain at a smaller size by
        giving that class to any image.

        Raises:
            UserError: for such images, after the first measurement.
        """
        only = _only_class(self._reference or Reference())
        if only is not None:
            raise UserError(
                'The images must get different answers to adapt on, but the '
                f'network gives class {only} to each of those held out: they '
                'may be of another kind than those it was trained on. Give '
                'images like those that it is to serve.')

    def doubt(self) -> str | None:
        """What to warn of if the network is unsure of the images, as of those
        of another kind than it was trained on; None if it is not."""
        if self.sure is None or self.sure >= _SURE:
            return None
        return (f'The network is sure (confidence above 0.5) of only '
                f'{100 * self.sure:.0f} % of the images: they may be of '
                'another kind than those it was trained on. What it gains on '
                'them need not hold for yours: give images like those that '
                'it is to serve.')


def _only_class(reference: Reference) -> int | None:
    """The class that all images of ``reference`` have; None if they have
    several, or have labels, boxes or maps, or are too few to tell."""
    if len(reference.answers) < _ALIKE:
        return None
    classes = set()
    for answers in reference.answers:
        kind, scores = answers.get('', ('', None))
        if kind != 'pred_score' or reference.each_class:
            return None
        classes.add(int(scores.argmax()))
    return classes.pop() if len(classes) == 1 else None


def _mean_loss(losses: Sequence[float]) -> dict[str, float]:
    return dict(loss=sum(losses) / len(losses))


def _compared(metric: FidelityMetric, results: list) -> dict[str, float]:
    """The metrics of ``results``, but for counts."""
    return {name: value
            for name, value in metric.compute_metrics(results).items()
            if not name.endswith(('sure_images', 'truth_boxes'))}


def _loss_of(model: Any, batch: dict) -> float:
    """The loss of ``model`` on ``batch``.

    Raises:
        UserError: for images without labels.
    """
    before = [(module, module.training) for module in model.modules()]
    model.train()  # what a head returns depends on its mode
    try:
        with evaluating(leaves(model)):
            loss, _ = model.parse_losses(model(**batch, mode='loss'))
    except (AttributeError, KeyError) as error:
        raise UserError(
            'A network without answers to compare is measured by its loss, '
            f'for which the images have no labels ({error}). Give images '
            'with labels.') from error
    finally:
        for module, training in before:
            module.training = training
    return float(loss)


def scale_of_trials(scales: Sequence[int]) -> int:
    """The middle one of ``scales`` below the base, at which learning rates
    are tried: at the smallest, most networks answer as if by chance after a
    few steps with any rate; near the base, all of them answer well (our
    choice, docs/results.md)."""
    return scales[len(scales) // 2]


def trial_steps(steps: int, rates: int, scales: Sequence[int],
                batch: int) -> int:
    """How many steps each of ``rates`` learning rates is tried for, at
    :func:`scale_of_trials` alone; 0 for a training of less than
    :data:`FEWEST_STEPS`.

    All of them cost a tenth of a training of ``steps`` at all ``scales``. But
    a trial has 48 to 64 steps, enough for 512 images if possible, and no more
    than the training (our choice, docs/results.md).

    Args:
        batch: images in a step of one process, each of which trains the
            whole trial on images of its own.
    """
    if steps < FEWEST_STEPS:
        return 0
    base, *small = scales

    def cost(*sizes: int) -> float:
        """In forward passes of the base: its own, and those of ``sizes``,
        whose backward pass costs twice as much."""
        return 1 + 3 * sum((size / base) ** 2 for size in sizes)

    affordable = int(steps * cost(*small) / cost(scale_of_trials(scales))
                     / (10 * rates))
    least = max(_SHORTEST_TRIAL, math.ceil(_TRIAL_TRAINS / batch))
    return min(max(affordable, least), _LONGEST_TRIAL, steps)


def best_rate(trials: Mapping[float, dict[str, float]], share: float) -> float:
    """The learning rate to take of ``{rate: metrics after its trial}``, {}
    where the trial has failed: the largest that is not far behind the best,
    since a training that is longer than the trials favours larger ones. If all
    have failed, it is the smallest.

    Args:
        share: of the training's steps, that a trial has.
    """
    near = _NEAR * (1 - share)
    most = max(trials.values(), key=score)
    return max((rate for rate, metrics in trials.items()
                if math.isfinite(score(metrics))
                and not is_worse(metrics, most, near)), default=min(trials))


def try_rate(model: Any, cfg: Config, rate: float, steps: int,
             smallest: int | None) -> Any:
    """A copy of ``model`` that is trained as ``cfg`` says, but at
    :func:`scale_of_trials` alone, for a few ``steps``, with the learning rate
    ``rate``; None if its loss was not finite."""
    model = copy.deepcopy(model)
    wrapper = build_optim_wrapper(model, {**cfg.optim_wrapper, 'optimizer': {
        **cfg.optim_wrapper.optimizer, 'lr': rate}})
    # As the training: up first, then down to zero.
    schedule = LambdaLR(wrapper.optimizer, lambda step: min(
        1, (step + 1) / warm_up(steps)) * (1 + math.cos(
            math.pi * step / steps)) / 2)
    loader = Runner.build_dataloader(cfg.train_dataloader,
                                     seed=cfg.randomness['seed'])
    scales = cfg.model.scales
    alone = scale_of_trials(scales)
    hook = HOOKS.build({**cfg.custom_hooks[-1], 'between': 0.0,
                        'loss_weights': tuple(
                            float(scale == alone) for scale in scales),
                        'scales_per_step': 1})
    hook.attach(model, getattr(wrapper, 'loss_scaler', None),
                smallest=smallest)
    try:
        model.train()
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        for step, batch in zip(range(steps), batches, strict=False):
            hook.step = step
            model.train_step(batch, wrapper)
            schedule.step()
        hook.sct.settle()
    except NotFiniteError as error:
        print_log(f'adapt: a learning rate of {rate:g} failed ({error}).',
                  'current')
        return None
    finally:
        hook.detach()
    return model


@torch.no_grad()
def copy_row(model: nn.Module, source: nn.Module, scale: int,
             of: int) -> None:
    """Give ``model`` at ``scale`` the normalization parameters and statistics
    that ``source``, a network of the same layers, has at scale ``of``."""
    for ours, theirs in zip(ssbn_layers(model), ssbn_layers(source),
                            strict=True):
        row: Present = theirs.row(of)
        for name, value in ours.row(scale).items():
            if value is not None:
                value.copy_(row[name])


@torch.no_grad()
def drop_change(model: nn.Module, scale: int) -> None:
    """Leave the weights of ``model`` at ``scale`` as they are at the base."""
    for layer in changed_layers(model):
        layer.changes[0][layer.scales.index(scale) - 1].zero_()
