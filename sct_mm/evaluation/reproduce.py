"""The experiments behind README's tables: their arms, trained and tested."""
import json
import os.path as osp
import statistics
import subprocess
import sys
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from rich.table import Table

from ..engine.checkpoint import dump
from ..engine.config import UserError, config_name
from ..engine.console import console_for
from ..engine.package import PREFIX, is_installed, tool_command
from ..engine.resume import find_checkpoint

DEMO = 'sct_resnet18_1xb128_fashion-mnist'
DETECTOR = 'sct_retinanet_r18_fpn_1xb8_fashion-det'


class Arm(NamedTuple):
    config: str
    seen: Dict[int, float]  # how often a scale sees each picture
    epochs: Optional[int] = None  # None: those of the config
    options: Tuple[str, ...] = ()
    start: Optional['Arm'] = None  # the backbone starts from its checkpoint
    adapt: Tuple[str, ...] = ()  # how tools/adapt.py makes it from `start`


class Experiment(NamedTuple):
    arms: Dict[str, Arm]
    sizes: Tuple[int, ...]
    metrics: Dict[str, str]  # as tools/test.py calls them -> as we do
    unit: float = 1  # what 1 % is


def divided(epochs: int) -> Dict[int, float]:
    """How often a scale sees a picture in ``epochs`` of the demo's
    partition, by the demo's loss weights."""
    return {28: 0.34 * epochs, 21: 0.26 * epochs, 14: 0.4 * epochs}


ALONE = {scale: Arm(f'baselines/resnet18_1xb128_fashion-mnist-{scale}px',
                    {scale: 3}) for scale in (28, 21, 14)}
SSBN = Arm(DEMO, divided(8))
# Of its two epochs, the base runs forward, and rows need no gradients of the
# other weights: a third and two thirds of what a training pass costs.
ADAPTED = Arm(ALONE[28].config, {28: 2 / 3, 21: 4 / 3, 14: 4 / 3},
              start=ALONE[28], adapt=tuple(
                  '--scales 28 21 14 --sizes 26 24 22 20 18 16'.split()))
# A scale's pass between costs what the size in the middle of its gap does.
ANY_SIZE = Arm('sct-any-size_resnet18_1xb128_fashion-mnist', {
    28: 1.92, 26: 0.36, 24: 0.68, 22: 0.36, 21: 0.68, 19: 0.34, 18: 0.62,
    17: 0.34, 16: 0.62, 15: 0.73, 14: 1.35})
EVERY_SCALE = ('custom_hooks.2.partition=False',
               'custom_hooks.2.loss_weights=None')
DET_SEEN = {128: 3, 96: 3, 64: 3}
# The shortcuts of the detector's backbone, for a classifier to start it from.
DET_SHORTCUTS = ('model.backbone.avg_down=False', )
TOP1 = {'accuracy/top1': 'top-1 on Fashion-MNIST (%)'}
MAP = {'coco/bbox_mAP': 'mAP on composed Fashion-MNIST (%)',
       'coco/bbox_mAP_s': 'AP of objects up to 32 x 32 pixels (%)',
       'coco/bbox_mAP_m': 'AP of larger objects (%)'}
SIZES, DET_SIZES = (28, 24, 21, 18, 14, 10), (128, 112, 96, 80, 64)
ANY = tuple(range(28, 13, -1))
EXPERIMENTS = {
    'any-size': Experiment({
        '28 alone': ALONE[28],
        '28 alone, adapted': ADAPTED,
        'SCT, SSBN, any size': ANY_SIZE,
    }, ANY, TOP1),
    'between': Experiment({
        'between=0.35': ANY_SIZE,
        'between=0': Arm(
            ANY_SIZE.config, {28: 1.92, 24: 1.04, 21: 1.04, 18: 0.96,
                              16: 0.96, 14: 2.08},
            options=('custom_hooks.2.between=0.0', )),
    }, ANY, TOP1),
    'scales': Experiment({
        **{f'{scale} alone': arm for scale, arm in ALONE.items()},
        'SCT, shared BN': Arm(
            'baselines/sct-shared-bn_resnet18_1xb128_fashion-mnist',
            divided(8)),
        'SCT, SSBN': SSBN,
    }, SIZES, TOP1),
    'schedules': Experiment({
        'partition, 8 epochs': SSBN,
        'partition, 5 epochs': Arm(DEMO, divided(5), 5),
        'all scales, 3 epochs': Arm(DEMO, {28: 3, 21: 3, 14: 3}, 3,
                                    EVERY_SCALE),
        'all scales, 5 epochs': Arm(DEMO, {28: 5, 21: 5, 14: 5}, 5,
                                    EVERY_SCALE),
        'scales_per_step=2, 4 epochs': Arm(
            DEMO, {28: 4, 21: 2, 14: 2}, 4,
            (*EVERY_SCALE, 'custom_hooks.2.scales_per_step=2')),
        '28 alone, 3 epochs': ALONE[28],
        '28 alone, 5 epochs': Arm(ALONE[28].config, {28: 5}, 5),
    }, SIZES, TOP1),
    'detection': Experiment({
        '128 alone': Arm('baselines/retinanet_r18_fpn_1xb8_fashion-det-128px',
                         {128: 3}),
        'SCT, shared BN': Arm(
            'baselines/sct-shared-bn_retinanet_r18_fpn_1xb8_fashion-det',
            DET_SEEN),
        'SCT, SSBN': Arm(DETECTOR, DET_SEEN),
    }, DET_SIZES, MAP, 0.01),
    # A batch of the one is padded to its largest picture: 0.96 of 128 alone.
    'one-a-step': Experiment({
        'RandomChoiceResize, shared BN': Arm(
            'baselines/random-resize_retinanet_r18_fpn_1xb8_fashion-det',
            {128: 5.8}, 6),
        'SCT, SSBN, one scale a step, between': Arm(
            DETECTOR, {128: 3, 112: 1.5, 96: 1.5, 80: 1.5, 64: 1.5}, 9,
            ('custom_hooks.2.scales_per_step=1',
             'custom_hooks.2.between=0.5')),
    }, DET_SIZES, MAP, 0.01),
    # 10 epochs, divided as the config's weights say, cost what 6 at 96 do.
    'glyphs': Experiment({
        **{f'{size} alone': Arm(f'baselines/resnet18_1xb128_glyphs-{size}px',
                                {size: 6}) for size in (96, 72, 48, 36)},
        **{name: Arm(f'{config}_resnet18_1xb128_glyphs', {
            96: 3.4, 72: 2.2, 48: 2.2, 36: 2.2}) for name, config in (
                ('SCT, shared BN', 'baselines/sct-shared-bn'),
                ('SCT, SSBN', 'sct'))},
    }, (96, 84, 72, 60, 48, 42, 36), {
        'accuracy/top1': 'top-1 on letters and digits (%)'}),
    'transfer': Experiment({
        'from nothing': Arm(DETECTOR, DET_SEEN),
        'from 28 alone': Arm(DETECTOR, DET_SEEN, start=ALONE[28]._replace(
            options=DET_SHORTCUTS)),
        'from SCT, SSBN': Arm(DETECTOR, DET_SEEN, start=SSBN._replace(
            options=DET_SHORTCUTS)),
    }, DET_SIZES, MAP, 0.01),
}


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
        parts.append(f'from-{osp.basename(arm.start.config)}')
    return osp.join(out, '_'.join(parts), str(seed))


def train(arm: Arm, seed: int, out: str) -> str:
    """The arm's work directory, trained if need be."""
    folder = folder_of(arm, seed, out)
    options = [f'randomness.seed={seed}', *arm.options]
    if osp.exists(osp.join(folder, 'trained')):
        return folder
    if arm.adapt:
        run_tool('adapt.py', f'{config_of(arm.start)}.py',
                 train(arm.start, seed, out), '--out', folder, '--resume',
                 *arm.adapt, '--cfg-options', *options)
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


def result_of(arm: Arm, seed: int, out: str,
              sizes: Tuple[int, ...]) -> List[dict]:
    """The rows of one arm with one seed, trained and tested if need be."""
    folder = folder_of(arm, seed, out)
    path = osp.join(folder, 'scales.json')
    if not osp.exists(path):
        trained = train(arm, seed, out)
        if arm.adapt:
            trained = osp.join(trained, 'adapted.pth')
        run_tool('test.py', f'{config_of(arm, folder)}.py', trained,
                 '--out', folder, '--scales', *sizes)
    with open(path) as f:
        return json.load(f)['models'][0]['rows']


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
