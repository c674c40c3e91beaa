"""Test a checkpoint at several input sizes; one table, JSON and a plot."""
import argparse
import os.path as osp

from mmengine.config import DictAction
from mmengine.dist import is_main_process

from sct_mm.cli import add_launcher, cli, parse_launched
from sct_mm.engine.config import config_name
from sct_mm.evaluation import test_models
from sct_mm.evaluation.report import report


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint, or of a '
                        'work directory: its newest whole one')
    parser.add_argument(
        '--scales', nargs='+', metavar='PIXELS',
        help='input sizes: numbers, ranges such as 128:224:16, or both; '
        "default: the trained scales, else the config's")
    parser.add_argument(
        '--compare', nargs=2, action='append', default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help='test this one too and draw it beside (repeatable)')
    parser.add_argument(
        '--out', help='folder for scales.json and scales.png; '
        'default: work_dirs/NAME_OF_CONFIG')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
        help='settings that override each config')
    add_launcher(parser)
    args = parse_launched(parser, argv)
    args.out = args.out or osp.join(
        'work_dirs', config_name(args.config))
    return args


def main() -> None:
    args = parse_args()
    models = test_models([(args.config, args.checkpoint), *args.compare],
                         args.scales, args.out, args.cfg_options,
                         args.launcher)
    if is_main_process():
        report(models, args.out)


if __name__ == '__main__':
    cli(main)
