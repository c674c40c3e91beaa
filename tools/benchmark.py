"""Cost of SCT beside plain training, and of SSBN beside BN, in one run.

Each arm has a process of its own, so that its peak memory is its own; they
take turns, so that a noisy machine hits all of them. A ratio is taken within
a round; its median and quartiles over the rounds are printed. In inference,
SSBN and BN take turns in one process, and in training once more.
"""
import argparse
import os.path as osp
import statistics
from typing import Dict, List, Optional, Sequence

import torch
import torch.multiprocessing as mp
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sct_mm.evaluation.benchmark import ARMS, serve
from sct_mm.cli import cli
from sct_mm.engine.checkpoint import dump
from sct_mm.engine.config import UserError, load_config
from sct_mm.models.scale import scales_of
from sct_mm.engine.schedule import check_shares

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
DEFAULT = osp.join(ROOT, 'configs', 'sct_resnet50_8xb32_in1k.py')


def parse_args() -> argparse.Namespace:
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
    args = parser.parse_args()
    if args.rounds < 3:
        parser.error(f'--rounds must be at least 3, but got {args.rounds}. '
                     'The spread needs them.')
    if args.amp and not torch.cuda.is_available():
        parser.error('--amp needs a GPU, but torch sees none. Leave it out.')
    args.calls = args.calls or (10 if torch.cuda.is_available() else 1)
    return args


class Arm:
    """The process of one arm; :meth:`ask` gives it a turn and waits."""

    def __init__(self, name: str, scale: Optional[int], args) -> None:
        context = mp.get_context('spawn')
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, name, scale, args), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, *command):
        try:
            self.pipe.send(command)
            answer = self.pipe.recv()
        except (EOFError, BrokenPipeError) as error:
            self.process.join()
            raise UserError('A process of the benchmark ended with exit code '
                            f'{self.process.exitcode}; -9 means that memory '
                            'ran out: reduce --batch-size.') from error
        if isinstance(answer, UserError):
            raise answer
        return answer


def measure(arms: Dict[str, Arm], args) -> Dict[str, List[float]]:
    """Seconds of a step of each arm in each round."""
    seconds: Dict[str, List[float]] = {name: [] for name in arms}
    for index in track(range(args.rounds + 1), 'training'):
        for name, arm in arms.items():
            once = arm.ask('step', args.calls)
            if index:
                seconds[name].append(once)
    return seconds


def measure_inference(scales: Sequence[int], arm: Arm,
                      args) -> Dict[int, List[float]]:
    """{scale: SSBN's time over BN's in each round}."""
    ratios: Dict[int, List[float]] = {scale: [] for scale in scales}
    for _ in track(range(3 * args.rounds), 'inference'):
        for scale in scales:
            ratios[scale].append(arm.ask('infer', scale, 5 * args.calls))
    return ratios


def spread(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f'{middle:.3f} ({low:.3f}-{high:.3f})'


def ratios(ours: List[float], theirs: List[float]) -> List[float]:
    return [a / b for a, b in zip(ours, theirs)]


def flops_ratio(arm: str, flops: List[float]) -> float:
    """FLOPs of a step over those of a plain step at the base scale."""
    others = sum(flops[1:])
    total = {'ssbn': flops[0], 'partition': sum(flops) / len(flops),
             'two_scales': flops[0] + others / max(len(flops) - 1, 1)}
    return total.get(arm, sum(flops)) / flops[0]


def step_rows(step: dict, peaks: dict, scales: tuple,
              flops: list) -> List[dict]:
    """One row an arm, the plain ones (whose name is their scale) first."""
    base = scales[0]
    total = [sum(each) for each in zip(*(step[s] for s in scales))]
    return [
        dict(arm=f'plain BN at {name}' if name in scales else name,
             ms=statistics.median(step[name]) * 1e3,
             flops=(flops[scales.index(name)] / flops[0] if name in scales
                    else flops_ratio(name, flops)),
             of_base=ratios(step[name], step[base]),
             of_sum=ratios(step[name], total),
             peak_mb=peaks[name] / 2**20, of_peak=peaks[name] / peaks[base])
        for name in step
    ]


def step_table(title: str, base: int, rows: List[dict]) -> Table:
    table = Table(title=title)
    table.add_column('training step')
    for column in ('ms', f'FLOPs\n/ plain {base}', f'time / plain {base}',
                   'time / sum of plain', 'peak MB\nabove model',
                   f'peak\n/ plain {base}'):
        table.add_column(column, justify='right')
    for row in rows:
        table.add_row(row['arm'], f'{row["ms"]:.1f}', f'{row["flops"]:.2f}',
                      spread(row['of_base']), spread(row['of_sum']),
                      f'{row["peak_mb"]:.0f}', f'{row["of_peak"]:.2f}')
    return table


def main() -> None:
    args = parse_args()
    scales = scales_to_measure(args)
    plain = {scale: Arm('plain', scale, args) for scale in scales}
    sct = {name: Arm(name, None, args) for name in args.arms}
    flops = [arm.ask('flops') for arm in plain.values()]
    step = measure({**plain, **sct}, args)
    peaks = {name: arm.ask('peak') for name, arm in {**plain, **sct}.items()}
    rows = step_rows(step, peaks, scales, flops)
    device = plain[scales[0]].ask('device_name')
    table = step_table(f'{osp.basename(args.config)}, batch '
                       f'{args.batch_size}, {device}', scales[0], rows)
    console = Console(width=110)
    beside = []
    if 'ssbn' in sct:
        beside = [sct['ssbn'].ask('beside_plain', args.calls)
                  for _ in track(range(args.rounds), 'SSBN beside BN')]
    shares = {}
    if 'per_scale' in sct:
        inference = measure_inference(scales, sct['per_scale'], args)
        seconds = statistics.median(step['per_scale'])
        shares = dict(resize=sct['per_scale'].ask('resize') / seconds)
        loading = sct['per_scale'].ask('load')
        if loading is not None:
            shares['loader'] = loading / seconds
    console.print(table)
    if beside:
        console.print(f'training step at {scales[0]}, SSBN / BN in one '
                      f'process: {spread(beside)}')
    if shares:
        console.print('inference, SSBN / BN: ' + ', '.join(
            f'{spread(r)} at {s}' for s, r in inference.items()))
        console.print(f'Of a per_scale step: resize '
                      f'{shares["resize"]:.1%}; the data loader, if it ran '
                      'alone, ' + (f'{shares["loader"]:.1%}.' if 'loader' in
                                   shares else 'not run: no data set.'))
    if args.out:
        dump(dict(device=device, args=vars(args), training=rows,
                  beside_plain=beside, shares=shares,
                  inference=inference if shares else {}), args.out)


def scales_to_measure(args) -> Sequence[int]:
    """The scales of the config's model."""
    from mmengine.registry import MODELS, init_default_scope
    cfg = load_config(args.config)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    scales = scales_of(MODELS.build(cfg.model))
    if scales is None:
        raise UserError(f'The config must have SSBN, but {args.config!r} has '
                        "none. Set norm_cfg=dict(type='SSBN').")
    if 'partition' in args.arms:
        check_shares(args.batch_size, dict.fromkeys(scales, 1.0))
    return scales


if __name__ == '__main__':
    cli(main)
