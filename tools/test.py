"""Test a checkpoint at several input sizes, with early exit over them, or
without labels against its own answers at the base, and write a table, JSON and
a plot."""
import argparse
import os.path as osp

from mmengine.dist import is_main_process

from sct_mm.apis import fidelity, test, test_cascade
from sct_mm.evaluation.report import (
    report_cascade,
    report_fidelity,
    report_sizes,
)
from sct_mm.utils.cli import add_cfg_options, add_launcher, cli, parse_launched
from sct_mm.utils.config import config_name


def add_cascade(parser: argparse.ArgumentParser) -> None:
    """The options of early exit over sizes."""
    group = parser.add_argument_group('early exit over sizes')
    group.add_argument(
        '--cascade', nargs='+', type=int, metavar='PIXELS',
        help='sizes, the smallest first: go up only where unsure')
    group.add_argument(
        '--threshold', nargs='+', type=float, metavar='CONFIDENCE',
        help='a size whose confidence is above it decides; one, or one for '
        'each size but the largest; default: found on training images that '
        '`indices` leave out')
    group.add_argument(
        '--target', type=float, metavar='POINTS',
        help='points of top-1 that the threshold may cost on the images '
        'that it is found on; default: 0')
    group.add_argument(
        '--held-out', type=int, metavar='N',
        help='how many of the images left out to use, or, without '
        '`indices`, of those that the network was trained on; default: all '
        'left out')


def check_cascade(parser: argparse.ArgumentParser,
                  args: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    own = (args.threshold, args.target, args.held_out)
    if args.cascade is None and own != (None, None, None):
        parser.error('--threshold, --target and --held-out belong to '
                     '--cascade: give its sizes')
    if args.cascade and (args.scales or args.compare
                         or args.launcher != 'none'):
        parser.error('--cascade tests one model, in one process, at its own '
                     'sizes: leave --scales, --compare and --launcher out')


def add_fidelity(parser: argparse.ArgumentParser) -> None:
    """The options of a comparison without labels."""
    group = parser.add_argument_group('fidelity: a comparison without labels')
    reference = group.add_mutually_exclusive_group()
    reference.add_argument(
        '--against-base', action='store_true',
        help="compare each size with the network's own answers at the base")
    reference.add_argument(
        '--against', nargs=2, metavar=('CONFIG', 'CHECKPOINT'),
        help='compare each size with the answers of another network at its '
        'base')
    group.add_argument(
        '--images', metavar='FOLDER',
        help="any folder of images; default: the config's test set")
    group.add_argument(
        '--sure', type=float, metavar='CONFIDENCE',
        help='above it the reference is sure of an image (default: 0.5), or '
        'its boxes are taken for the truth (default: 0.3)')


def check_fidelity(parser: argparse.ArgumentParser,
                   args: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    wanted = args.against_base or args.against
    if not wanted and (args.images, args.sure) != (None, None):
        parser.error('--images and --sure belong to --against-base or '
                     '--against: give one of them')
    if wanted and args.cascade:
        parser.error('--cascade is tested by labels: leave --against-base '
                     'and --against out')


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint, or of a '
                        'work directory: its newest whole one, not its best')
    parser.add_argument(
        '--scales', nargs='+', metavar='PIXELS',
        help='sizes of the test images: numbers, ranges such as 128:224:16 '
        "(first:last:step), or both; default: what the scales serve, else the "
        "config's")
    parser.add_argument(
        '--compare', nargs=2, action='append', default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help='another model to test and to draw in the same plot (repeatable)')
    parser.add_argument(
        '--out', help='folder for scales.json and scales.png (or cascade, or '
        'fidelity); default: work_dirs/NAME_OF_CONFIG')
    add_cascade(parser)
    add_fidelity(parser)
    add_cfg_options(parser, 'settings that override each config')
    add_launcher(parser)
    args = parse_launched(parser, argv)
    check_cascade(parser, args)
    check_fidelity(parser, args)
    args.out = args.out or osp.join(
        'work_dirs', config_name(args.config))
    return args


def main() -> None:
    args = parse_args()
    if args.cascade:
        report_cascade(test_cascade(
            args.config, args.checkpoint, args.cascade, args.threshold,
            args.target, args.held_out, args.out, args.cfg_options), args.out)
        return
    if args.against_base or args.against:
        models = fidelity(args.config, args.checkpoint, args.scales,
                          args.against, args.images, args.sure, args.out,
                          args.cfg_options, args.launcher, args.compare)
        if is_main_process():
            report_fidelity(models, args.out)
        return
    models = test(args.config, args.checkpoint, args.scales, args.out,
                  args.cfg_options, args.launcher, args.compare)
    if is_main_process():
        report_sizes(models, args.out)


if __name__ == '__main__':
    cli(main)
