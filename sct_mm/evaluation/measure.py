"""Cost of a network at one input size: FLOPs, latency, throughput, stride."""
import statistics
import time
from functools import partial
from typing import Callable, List, Optional

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


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


def seconds_of(run: Callable[[], object], budget: float = 1.0,
               least: int = 5) -> List[float]:
    """Wall-clock seconds of single calls of ``run`` after two to warm up:
    at least ``least`` calls, and more until ``budget`` seconds are spent."""
    times: List[float] = []
    for _ in range(2):
        run()
    while len(times) < least or sum(times) < budget:
        times.append(timed(run))
    return times


@torch.no_grad()
def flops_of(run: Callable[[], object]) -> float:
    """Multiply-adds of the convolutions and matrix products in one call of
    ``run``, as OpenMMLab's tables count them (ResNet-50 at 224: 4.09e9)."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2


@torch.no_grad()
def cost_of(model: nn.Module, one: dict, batch: dict) -> dict:
    """GFLOPs and milliseconds of ``model.test_step`` for one picture, and
    pictures per second in batches.

    The GFLOPs are those of :func:`flops_of`. Times are medians and include
    the preprocessor and the post-processing, not the loading.

    Args:
        one: a collated batch of one picture, as the data loader gives it.
        batch: a collated batch of the size to measure throughput with.
    """
    gflops = flops_of(lambda: model.test_step(one)) / 1e9
    latency = statistics.median(seconds_of(lambda: model.test_step(one)))
    batched = statistics.median(seconds_of(lambda: model.test_step(batch)))
    return dict(
        gflops=gflops,
        latency_ms=latency * 1e3,
        pictures_per_s=len(batch['inputs']) / batched)


@torch.no_grad()
def network_stride(model: nn.Module, channels: int,
                   size: int = 256) -> Optional[int]:
    """Total stride of the network's convolutions, in pixels of the input;
    None where no pass can be made at ``size`` pixels, or it tells nothing.

    It is read off a pass in evaluation mode: the features' alone where the
    host has ``extract_feat``, since a head may need samples. ``size`` must be
    a multiple of the stride. Maps of one element do not count: they lie
    behind a pooling.
    """
    device = next(model.parameters()).device
    picture = torch.zeros(1, channels, size, size, device=device)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for run in (getattr(model, 'extract_feat', None), model):
            edges = run and _edges_of(partial(run, picture), model)
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
              model: nn.Module) -> Optional[List[int]]:
    """The shorter edge of each convolution's map during ``run``; None if it
    fails, as a network does that takes one size, or samples, alone."""
    edges: List[int] = []

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
