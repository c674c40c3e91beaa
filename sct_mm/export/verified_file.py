"""Make the file of one size of a network, run it, and compare what it computes
with the network, before anything is written."""
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..evaluation.measure import compared, flops_of
from ..models.extract import extract_scale
from ..models.pinning import use_scale
from ..models.scratch_copy import copied
from ..models.size_selection import scales_of
from ..utils.errors import UserError
from .failure_cause import first_line
from .formats import (
    WEIGHTS,
    Graph,
    Run,
    graph_bytes,
    graph_run,
    norms_of_onnx,
    weight_bytes,
    weights_in,
)
from .network import (
    Part,
    choose_part,
    deployed,
    description,
    norms_in,
    relative_difference,
    without_other_classes,
)


class Request(NamedTuple):
    """How a file is made; see :func:`~sct_mm.apis.export`, whose ``format``
    is ``kind``; ``calibration`` images make int8, 0 none."""
    kind: str
    part: str | None = None
    fuse: bool = True
    softmax: bool = False
    prefix: str = ''
    tolerance: float = 1e-4
    calibration: int = 0


class VerifiedFile(NamedTuple):
    """The bytes of a file that computes what the network computes, its entry
    in the manifest, and notes for the user, in sentences."""
    data: bytes
    entry: dict
    notes: list[str]


def extracted(model: nn.Module, scale: int) -> nn.Module:
    """The plain network of ``scale``, which a model without SSBN is
    already; a copy, in evaluation mode."""
    if scales_of(model) is None:
        return copied(model).eval()
    return extract_scale(model, scale).eval()


@torch.no_grad()
def answers(model: nn.Module, scale: int, part: str, softmax: bool,
            batches: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """The outputs of the trained network at ``scale`` for each batch, with
    which a file is compared."""
    net = Part(model, part, softmax)
    with use_scale(model, scale if scales_of(model) else None):
        return [net(batch) for batch in batches]


def _part_at(model: nn.Module, prefix: str) -> nn.Module:
    """The module of ``model`` whose weights are exported.

    Raises:
        UserError: if no module has the name ``prefix``.
    """
    try:
        return model.get_submodule(prefix)
    except AttributeError:
        pass
    names = ', '.join(name for name, _ in model.named_children())
    raise UserError('`prefix` must name a part of the network, whose names '
                    f'are then its own, but got {prefix!r}. Name one of '
                    f'{names}, or a part of theirs.')


@torch.no_grad()
def make_weights(model: nn.Module, size: int, batches: list[Tensor],
                 request: Request, meta: dict,
                 scale: int | None = None) -> VerifiedFile:
    """A file of weights that the stock network takes. It is read back into a
    network whose weights were overwritten by NaN.

    Args:
        scale: that serves ``size``; None: ``size`` itself.

    Raises:
        RuntimeError: if that network does not answer as the trained one, to
            the bit.
    """
    scale = scale or size
    part, _ = choose_part(extracted(model, scale), batches[0], None)
    want = answers(model, scale, part, False, batches)
    plain = extracted(model, scale)
    target = _part_at(plain, request.prefix)
    data = weight_bytes(request.kind, target.state_dict(), meta)
    for value in target.state_dict().values():
        value.fill_(float('nan') if value.is_floating_point() else 0)
    target.load_state_dict(weights_in(request.kind, data))
    net = Part(plain, part)
    difference = max(relative_difference(net(batch), one)
                     for batch, one in zip(batches, want, strict=True))
    kept = _part_at(extracted(model, scale), request.prefix).state_dict()
    read = target.state_dict()  # with weights that the part does not use
    if difference > 0 or not all(torch.equal(kept[n], read[n]) for n in kept):
        raise RuntimeError(
            f'The {request.kind} file of size {size} must give what the '
            f'network gives to the bit, but differs by {difference:.1e} of '
            'the largest output. No file was written: something in the '
            'network is kept in no state dict.')
    return VerifiedFile(data, dict(
        part=request.prefix or 'network', tensors=len(read),
        norms=norms_in(target), difference=0.0), [])


def check_parity(run: Run, batches: list[Tensor],
                 want: list[tuple[Tensor, ...]], size: int,
                 request: Request,
                 way_out: str = 'another format or part') -> float:
    """The largest :func:`relative_difference` of a file from ``want``.

    Args:
        way_out: what the user is to take if it differs, or does not run.

    Raises:
        RuntimeError: if it is more than the tolerance, or if the file cannot
            run a batch, e.g. one of another shape than it was traced with.
    """
    kind, largest = request.kind, 0.0
    for batch, one in zip(batches, want, strict=True):
        try:
            largest = max(largest, relative_difference(run(batch), one))
        except Exception as error:  # each runtime has its own
            raise RuntimeError(
                f'The {kind} file cannot run images of shape '
                f'{tuple(batch.shape)} ({first_line(error)}). No file was '
                f'written: take {way_out}.') from error
    if not largest <= request.tolerance:
        raise RuntimeError(
            f'The {kind} file of size {size} differs from the network by '
            f'{largest:.1e} of the largest output on real images, more than '
            f'the tolerance {request.tolerance:.1e}. No file was written: '
            f'leave the norms unfused, or take {way_out}.')
    return largest


@torch.no_grad()
def make_graph(model: nn.Module, size: int, batches: list[Tensor],
               request: Request, divisor: int,
               scale: int | None = None,
               images: dict | None = None) -> VerifiedFile:
    """The file of a graph, which runs without the Python code of a network.

    Args:
        batches: the first has more than one image, the second has one. The
            graph is traced with the first two, and compared on all batches.
        divisor: see :class:`~sct_mm.export.formats.Graph`.
        scale: that serves ``size``; None: ``size`` itself.
        images: what the file says of its images, beside their normalization.

    Raises:
        UserError, RuntimeError: for what cannot be exported, or does not
            compute what the network computes.
    """
    scale = scale or size
    plain = extracted(model, scale)
    part, note = choose_part(plain, batches[0][:1], request.part,
                             request.softmax)
    stock = Part(plain, part, request.softmax)
    net, note2 = deployed(stock, batches[0], request.fuse, request.tolerance)
    named = net.named_outputs(batches[0][:1])
    outputs = list(named)
    images, note3 = without_other_classes(images or {}, named)
    gflops = flops_of(partial(net, batches[1])) / 1e9
    data = graph_bytes(request.kind, Graph(
        net, batches[0][:2].contiguous(), divisor, outputs,
        {**description(plain, size, part, outputs), 'gflops': [gflops],
         **images}), request.fuse)
    run = graph_run(request.kind, data)
    want = answers(model, scale, part, request.softmax, batches)
    difference = check_parity(run, batches, want, size, request)
    cost = compared(lambda: run(batches[1]), lambda: stock(batches[1]))
    norms = norms_in(net)
    if request.kind == 'onnx':  # whose exporter fuses what mmcv cannot
        norms = norms_of_onnx(data)
        note2 = note2 if norms else ''
    entry = dict(part=part, outputs=outputs, norms=norms,
                 difference=difference, gflops=gflops, **cost)
    return VerifiedFile(data, entry, [
        each for each in (note, note2, note3) if each])


def make_file(model: nn.Module, size: int, batches: list[Tensor],
              request: Request, divisor: int, meta: dict,
              scale: int | None = None) -> VerifiedFile:
    """The file of ``request`` for one size: weights or a graph; ``meta`` is
    plain data that it keeps."""
    if request.kind in WEIGHTS:
        return make_weights(model, size, batches, request, meta, scale)
    return make_graph(model, size, batches, request, divisor, scale, meta)
