"""Make one file for all sizes, and compare it with the network at trained
sizes, between them and outside of them, before anything is written."""
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..datasets.base_size import BaseSize
from ..evaluation.measure import compared, flops_of
from ..models.scratch_copy import copied
from .any_size import AnySize
from .failure_cause import first_line
from .formats import Graph, Run, graph_bytes, graph_run
from .network import (
    Part,
    choose_part,
    description,
    norms_in,
    without_other_classes,
)
from .verified_file import (
    Request,
    VerifiedFile,
    answers,
    check_parity,
    extracted,
)

WAY_OUT = 'another format or part, or one size by --size N'


def sizes_to_check(base: BaseSize) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes of a test that the scales serve, the largest first; and those
    at which a file is compared, too: three between them, where there are as
    many, and one on each side."""
    trained = tuple(dict.fromkeys(map(base.size_of, base.scales)))
    low, high = trained[-1], trained[0]
    between = [size for size in range(low + 1, high) if size not in trained]
    chosen = {between[len(between) * quarter // 4] for quarter in (1, 2, 3)
              if between}
    outside = {high + max(high // 8, 1), low - low // 8} - {low}
    return trained, tuple(sorted(chosen | outside, reverse=True))


def serving(size: int, base: BaseSize) -> int:
    """The scale, or the size between two, whose parameters serve a test at
    ``size`` pixels."""
    return min(max(base.scale_at(size), base.scales[-1]), base.scales[0])


def shape_tells(images: dict[int, list[Tensor]]) -> bool:
    """Whether the shorter edge of each batch (N, ..., H, W) is the size that
    it was made for."""
    return all(min(batch.shape[-2:]) == size
               for size, batches in images.items() for batch in batches)


def widened(images: Tensor) -> Tensor:
    """``images`` beside their mirror image, along the longer edge: a batch of
    another shape with the same shorter edge."""
    axis = -1 if images.shape[-1] >= images.shape[-2] else -2
    return torch.cat([images, images.flip(axis)], axis)


def bytes_of(tensors: Sequence[Tensor | None]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


class _Check:
    """Compares a file with the trained network at one size after another."""

    def __init__(self, model: nn.Module, base: BaseSize, part: str,
                 request: Request, run: Run, needs_size: bool) -> None:
        self.model, self.base, self.part = model, base, part
        self.request, self.run, self.needs_size = request, run, needs_size

    def run_at(self, size: int, run: Run | None = None
               ) -> Callable[[Tensor], list[Tensor]]:
        run = run or self.run
        if not self.needs_size:
            return run
        return lambda x: run(x, torch.tensor(size))

    def want(self, size: int, batches: list[Tensor]
             ) -> list[tuple[Tensor, ...]]:
        return answers(self.model, serving(size, self.base), self.part,
                       self.request.softmax, batches)

    def difference(self, size: int, batches: list[Tensor],
                   want: list[tuple[Tensor, ...]]) -> float:
        return check_parity(self.run_at(size), batches, want, size,
                            self.request, WAY_OUT)


@torch.no_grad()
def make_any_size(model: nn.Module, base: BaseSize,
                  images: Callable[[int], list[Tensor]], request: Request,
                  divisor: int, more_about: dict | None = None
                  ) -> VerifiedFile:
    """The graph of a network that serves every size.

    The graph takes the shorter edge of its input for the size. Where that is
    not the size of the test, as in a detector's padded images, whose longer
    edge may be limited, too, the size is an input of its own.

    Args:
        base: which scale serves a size.
        images: from a size in pixels to batches (N, ..., H, W) of the test
            set; the first has more than one image, the second has one.
        divisor: 0 if all images of a size have one shape; otherwise see
            :class:`~sct_mm.export.formats.Graph`.
        more_about: what the metadata say of images at the base.

    Raises:
        UserError, RuntimeError: for what cannot be exported with dynamic
            sizes, or does not compute what the network computes.
    """
    trained, others = sizes_to_check(base)
    batches = {size: images(size) for size in (*trained, *others)}
    needs_size = bool(divisor) or not shape_tells(batches)
    first = batches[trained[0]]
    plain = extracted(model, base.scales[0])
    part, note = choose_part(plain, first[0][:1], request.part,
                             request.softmax)
    net = AnySize(Part(copied(model), part, request.softmax),
                  base).eval()
    stock = Part(plain, part, request.softmax)
    named = stock.named_outputs(first[0][:1])
    outputs = list(named)
    more_about, note2 = without_other_classes(more_about or {}, named)
    gflops = [flops_of(partial(stock, batches[size][1])) / 1e9
              for size in trained]
    about = {**description(plain, base.test, part, outputs),
             **more_about, **about_sizes(base, needs_size),
             'gflops': gflops}
    data = graph_bytes(request.kind, Graph(
        net, first[0][:2].contiguous(), divisor or 1, outputs, about,
        torch.tensor(trained[0]) if needs_size else None), request.fuse,
        WAY_OUT)
    run = graph_run(request.kind, data)
    check = _Check(model, base, part, request, run, needs_size)
    notes: list[str] = [each for each in (note, note2) if each]
    rows = []
    for size, cost in zip(trained, gflops, strict=True):
        want = check.want(size, batches[size])
        difference = check.difference(size, batches[size], want)
        stock = Part(extracted(model, serving(size, base)), part,
                     request.softmax)
        one = batches[size][1]
        # As sct_mm.runtime opens it: much faster (docs/export.md).
        fixed = graph_run(request.kind, data, one.shape)
        rows.append(dict(size=size, difference=difference, gflops=cost,
                         **compared(partial(check.run_at(size, fixed), one),
                                    partial(stock, one))))
    more = [(size, batches[size]) for size in others]
    if not needs_size:  # first, behind the row of its size
        size = trained[-1]
        more.insert(0, (size, [widened(batches[size][0][:2])]))
    for size, each in more:
        try:
            want = check.want(size, each)
        except Exception as error:  # each host has its own
            notes.append(f'The network itself does not run on images of shape '
                         f'{tuple(each[0].shape)} ({first_line(error)}): the '
                         'file was not compared there.')
            continue
        difference = check.difference(size, each, want)
        if size in trained:
            rows[-1]['difference'] = max(rows[-1]['difference'], difference)
        else:
            rows.append(dict(size=size, difference=difference))
    entry = dict(part=part, outputs=outputs, norms=norms_in(plain),
                 difference=max(row['difference'] for row in rows),
                 weights_bytes=bytes_of([*plain.parameters(),
                                         *plain.buffers()]),
                 rows_bytes=bytes_of(net.tables()),
                 sizes=rows)
    return VerifiedFile(data, entry, notes)


def about_sizes(base: BaseSize, needs_size: bool) -> dict:
    """What a user of the file has to know of its sizes, all in pixels:
    ``size`` of the base, ``sizes`` of the test that the scales serve (as
    ``scales``, too, as in each file), and the inputs that tell the size."""
    sizes = list(sizes_to_check(base)[0])
    return dict(size=base.test, scales=sizes, sizes=sizes,
                train_base=base.train, test_base=base.test,
                size_from='input size' if needs_size else 'shorter edge')
