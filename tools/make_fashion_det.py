"""Compose a detection data set in COCO's format from Fashion-MNIST."""
import argparse

from sct_mm.utils.cli import cli
from fashion_det import make_fashion_det


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='folder of Fashion-MNIST')
    parser.add_argument('target', help='where the data set goes')
    parser.add_argument('--train', type=int, default=3000,
                        help='number of pictures to train on')
    parser.add_argument('--val', type=int, default=500,
                        help='number of pictures to test on')
    parser.add_argument('--seed', type=int, default=0)
    make_fashion_det(**vars(parser.parse_args()))


if __name__ == '__main__':
    cli(main)
