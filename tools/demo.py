"""Show one picture at several sizes: what a network sees, and what it says."""
import argparse

from sct_mm.utils.cli import add_cfg_options, cli
from sct_mm.apis import show_sizes


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint, or of a '
                        'work directory: its newest whole one')
    parser.add_argument('picture', help='index in the test set, or a file')
    parser.add_argument(
        '--sizes', nargs='+', metavar='PIXELS',
        help='numbers, ranges such as 128:224:16, or both; default: the '
        'trained scales')
    parser.add_argument(
        '--cascade', nargs='+', type=float, metavar='THRESHOLD',
        help='show where a cascade over the sizes stops: one threshold, or '
        'one for each size but the largest')
    parser.add_argument(
        '--least', type=float, default=0.3, metavar='SCORE',
        help="of a detector's boxes that are drawn; default: 0.3")
    parser.add_argument(
        '--out', required=True, metavar='PNG', help='file to write')
    parser.add_argument(
        '--force', action='store_true', help='overwrite --out')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.picture.isdecimal():
        args.picture = int(args.picture)
    return args


def main() -> None:
    args = parse_args()
    found = show_sizes(args.config, args.checkpoint, args.picture, args.out,
                       args.sizes, args.cascade, args.least, args.force,
                       args.cfg_options)
    sizes = ', '.join(str(view.size) for view in found['views'])
    stop = ('' if found['stop'] is None else '; the cascade stops at '
            f'{found["views"][found["stop"]].size}')
    print(f'{args.out}: the picture at {sizes} pixels{stop}.')


if __name__ == '__main__':
    cli(main)
