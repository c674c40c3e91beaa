"""Cost of SCT beside plain training, and of SSBN beside BN, in one run.

Each arm has a process of its own, so that its peak memory is its own; they
take turns, so that a noisy machine hits all of them. A ratio is taken within
a round; its median and quartiles over the rounds are printed. In inference,
SSBN and BN take turns in one process, and in training once more.
"""
import argparse
import os.path as osp

from sct_mm.utils.cli import cli
from benchmark import benchmark, print_benchmark
from arms import ARMS

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
DEFAULT = osp.join(ROOT, 'configs', 'sct_resnet50_8xb32_in1k.py')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', nargs='?', default=DEFAULT,
                        help='any config with SSBN; default: ResNet-50. A '
                        'classifier sees noise, a detector the pictures of '
                        'its config')
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--rounds', type=int, default=5,
                        help='turns of each arm, after one to warm up')
    parser.add_argument('--calls', type=int,
                        help='steps in a turn, of which the median counts; '
                        'default: 1 on a CPU, 10 on a GPU')
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=ARMS,
                        metavar='ARM', help='of ' + ', '.join(ARMS)
                        + '; those beside plain training')
    parser.add_argument('--amp', choices=('float16', 'bfloat16'),
                        help='mixed precision (on a GPU)')
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--out', help='write the figures to this JSON file')
    print_benchmark(benchmark(**vars(parser.parse_args())))


if __name__ == '__main__':
    cli(main)
