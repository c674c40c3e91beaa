"""Train and test every arm of the Fashion-MNIST demo; tables and a figure.

Each arm runs in work_dirs/reproduce/ARM/SEED with the commands a user types;
what is done is not done again. Where it was interrupted it goes on.
"""
import argparse
import json
import os
import os.path as osp
import statistics
import subprocess
import sys
from typing import Dict, List

from rich.console import Console
from rich.table import Table

from sct_mm.cli import UserError, cli, dump

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
DEMO = 'sct_resnet18_1xb128_fashion-mnist'
# Arm -> its config, its epochs (None: those of the config), other options, and
# how many times each scale sees each picture.
ARMS = {
    '28 alone': ('resnet18_1xb128_fashion-mnist-28px', None, (), {28: 3}),
    '21 alone': ('resnet18_1xb128_fashion-mnist-21px', None, (), {21: 3}),
    '14 alone': ('resnet18_1xb128_fashion-mnist-14px', None, (), {14: 3}),
    'SCT, shared BN': ('sct-shared-bn_resnet18_1xb128_fashion-mnist', None,
                       (), {28: 8 / 3, 21: 8 / 3, 14: 8 / 3}),
    'SCT, SSBN': (DEMO, None, (), {28: 8 / 3, 21: 8 / 3, 14: 8 / 3}),
}
SCHEDULES = {
    'partition, 8 epochs': ARMS['SCT, SSBN'],
    'partition, 5 epochs': (DEMO, 5, (), {28: 5 / 3, 21: 5 / 3, 14: 5 / 3}),
    'all scales, 3 epochs': (DEMO, 3, ('custom_hooks.2.partition=False', ),
                             {28: 3, 21: 3, 14: 3}),
    'scales_per_step=2, 4 epochs': (
        DEMO, 4, ('custom_hooks.2.partition=False',
                  'custom_hooks.2.scales_per_step=2'),
        {28: 4, 21: 2, 14: 2}),
    '28 alone, 3 epochs': ARMS['28 alone'],
    '28 alone, 5 epochs': (ARMS['28 alone'][0], 5, (), {28: 5}),
}
SIZES = (28, 24, 21, 18, 14, 10)


def run_tool(tool: str, *arguments) -> None:
    command = [sys.executable, osp.join(ROOT, 'tools', tool),
               *map(str, arguments)]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise UserError(f'`{" ".join(command)}` failed; mend what it says '
                        'and run this again: it goes on here.')


def result_of(arm: tuple, seed: int, out: str) -> List[dict]:
    """The rows of one arm with one seed, trained and tested if need be."""
    config, epochs, options, _ = arm
    options = [f'randomness.seed={seed}', *options]
    folder = osp.join(out, config, str(seed))
    if epochs is not None:
        options += [f'train_cfg.max_epochs={epochs}',
                    f'train_cfg.val_interval={epochs}',
                    f'param_scheduler.1.T_max={epochs}']
        folder = osp.join(out, '_'.join([config, *options[1:]]), str(seed))
    path = osp.join(folder, 'scales.json')
    if not osp.exists(path):
        config_path = osp.join('configs', f'{config}.py')
        run_tool('train.py', config_path, '--work-dir', folder, '--resume',
                 '--no-validate', '--cfg-options', *options)
        with open(osp.join(folder, 'last_checkpoint')) as f:
            checkpoint = f.read().strip()
        run_tool('test.py', config_path, checkpoint, '--out', folder,
                 '--scales', *SIZES)
    with open(path) as f:
        return json.load(f)['models'][0]['rows']


def summarise(runs: List[List[dict]]) -> Dict[int, List[float]]:
    """{size: [mean, standard deviation] of top-1} over the seeds."""
    summary = {}
    for rows in zip(*runs):
        top1 = [row['metrics']['accuracy/top1'] for row in rows]
        deviation = statistics.stdev(top1) if len(top1) > 1 else 0.0
        summary[rows[0]['scale']] = [statistics.mean(top1), deviation]
    return summary


def draw(summary: Dict[str, Dict[int, List[float]]], path: str) -> None:
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout='constrained')
    for arm, sizes in summary.items():
        ours = arm == 'SCT, SSBN'
        axes.errorbar(list(sizes), [mean for mean, _ in sizes.values()],
                      [deviation for _, deviation in sizes.values()],
                      label=arm, marker='o', capsize=3,
                      linewidth=2.5 if ours else 1.2,
                      linestyle='-' if arm.startswith('SCT') else '--')
    axes.set_xticks(SIZES)
    axes.set_xlabel('size of the input (pixels)')
    axes.set_ylabel('top-1 accuracy on Fashion-MNIST (%)')
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def compute_of(arm: tuple, rows: List[dict]) -> float:
    """FLOPs of the training, in those of an epoch at the base scale."""
    gflops = {row['scale']: row['gflops'] for row in rows}
    return sum(times * gflops[s] for s, times in arm[3].items()) / gflops[28]


def print_table(title: str, arms: Dict[str, tuple],
                runs: Dict[str, List[List[dict]]]) -> None:
    table = Table(title=title)
    for name in ('trained on', 'compute', *map(str, SIZES)):
        table.add_column(name, justify='left' if name == 'trained on'
                         else 'right')
    for arm in arms:
        table.add_row(arm, f'{compute_of(arms[arm], runs[arm][0]):.2f}',
                      *(f'{mean:.2f}±{deviation:.2f}' for mean, deviation
                        in summarise(runs[arm]).values()))
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--schedules', action='store_true',
                        help='compare schedules at equal compute instead')
    parser.add_argument('--out', default=osp.join('work_dirs', 'reproduce'))
    args = parser.parse_args()
    os.chdir(ROOT)
    arms = SCHEDULES if args.schedules else ARMS
    runs: Dict[str, List[List[dict]]] = {arm: [] for arm in arms}
    jobs = [(seed, arm) for seed in args.seeds for arm in arms]
    for done, (seed, arm) in enumerate(jobs):
        print(f'[{done + 1}/{len(jobs)}] {arm}, seed {seed}', flush=True)
        runs[arm].append(result_of(arms[arm], seed, args.out))
    print_table('top-1 on Fashion-MNIST, mean ± standard deviation over seeds '
                f'{args.seeds}; compute in epochs at 28', arms, runs)
    summary = {arm: summarise(each) for arm, each in runs.items()}
    name = osp.join(args.out, 'schedules' if args.schedules else 'summary')
    dump(dict(seeds=args.seeds, top1=summary), f'{name}.json')
    draw(summary, f'{name}.png')
    print(f'{name}.json and .png hold the same.')


if __name__ == '__main__':
    cli(main)
