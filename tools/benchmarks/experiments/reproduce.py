"""Train and test the arms of an experiment with several seeds."""
import argparse
import os
import os.path as osp
import shlex
import statistics
import subprocess
from collections.abc import Sequence

from commands import (
    DONE,
    RECIPE,
    ROOT,
    Step,
    command_line,
    command_of,
    folder_of,
    on_few_images,
    rows_in,
    steps_left,
)
from experiments import EXPERIMENTS, Arm, Each, Experiment
from rich.table import Table
from tables import cells_of, draw

from sct_mm.utils.arguments import check_int
from sct_mm.utils.checkpoint import dump
from sct_mm.utils.cli import cli, console_for
from sct_mm.utils.errors import UserError

_LEAST = 128  # images, so that the batches of any arm have several


def run_step(step: Step, gpus: int = 1) -> None:
    """Run a command as a user does in the root of the repository."""
    command = command_of(step, gpus)
    paths = filter(None, (ROOT, os.environ.get('PYTHONPATH')))
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}
    if subprocess.run(command, env=env).returncode:
        raise UserError(f'`{shlex.join(command)}` failed. Fix the cause, and '
                        'run this again: it goes on here.')


def networks_of(arm: Arm | Each, sizes: Sequence[int],
                images: int | None = None
                ) -> list[tuple[Arm, Sequence[int]]]:
    """The networks of an arm, each with the sizes at which it is tested;
    trained on the first ``images``, if not on all."""
    found = ([(each, (size, )) for size, each in arm.arms.items()]
             if isinstance(arm, Each) else [(arm, sizes)])
    return [(network if images is None else on_few_images(network, images),
             at) for network, at in found]


def result_of(arm: Arm | Each, seed: int, out: str, sizes: Sequence[int],
              gpus: int = 1, images: int | None = None) -> list[dict]:
    """The rows of the tests of one arm with one seed. What is still to be
    trained or tested is run."""
    return [row for network, at in networks_of(arm, sizes, images)
            for row in _rows_of(network, seed, out, at, gpus, images)]


def _rows_of(arm: Arm, seed: int, out: str, sizes: Sequence[int],
             gpus: int, images: int | None) -> list[dict]:
    for step in steps_left(arm, seed, out, sizes, images):
        if not step.recipe:  # a test
            run_step(step, gpus)
            continue
        os.makedirs(step.folder, exist_ok=True)
        with open(osp.join(step.folder, RECIPE), 'w') as file:
            file.write(step.recipe)
        run_step(step, gpus)
        open(osp.join(step.folder, DONE), 'w').close()
    rows = rows_in(folder_of(arm, seed, out))
    return [rows[size] for size in sizes]


def summarise(runs: list[list[dict]], metric: str,
              unit: float) -> dict[int, list[float]]:
    """{size: [mean, standard deviation] of the metric} over the seeds."""
    summary = {}
    for rows in zip(*runs, strict=True):
        values = [row['metrics'][metric] / unit for row in rows]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        summary[rows[0]['scale']] = [statistics.mean(values), deviation]
    return summary


def compute_of(arm: Arm | Each, gflops: dict[int, float],
               unit: float) -> float:
    """FLOPs of the training, in those of an epoch at the largest size.

    Args:
        gflops: FLOPs of an image at each size.
        unit: FLOPs of an image at the largest size of the experiment.
    """
    return sum(times * gflops[size] for network, _ in networks_of(arm, ())
               for size, times in network.seen.items()) / unit


def configs_of(experiment: Experiment) -> dict[str, str]:
    """{arm: config} of the arms that train a config without a change, to
    which their results belong."""
    return {name: arm.config for name, arm in experiment.arms.items()
            if isinstance(arm, Arm) and arm == Arm(arm.config, arm.seen)}


def print_table(title: str, result: dict, metric: str) -> None:
    table = Table(title=title)
    header, *rows = cells_of(result, metric)
    for name in header:
        table.add_column(name,
                         justify='left' if name == header[0] else 'right')
    for row in rows:
        table.add_row(*row)
    console_for(table).print(table)


def cost_line(name: str, experiment: Experiment) -> str:
    """The compute of an arm, where FLOPs are taken as the area of an image,
    and its GPU hours where they are known."""
    arm = experiment.arms[name]
    seen = [each for network, _ in networks_of(arm, ())
            for each in network.seen.items()]
    largest = max(experiment.sizes)
    compute = compute_of(arm, {size: size**2 for size, _ in seen}, largest**2)
    hours = sum(times * experiment.hours.get(size, 0) for size, times in seen)
    line = f'# {name}: the compute of {compute:.1f} epochs at {largest} pixels'
    return line + (
        f'; plain steps at its sizes take {hours:.1f} GPU hours (one H200, '
        '--amp, channels_last, 128 images).' if hours else '.')


def print_commands(experiment: Experiment, seeds: Sequence[int], out: str,
                   images: int | None = None) -> None:
    """Print the commands that are still to be run, in their order."""
    printed = set()
    for name, arm in experiment.arms.items():
        print(cost_line(name, experiment))
        for seed in seeds:
            for network, sizes in networks_of(arm, experiment.sizes, images):
                for step in steps_left(network, seed, out, sizes, images):
                    if step not in printed:
                        print(command_line(step, experiment.gpus))
                    printed.add(step)


def reproduce(name: str, seeds: Sequence[int] = (0, 1, 2),
              out: str = osp.join('work_dirs', 'reproduce'),
              dry_run: bool = False, images: int | None = None) -> dict:
    """Train and test every arm of an experiment; print a table per metric.

    Each arm is made in ``out``/ARM/SEED, by the commands that a user types in
    the current folder, which must be the root of the repository. What is done
    is not done again, and what was interrupted goes on.

    Args:
        name: of :data:`EXPERIMENTS`.
        dry_run: print the commands instead of running them.
        images: train and test on so many alone, to see each command end; the
            result has them, and is no figure for a table.

    Returns:
        dict: ``{metric: {arm: {size: [mean, standard deviation]}}}`` over the
        seeds, ``seeds``, ``compute`` of the training in epochs at the largest
        size, and ``configs`` (see :func:`configs_of`). It is written to
        NAME.json in ``out``, and its first metric drawn in NAME.png. {} of a
        dry run.

    Raises:
        UserError: if a command fails, or if ``out`` holds an arm of the same
            name that was made by another recipe.
    """
    experiment = EXPERIMENTS[name]
    if images is not None:
        check_int('images', images, _LEAST, 'Give 256.')
    seeds = [check_int('seeds', seed, 0, 'Give 0, 1, 2.') for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError('`seeds` must be distinct, one at least, but got '
                        f'{seeds}. Give each once.')
    if dry_run:
        print_commands(experiment, seeds, out, images)
        return {}
    runs: dict[str, list[list[dict]]] = {arm: [] for arm in experiment.arms}
    jobs = [(seed, arm) for seed in seeds for arm in experiment.arms]
    for done, (seed, arm) in enumerate(jobs):
        print(f'[{done + 1}/{len(jobs)}] {arm}, seed {seed}', flush=True)
        runs[arm].append(result_of(experiment.arms[arm], seed, out,
                                   experiment.sizes, experiment.gpus,
                                   images))
    gflops = {arm: {row['scale']: row['gflops'] for row in each[0]}
              for arm, each in runs.items()}
    unit = max(max(each.values()) for each in gflops.values())
    result: dict[str, object] = dict(
        seeds=seeds, **({'images': images} if images else {}), compute={
            arm: compute_of(experiment.arms[arm], each, unit)
            for arm, each in gflops.items()},
        configs=configs_of(experiment))
    for metric, label in experiment.metrics.items():
        result[metric] = {arm: summarise(each, metric, experiment.unit)
                          for arm, each in runs.items()}
        print_table(f'{label}, mean ± standard deviation over seeds {seeds}; '
                    'compute in epochs at the largest size', result, metric)
    path = osp.join(out, name)
    dump(result, f'{path}.json')
    draw(result, experiment, f'{path}.png')
    print(f'{path}.json and .png hold the same.')
    return result


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('experiment', choices=EXPERIMENTS,
                        metavar='EXPERIMENT',
                        help='one of ' + ', '.join(EXPERIMENTS))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--out', default=osp.join('work_dirs', 'reproduce'),
                        help='folder below the root of the repository')
    parser.add_argument('--dry-run', action='store_true',
                        help='print the commands instead of running them')
    parser.add_argument('--images', type=int, metavar='N',
                        help='train and test on the first N images alone, to '
                        'try each command (give another --out)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    os.chdir(ROOT)
    reproduce(args.experiment, args.seeds, args.out, args.dry_run,
              args.images)


if __name__ == '__main__':
    cli(main)
