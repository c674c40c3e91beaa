"""Give a trained network smaller sizes; at its own it answers as before."""
import argparse
import shlex

from mmengine.dist import is_main_process

from sct_mm.apis import adapt_checkpoint
from sct_mm.utils.cli import add_cfg_options, add_launcher, cli, parse_launched
from sct_mm.utils.package import tool_command


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='path of the config, without a line about SCT')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument(
        '--scales', nargs='+', required=True, metavar='PIXELS',
        help="the network's own size and smaller ones: numbers, ranges such "
        'as 128:224:16, or both')
    parser.add_argument(
        '--sizes', nargs='+', default=(), metavar='PIXELS',
        help='sizes between the scales, to give statistics of their own; as '
        '--scales')
    parser.add_argument(
        '--epochs', type=int, default=2,
        help='default: 2; 0 for statistics alone')
    parser.add_argument(
        '--between', type=float, default=0.0, metavar='SHARE',
        help='of the steps, in which the smaller scales are at sizes between '
        'them; default: 0')
    parser.add_argument(
        '--out', metavar='DIR', help='for config, checkpoint and logs; '
        'default: work_dirs/adapt_NAME_OF_CONFIG')
    parser.add_argument(
        '--images', type=int, default=2048,
        help='of the training set, for statistics; default: 2048')
    parser.add_argument(
        '--lr', type=float, default=0.08,
        help='learning rate of AdamW; default: 0.08')
    parser.add_argument(
        '--force', action='store_true', help='overwrite what is in --out')
    parser.add_argument(
        '--resume', action='store_true',
        help='go on with the run in --out, if there is one')
    add_cfg_options(parser)
    add_launcher(parser)
    return parse_launched(parser, argv)


def main() -> None:
    args = parse_args()
    done = adapt_checkpoint(
        args.config, args.checkpoint, args.scales, args.epochs, args.out,
        args.images, args.lr, args.sizes, args.force, args.resume,
        args.cfg_options, args.launcher, args.between)
    if is_main_process():
        command = shlex.join([*tool_command('test'), done['config'],
                              done['checkpoint']])
        print(f'{done["checkpoint"]}: at {done["scales"][0]} equal to '
              f'{args.checkpoint} to the bit. Test it: {command} --scales '
              + ' '.join(map(str, done['scales'])))


if __name__ == '__main__':
    cli(main)
