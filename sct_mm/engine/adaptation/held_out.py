"""The images that an adaptation holds out: which they are, and what a network
answers for them."""
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS
from rich.progress import Progress
from torch.utils.data import DataLoader, Sampler

from ...datasets.batch_forms import is_collated, number_of_images
from ...datasets.data_samples import private_copy
from ...datasets.multi_scale_batch import padding_of
from ...evaluation.fidelity_metric import FidelityMetric, Reference
from ...models.pinning import use_scale
from ...utils.errors import UserError
from ..sct.first_look import evaluating, leaves
from ..sct.resize import Resize, check_batch_transform
from ..sct.step import check_images
from ..training_images import drawn
from .gains import Measured, measured, with_weighed

LEAST, _MOST = 32, 1000  # images held out
_ALIKE = 16  # images that have one class by more than chance
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
            for name, value in with_weighed(metric.compute_metrics(results),
                                            len(results)).items()
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
