"""Write the tables of README.md and docs/, and the figures beside the
results, from docs/results/*.json, which tools/reproduce.py made."""
import argparse

from sct_mm.cli import cli
from sct_mm.evaluation.tables import write_tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.', metavar='FOLDER',
                        help='of the repository (default: this one)')
    for path in write_tables(parser.parse_args().root):
        print(path)


if __name__ == '__main__':
    cli(main)
