"""Early exit over sizes: predict small, and larger if that is unsure."""
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..datasets.multi_scale_batch import MultiScaleBatch, padding_of
from ..utils.cascades import check_cascade_sizes, check_thresholds
from ..utils.errors import UserError
from .pinning import use_scale


class Decided(NamedTuple):
    """The predictions of a cascade for N images.

    ``scores`` (N, classes): probabilities, at the size that decided; their
    logarithms are logits. ``labels`` (N,). ``sizes`` (N,): pixels at which
    each was decided.
    """
    scores: Tensor
    labels: Tensor
    sizes: Tensor


def confidence(scores: Tensor) -> Tensor:
    """How sure a network is of each image: the largest of its probabilities
    (..., classes), from 0 to 1.

    Margin, entropy, other temperatures and a network trained on the logits
    were no better by more than chance; the energy of the logits was worse.
    """
    return scores.amax(-1)


def scores_in(outputs: Any) -> Tensor:
    """The probabilities (N, classes) in the output of a classifier: logits,
    probabilities, or samples with a ``pred_score``.

    Raises:
        UserError: for the output of another network.
    """
    if isinstance(outputs, Tensor) and outputs.dim() == 2 and (
            outputs.shape[1] > 1):  # one logit would always be sure
        return outputs if _are_scores(outputs, 1e-3) else outputs.softmax(1)
    if isinstance(outputs, (list, tuple)) and outputs and all(
            getattr(getattr(sample, 'pred_score', None), 'ndim', 0) == 1
            for sample in outputs):
        return torch.stack([sample.pred_score for sample in outputs])
    first = (outputs[0] if isinstance(outputs, (list, tuple)) and outputs
             else outputs)
    shape = (f' of shape {tuple(first.shape)}' if isinstance(first, Tensor)
             else '')
    raise UserError('A cascade serves classifiers, which give logits (N, '
                    'classes) or samples with a `pred_score`, but got '
                    f'{type(first).__name__}{shape}. Test another network by '
                    '--scales.')


def _are_scores(values: Tensor, tolerance: float) -> bool:
    """Whether ``values`` (N, classes) are probabilities, which sum to 1."""
    sums = values.float().sum(1)
    return bool(((values >= 0).all(1)
                 & ((sums - 1).abs() <= tolerance)).all())


def check_scores(scores: Tensor) -> None:
    """Refuse scores (N, classes) that do not sum to 1, as those of several
    labels an image, and of a single class, of which a network is always sure.
    NaN is allowed: such an image is never decided early.

    Raises:
        UserError: for such scores.
    """
    if scores.shape[1] < 2:
        raise UserError('A cascade serves classifiers of two classes or more, '
                        'but the network gives one score an image, which is '
                        'always 1. Test it by --scales.')
    if not _are_scores(scores, 0.05) and bool(scores.isfinite().all()):
        raise UserError('A cascade serves classifiers of one label an image, '
                        'whose scores sum to 1, but got a sum of '
                        f'{float(scores[0].float().sum()):.3g}. Test another '
                        'network by --scales.')


class Cascade(BaseModel):
    """Predict at the smallest size, and at the next one if it is unsure.

    An image is decided at the first of ``sizes`` at which its
    :func:`confidence` is above the threshold, at the largest size in any case.
    The undecided images of a batch go on together. The images of a smaller
    size are those of the largest, resized on the device as in training
    (:class:`MultiScaleBatch`). The network is pinned to the size
    (:func:`use_scale`), which may lie between two scales. A network without
    SSBN works, too.

    In mmpretrain's inferencer, whose pipeline makes the largest size::

        cascade = Cascade(get_model(config, checkpoint), (14, 28), 0.9)
        ImageClassificationInferencer(cascade)(images, batch_size=64)

    Args:
        model: a classifier: one of mmengine, which predicts samples with a
            ``pred_score`` (mode='predict'), or any that returns logits (N,
            classes). It is set to evaluation mode.
        sizes: pixels, at least two, the smallest first, trained or not.
        thresholds: from 0 (all are decided) to 1 (none is), for each size but
            the largest, or one for all. tools/test.py --cascade finds it.
        scales: that serve ``sizes``, where a test at the base has another
            size than training; None: ``sizes`` themselves.

    Raises:
        TypeError, ValueError: for no network, no sizes or no thresholds.
        UserError: for sizes in another order or fewer than two, and for
            another number of thresholds.
    """

    def __init__(self, model: nn.Module, sizes: Sequence[int],
                 thresholds: float | Sequence[float],
                 scales: Sequence[int] | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError('`model` must be an nn.Module, but got '
                            f'{type(model).__name__}. Build it first.')
        sizes = check_cascade_sizes(sizes)
        thresholds = check_thresholds(thresholds, sizes)
        super().__init__(getattr(model, 'data_preprocessor', None))
        self.model, self.sizes, self.thresholds = model, sizes, thresholds
        self.scales = tuple(scales or sizes)
        padding = padding_of(model)
        self.resizes = [MultiScaleBatch(size, sizes[-1], **padding)
                        for size in sizes]
        for name in ('_config', '_dataset_meta'):  # inferencers ask for them
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))
        self.eval()

    @torch.no_grad()
    def forward(self, inputs: Tensor, data_samples: list | None = None,
                mode: str = 'tensor') -> Decided | list[Any]:
        """Decide a batch.

        Args:
            inputs: (N, C, H, W), normalised, whose shorter edge is the
                largest size. :meth:`test_step` takes the batches of a data
                loader.
            data_samples: the host's, one for each image, to write into.
            mode: 'tensor', or 'predict' as mmengine's evaluators call it.

        Returns:
            Decided, or with 'predict' the host's samples, each with
            ``decided_at``: its size in pixels.

        Raises:
            TypeError: for images that are no tensor.
            UserError: for images of another size, for another mode, and for
                a network that is no classifier.
        """
        self._check(inputs, mode)
        samples: list[Any] = [None] * len(inputs)
        sizes = torch.zeros(len(inputs), dtype=torch.long,
                            device=inputs.device)
        scores = inputs.new_zeros(len(inputs), 0)
        for size, chosen, outputs, found in self.decide(inputs, data_samples):
            if not scores.shape[1]:
                scores = found.new_zeros(len(inputs), found.shape[1])
            sizes[chosen], scores[chosen] = size, found
            if mode == 'predict':
                for index, sample in zip(chosen.tolist(), outputs,
                                         strict=True):
                    if isinstance(sample, BaseDataElement):
                        sample.set_metainfo(dict(decided_at=size))
                    samples[index] = sample
        return samples if mode == 'predict' else Decided(
            scores, scores.argmax(1), sizes)

    def decide(self, inputs: Tensor, data_samples: list | None = None
               ) -> Iterator[tuple[int, Tensor, list[Any], Tensor]]:
        """For each size, the smallest first, the M images that are decided
        there: the size, their indices (M,), the network's output for each, and
        their probabilities (M, classes)."""
        left = torch.arange(len(inputs), device=inputs.device)
        for index, size in enumerate(self.sizes):
            outputs, scores = self.at(index, inputs, data_samples, left)
            sure = torch.ones_like(left, dtype=torch.bool)
            if size != self.sizes[-1]:
                sure = confidence(scores) > self.thresholds[index]
            places = sure.nonzero().flatten()
            yield (size, left[places], [outputs[i] for i in places.tolist()],
                   scores[places])
            left = left[~sure]
            if not len(left):
                return

    def at(self, index: int, inputs: Tensor, data_samples: list | None,
           chosen: Tensor) -> tuple[Any, Tensor]:
        """The network's output for the M ``chosen`` of ``inputs`` at
        ``sizes[index]``, and its probabilities (M, classes)."""
        if len(chosen) < len(inputs):
            inputs = inputs[chosen]
        resized = self.resizes[index](dict(inputs=inputs))['inputs']
        with use_scale(self.model, self.scales[index]):
            if isinstance(self.model, BaseModel):
                samples = data_samples and [data_samples[i]
                                            for i in chosen.tolist()]
                outputs = self.model(resized, samples, mode='predict')
            else:
                outputs = self.model(resized)
        scores = scores_in(outputs)
        check_scores(scores)
        return outputs, scores

    def _check(self, inputs: Tensor, mode: str) -> None:
        if not isinstance(inputs, Tensor):
            raise TypeError('`inputs` of a cascade must be a tensor (N, C, H, '
                            f'W), but got {type(inputs).__name__}. Stack the '
                            'images, as the data preprocessor does.')
        edge = min(inputs.shape[-2:])
        if edge != self.sizes[-1]:
            raise UserError('A cascade must get images of its largest size, '
                            f'{self.sizes[-1]} pixels, but got {edge}. Resize '
                            'them, or name that size.')
        if mode not in ('tensor', 'predict'):
            raise UserError("`mode` of a cascade must be 'tensor' or "
                            f"'predict', but got {mode!r}. Train the network "
                            'itself.')
