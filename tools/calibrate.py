"""Re-estimate the statistics of a checkpoint at given input sizes, from images
of the training set."""
import argparse

from mmengine.dist import is_main_process

from sct_mm.apis import calibrate
from sct_mm.utils.cli import add_cfg_options, add_launcher, cli, parse_launched


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint, or of a '
                        'work directory: its newest whole one, not its best')
    parser.add_argument(
        '--sizes', nargs='+', required=True, metavar='PIXELS',
        help='input sizes, trained or not: numbers, ranges such as '
        '128:224:16, or both; all: those that the trained scales serve')
    parser.add_argument(
        '--images', type=int, default=2048, metavar='N',
        help='how many images of the training set to use; default: 2048')
    parser.add_argument(
        '--out', required=True, metavar='FILE', help='checkpoint to write')
    parser.add_argument(
        '--force', action='store_true', help='overwrite --out')
    add_cfg_options(parser)
    add_launcher(parser)
    args = parse_launched(parser, argv)
    if args.sizes == ['all']:
        args.sizes = 'all'
    return args


def main() -> None:
    args = parse_args()
    done = calibrate(
        args.config, args.checkpoint, args.sizes, args.out, args.images,
        args.force, args.cfg_options, args.launcher)
    if not is_main_process():
        return
    settings = ' '.join(f'{name}={value}'.replace(', ', ',')
                        for name, value in done['settings'].items())
    print(f'{done["out"]}: statistics of {done["images"]} images at each '
          f'size. Its config must name these scales: --cfg-options {settings}')


if __name__ == '__main__':
    cli(main)
