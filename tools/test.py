"""Test a checkpoint at several input sizes; one table, JSON and a plot."""
import argparse
import copy
import os
import os.path as osp
import warnings
from typing import List, Optional

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import Progress

from sct_mm import set_scale
from sct_mm.cli import cli
from sct_mm.engine.checkpoint import check_checkpoint, dump
from sct_mm.engine.config import (UserError, check_data, join_processes,
                                  load_config, set_loader_defaults)
from sct_mm.evaluation.measure import cost_of, network_stride
from sct_mm.datasets.pipeline import (keeps_ratio, nominal_size, pipeline_of,
                             rescale_pipeline)
from sct_mm.evaluation.report import draw, make_table
from sct_mm.models.scale import scales_of, serving_scale


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument(
        '--scales', nargs='+', type=int, metavar='PIXELS',
        help="input sizes; default: the trained scales, else the config's")
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
    parser.add_argument(
        '--launcher', default='none',
        choices=['none', 'pytorch', 'slurm', 'mpi'], help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.scales and min(args.scales) <= 0:
        parser.error(f'--scales must be positive, but got {args.scales}')
    return args


class ProgressHook(Hook):
    """Show how much of the test set is done."""

    def __init__(self, title: str) -> None:
        self.bar = Progress(transient=True)
        self.title = title

    def before_test_epoch(self, runner) -> None:
        self.bar.start()
        self.task = self.bar.add_task(self.title,
                                      total=len(runner.test_dataloader))

    def after_test_iter(self, *args, **kwargs) -> None:
        self.bar.advance(self.task)

    def after_test_epoch(self, *args, **kwargs) -> None:
        self.bar.stop()


def pipeline_at(cfg: Config) -> list:
    """The test pipeline of ``cfg``."""
    loader = cfg.get('test_dataloader')
    pipeline = pipeline_of(loader or {})
    if pipeline is None:
        got = loader.dataset.get('type') if loader else None
        raise UserError('The config must have a `test_dataloader` whose data '
                        f'set has a `pipeline`, but got {got}. Test the data '
                        'sets that it joins one by one, by --cfg-options.')
    return pipeline


def config_at(cfg: Config, checkpoint: str, out: str,
              size: Optional[int]) -> Config:
    """The config of the test at ``size`` pixels; None keeps the size."""
    cfg = copy.deepcopy(cfg)
    cfg.load_from, cfg.work_dir, cfg.resume = checkpoint, out, False
    cfg.log_level = 'WARNING'  # the progress bar and the table say the rest
    loader = cfg.test_dataloader
    set_loader_defaults(loader, cfg)
    if size is not None:
        pipeline = pipeline_at(cfg)
        pipeline[:] = rescale_pipeline(pipeline, size)
    return cfg


def check_fits(model, path: str) -> None:
    """Refuse weights that are missing or of other shapes, which mmengine
    would leave as they were initialised."""
    state = check_checkpoint(path)
    state = {name.removeprefix('module.'): value.shape
             for name, value in state.get('state_dict', state).items()}
    rows = len(scales_of(model) or ())
    needed = dict(model.named_parameters())  # a buffer may be computed
    for name, value in model.state_dict().items():
        if name in state:
            fits = value.shape in (state[name], (rows, *state[name]))
            got = f'has shape {tuple(state[name])}'
        else:
            fits, got = name not in needed, 'is missing'
        if not fits:
            raise UserError(f'{path!r} does not fit the config: {name} of '
                            f'shape {tuple(value.shape)} {got} there. Name '
                            'the config it was trained with.')


def warn_untrained(model, one: dict, size: int, trained: tuple) -> None:
    """Say which statistics serve ``size``, and what may cost accuracy."""
    message = (f'{size} pixels were not trained: the statistics of scale '
               f'{serving_scale(trained, size)} serve them')
    stride = 1
    if getattr(model.data_preprocessor, 'pad_size_divisor', 1) == 1:
        stride = network_stride(model, one['inputs'][0].shape[0])
    if size % stride:
        message += (f', and {size} is no multiple of the stride {stride} of '
                    'the network, which costs accuracy')
    warnings.warn(message + '.', stacklevel=2)


def test_at(cfg: Config, size: int, title: str) -> dict:
    """Evaluate and measure one size: one row of the table."""
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(
        cfg)
    model = getattr(runner.model, 'module', runner.model)
    trained = scales_of(model)
    served_by = None if trained is None else serving_scale(trained, size)
    set_scale(model, served_by)
    if is_main_process():
        runner.register_hook(ProgressHook(title))
    check_fits(model, cfg.load_from)
    loader = runner.test_loop.dataloader
    one = loader.collate_fn([loader.dataset[0]])
    edge = min(one['inputs'][0].shape[-2:])
    narrow = edge < size and keeps_ratio(pipeline_at(cfg))
    if edge != size and not narrow:
        raise UserError(f'The test pipeline must make pictures of {size} '
                        f'pixels, but makes {edge}. A transform sets the '
                        'size that tools/test.py does not know: use Resize, '
                        'ResizeEdge, CenterCrop.')
    metrics = runner.test()
    model.eval()
    if served_by not in (None, size):
        warn_untrained(model, one, size, trained)
    batch = next(iter(loader))
    return dict(scale=size, served_by=served_by,
                # A matrix, or one value a class, is in the log alone.
                metrics={k: float(v) for k, v in metrics.items()
                         if np.ndim(v) == 0},
                **cost_of(model, one, batch))


def default_scales(cfg: Config) -> List[int]:
    """The trained scales of the config's SSBN, else its test size."""
    from mmengine.registry import MODELS, init_default_scope
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    trained = scales_of(MODELS.build(cfg.model))
    return list(trained or [nominal_size(pipeline_at(cfg))])


def test_model(config: str, checkpoint: str, args, out: str) -> dict:
    """Test one checkpoint at every size."""
    cfg = load_config(config, args.cfg_options)
    cfg.launcher = args.launcher
    check_checkpoint(checkpoint)  # before any data set is read
    pipeline_at(cfg)
    check_data(cfg.test_dataloader)
    join_processes(cfg)
    label = osp.splitext(osp.basename(config))[0]
    sizes = sorted(set(args.scales or default_scales(cfg)), reverse=True)
    configs = [config_at(cfg, checkpoint, out, size) for size in sizes]
    rows = [test_at(c, size, f'{label} at {size}')
            for c, size in zip(configs, sizes)]
    return dict(label=label, config=config, checkpoint=checkpoint, rows=rows)


def main() -> None:
    args = parse_args()
    label = osp.splitext(osp.basename(args.config))[0]
    out = args.out or osp.join('work_dirs', label)
    models = [test_model(config, checkpoint, args, out)
              for config, checkpoint in [(args.config, args.checkpoint),
                                         *args.compare]]
    if not is_main_process():
        return
    tables = [make_table(model['label'], model['rows']) for model in models]
    console = Console()
    if not console.is_terminal:  # a file or a pipe has room for all columns
        wide = Console(width=1000)
        console = Console(width=max(
            80, *(wide.measure(table).maximum for table in tables)))
    for table in tables:
        console.print(table)
    device = (torch.cuda.get_device_name() if torch.cuda.is_available()
              else f'CPU, {torch.get_num_threads()} threads')
    dump(dict(device=device, models=models), osp.join(out, 'scales.json'))
    draw(models, osp.join(out, 'scales.png'))
    console.print(f'{osp.join(out, "scales.json")} and scales.png beside it '
                  f'hold the same ({device}).')


if __name__ == '__main__':
    cli(main)
