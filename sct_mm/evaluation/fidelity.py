"""Compare what a network answers at one size with a reference, its own answers
at the base or those of another network, without labels."""
import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import UserError

# The smallest normal float32: a probability of 0 counts as one of 1e-38, so
# that one class adds at most 87 nats to a KL.
_TINY = torch.finfo(torch.float32).tiny
_ROUNDING = 1e-3  # of the sum of probabilities, some in half precision


class ScoreDifferences(NamedTuple):
    """Of N images, each (N,): whether both answers are the ``same``; the
    ``confidence`` of the reference, its largest probability; and ``kl`` =
    KL(reference || answer) in nats."""
    same: Tensor
    confidence: Tensor
    kl: Tensor

    def metrics(self, sure: float) -> dict[str, float]:
        """What :func:`compare_scores` returns."""
        among = self.same[self.confidence > sure]
        return dict(agreement=_percent(self.same),
                    sure_agreement=_percent(among), sure_images=len(among),
                    kl=float(self.kl.mean()))


def _percent(found: Tensor) -> float:
    return 100 * float(found.double().mean())


def _probabilities(name: str, scores: Any) -> Tensor:
    """``scores`` (N, C) in double precision, if they are probabilities.

    A NaN, as of a network that overflows, is left to its image.

    Raises:
        UserError: otherwise.
    """
    scores = torch.as_tensor(scores).detach().cpu().double()
    if scores.dim() != 2 or not scores.numel():
        raise UserError(f'`{name}` must be the probabilities (N, C) of N '
                        'images, one at least, but got shape '
                        f'{tuple(scores.shape)}. Give a row for each image.')
    known = scores[~scores.isnan()]
    if len(known) and not (known.min() >= -_ROUNDING
                           and known.max() <= 1 + _ROUNDING):
        raise UserError(
            f'`{name}` must be probabilities, from 0 to 1, but are from '
            f'{known.min():.4g} to {known.max():.4g}. Let the head return '
            "them (mmaction2: average_clips='prob').")
    return scores.clamp(0, 1)


def answers_each_class(scores: Any) -> bool:
    """Whether probabilities (N, C) are of a network that answers for each
    class alone, by a sigmoid, so that those of an image do not add up to 1.
    """
    sums = _probabilities('scores', scores).sum(1)
    return bool(((sums - 1).abs() > _ROUNDING).any())  # NaN is no proof


def score_differences(reference: Any, scores: Any,
                      each_class: bool | None = None) -> ScoreDifferences:
    """Compare the probabilities of N images; for the arguments see
    :func:`compare_scores`."""
    p = _probabilities('reference', reference)
    q = _probabilities('scores', scores)
    if p.shape != q.shape:
        raise UserError('`scores` must have the images and classes of '
                        f'`reference`, {tuple(p.shape)}, but got '
                        f'{tuple(q.shape)}. Compare networks of the same '
                        'classes on the same images.')
    if each_class is None:
        each_class = answers_each_class(p)
    if each_class:
        same = ((p > 0.5) == (q > 0.5)).all(1)
        kl = _terms(p, q) + _terms(1 - p, 1 - q)
    else:
        same = p.argmax(1) == q.argmax(1)
        kl = _terms(p, q)
    known = ~(p + q).isnan().any(1)
    # No KL is negative, but rounded sums of p and q may differ from 1.
    return ScoreDifferences(same & known, p.amax(1).nan_to_num(0),
                            kl.sum(1).clamp(min=0))


def _terms(p: Tensor, q: Tensor) -> Tensor:
    """p log(p / q), finite where one of them is 0."""
    return p * (p.clamp(min=_TINY).log() - q.clamp(min=_TINY).log())


def compare_scores(reference: Any, scores: Any, sure: float = 0.5,
                   each_class: bool | None = None) -> dict[str, float]:
    """Compare a classifier's answers with a reference's, without labels.

    Args:
        reference: probabilities (N, C) of the reference for N images, a
            tensor or an array.
        scores: those of the network that is compared, (N, C).
        sure: the reference is sure of an image if its largest probability is
            above it.
        each_class: whether a class is answered for alone, by a sigmoid, so
            that an image may have any number of labels; None: whether the
            reference's probabilities do not add up to 1.

    Returns:
        dict: ``agreement``, the images in % for which both have the same
        top-1 class or, of a sigmoid, the same set of classes above 0.5;
        ``sure_agreement``, the same among the images that the reference is
        sure of (NaN if there is none); ``sure_images``, how many these are;
        and ``kl``, the mean KL(reference || scores) in nats, of a sigmoid
        the sum over the classes, as
        :func:`~sct_mm.engine.sct.logits.distillation_loss` trains it. An
        image that is answered with NaN does not agree.

    Raises:
        UserError: for what are no probabilities, and for shapes that differ.
    """
    return score_differences(reference, scores, each_class).metrics(sure)


class Boxes(NamedTuple):
    """The objects that a detector finds in one image.

    Attributes:
        bboxes: (M, 4), left, top, right and bottom in pixels of the original
            image, so that sizes compare.
        labels: (M,) class of each.
        scores: (M,) from 0 to 1.
    """
    bboxes: Tensor
    labels: Tensor
    scores: Tensor

    def above(self, least: float) -> 'Boxes':
        """Those of a score of at least ``least``."""
        return Boxes(*(part[self.scores >= least] for part in self))


class BoxDifferences(NamedTuple):
    """What COCO's evaluation makes of the boxes of one class in one image:
    ``dtScores`` (D,) of D answers, by falling score; ``dtMatches`` (T, D),
    whether each is right at T thresholds of IoU; and ``objects``, how many
    there are by the reference. The names are those of pycocotools."""
    dtScores: np.ndarray
    dtMatches: np.ndarray
    objects: int

    def as_evaluated(self) -> dict[str, np.ndarray]:
        """As pycocotools keeps it, which ignores none."""
        return dict(dtScores=self.dtScores, dtMatches=self.dtMatches,
                    dtIgnore=np.zeros_like(self.dtMatches),
                    gtIgnore=np.zeros(self.objects, dtype=bool))


# Of an image, the most boxes of a class that count for mAP and, as in mmdet's
# CocoMetric, for mAP_50; boxes of any area.
_MOST_BOXES, _ANY_AREA = [100, 1000], [0, 1e10]


def _evaluation() -> Any:
    from pycocotools.cocoeval import COCOeval
    evaluation = COCOeval(iouType='bbox')
    evaluation.params.maxDets = _MOST_BOXES
    evaluation.params.areaRng = [_ANY_AREA]
    return evaluation


def box_differences(reference: Boxes, answer: Boxes, least: float = 0.3
                    ) -> dict[int, BoxDifferences]:
    """Match the boxes of one image, by class; for the arguments see
    :func:`compare_boxes`."""
    evaluation = _evaluation()
    kinds = evaluation._gts, evaluation._dts
    for boxes, found in zip((reference.above(least), answer), kinds,
                            strict=True):
        start, end = boxes.bboxes.double().split(2, 1)
        sides = torch.cat([start, end - start], 1)
        for name, (box, label, score) in enumerate(zip(
                sides.tolist(), boxes.labels.tolist(), boxes.scores.tolist(),
                strict=True), start=1):  # 0 is no match
            found[0, label].append(dict(id=name, bbox=box, score=score,
                                        area=0, iscrowd=0, ignore=0))
    differences = {}
    for _, label in sorted(set().union(*kinds)):
        evaluation.ious = {(0, label): evaluation.computeIoU(0, label)}
        image = evaluation.evaluateImg(0, label, _ANY_AREA, _MOST_BOXES[-1])
        differences[label] = BoxDifferences(
            np.array(image['dtScores']), image['dtMatches'] > 0,
            len(image['gtIds']))
    return differences


def summarise_boxes(found: Sequence[dict[int, BoxDifferences]]
                    ) -> dict[str, float]:
    """What :func:`compare_boxes` returns."""
    count = sum(each.objects for image in found for each in image.values())
    if not count:
        return dict(bbox_mAP=math.nan, bbox_mAP_50=math.nan, truth_boxes=0)
    evaluation = _evaluation()
    params = evaluation.params
    params.catIds = sorted(set().union(*found))
    params.imgIds = range(len(found))
    evaluation._paramsEval = params
    evaluation.evalImgs = [
        image[label].as_evaluated() if label in image else None
        for label in params.catIds for image in found]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation.accumulate()
    precision = evaluation.eval['precision'][:, :, :, 0]
    return dict(bbox_mAP=_mean(precision[..., 0]),
                bbox_mAP_50=_mean(precision[0, ..., 1]),  # first threshold
                truth_boxes=count)


def _mean(precision: np.ndarray) -> float:
    return float(precision[precision > -1].mean())  # -1: no object of a class


def compare_boxes(references: Sequence[Boxes], answers: Sequence[Boxes],
                  least: float = 0.3) -> dict[str, float]:
    """Compare a detector's answers with a reference's, without labels, by
    COCO's evaluation.

    Args:
        references: of each of N images. Those of a score of at least
            ``least`` are taken for the truth.
        answers: of the same images, of the detector that is compared, with
            all scores.

    Returns:
        dict: ``bbox_mAP``, the mean over the IoU of 0.50 to 0.95, and
        ``bbox_mAP_50``, both from 0 to 1, as mmdet's ``CocoMetric`` has them;
        and ``truth_boxes``, how many boxes were taken for the truth. Without
        any, mAP is NaN.

    Raises:
        ValueError: unless there is one answer for each reference.
    """
    return summarise_boxes([box_differences(reference, answer, least)
                            for reference, answer in zip(
                                references, answers, strict=True)])


class MapDifferences(NamedTuple):
    """Pixels of one image that both answers, the reference and the answer
    give to each of K classes, (K,); K may differ from image to image."""
    both: np.ndarray
    reference: np.ndarray
    answer: np.ndarray


def map_differences(reference: Any, answer: Any) -> MapDifferences:
    """Count the pixels of each class in two maps of labels (H, W)."""
    reference, answer = np.asarray(reference), np.asarray(answer)
    if reference.shape != answer.shape:
        raise UserError('Maps of labels must have one shape to be compared, '
                        f'but got {reference.shape} and {answer.shape}. Let '
                        'the network answer in pixels of the original image.')
    count = 1 + int(max(reference.max(), answer.max()))
    return MapDifferences(*(np.bincount(part.ravel(), minlength=count)
                            for part in (reference[reference == answer],
                                         reference, answer)))


def summarise_maps(found: Sequence[MapDifferences]) -> dict[str, float]:
    """What :func:`compare_maps` returns."""
    classes = max(len(image.both) for image in found)
    both, reference, answer = (
        np.sum([np.pad(part, (0, classes - len(part))) for part in parts], 0)
        for parts in zip(*found, strict=True))
    union = reference + answer - both
    shown = union > 0
    return dict(agreement=100 * float(both.sum() / reference.sum()),
                mIoU=100 * float((both[shown] / union[shown]).mean()))


def compare_maps(references: Sequence[Any],
                 answers: Sequence[Any]) -> dict[str, float]:
    """Compare a segmentor's answers with a reference's, without labels.

    Args:
        references: the class of each pixel, (H, W) of each of N images.
        answers: the same of the segmentor that is compared.

    Returns:
        dict: ``agreement``, the pixels with the same class, and ``mIoU``,
        the mean over the classes that one of them shows, as mmseg has it;
        both in %.

    Raises:
        UserError: for shapes that differ.
    """
    return summarise_maps([map_differences(*each) for each in zip(
        references, answers, strict=True)])
