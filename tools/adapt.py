"""Give a trained network smaller input sizes; at its own size, it answers as
before, to the bit."""
import argparse
import shlex

from mmengine.dist import is_main_process

from sct_mm.apis import adapt
from sct_mm.evaluation.adapted_report import print_adapted
from sct_mm.utils.cli import add_cfg_options, add_launcher, cli, parse_launched
from sct_mm.utils.package import tool_command


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help="path of the network's own config, without SCT")
    parser.add_argument('checkpoint', help='path of the checkpoint, or of a '
                        'work directory: its newest whole one, not its best')
    parser.add_argument(
        '--scales', nargs='+', required=True, metavar='PIXELS',
        help='the size that the network is tested at, and the smaller ones to '
        'train: numbers, '
        'ranges such as 128:224:16, or both')
    parser.add_argument(
        '--sizes', nargs='+', default=(), metavar='PIXELS',
        help='more sizes below the largest, which get statistics of their own '
        'but no training; written as --scales')
    parser.add_argument(
        '--epochs', type=int, default=2,
        help='of the training; 0: statistics alone; default: 2')
    parser.add_argument(
        '--between', type=float, default=0.0, metavar='SHARE',
        help='share of the steps, from 0 to 1, that train sizes between the '
        'scales; default: 0')
    parser.add_argument(
        '--rank', type=int, default=8,
        help='of the private change of the weights at each smaller scale; 0: '
        'normalization parameters alone; default: 8')
    parser.add_argument(
        '--out', metavar='FOLDER', help='for config, checkpoint and logs; '
        'default: work_dirs/adapt_NAME_OF_CONFIG')
    parser.add_argument(
        '--images', metavar='FOLDER',
        help='images without labels to adapt on, however deep in the folder; '
        'default: the training set of the config')
    parser.add_argument(
        '--max-images', type=int, metavar='N',
        help='how many of the images to take, drawn at random; default: all')
    parser.add_argument(
        '--lr', type=float,
        help='highest learning rate, of AdamW; default: found by short trials')
    parser.add_argument(
        '--force', action='store_true',
        help='start over, if there is a run in --out')
    parser.add_argument(
        '--resume', action='store_true',
        help='go on with the run in --out, if there is one')
    add_cfg_options(parser)
    add_launcher(parser)
    return parse_launched(parser, argv)


def main() -> None:
    args = parse_args()
    done = adapt(
        args.config, args.checkpoint, args.scales, epochs=args.epochs,
        out=args.out, images=args.images, lr=args.lr, sizes=args.sizes,
        force=args.force, resume=args.resume, cfg_options=args.cfg_options,
        launcher=args.launcher, between=args.between, rank=args.rank,
        max_images=args.max_images)
    if is_main_process():
        command = shlex.join([*tool_command('test'), done['config'],
                              done['checkpoint']])
        print(f'{done["checkpoint"]}: at {done["scales"][0]} equal to '
              f'{args.checkpoint} to the bit. Test it: {command} --scales '
              + ' '.join(map(str, done['scales'])))
        print_adapted(done)


if __name__ == '__main__':
    cli(main)
