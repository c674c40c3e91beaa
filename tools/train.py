"""Train a config of any OpenMMLab project, with or without SCT."""
import argparse
import os.path as osp

from mmengine.config import Config

import sct_mm  # noqa: F401  (registers the components)
from sct_mm.apis.train import check_complete, set_defaults, train
from sct_mm.utils.cli import add_cfg_options, add_launcher, cli, parse_launched
from sct_mm.utils.config import config_name, load_config
from sct_mm.utils.errors import UserError


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument(
        '--work-dir', help='for logs and checkpoints; '
        'default: work_dirs/NAME_OF_CONFIG')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='go on from this checkpoint; without a path, from the newest '
        'undamaged one in the work directory, if there is one')
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--no-validate', action='store_true', help='do not evaluate')
    parser.add_argument(
        '--auto-scale-lr', action='store_true',
        help='scale the learning rate by the actual batch size')
    parser.add_argument(
        '--no-pin-memory', action='store_true',
        help='do not pin the memory of batches')
    parser.add_argument(
        '--persistent-workers', action='store_true',
        help='keep data workers alive between epochs: epochs start faster, '
        'but a resumed run draws other augmentations than an unbroken one')
    add_cfg_options(parser, 'settings that override the config, e.g. '
                    'train_cfg.max_epochs=1')
    add_launcher(parser)
    return parse_launched(parser, argv)


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Write the options of the command line into the config."""
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or osp.join(
        'work_dirs', config_name(args.config))
    check_complete(cfg)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise UserError('--auto-scale-lr needs the batch size that the '
                            'learning rate is meant for, but the config has '
                            'none. Set auto_scale_lr=dict(base_batch_size='
                            '256), or leave the option out.')
        cfg.auto_scale_lr.enable = True
    set_defaults(cfg, not args.no_pin_memory, args.persistent_workers)
    return cfg


def main() -> None:
    args = parse_args()
    train(merge_args(load_config(args.config, args.cfg_options), args),
          args.resume)


if __name__ == '__main__':
    cli(main)
