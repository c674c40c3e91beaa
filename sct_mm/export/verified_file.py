"""One size of a network as the bytes of a file that was run and compared."""
import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..evaluation.measure import compared
from ..models.extract import extract_scale
from ..models.pinning import use_scale
from ..models.size_selection import scales_of
from ..utils.errors import UserError
from .failure_cause import first_line
from .formats import (
    WEIGHTS,
    Graph,
    Run,
    graph_bytes,
    graph_run,
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
)


class Request(NamedTuple):
    """How a file is made; see :func:`export`."""
    kind: str
    part: str | None = None
    fuse: bool = True
    softmax: bool = False
    prefix: str = ''
    tolerance: float = 1e-4


class Made(NamedTuple):
    """A file that was compared with the network: its bytes, what a manifest
    says of it, and what there is to say beside, in sentences."""
    data: bytes
    entry: dict
    notes: list[str]


def extracted(model: nn.Module, size: int) -> nn.Module:
    """The plain network of ``size`` pixels; a model without SSBN is one."""
    if scales_of(model) is None:
        return copy.deepcopy(model).eval()
    return extract_scale(model, size).eval()


@torch.no_grad()
def answers(model: nn.Module, size: int, part: str, softmax: bool,
            batches: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """What the trained network, pinned to ``size``, gives for each batch:
    what every file of it must give."""
    net = Part(model, part, softmax)
    with use_scale(model, size if scales_of(model) else None):
        return [net(batch) for batch in batches]


def _part_at(model: nn.Module, prefix: str) -> nn.Module:
    """The module of ``model`` that a file of weights is for.

    Raises:
        UserError: for a name that is none.
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
                 request: Request, meta: dict) -> Made:
    """Names and shapes of a network that never knew SSBN, read back into one
    whose own weights were wiped out: it must answer to the bit.

    Raises:
        RuntimeError: if it does not.
    """
    part, _ = choose_part(extracted(model, size), batches[0], None)
    want = answers(model, size, part, False, batches)
    plain = extracted(model, size)
    target = _part_at(plain, request.prefix)
    data = weight_bytes(request.kind, target.state_dict(), meta)
    for value in target.state_dict().values():
        value.fill_(float('nan') if value.is_floating_point() else 0)
    target.load_state_dict(weights_in(request.kind, data))
    net = Part(plain, part)
    difference = max(relative_difference(net(batch), one)
                     for batch, one in zip(batches, want, strict=True))
    kept = _part_at(extracted(model, size), request.prefix).state_dict()
    read = target.state_dict()  # also of a head that did not run
    if difference > 0 or not all(torch.equal(kept[n], read[n]) for n in kept):
        raise RuntimeError(
            f'The {request.kind} file of size {size} must give what the '
            f'network gives to the bit, but differs by {difference:.1e} of '
            'the largest output. No file was written: something in the '
            'network is kept in no state dict.')
    return Made(data, dict(part=request.prefix or 'network',
                           tensors=len(read),
                           norms=norms_in(target), difference=0.0), [])


def largest_difference(kind: str, run: Run, batches: list[Tensor],
                       want: list[tuple[Tensor, ...]]) -> float:
    """The largest :func:`relative_difference` of a file from ``want``.

    Raises:
        RuntimeError: for images that the file cannot run, as those of
            another shape than it was made from.
    """
    largest = 0.0
    for batch, one in zip(batches, want, strict=True):
        refusal = None
        try:
            largest = max(largest, relative_difference(run(batch), one))
        except Exception as error:  # each runtime has its own
            refusal = first_line(error)
        if refusal:
            raise RuntimeError(
                f'The {kind} file cannot run images of shape '
                f'{tuple(batch.shape)} ({refusal}). No file was written: '
                'take another format or part.')
    return largest


def check_parity(size: int, kind: str, difference: float,
                 tolerance: float) -> None:
    """Refuse a file that does not compute what the network computes.

    Raises:
        RuntimeError: beyond ``tolerance``; see :func:`relative_difference`.
    """
    if not difference <= tolerance:
        raise RuntimeError(
            f'The {kind} file of size {size} differs from the network by '
            f'{difference:.1e} of the largest output on real images, more '
            f'than the tolerance {tolerance:.1e}. No file was written: leave '
            'the norms unfused, or take another format or part.')


@torch.no_grad()
def make_graph(model: nn.Module, size: int, batches: list[Tensor],
               request: Request, divisor: int) -> Made:
    """A graph of one size, for a deployment without Python's classes.

    Args:
        batches: the first has more than one image; a graph is made from
            its first two, and compared on all.
        divisor: see :class:`Graph`.

    Raises:
        UserError, RuntimeError: for what cannot be exported, or does not
            compute what the network computes.
    """
    plain = extracted(model, size)
    part, note = choose_part(plain, batches[0][:1], request.part,
                             request.softmax)
    stock = Part(plain, part, request.softmax)
    net, note2 = deployed(stock, batches[0], request.fuse, request.tolerance)
    told = description(plain, size, part)
    told['outputs'] = list(net.named_outputs(batches[0][:1]))
    data = graph_bytes(request.kind, Graph(
        net, batches[0][:2].contiguous(), divisor, told['outputs'], told),
        request.fuse)
    run = graph_run(request.kind, data)
    want = answers(model, size, part, request.softmax, batches)
    difference = largest_difference(request.kind, run, batches, want)
    check_parity(size, request.kind, difference, request.tolerance)
    cost = compared(lambda: run(batches[1]), lambda: stock(batches[1]))
    entry = dict(part=part, outputs=told['outputs'], norms=norms_in(net),
                 difference=difference, **cost)
    return Made(data, entry, [each for each in (note, note2) if each])


def make(model: nn.Module, size: int, batches: list[Tensor],
         request: Request, divisor: int, meta: dict) -> Made:
    """The file of ``request`` for one size; see the functions above."""
    if request.kind in WEIGHTS:
        return make_weights(model, size, batches, request, meta)
    return make_graph(model, size, batches, request, divisor)
