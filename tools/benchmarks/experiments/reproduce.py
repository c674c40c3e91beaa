"""The arms of an experiment, trained and tested with several seeds."""
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
    Step,
    command_of,
    folder_of,
    rows_in,
    shown,
    steps_left,
)
from experiments import EXPERIMENTS, Arm, Each, Experiment
from rich.table import Table
from tables import cells_of, draw

from sct_mm.utils.arguments import check_int
from sct_mm.utils.checkpoint import dump
from sct_mm.utils.cli import cli, console_for
from sct_mm.utils.errors import UserError
from sct_mm.utils.package import is_installed, shipped


def run_step(step: Step, gpus: int = 1) -> None:
    """Run a command as a user does, in the folder of the repository."""
    command = command_of(step, gpus)
    if subprocess.run(command).returncode:
        raise UserError(f'`{shlex.join(command)}` failed; fix what it says '
                        'and run this again: it goes on here.')


def parts_of(arm: Arm | Each,
             sizes: Sequence[int]) -> list[tuple[Arm, Sequence[int]]]:
    """The networks of an arm, and the sizes that each is tested at."""
    if isinstance(arm, Each):
        return [(each, (size, )) for size, each in arm.arms.items()]
    return [(arm, sizes)]


def result_of(arm: Arm | Each, seed: int, out: str,
              sizes: Sequence[int], gpus: int = 1) -> list[dict]:
    """The rows of one arm with one seed, made and tested if need be."""
    return [row for part, at in parts_of(arm, sizes)
            for row in _rows_of(part, seed, out, at, gpus)]


def _rows_of(arm: Arm, seed: int, out: str, sizes: Sequence[int],
             gpus: int) -> list[dict]:
    for step in steps_left(arm, seed, out, sizes):
        if not step.recipe:  # a test
            run_step(step, gpus)
            continue
        os.makedirs(step.folder, exist_ok=True)
        with open(osp.join(step.folder, RECIPE), 'w') as f:
            f.write(step.recipe)
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
        gflops: of an image at each size.
        unit: that at the largest size of the experiment.
    """
    return sum(times * gflops[size] for part, _ in parts_of(arm, ())
               for size, times in part.seen.items()) / unit


def print_table(title: str, result: dict, metric: str) -> None:
    table = Table(title=title)
    header, *rows = cells_of(result, metric)
    for name in header:
        table.add_column(name,
                         justify='left' if name == header[0] else 'right')
    for row in rows:
        table.add_row(*row)
    console_for(table).print(table)


def print_commands(experiment: Experiment, seeds: Sequence[int],
                   out: str) -> None:
    """Print what would be run, but for what is done, in its order."""
    told = set()
    for name, arm in experiment.arms.items():
        compute = compute_of(arm, {size: size ** 2 for size in {
            *experiment.sizes,
            *(size for part, _ in parts_of(arm, ()) for size in part.seen)}},
            max(experiment.sizes) ** 2)
        hours = sum(times * experiment.hours.get(size, 0)
                    for part, _ in parts_of(arm, ())
                    for size, times in part.seen.items())
        print(f'# {name}: the compute of {compute:.1f} epochs at '
              f'{max(experiment.sizes)} pixels'
              + (f'; plain steps at its sizes take {hours:.1f} GPU hours (one '
                 'H200, --amp, channels_last, 128 images).' if hours
                 else '.'))
        for seed in seeds:
            for part, sizes in parts_of(arm, experiment.sizes):
                for step in steps_left(part, seed, out, sizes):
                    if step not in told:
                        print(shown(step, experiment.gpus))
                    told.add(step)


def reproduce(name: str, seeds: Sequence[int] = (0, 1, 2),
              out: str = osp.join('work_dirs', 'reproduce'),
              dry_run: bool = False) -> dict:
    """Train and test every arm of an experiment; print a table a metric.

    Each arm runs in ``out``/ARM/SEED with the commands that a user types, in
    the current folder, which has the data and is the repository's, where
    there is one. What is done is not done again; what was interrupted goes
    on.

    Args:
        name: of :data:`EXPERIMENTS`.
        dry_run: print the commands instead of running them.

    Returns:
        dict: ``{metric: {arm: {size: [mean, standard deviation]}}}`` over the
        seeds, ``seeds``, and ``compute``, the training's, in epochs at the
        largest size; written to ``out``/NAME.json too, the first
        metric as a figure to NAME.png. {} of a dry run.

    Raises:
        UserError: if a command fails, and for a folder in ``out`` with an
            arm of the same name and another recipe.
    """
    experiment = EXPERIMENTS[name]
    seeds = [check_int('seeds', seed, 0, 'Give 0, 1, 2.') for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError('`seeds` must be distinct, one at least, but got '
                        f'{seeds}. Give each once.')
    if dry_run:
        print_commands(experiment, seeds, out)
        return {}
    runs: dict[str, list[list[dict]]] = {arm: [] for arm in experiment.arms}
    jobs = [(seed, arm) for seed in seeds for arm in experiment.arms]
    for done, (seed, arm) in enumerate(jobs):
        print(f'[{done + 1}/{len(jobs)}] {arm}, seed {seed}', flush=True)
        runs[arm].append(result_of(experiment.arms[arm], seed, out,
                                   experiment.sizes, experiment.gpus))
    gflops = {arm: {row['scale']: row['gflops'] for row in each[0]}
              for arm, each in runs.items()}
    unit = max(max(each.values()) for each in gflops.values())
    result: dict[str, object] = dict(seeds=list(seeds), compute={
        arm: compute_of(experiment.arms[arm], each, unit)
        for arm, each in gflops.items()})
    for metric, label in experiment.metrics.items():
        result[metric] = {arm: summarise(each, metric, experiment.unit)
                          for arm, each in runs.items()}
        print_table(f'{label}, mean ± standard deviation over seeds '
                    f'{list(seeds)}; compute in epochs at the largest size',
                    result, metric)
    path = osp.join(out, name)
    dump(result, f'{path}.json')
    draw(result, experiment, f'{path}.png')
    print(f'{path}.json and .png hold the same.')
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('experiment', choices=EXPERIMENTS)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--out', default=osp.join('work_dirs', 'reproduce'))
    parser.add_argument('--dry-run', action='store_true',
                        help='print the commands instead of running them')
    args = parser.parse_args()
    if not is_installed():
        os.chdir(shipped())
    reproduce(args.experiment, args.seeds, args.out, args.dry_run)


if __name__ == '__main__':
    cli(main)
