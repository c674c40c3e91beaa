"""Train and test every arm of the Fashion-MNIST demo; a table and a figure.

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
ARMS = {
    '28 alone': 'resnet18_1xb128_fashion-mnist-28px',
    '21 alone': 'resnet18_1xb128_fashion-mnist-21px',
    '14 alone': 'resnet18_1xb128_fashion-mnist-14px',
    'SCT, shared BN': 'sct-shared-bn_resnet18_1xb128_fashion-mnist',
    'SCT, SSBN': 'sct_resnet18_1xb128_fashion-mnist',
}
SIZES = (28, 24, 21, 18, 14, 10)


def run_tool(tool: str, *arguments) -> None:
    command = [sys.executable, osp.join(ROOT, 'tools', tool),
               *map(str, arguments)]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise UserError(f'`{" ".join(command)}` failed; mend what it says '
                        'and run this again: it goes on here.')


def result_of(config: str, seed: int, out: str) -> List[dict]:
    """The rows of one arm with one seed, trained and tested if need be."""
    folder = osp.join(out, config, str(seed))
    path = osp.join(folder, 'scales.json')
    if not osp.exists(path):
        config_path = osp.join('configs', f'{config}.py')
        run_tool('train.py', config_path, '--work-dir', folder, '--resume',
                 '--no-validate', '--cfg-options', f'randomness.seed={seed}')
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--out', default=osp.join('work_dirs', 'reproduce'))
    args = parser.parse_args()
    os.chdir(ROOT)
    runs: Dict[str, List[List[dict]]] = {arm: [] for arm in ARMS}
    jobs = [(seed, arm) for seed in args.seeds for arm in ARMS]
    for done, (seed, arm) in enumerate(jobs):
        print(f'[{done + 1}/{len(jobs)}] {arm}, seed {seed}', flush=True)
        runs[arm].append(result_of(ARMS[arm], seed, args.out))
    summary = {arm: summarise(each) for arm, each in runs.items()}
    table = Table(title='top-1 on Fashion-MNIST, mean ± standard deviation '
                  f'over seeds {args.seeds}')
    table.add_column('trained on')
    for size in SIZES:
        table.add_column(str(size), justify='right')
    for arm, sizes in summary.items():
        table.add_row(arm, *(f'{mean:.2f}±{deviation:.2f}'
                             for mean, deviation in sizes.values()))
    Console(width=120).print(table)
    dump(dict(seeds=args.seeds, top1=summary),
         osp.join(args.out, 'summary.json'))
    draw(summary, osp.join(args.out, 'summary.png'))
    print(f'{args.out}/summary.json and summary.png hold the same.')


if __name__ == '__main__':
    cli(main)
