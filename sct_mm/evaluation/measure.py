"""Measure what a network costs at one input size: FLOPs, latency, throughput,
stride."""
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    contextmanager,
    nullcontext,
    suppress,
)
from functools import partial
from typing import Any

import torch
from mmengine.dist import is_main_process
from rich.progress import Progress
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..models.pinning import use_scale
from ..models.scratch_copy import keeping_random_state, scratch_copy
from ..models.size_selection import scales_of

WORTHLESS = 0.25  # of a median, between its quartiles
SECONDS = 0.5  # for each timer, calls that warm up included
ROUNDS = 5  # at least


def timed(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call of ``run``, its GPU work included."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


class _WholeNetwork(nullcontext):
    """In place of torch's tracker of modules, whose hooks fail on a module
    that takes a part of a parameter (``torch.split``), as in mmdet's
    Deformable DETR: all operations count as those of one module."""
    parents = ('Global', )


@torch.no_grad()
def flops_of(run: Callable[[], object]) -> float:
    """Multiply-adds of the convolutions and matrix products in one call of
    ``run``, as OpenMMLab's tables count them (ResNet-50 at 224: 4.09e9)."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _WholeNetwork()  # type: ignore[assignment]
    with counter:
        run()
    return counter.get_total_flops() / 2


def first_images(loader: Any, count: int) -> dict:
    """A collated batch of the first ``count`` images of ``loader``."""
    return loader.collate_fn([loader.dataset[i] for i in range(count)])


def kept_batch(loader: Any, batch: dict, limit: int) -> dict:
    """``batch``, or, if it has more than ``limit`` bytes, a batch of as many
    first images as fit: the batches of all sizes stay in memory."""
    count = len(batch['inputs'])
    size = sum(getattr(image, 'nbytes', 0) for image in batch['inputs'])
    if size <= limit:
        return batch
    return first_images(loader, max(1, count * limit // size))


def spread_of(name: str, unit: str, values: Sequence[float]) -> dict:
    """Median, quartiles and reliability of ``values``, two at least, as a row
    of :func:`sct_mm.apis.test` has them.

    A median is reliable if its quartiles lie at most :data:`WORTHLESS` of it
    apart; otherwise other work of the machine dominates.
    """
    low, middle, high = statistics.quantiles(values, n=4)
    return {f'{name}_{unit}': middle, f'{name}_{unit}_quartiles': [low, high],
            f'{name}_reliable': high - low <= WORTHLESS * middle}


class Timer:
    """Times of a call that :func:`take_turns` measures in turns with others.

    Args:
        run: the call.
        images: how many images it computes.
        warm_up: called before, untimed, in each turn, since the turns of
            others have filled the caches; None: ``run``.
        turn: seconds of calls in a turn; one call at least.
        within: makes the context of a turn, which is not timed.
    """

    def __init__(self, run: Callable[[], object], images: int = 1,
                 warm_up: Callable[[], object] | None = None,
                 turn: float = 0.0,
                 within: Callable[[], AbstractContextManager] = nullcontext
                 ) -> None:
        self.run, self.images, self.warm_up = run, images, warm_up or run
        self.least, self.within = turn, within
        self.seconds: list[float] = []  # of each call

    @torch.no_grad()
    def turn(self) -> None:
        with self.within():
            self.warm_up()
            spent = timed(self.run)
            self.seconds.append(spent)
            while spent < self.least:
                self.seconds.append(timed(self.run))
                spent += self.seconds[-1]

    def latency(self) -> dict:
        """:func:`spread_of` the milliseconds of a call."""
        return spread_of('latency', 'ms', [s * 1e3 for s in self.seconds])

    def throughput(self) -> dict:
        """:func:`spread_of` the images per second."""
        return spread_of('images', 'per_s',
                         [self.images / s for s in self.seconds])


def take_turns(timers: Sequence[Timer]) -> Iterator[float]:
    """Measure ``timers`` in rounds, so that what else the machine does slows
    all of them alike; yields the share that is done after each turn.

    There are as many rounds as :data:`SECONDS` for each timer allow, but
    :data:`ROUNDS` at least, after one that warms up and does not count.
    """
    for timer in timers:
        timer.turn()
        timer.seconds.clear()
        yield 0.0
    start, done = time.perf_counter(), 0
    total = SECONDS * len(timers)
    while done < ROUNDS or time.perf_counter() - start < total:
        for timer in timers:
            timer.turn()
            spent = (time.perf_counter() - start) / total if total else 1.0
            yield min(spent, (done + 1) / ROUNDS)
        done += 1


def progress_bar() -> Progress:
    """A bar that vanishes, and that a pipe or a second process never has."""
    bar = Progress(transient=True)
    bar.disable = not (bar.console.is_terminal and is_main_process())
    return bar


def measure_times(timers: Sequence[Timer]) -> None:
    """:func:`take_turns` to the end, with a bar of its progress."""
    with progress_bar() as bar:
        task = bar.add_task('latency', total=1.0)
        for share in take_turns(timers):
            bar.update(task, completed=share)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch computes on one thread: those of two runtimes that take
    turns hinder each other, since they wait for work by spinning."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compared(file: Callable[[], object], stock: Callable[[], object]) -> dict:
    """Medians in milliseconds of a file and of the stock network, on one
    thread, and the quartiles of their ratio within a round."""
    timers = Timer(file), Timer(stock)
    with one_thread():
        measure_times(timers)
    ratios = [one / other for one, other in zip(
        *(timer.seconds for timer in timers), strict=True)]
    own, other = (timer.latency()['latency_ms'] for timer in timers)
    return dict(latency_ms=own, stock_latency_ms=other,
                latency_ratio=statistics.quantiles(ratios, n=4))


@torch.no_grad()
def network_stride(model: nn.Module, channels: int,
                   size: int = 256) -> int | None:
    """Total stride of the network's convolutions, in pixels of the input;
    None if the network cannot run at ``size`` pixels, or has no grid.

    The maps of a pass in evaluation mode tell the stride; if the host has
    ``extract_feat``, only that runs, since a head may need samples. It runs on
    a copy, so that nothing in the network counts the pass. ``size``
    must be a multiple of the stride. Maps of one element do not count: they
    lie behind a pooling.
    """
    device = next(model.parameters()).device
    image = torch.zeros(1, channels, size, size, device=device)
    with suppress(Exception):  # what cannot be copied runs itself
        model = scratch_copy(model)
    modes = [(module, module.training) for module in model.modules()]
    base = (scales_of(model) or (None, ))[0]
    model.eval()
    try:
        for run in (getattr(model, 'extract_feat', None), model):
            # Which scale it is does not matter.
            with use_scale(model, base), keeping_random_state(model):
                edges = run and _edges_of(partial(run, image), model)
            if edges:
                edge = min((e for e in edges if e > 1), default=size)
                # Convolutions without padding, as Inception's, have no grid
                # that a size could fit.
                return None if size % edge else size // edge
    finally:
        for module, mode in modes:
            module.training = mode
    return None


def _edges_of(run: Callable[[], object],
              model: nn.Module) -> list[int] | None:
    """The shorter edge of each convolution's map during ``run``; None if
    ``run`` fails, as that of a network that takes only one size, or needs
    samples."""
    edges: list[int] = []

    def note(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        edges.append(min(output.shape[2:]))

    handles = [module.register_forward_hook(note)
               for module in model.modules() if isinstance(module, nn.Conv2d)]
    try:
        run()
    except Exception:  # each host has its own
        return None
    finally:
        for handle in handles:
            handle.remove()
    return edges
