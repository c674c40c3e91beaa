"""Compare a file for any size with the files of one size each: processor time
of one image on one CPU thread, by turns."""
import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from sct_mm.runtime import NetworkFile, files_in, sizes_in
from sct_mm.utils.arguments import check_int
from sct_mm.utils.cli import cli
from sct_mm.utils.errors import UserError

FORMS = ('one size', 'fixed shape', 'dynamic shape')


def forms(one: NetworkFile, anyone: NetworkFile, size: int
          ) -> dict[str, Callable[[], object]]:
    """One pass at ``size`` pixels: by the file of one size, and by that for
    any size in a session of fixed and of dynamic shape."""
    channels = one.session.get_inputs()[0].shape[1]
    x = np.random.default_rng(0).standard_normal(
        (1, channels, size, size)).astype(np.float32)
    inputs = {'input': x}
    return dict(zip(FORMS, (
        lambda: one.run(x), lambda: anyone.run(x),
        lambda: anyone.session.run(None, inputs)), strict=True))


def by_turns(calls: dict[str, Callable[[], object]], rounds: int
             ) -> dict[str, float]:
    """The median milliseconds of processor time of each call; a first round
    warms up."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            spent[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(times[1:])
            for name, times in spent.items()}


def compare(any_file: str, folder: str, rounds: int = 30
            ) -> dict[int, dict[str, float]]:
    """{size: {form: milliseconds}} for each size of the folder.

    Args:
        any_file: ONNX file of ``tools/export.py --size any``.
        folder: that of ``--size all --format onnx``.

    Raises:
        UserError: for a file of one size as ``any_file``.
    """
    check_int('rounds', rounds, 1, 'Give e.g. 30.')
    anyone = NetworkFile(any_file, 1)
    if not anyone.any_size:
        raise UserError('`any_file` must be a file for any size, but '
                        f'{any_file!r} is for {anyone.sizes[0]} pixels. '
                        'Export it by --size any.')
    files = sizes_in([NetworkFile(path, 1) for path in files_in(folder)])
    return {size: by_turns(forms(one, anyone, size), rounds)
            for size, one in files.items()}


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('any_file', help='ONNX of tools/export.py --size any')
    parser.add_argument('folder', help='of tools/export.py --size all')
    parser.add_argument('--rounds', type=int, default=30, metavar='N',
                        help='passes of each form at each size; default: 30')
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    table = Table(title='ms of processor time, and relative to one size')
    for name in ('size', *FORMS):
        table.add_column(name, justify='right')
    for size, spent in compare(args.any_file, args.folder,
                               args.rounds).items():
        one = spent[FORMS[0]]
        table.add_row(str(size), *(f'{each:.2f} ({each / one:.2f})'
                                   for each in spent.values()))
    Console().print(table)


if __name__ == '__main__':
    cli(main)
