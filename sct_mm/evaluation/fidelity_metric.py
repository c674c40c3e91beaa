"""A metric of mmengine that compares a network's predictions with those of a
reference, by what a predicted sample of any host holds."""
import os.path as osp
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor

from ..utils.errors import UserError
from .fidelity import (
    BoxDifferences,
    Boxes,
    MapDifferences,
    ScoreDifferences,
    answers_each_class,
    box_differences,
    map_differences,
    score_differences,
    summarise_boxes,
    summarise_maps,
)


class Kind(NamedTuple):
    """How answers of one kind are read, kept and compared.

    Attributes:
        read: the answer in a field of a sample; None if it is of another kind.
        compare: what is kept of one image, of the reference's answer, the
            answer, whether a class is answered for alone, and the least
            confidence or score of the reference.
        metrics: the metrics of all images, of what ``compare`` returned (as
            plain tuples, which mmengine makes of named ones) and that least.
        least: its default.
    """
    read: Callable[[Any], Any]
    compare: Callable[[Any, Any, bool, float], Any]
    metrics: Callable[[Sequence, float], dict[str, float]]
    least: float = 0.0


def _scores(value: Any) -> Tensor | None:
    return value.detach().cpu() if isinstance(value, Tensor) and (
        value.dim() == 1) else None


def _score_metrics(found: Sequence[ScoreDifferences],
                   sure: float) -> dict[str, float]:
    numbers = ScoreDifferences(*map(torch.cat, zip(*found, strict=True))
                               ).metrics(sure)
    return {'agreement/all': numbers['agreement'],
            'agreement/sure': numbers['sure_agreement'],
            'kl': numbers['kl'], 'sure_images': numbers['sure_images']}


def _boxes(value: Any) -> Boxes | None:
    """Boxes along the axes with one class each."""
    if not isinstance(value, dict):
        return None
    parts: list[Any] = [getattr(value.get(name), 'tensor', value.get(name))
                        for name in Boxes._fields]  # mmdet's hold tensors
    if not all(isinstance(part, Tensor) for part in parts) or (
            [part.dim() for part in parts] != [2, 1, 1]
            or parts[0].shape[1] != 4):
        return None
    return Boxes(*(part.detach().cpu() for part in parts))


def _box_metrics(found: Sequence[dict[int, BoxDifferences]],
                 least: float) -> dict[str, float]:
    metrics = summarise_boxes([
        {label: BoxDifferences(*each) for label, each in image.items()}
        for image in found])
    if not metrics['truth_boxes']:
        raise UserError('The reference must find objects to compare others '
                        f'with, but finds none of a score of {least:g} in '
                        f'{len(found)} images. Give images of the kind that '
                        'it was trained on, or a smaller --sure.')
    return metrics


def _label_map(value: Any) -> np.ndarray | None:
    """Labels (H, W), in as few bytes as hold them."""
    data = value.get('data') if isinstance(value, dict) else None
    if not isinstance(data, Tensor) or data.is_floating_point() or (
            data.dim() != 3 or len(data) != 1 or not data.numel()):
        return None
    labels = data[0].cpu().numpy()
    return labels.astype(np.min_scalar_type(int(labels.max())))


# {field of a sample: what it holds}
KINDS = {
    # mmpretrain, mmaction2
    'pred_score': Kind(
        _scores, lambda reference, answer, each_class, _: score_differences(
            reference[None], answer[None], each_class), _score_metrics, 0.5),
    # mmdet, mmyolo
    'pred_instances': Kind(
        _boxes, lambda reference, answer, _, least: box_differences(
            reference, answer, least), _box_metrics, 0.3),
    # mmseg
    'pred_sem_seg': Kind(
        _label_map, lambda reference, answer, *_: map_differences(
            reference, answer), lambda found, least: summarise_maps(
                [MapDifferences(*each) for each in found])),
}
# What a sample names its image by, the best first.
_NAMES = ('img_path', 'img_id', 'sample_idx')


def answers_in(sample: Any, task: str = '') -> dict[str, tuple[str, Any]]:
    """``{task: (name of the kind, answer)}`` of a predicted sample as a dict;
    the task is '' but for a network of several (mmpretrain)."""
    if not isinstance(sample, dict):
        return {}
    for name, kind in KINDS.items():
        answer = kind.read(sample.get(name))
        if answer is not None:
            return {task: (name, answer)}
    return {path: answer for inner, value in sample.items()
            for path, answer in answers_in(
                value, f'{task}/{inner}' if task else inner).items()}


def _name_of(sample: dict) -> Any:
    name = next((sample[name] for name in _NAMES
                 if sample.get(name) is not None), None)
    # Two configs may have one data set in two places.
    return osp.basename(name) if isinstance(name, str) else name


@dataclass
class Reference:
    """The answers that others are compared with, of this process's images in
    the order in which they came."""
    names: list[Any] = field(default_factory=list)
    answers: list[dict[str, tuple[str, Any]]] = field(default_factory=list)
    # Tasks in which a class is answered for alone.
    each_class: set[str] = field(default_factory=set)

    def add(self, sample: dict) -> dict:
        """Keep the answers in ``sample``, and return them.

        Raises:
            UserError: if it holds none that can be compared.
        """
        answers = answers_in(sample)
        if not answers:
            found = sorted(name for name in sample if str(name).startswith(
                'pred')) if isinstance(sample, dict) else []
            raise UserError(
                'Answers are compared without labels if the predicted '
                'samples hold `pred_score` (N classes), `pred_instances` '
                '(boxes along the axes, labels, scores) or `pred_sem_seg` '
                '(labels), but they hold '
                f'{", ".join(found) or type(sample).__name__}. Test this '
                'network by its labels.')
        for task, (kind, answer) in answers.items():
            if kind == 'pred_score' and answers_each_class(answer[None]):
                self.each_class.add(task)
        self.names.append(_name_of(sample))
        self.answers.append(answers)
        return answers

    def at(self, index: int, sample: dict) -> dict:
        """The answers for the image of ``sample``, the one of this index.

        Raises:
            UserError: if the reference saw another image.
        """
        name = _name_of(sample) if isinstance(sample, dict) else None
        known = self.names[index] if index < len(self.names) else None
        if index >= len(self.names) or known != name:
            raise UserError(
                'Both networks must be tested on the same images in one '
                f'order, but image {index} is {name!r} for one and {known!r} '
                'for the other. Give both the same data set, or --images.')
        return self.answers[index]


@METRICS.register_module()
class FidelityMetric(BaseMetric):
    """Compare predictions with those of a reference, without labels.

    The first evaluation makes the reference (:attr:`made`), unless
    :attr:`reference` is set: a test at several sizes begins with the base.
    Images must come in the same order each time.

    Args:
        least: confidence above which the reference is sure of an image
            (0.5), or score from which its boxes are taken for the truth
            (0.3); None: these.

    Metrics are those of :func:`compare_scores` (``agreement/all``,
    ``agreement/sure``, ``kl``; ``sure_images``), :func:`compare_boxes`, or
    :func:`compare_maps`. With several tasks each has its name before them.
    """

    default_prefix = ''  # mmengine warns of None

    def __init__(self, least: float | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self._least = least
        self.reference: Reference | None = None
        self.made = Reference()
        self._seen = 0

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            if self.reference is None:
                answers = known = self.made.add(sample)
                alone = self.made.each_class
            else:
                known = self.reference.at(self._seen, sample)
                alone, answers = self.reference.each_class, answers_in(sample)
            self._seen += 1
            if {task: kind for task, (kind, _) in known.items()} != {
                    task: kind for task, (kind, _) in answers.items()}:
                raise UserError(
                    'Both networks must answer the same question, but one '
                    f'gives {_kinds(known)} and the other '
                    f'{_kinds(answers)}. Compare two of one kind.')
            self.results.append({
                task: (kind, KINDS[kind].compare(
                    known[task][1], answer, task in alone,
                    self._least_of(kind)))
                for task, (kind, answer) in answers.items()})

    def evaluate(self, size: int) -> dict:
        self.reference = self.reference or self.made
        self._seen = 0
        return super().evaluate(size)

    def _least_of(self, kind: str) -> float:
        return KINDS[kind].least if self._least is None else self._least

    @property
    def least(self) -> float:
        """The least confidence or score of the reference, which has seen an
        image."""
        answers, *_ = (self.reference or self.made).answers
        kind, _ = next(iter(answers.values()))
        return self._least_of(kind)

    def compute_metrics(self, results: list) -> dict[str, float]:
        metrics = {}
        for task, (kind, _) in results[0].items():
            numbers = KINDS[kind].metrics(
                [result[task][1] for result in results], self._least_of(kind))
            metrics.update({f'{task}/{key}' if task else key: value
                            for key, value in numbers.items()})
        return metrics


def _kinds(answers: dict) -> str:
    return ', '.join(f'{task} {kind}'.strip()
                     for task, (kind, _) in answers.items()) or 'none'
