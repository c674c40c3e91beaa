"""The arms of an experiment, trained and tested with several seeds."""
import json
import os.path as osp
import statistics
import subprocess
import sys
from typing import Dict, List, Sequence, Tuple

from rich.table import Table

from ..engine.checkpoint import dump
from ..engine.config import UserError, config_name
from ..engine.console import console_for
from ..engine.package import PREFIX, is_installed, tool_command
from ..engine.resume import find_checkpoint
from .experiments import EXPERIMENTS, Arm, Experiment

_NORM = 'model.backbone.norm_cfg.scales'  # of every network here


def run_tool(tool: str, *arguments) -> None:
    """Run a tool as a user does, in the folder of the repository."""
    command = [*tool_command(tool.removesuffix('.py'), sys.executable),
               *map(str, arguments)]
    if subprocess.run(command).returncode:
        raise UserError(f'`{" ".join(command)}` failed; mend what it says '
                        'and run this again: it goes on here.')


def config_of(arm: Arm, folder: str = 'configs') -> str:
    """The path of its config without `.py`; of one that tools/adapt.py has
    made, in the folder of the arm."""
    if not arm.adapt and is_installed():
        return f'{PREFIX}{arm.config}'
    if not arm.adapt:
        return osp.join('configs', arm.config)
    return osp.join(folder, f'adapt_{osp.basename(arm.config)}')


def folder_of(arm: Arm, seed: int, out: str) -> str:
    parts = [config_name(f'{config_of(arm)}.py'), *arm.options]
    if arm.epochs is not None:
        parts.append(f'{arm.epochs}-epochs')
    if arm.start is not None and not arm.adapt:
        parts.append(f'{"calibrated-" if arm.calibrate else ""}from-'
                     f'{osp.basename(arm.start.config)}')
    return osp.join(out, '_'.join(parts), str(seed))


def made_of(arm: Arm, seed: int, out: str, folder: str) -> None:
    """Make the arm in ``folder`` from the one that it starts from."""
    started = train(arm.start, seed, out)
    options = ('--cfg-options', f'randomness.seed={seed}', *arm.options)
    if arm.adapt:
        run_tool('adapt.py', f'{config_of(arm.start)}.py', started, '--out',
                 folder, '--resume', *arm.adapt, *options)
    else:
        run_tool('calibrate.py', f'{config_of(arm)}.py', started, '--out',
                 checkpoint_of(arm, folder), '--force', '--sizes',
                 *arm.calibrate, *options)


def checkpoint_of(arm: Arm, folder: str) -> str:
    """What tools/test.py is given of an arm that was made in ``folder``."""
    return osp.join(folder, 'calibrated.pth') if arm.calibrate else folder


def train(arm: Arm, seed: int, out: str) -> str:
    """The arm's work directory, trained if need be."""
    folder = folder_of(arm, seed, out)
    options = [f'randomness.seed={seed}', *arm.options]
    if osp.exists(osp.join(folder, 'trained')):
        return folder
    if arm.adapt or arm.calibrate:
        made_of(arm, seed, out, folder)
        open(osp.join(folder, 'trained'), 'w').close()
        return folder
    if arm.epochs is not None:
        options += [f'train_cfg.max_epochs={arm.epochs}',
                    f'train_cfg.val_interval={arm.epochs}',
                    f'param_scheduler.1.T_max={arm.epochs}']
    if arm.start is not None:
        init = 'model.backbone.init_cfg'
        options += [f'{init}.type=Pretrained', f'{init}.prefix=backbone.',
                    f'{init}.checkpoint='
                    f'{find_checkpoint(train(arm.start, seed, out))}']
    run_tool('train.py', f'{config_of(arm)}.py', '--work-dir', folder,
             '--resume', '--no-validate', '--cfg-options', *options)
    open(osp.join(folder, 'trained'), 'w').close()
    return folder


def rows_in(path: str) -> Dict[int, dict]:
    """{size: row} of what tools/test.py wrote of one model; {} if nothing."""
    if not osp.exists(path):
        return {}
    with open(path) as f:
        return {row['scale']: row for row in json.load(f)['models'][0]['rows']}


def result_of(arm: Arm, seed: int, out: str,
              sizes: Tuple[int, ...]) -> List[dict]:
    """The rows of one arm with one seed, trained and tested if need be."""
    folder = folder_of(arm, seed, out)
    path = osp.join(folder, 'scales.json')
    rows = rows_in(path)
    if set(sizes) - set(rows):
        train(arm, seed, out)
        named = (('--cfg-options', f'{_NORM}='
                  f'{",".join(map(str, arm.calibrate))}')
                 if arm.calibrate else ())
        run_tool('test.py', f'{config_of(arm, folder)}.py',
                 checkpoint_of(arm, folder), '--out', folder, '--scales',
                 *sorted({*rows, *sizes}, reverse=True), *named)
        rows = rows_in(path)
    return [rows[size] for size in sizes]


def summarise(runs: List[List[dict]], metric: str,
              unit: float) -> Dict[int, List[float]]:
    """{size: [mean, standard deviation] of the metric} over the seeds."""
    summary = {}
    for rows in zip(*runs):
        values = [row['metrics'][metric] / unit for row in rows]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        summary[rows[0]['scale']] = [statistics.mean(values), deviation]
    return summary


def draw(summary: Dict[str, Dict[int, List[float]]], label: str,
         path: str) -> None:
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(6.4, 4.8), layout='constrained')
    for arm, sizes in summary.items():
        ours = arm.startswith('SCT, SSBN')
        axes.errorbar(list(sizes), [mean for mean, _ in sizes.values()],
                      [deviation for _, deviation in sizes.values()],
                      label=arm, marker='o', capsize=3,
                      linewidth=2.5 if ours else 1.2,
                      linestyle='-' if arm.startswith('SCT') else '--')
    axes.set_xticks(list(sizes))
    axes.set_xlabel('size of the input (pixels)')
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    figure.legend(loc='outside lower center', ncols=3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def compute_of(arm: Arm, rows: List[dict]) -> float:
    """FLOPs of the training, in those of an epoch at the largest size."""
    gflops = {row['scale']: row['gflops'] for row in rows}
    return (sum(times * gflops[s] for s, times in arm.seen.items())
            / max(gflops.values()))


def print_table(title: str, experiment: Experiment, metric: str,
                runs: Dict[str, List[List[dict]]]) -> None:
    table = Table(title=title)
    for name in ('arm', 'compute', *map(str, experiment.sizes)):
        table.add_column(name, justify='left' if name == 'arm' else 'right')
    for name, arm in experiment.arms.items():
        summary = summarise(runs[name], metric, experiment.unit)
        table.add_row(name, f'{compute_of(arm, runs[name][0]):.2f}',
                      *(f'{mean:.2f}±{deviation:.2f}'
                        for mean, deviation in summary.values()))
    console_for(table).print(table)


def reproduce(name: str, seeds: Sequence[int] = (0, 1, 2),
              out: str = osp.join('work_dirs', 'reproduce')) -> dict:
    """Train and test every arm of an experiment; print a table a metric.

    Each arm runs in ``out``/ARM/SEED with the commands that a user types, in
    the current folder, which has the data and is the repository's, where
    there is one. What is done is not done again; what was interrupted goes
    on.

    Args:
        name: of :data:`EXPERIMENTS`.

    Returns:
        dict: ``{metric: {arm: {size: [mean, standard deviation]}}}`` over the
        seeds, and ``seeds``; written to ``out``/NAME.json too, the first
        metric as a figure to NAME.png.

    Raises:
        UserError: if a command fails.
    """
    experiment = EXPERIMENTS[name]
    runs: Dict[str, List[List[dict]]] = {arm: [] for arm in experiment.arms}
    jobs = [(seed, arm) for seed in seeds for arm in experiment.arms]
    for done, (seed, arm) in enumerate(jobs):
        print(f'[{done + 1}/{len(jobs)}] {arm}, seed {seed}', flush=True)
        runs[arm].append(result_of(experiment.arms[arm], seed, out,
                                   experiment.sizes))
    result: Dict[str, object] = dict(seeds=list(seeds))
    for metric, label in experiment.metrics.items():
        print_table(f'{label}, mean ± standard deviation over seeds '
                    f'{list(seeds)}; compute in epochs at the largest size',
                    experiment, metric, runs)
        result[metric] = {arm: summarise(each, metric, experiment.unit)
                          for arm, each in runs.items()}
    path = osp.join(out, name)
    dump(result, f'{path}.json')
    first = next(iter(experiment.metrics))
    draw(result[first], experiment.metrics[first], f'{path}.png')
    print(f'{path}.json and .png hold the same.')
    return result
