"""Train and test every arm of an experiment; a table and a figure.

Each arm runs in work_dirs/reproduce/ARM/SEED with the commands a user types;
what is done is not done again. Where it was interrupted it goes on.
"""
import argparse
import os
import os.path as osp

from sct_mm.utils.cli import cli
from sct_mm.utils.package import is_installed, shipped
from experiments import EXPERIMENTS
from reproduce import reproduce


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('experiment', choices=EXPERIMENTS)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--out', default=osp.join('work_dirs', 'reproduce'))
    parser.add_argument('--dry-run', action='store_true',
                        help='print the commands instead of running them')
    args = parser.parse_args()
    if not is_installed():
        os.chdir(shipped())
    reproduce(args.experiment, args.seeds, args.out, args.dry_run)


if __name__ == '__main__':
    cli(main)
