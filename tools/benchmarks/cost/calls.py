"""Measure what a call of SSBN costs relative to BN, on inputs so small that
Python decides, and a whole step of SCT relative to the plain steps."""
import argparse
import os.path as osp
import statistics
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from arms import Worker
from benchmark import Settings, ratios, spread
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from sct_mm.models.extract import extract_scale
from sct_mm.models.pinning import use_scale
from sct_mm.models.ssbn import SSBN
from sct_mm.utils.arguments import check_int
from sct_mm.utils.checkpoint import check_outputs, dump
from sct_mm.utils.cli import cli

SHAPE = (2, 8, 4, 4)
SCALE = 128  # whose images have the extent of SHAPE
LAYERS = 20  # of a chain
NETWORK = osp.join(osp.dirname(__file__), 'sct_resnet18_32px.py')


class Case(NamedTuple):
    """What takes turns: the same work with SSBN and with BN."""
    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    within: Callable[[], AbstractContextManager] = nullcontext
    calls: int = 100  # in a turn


def pair(layers: int, training: bool) -> tuple[nn.Module, nn.Module]:
    """A chain of SSBN layers that have seen each scale, and one of BN with
    their numbers at :data:`SCALE`."""
    norms = nn.Sequential(*(SSBN(SHAPE[1]) for _ in range(layers)))
    for scale in norms[0].scales:
        edge = SHAPE[-1] * scale // SCALE
        with use_scale(norms, scale):
            norms(torch.randn(*SHAPE[:2], edge, edge))
    ours = norms if layers > 1 else norms[0]
    return ours.train(training), extract_scale(ours, SCALE).train(training)


def _differentiated(module: nn.Module, x: Tensor) -> Tensor:
    """The output of a pass whose gradients are taken."""
    for tensor in (x, *module.parameters()):
        tensor.grad = None
    y = module(x)
    y.backward(torch.ones_like(y))
    return y


def _pass(norms: nn.Module, x: Tensor) -> Tensor:
    """A pass within a pin of its own, as SCTLossHook makes it."""
    with use_scale(norms, SCALE, record=True):
        return norms(x)


@contextmanager
def _inferring(norms: nn.Module, size: int | None,
               freeze: bool = False) -> Iterator[None]:
    with torch.no_grad(), use_scale(norms, size, freeze=freeze):
        yield


def cases() -> Iterator[Case]:
    """The rows of the table, but for the whole step."""
    x = torch.randn(SHAPE, requires_grad=True)
    ours, theirs = pair(1, training=True)
    for name, run in (('training forward', nn.Module.__call__),
                      ('forward and backward', _differentiated)):
        yield Case(name, partial(run, ours, x), partial(run, theirs, x),
                   partial(use_scale, ours, SCALE))
    chain, plain_chain = pair(LAYERS, training=True)
    yield Case(f'pin and training forward of {LAYERS} layers',
               partial(_pass, chain, x), partial(plain_chain, x),
               calls=100 // LAYERS)
    ours, theirs = pair(1, training=False)
    for name, size, freeze in (('pinned', SCALE, False),
                               ('pinned and frozen', SCALE, True),
                               ('unpinned', None, False)):
        yield Case(f'evaluation, {name}', partial(ours, x),
                   partial(theirs, x),
                   partial(_inferring, ours, size, freeze))


def whole_step() -> Case:
    """SCT's step of a ResNet-18 at 32 px, batch 2, and the plain steps at all
    of its scales."""
    settings = Settings(NETWORK, 2, 3, 1, ['per_scale'], None, False)
    ours = Worker('per_scale', None, settings)
    plain = [Worker('plain', scale, settings) for scale in ours.scales]
    return Case('a step of ResNet-18 / plain steps', ours._step,
                partial(_steps, plain), calls=1)


def _steps(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker._step()


def measured(case: Case, rounds: int) -> dict:
    """Microseconds of a call in each round: ``ours`` and ``theirs``."""
    timers = dict(ours=timeit.Timer(case.ours),
                  theirs=timeit.Timer(case.theirs))
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    with case.within():
        for index in range(rounds + 1):  # the first warms up
            for name, timer in timers.items():
                once = timer.timeit(case.calls) / case.calls
                if index:
                    seconds[name].append(once * 1e6)
    return dict(name=case.name, **seconds)


def calls(rounds: int = 50, out: str | None = None) -> list[dict]:
    """Measure all cases on one thread of a CPU, by turns.

    Args:
        rounds: turns of each, after one to warm up.
        out: write the result to this JSON file.

    Returns:
        list: for each case its ``name``, and the microseconds of a call in
        each round, ``ours`` and ``theirs``.

    Raises:
        UserError, ValueError: for too few rounds, or an ``out`` that cannot
            be written.
    """
    check_int('rounds', rounds, 3, 'The spread needs them.')
    if out:
        check_outputs([out], force=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [measured(case, rounds) for case in track(
            list(cases()), 'calls')]
        rows.append(measured(whole_step(), rounds))
    finally:
        torch.set_num_threads(threads)
    if out:
        dump(rows, out)
    return rows


def print_calls(rows: list[dict]) -> None:
    """Print what :func:`calls` returns."""
    table = Table(title=f'inputs of {SHAPE}, one thread; microseconds')
    table.add_column('call')
    for column in ('SSBN', 'BN', 'SSBN / BN'):
        table.add_column(column, justify='right')
    for row in rows:
        ours, theirs = row['ours'], row['theirs']
        table.add_row(row['name'], f'{statistics.median(ours):.1f}',
                      f'{statistics.median(theirs):.1f}',
                      spread(ratios(ours, theirs)))
    Console(width=110).print(table)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=50,
                        help='turns of each, after one to warm up')
    parser.add_argument('--out', help='write the result to this JSON file')
    return parser.parse_args()


def main() -> None:
    print_calls(calls(**vars(parse_args())))


if __name__ == '__main__':
    cli(main)
