"""Cost of SCT beside plain training, and of SSBN beside BN, in one run.

The arms are interleaved, so that a noisy machine hits all of them; each ratio
is taken within a round, and its median and quartiles over the rounds printed.
"""
import argparse
import os.path as osp
import statistics
from typing import Callable, Dict, List

import torch
from mmengine.registry import MODELS, init_default_scope
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sct_mm import SCTLossHook, extract_scale
from sct_mm.cli import UserError, cli, load_config
from sct_mm.measure import timed
from sct_mm.multi_scale import MultiScaleBatch
from sct_mm.scale import scales_of

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
DEFAULT = osp.join(ROOT, 'configs', 'sct_resnet50_8xb32_in1k.py')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', nargs='?', default=DEFAULT,
                        help='a classifier with SSBN; default: ResNet-50')
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--channels-last', action='store_true')
    return parser.parse_args()


def build(cfg, args, device: str):
    """The network of ``cfg`` and a random batch for its base scale."""
    from mmpretrain.structures import DataSample
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = MODELS.build(cfg.model).to(device)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    scales = scales_of(model)
    if scales is None:
        raise UserError(f'The config must have SSBN, but {args.config!r} has '
                        "none. Set norm_cfg=dict(type='SSBN').")
    channels = cfg.model.backbone.get('in_channels', 3)
    classes = cfg.model.head.num_classes
    samples = [DataSample().set_gt_label(i % classes).to(device)
               for i in range(args.batch_size)]
    inputs = torch.randn(args.batch_size, channels, scales[0], scales[0],
                         device=device)
    return model, scales, dict(inputs=inputs, data_samples=samples)


def training_step(model, batch: dict) -> Callable[[], None]:
    """One whole step: loss, backward, SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        loss, _ = model.parse_losses(model(**batch, mode='loss'))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference(model, batch: dict) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        model(batch['inputs'])

    return run


def rounds_of(arms: Dict[str, Callable[[], None]], rounds: int,
              title: str) -> Dict[str, List[float]]:
    """Seconds of each arm in each round, after one round to warm up."""
    seconds: Dict[str, List[float]] = {name: [] for name in arms}
    for index in track(range(rounds + 1), title, transient=True):
        for name, run in arms.items():
            once = timed(run)
            if index:
                seconds[name].append(once)
    return seconds


def spread(values: List[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f'{middle:.3f} ({low:.3f} to {high:.3f})'


def main() -> None:
    args = parse_args()
    if args.rounds < 3:
        raise UserError(f'--rounds must be at least 3, but got {args.rounds}. '
                        'The spread needs them.')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model, scales, batch = build(load_config(args.config), args, device)
    batches = {s: MultiScaleBatch(scale=s, base_scale=scales[0])(batch)
               for s in scales}
    arms = {f'plain BN at {s}': training_step(extract_scale(model, s),
                                              batches[s]) for s in scales}
    SCTLossHook().attach(model)
    arms['SCT, all scales'] = training_step(model, batch)
    step = rounds_of(arms, args.rounds, 'training')
    model.eval()
    arms = {}
    for s in scales:
        arms[f'BN at {s}'] = inference(extract_scale(model, s), batches[s])
        arms[f'SSBN at {s}'] = inference(model, batches[s])
    test = rounds_of(arms, 3 * args.rounds, 'inference')

    name = torch.cuda.get_device_name() if device == 'cuda' else (
        f'CPU, {torch.get_num_threads()} threads')
    table = Table(title=f'{osp.basename(args.config)}, batch '
                  f'{args.batch_size}, {name}: median (quartiles)')
    for column in ('arm', 'ms', 'ratio'):
        table.add_column(column, justify='left' if column == 'arm'
                         else 'right')
    plain = [sum(each) for each in zip(
        *(seconds for arm, seconds in step.items() if 'plain' in arm))]
    for arm, seconds in step.items():
        ratio = '' if 'plain' in arm else spread(
            [a / b for a, b in zip(seconds, plain)]) + ' of the sum above'
        table.add_row(f'step: {arm}',
                      f'{statistics.median(seconds) * 1e3:.1f}', ratio)
    for s in scales:
        ours, theirs = test[f'SSBN at {s}'], test[f'BN at {s}']
        table.add_row(f'inference: SSBN at {s}',
                      f'{statistics.median(ours) * 1e3:.1f}',
                      spread([a / b for a, b in zip(ours, theirs)])
                      + ' of BN')
    Console(width=100).print(table)


if __name__ == '__main__':
    cli(main)
