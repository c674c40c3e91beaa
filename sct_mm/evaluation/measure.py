"""Cost of a network at one input size: FLOPs, latency, throughput, stride."""
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.runner.amp import autocast
from rich.progress import Progress
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..models.pinning import use_scale
from ..models.size_selection import scales_of

WORTHLESS = 0.25  # of a median, between its quartiles
TURN = 0.02  # seconds of calls for one image in a turn, one call at least


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


@torch.no_grad()
def flops_of(run: Callable[[], object]) -> float:
    """Multiply-adds of the convolutions and matrix products in one call of
    ``run``, as OpenMMLab's tables count them (ResNet-50 at 224: 4.09e9)."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2


def spread_of(name: str, unit: str, values: Sequence[float]) -> dict:
    """Median, quartiles and worth of ``values``, two at least, as a row of
    :func:`test_scales` has them.

    A median is reliable where its quartiles lie at most :data:`WORTHLESS` of
    it apart: on a busy machine it tells of the machine.
    """
    low, middle, high = statistics.quantiles(values, n=4)
    return {f'{name}_{unit}': middle, f'{name}_{unit}_quartiles': [low, high],
            f'{name}_reliable': high - low <= WORTHLESS * middle}


def first_images(loader: Any, count: int) -> dict:
    """A collated batch of the first ``count`` images of ``loader``."""
    return loader.collate_fn([loader.dataset[i] for i in range(count)])


def kept_batch(loader: Any, batch: dict, limit: int) -> dict:
    """``batch``, or of more than ``limit`` bytes as many of the first
    images as go into them: those of all sizes are kept."""
    count = len(batch['inputs'])
    size = sum(getattr(image, 'nbytes', 0) for image in batch['inputs'])
    if size <= limit:
        return batch
    return first_images(loader, max(1, count * limit // size))


class Workload:
    """A model at one size, whose time is taken in turns with that of others.

    Args:
        size: pixels, to which SSBN is pinned.
        one: a collated batch of one image, as the data loader gives it.
        batch: a collated batch of the size to measure throughput with.
        fp16: whether the test's loop runs the model in reduced precision.
    """

    def __init__(self, model: nn.Module, size: int, one: dict,
                 batch: dict, fp16: bool = False) -> None:
        self.model, self.size, self.one, self.batch = model, size, one, batch
        self.fp16 = fp16
        self.singles: list[float] = []  # seconds of a call
        self.batches: list[float] = []

    @torch.no_grad()
    def turn(self) -> None:
        """Time calls for one image, and one for the batch."""
        with use_scale(self.model, self.size), autocast(enabled=self.fp16):
            # The others were in the caches, and rows mix at the first call.
            self.model.test_step(self.one)
            spent = 0.0
            while spent < TURN:
                self.singles.append(timed(
                    lambda: self.model.test_step(self.one)))
                spent += self.singles[-1]
            self.batches.append(timed(
                lambda: self.model.test_step(self.batch)))

    def times(self) -> dict:
        """Milliseconds for one image and images per second in batches,
        as :func:`spread_of` gives them."""
        images = len(self.batch['inputs'])
        return {**spread_of('latency', 'ms', [s * 1e3 for s in self.singles]),
                **spread_of('images', 'per_s',
                            [images / s for s in self.batches])}


def take_turns(workloads: Sequence[Workload], seconds: float = 1.0,
               least: int = 5) -> Iterator[float]:
    """Measure ``workloads`` in rounds, so that what else the machine does
    meets all alike; yields the share that is done after each turn.

    Args:
        seconds: for each workload, in all; but see ``least``.
        least: rounds at least, after one that warms up and does not count.
    """
    for each in workloads:
        each.turn()
        each.singles.clear()
        each.batches.clear()
        yield 0.0
    start, done = time.perf_counter(), 0
    total = seconds * len(workloads)
    while done < least or time.perf_counter() - start < total:
        for each in workloads:
            each.turn()
            spent = time.perf_counter() - start
            yield min(spent / total, (done + 1) / least)
        done += 1


def progress_bar() -> Progress:
    """A bar that vanishes, and that a pipe or a second process never has."""
    bar = Progress(transient=True)
    bar.disable = not (bar.console.is_terminal and is_main_process())
    return bar


def measure_times(workloads: Sequence[Workload]) -> None:
    """:func:`take_turns` to the end, with a bar of its progress."""
    with progress_bar() as bar:
        task = bar.add_task('latency', total=1.0)
        for share in take_turns(workloads):
            bar.update(task, completed=share)


@torch.no_grad()
def network_stride(model: nn.Module, channels: int,
                   size: int = 256) -> int | None:
    """Total stride of the network's convolutions, in pixels of the input;
    None where no pass can be made at ``size`` pixels, or it tells nothing.

    It is read off a pass in evaluation mode: the features' alone where the
    host has ``extract_feat``, since a head may need samples. ``size`` must be
    a multiple of the stride. Maps of one element do not count: they lie
    behind a pooling.
    """
    device = next(model.parameters()).device
    image = torch.zeros(1, channels, size, size, device=device)
    modes = [(module, module.training) for module in model.modules()]
    base = (scales_of(model) or (None, ))[0]
    model.eval()
    try:
        for run in (getattr(model, 'extract_feat', None), model):
            with use_scale(model, base):  # which it is does not matter
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
    """The shorter edge of each convolution's map during ``run``; None if it
    fails, as a network does that takes one size, or samples, alone."""
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


WARM_UP, LEAST = 3, 10  # rounds
BUDGET = 2.0  # seconds, for all that is compared


def quartiles(values: list[float]) -> list[float]:
    """The first quartile, the median and the third quartile."""
    return statistics.quantiles(values, n=4, method='inclusive')


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


def by_turns(runs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Wall-clock milliseconds of single calls of each of ``runs``, which take
    turns: what slows the machine slows them alike.

    At least LEAST rounds, and more until BUDGET seconds are spent.
    """
    for run in runs.values():
        for _ in range(WARM_UP):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    while len(times[next(iter(runs))]) < LEAST or (
            time.perf_counter() - start < BUDGET):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - begin) * 1e3)
    return times


def compared(file: Callable[[], object], stock: Callable[[], object]) -> dict:
    """Medians in milliseconds of a file and of the stock network, on one
    thread, and the quartiles of their ratio within a round."""
    with one_thread():
        times = by_turns(dict(file=file, stock=stock))
    ratios = [one / other for one, other in zip(times['file'],
                                                times['stock'], strict=True)]
    return dict(latency_ms=statistics.median(times['file']),
                stock_latency_ms=statistics.median(times['stock']),
                latency_ratio=quartiles(ratios))
