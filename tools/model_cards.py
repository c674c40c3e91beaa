"""Write configs/metafile-*.yml from the configs and docs/results."""
import argparse

from sct_mm.utils.cli import cli
from fill_metafile import write_cards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.', metavar='FOLDER',
                        help='of the repository (default: this one)')
    for path in write_cards(parser.parse_args().root):
        print(path)


if __name__ == '__main__':
    cli(main)
