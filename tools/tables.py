"""Write the tables of README.md and docs/, and the figures beside the
results, from docs/results/*.json, which tools/benchmarks/experiments/reproduce.py made."""
import argparse

from sct_mm.utils.cli import cli
from tables import take_results, write_tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.', metavar='FOLDER',
                        help='of the repository (default: this one)')
    parser.add_argument('--take', metavar='FOLDER',
                        help='first take what tools/benchmarks/experiments/reproduce.py wrote there')
    args = parser.parse_args()
    taken = take_results(args.take, args.root) if args.take else []
    for path in [*taken, *write_tables(args.root)]:
        print(path)


if __name__ == '__main__':
    cli(main)
