"""Choose an input size within limits of cost or quality, by the result of
tools/test.py; or within a latency that exported files have on this machine."""
import argparse
import re

from sct_mm.apis import pick, pick_file
from sct_mm.utils.cli import cli

UNITS = {'': 1.0, 'ms': 1.0, 's': 1e3, 'us': 1e-3}


def milliseconds(text: str) -> float:
    """'5ms', '0.005s' or '5' in milliseconds."""
    match = re.fullmatch(r'([\d.]+) ?([a-z]*)', text.strip())
    if not match or match[2] not in UNITS:
        raise ValueError(text)
    return float(match[1]) * UNITS[match[2]]


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('result', nargs='?',
                        help='scales.json of tools/test.py')
    parser.add_argument(
        '--file', metavar='ONNX',
        help='instead, measure this file of tools/export.py, or the folder of '
        'its --size all, and take the largest size within --max-latency')
    parser.add_argument(
        '--threads', type=int, default=1, metavar='N',
        help='of the CPU, for --file; default: 1')
    parser.add_argument(
        '--max-latency', type=milliseconds, metavar='5ms',
        help='choose the best size within this latency of one image')
    parser.add_argument(
        '--max-gflops', type=float, metavar='1.5',
        help='choose the best size within so many GFLOPs (1e9 multiply-adds)')
    parser.add_argument(
        '--min', nargs=2, action='append', default=[],
        metavar=('accuracy/top1', '88'),
        help='choose the cheapest size whose metric, a column of the table of '
        'tools/test.py, is at least this number: two words; with a limit of '
        'cost, the best size within both (repeatable)')
    parser.add_argument(
        '--metric', metavar='accuracy/top1',
        help='the metric to choose the best size by: the highest, or of '
        'errors (NME, EPE, ...) the lowest; default: the first of the result')
    parser.add_argument(
        '--out', metavar='PNG',
        help='plot of all sizes; default: pareto.png beside the result')
    args = parser.parse_args(argv)
    if (args.result is None) == (args.file is None):
        parser.error('name either a result of tools/test.py or --file')
    if args.file and (args.max_latency is None or args.max_gflops or args.min
                      or args.metric or args.out):
        parser.error('--file is picked by --max-latency alone')
    try:
        least = {name: float(value) for name, value in args.min}
    except ValueError:
        given = ' and '.join(map(' '.join, args.min))
        parser.error(f'--min must be a metric and a number, but got {given}. '
                     'Write e.g. --min accuracy/top1 88')
    if len(least) < len(args.min):
        given = ' and '.join(map(' '.join, args.min))
        parser.error(f'--min must name each metric once, but got {given}. '
                     'Leave one of them out')
    args.min = least
    return args


def print_file(found: dict) -> None:
    """Print what :func:`~sct_mm.apis.pick_file` returned."""
    for size, spent in found['latencies'].items():
        print(f'{size} pixels: {spent:.3g} ms an image')
    print(f'The largest size within the limit is {found["size"]} pixels: '
          f'{found["file"]}')


def main() -> None:
    args = parse_args()
    if args.file:
        print_file(pick_file(args.file, args.max_latency, args.threads))
        return
    found = pick(args.result, args.max_latency, args.max_gflops, args.min,
                 args.metric, args.out)
    row = found['row']
    values = ', '.join(f'{name} {value:.4g}'
                       for name, value in row['metrics'].items())
    print(f'{row["scale"]} pixels of {found["model"]["label"]}: {values}, '
          f'{row["gflops"]:.4g} GFLOPs, {row["latency_ms"]:.2f} ms an image '
          f'({found["device"] or "an unknown device"}).')
    if row.get('latency_reliable') is False:
        print('Its latency varied much when it was measured: test it again '
              'on a quiet machine before you rely on it.')
    print(f'{found["plot"]} shows all sizes. To export this one:')
    print(found['command'])


if __name__ == '__main__':
    cli(main)
