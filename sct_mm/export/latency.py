"""Latencies that are compared: measured by turns, in one run."""
import statistics
import time
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List

import torch

WARM_UP, LEAST = 3, 10  # rounds
BUDGET = 2.0  # seconds, for all that is compared


def quartiles(values: List[float]) -> List[float]:
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


def by_turns(runs: Dict[str, Callable[[], object]]) -> Dict[str, List[float]]:
    """Wall-clock milliseconds of single calls of each of ``runs``, which take
    turns: what slows the machine slows them alike.

    At least LEAST rounds, and more until BUDGET seconds are spent.
    """
    for run in runs.values():
        for _ in range(WARM_UP):
            run()
    times: Dict[str, List[float]] = {name: [] for name in runs}
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
                                                times['stock'])]
    return dict(latency_ms=statistics.median(times['file']),
                stock_latency_ms=statistics.median(times['stock']),
                latency_ratio=quartiles(ratios))
