"""Quantize the ONNX file of a classifier to int8, and compare its answers with
those of the float file."""
import logging
import math
import os.path as osp
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..evaluation.fidelity import compare_scores
from ..evaluation.measure import compared
from ..utils.errors import UserError
from .formats import Run, graph_run
from .verified_file import VerifiedFile

_BATCH = 32  # images that a file runs at once
# How many of the first convolutions may stay in float: they lose most, and of
# as many as are needed the fewest are taken (docs/export.md).
KEPT = (0, 1, 2, 4, 8, 16)
# Points of top-1. MLPerf Inference asks an int8 network for 99 % of the float
# network's accuracy, which of 100 % is a point.
POINTS = 1.0


class Compared(NamedTuple):
    """The answers of an int8 file beside those of the float file.

    Attributes:
        images: how many images of the test set.
        top1: of the float file and of the int8 file, in %; None without
            labels.
        fidelity: what :func:`~sct_mm.evaluation.compare_scores` returns.
        expected_loss: see :func:`expected_loss`.
    """
    images: int
    top1: tuple[float, float] | None
    fidelity: dict[str, float]
    expected_loss: float

    def loss(self) -> tuple[float, str]:
        """What int8 costs, in points of top-1, or without labels in % of the
        top-1 that the float file expects of itself; and of what."""
        if self.top1:
            return self.top1[0] - self.top1[1], 'points of top-1'
        return (self.expected_loss,
                '% of the top-1 that the float file expects')


def expected_loss(reference: Tensor, scores: Tensor, each_class: bool
                  ) -> float:
    """The share in % of its top-1 that a reference expects to lose by other
    answers: the sum over all images of p(its class) - p(their class) over
    that of p(its class), with the probabilities p of the reference.

    Each image counts by what its change may cost: one of which the reference
    is sure by nearly 1, one between two classes of equal probability by
    nothing. This is our choice, for a comparison without labels
    (docs/export.md). It is the loss of top-1 if the reference is calibrated,
    and too large if that is over-confident.

    Args:
        reference: probabilities (N, C).
        scores: those of the other answers, (N, C). NaN is a wrong answer.
        each_class: whether a class is answered for alone, at 0.5.
    """
    p = reference.double()
    if each_class:
        own = torch.maximum(p, 1 - p)
        theirs = torch.where(scores > 0.5, p, 1 - p)
    else:
        own = p.amax(1, keepdim=True)
        theirs = p.gather(1, scores.argmax(1, keepdim=True))
    known = ~scores.isnan().any(1, keepdim=True)
    return 100 * float(1 - torch.where(known, theirs, 0).sum() / own.sum())


def scores_of(run: Run, images: Tensor, name: str, each_class: bool
              ) -> Tensor:
    """(N, classes) of a file for images (N, C, H, W).

    Args:
        name: of the file's output, 'logits' or 'scores'.
        each_class: whether a class is answered for alone.
    """
    found = torch.cat([run(part)[0] for part in images.split(_BATCH)])
    if name == 'scores':
        return found
    return found.sigmoid() if each_class else found.softmax(1)


def compare_answers(float_scores: Tensor, scores: Tensor,
                    labels: Sequence[int] | None, each_class: bool
                    ) -> Compared:
    """Compare the scores (N, classes) of an int8 file with those of the
    float file, and both with N ``labels``, if there are."""
    top1 = None
    if labels is not None:
        truth = torch.tensor(labels)
        first, second = (100 * float((each.argmax(1) == truth).double().mean())
                         for each in (float_scores, scores))
        top1 = first, second
    return Compared(len(scores), top1, compare_scores(
        float_scores, scores, each_class=each_class),
        expected_loss(float_scores, scores, each_class))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without onnxruntime's advice to optimize the graph, which the exporter
    has done."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def float_convolutions(model: Any) -> list[Any]:
    """The convolutions of an ONNX model whose weights are floats."""
    weights = {each.name for each in model.graph.initializer}
    return [node for node in model.graph.node
            if node.op_type == 'Conv' and node.input[1] in weights]


def quantized(data: bytes, images: Tensor, kept: int = 0) -> bytes:
    """An ONNX file whose convolutions and matrix products are of int8: static
    quantization by onnxruntime, with QDQ nodes, a scale for each channel of
    the weights.

    What stands before the first ``kept`` convolutions stays in float, and so
    do they, but for those whose input a later layer takes as int8, e.g. of
    two branches one: where its output is int8, too, onnxruntime quantizes
    such weights as it loads the file, without a scale for each channel
    (WeightBiasQuantization, microsoft/onnxruntime#22969), which loses much
    more (docs/export.md).

    Args:
        data: the float file.
        images: (N, C, H, W) to find the range of each activation on.
        kept: how many of the first convolutions may stay in float.
    """
    import onnx
    model = onnx.load_from_string(data)
    about = {each.key: each.value for each in model.metadata_props}
    nodes = list(model.graph.node)
    places = [place for place, node in enumerate(nodes)
              if node.op_type == 'Conv'][:kept]
    excluded = {node.name for node in nodes[:places[-1] + 1]
                } if places else set()
    while True:
        made = _quantized(data, images, excluded)
        ints = {name for node in made.graph.node
                if node.op_type == 'DequantizeLinear' for name in node.output}
        caught = {node.name for node in float_convolutions(made)
                  if node.input[0] in ints} & excluded
        if not caught:
            break
        excluded -= caught
    onnx.helper.set_model_props(made, about)
    return made.SerializeToString()


def _quantized(data: bytes, images: Tensor, excluded: set[str]) -> Any:
    """The int8 model of a float file; nodes of these names stay as they
    are."""
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(images.split(1))

        def get_next(self) -> Any:
            image = next(self.left, None)
            return None if image is None else dict(input=image.numpy())

    with tempfile.TemporaryDirectory() as folder, _quietly():
        path = osp.join(folder, 'int8.onnx')
        quantize_static(onnx.load_from_string(data), path, Reader(),
                        quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QUInt8,
                        weight_type=QuantType.QInt8,
                        nodes_to_exclude=sorted(excluded))
        return onnx.load(path)


def check_enough(images: int, tolerance: float) -> None:
    """Refuse so few ``images`` that one is more than the ``tolerance``.

    Raises:
        UserError: naming how many it takes.
    """
    if images * tolerance < 100 and tolerance:
        raise UserError(
            f'int8 must be compared on {math.ceil(100 / tolerance)} images '
            f'or more to lose at most {tolerance:g} %, but the test set '
            f'gives {images}. Name more in `test_dataloader` and '
            '`images`, or set `tolerance`.')


def make_int8(made: VerifiedFile, calibration: Tensor, images: Tensor,
              labels: Sequence[int] | None, each_class: bool,
              tolerance: float = POINTS) -> VerifiedFile:
    """The int8 file of a float file, if it answers nearly as well, with as
    few of :data:`KEPT` convolutions in float as that takes.

    Args:
        made: the float file, which was compared with the network.
        calibration: training images (N, C, H, W) as the network gets them.
        images: test images to compare the answers on.
        labels: of ``images``; None: the answers of the float file count.
        each_class: whether the network gives any number of labels.
        tolerance: what int8 may lose (:meth:`Compared.loss`).

    Raises:
        UserError: for a file that gives no scores of classes.
        RuntimeError: if int8 loses more.
    """
    import onnx
    name = made.entry['outputs'][0]
    if made.entry['outputs'] not in (['logits'], ['scores']):
        raise UserError('int8 is for classifiers, whose answers can be '
                        'compared, but the outputs are '
                        f'{", ".join(made.entry["outputs"])}. Leave int8 out.')
    before = graph_run('onnx', made.data)
    scores = scores_of(before, images, name, each_class)
    convolutions = len(float_convolutions(onnx.load_from_string(made.data)))
    for kept in KEPT:
        if kept and kept >= convolutions:
            break
        data = quantized(made.data, calibration, kept)
        after = graph_run('onnx', data)
        found = compare_answers(
            scores, scores_of(after, images, name, each_class), labels,
            each_class)
        loss, what = found.loss()
        floats = len(float_convolutions(onnx.load_from_string(data)))
        if loss <= tolerance:
            break
    if loss > tolerance:
        raise RuntimeError(
            f'int8 must lose at most {tolerance:g} {what}, but '
            f'loses {loss:.2f} on {found.images} images, with {floats} of its '
            f'first convolutions in float. No file was written: allow more '
            'by `tolerance`, calibrate on more images, or keep the float '
            'file.')
    one = images[:1]
    cost = compared(lambda: after(one), lambda: before(one))
    entry = dict(made.entry, int8=dict(
        images=found.images, calibration=len(calibration),
        float_convolutions=floats, top1=found.top1,
        expected_loss=found.expected_loss, **found.fidelity,
        float_bytes=len(made.data),
        latency_ms=cost['latency_ms'],
        float_latency_ms=cost['stock_latency_ms'],
        latency_ratio=cost['latency_ratio']))
    return VerifiedFile(data, entry, made.notes)
