"""Which networks of the installed hosts SSBN and SCT work in, as a table.

It writes coverage.md and coverage.json, and goes on where it was stopped.
"""
import argparse
import os

from sct_mm.utils.cli import cli
from run import coverage
from sct_mm.evaluation.coverage_hosts import HOSTS
from report import right


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--hosts', nargs='+', default=HOSTS,
                        help='of ' + ', '.join(HOSTS) + '; default: all')
    parser.add_argument('--only', default='', metavar='REGEX',
                        help='which host/family must contain')
    parser.add_argument('--out', default='docs', metavar='DIR')
    parser.add_argument('--jobs', type=int, default=1,
                        help='processes at once, of one thread each')
    parser.add_argument('--again', action='store_true',
                        help='try also what the table has')
    parser.add_argument('--limit', type=float, default=600, metavar='SECONDS',
                        help='for one family')
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, but got {args.jobs}.')
    return args


def main() -> None:
    # Before the processes start that import torch.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    rows = [row for row in coverage(**vars(parse_args())) if row['norms']
            or row['note']]
    exceptions = [row for row in rows if not right(row)]
    for row in exceptions:
        print(f'{row["host"]}/{row["family"]}: {row["note"]}')
    print(f'{len(rows) - len(exceptions)} of {len(rows)} families are right.')


if __name__ == '__main__':
    cli(main)
