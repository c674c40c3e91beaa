"""Measure the cost of SCT relative to plain training, and of SSBN relative to
BN."""
import argparse
import os
import os.path as osp
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.multiprocessing as mp
from arms import ARMS, serve
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sct_mm.engine.sct.schedule import check_shares
from sct_mm.models.size_selection import scales_of
from sct_mm.utils.arguments import check_int
from sct_mm.utils.checkpoint import check_outputs, dump
from sct_mm.utils.cli import cli
from sct_mm.utils.config import load_config
from sct_mm.utils.errors import UserError

DEFAULT = 'sct_mm::sct_resnet50_8xb32_in1k.py'


class Settings(NamedTuple):
    """Arguments of :func:`benchmark`, which also go to each process."""
    config: str
    batch_size: int
    rounds: int
    calls: int
    arms: list[str]
    amp: str | None
    channels_last: bool


@contextmanager
def _unwarned() -> Iterator[None]:
    """Processes that start in this context do not repeat the warnings of the
    hosts."""
    before = os.environ.get('PYTHONWARNINGS')
    os.environ.setdefault('PYTHONWARNINGS', 'ignore')
    try:
        yield
    finally:
        if before is None:
            del os.environ['PYTHONWARNINGS']


class Arm:
    """The process of one arm; :meth:`ask` runs a method of its Worker there,
    and waits for the result."""

    def __init__(self, name: str, scale: int | None,
                 settings: Settings) -> None:
        context = mp.get_context('spawn')
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, name, scale, settings), daemon=True)
        with _unwarned():
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


def measure_training(arms: dict[str, Arm], rounds: int,
                     calls: int) -> dict[str, list[float]]:
    """{arm: seconds of a step in each round}; the arms take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for index in track(range(rounds + 1), 'training'):
        for name, arm in arms.items():
            once = arm.ask('step', calls)
            if index:
                seconds[name].append(once)
    return seconds


def measure_inference(scales: Sequence[int], arm: Arm, rounds: int,
                      calls: int) -> dict[int, list[float]]:
    """{scale: the time of SSBN divided by that of BN, in each round}."""
    ratios: dict[int, list[float]] = {scale: [] for scale in scales}
    for _ in track(range(3 * rounds), 'inference'):
        for scale in scales:
            ratios[scale].append(arm.ask('infer', scale, 5 * calls))
    return ratios


def measure_shares(arm: Arm, seconds: float) -> dict[str, float]:
    """The time of the resizes of a step, and of loading its batch, divided by
    ``seconds`` of the step; no ``loader`` if the data set is missing."""
    shares = dict(resize=arm.ask('resize') / seconds)
    loading = arm.ask('load')
    if loading is not None:
        shares['loader'] = loading / seconds
    return shares


def spread(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f'{middle:.3f} ({low:.3f}-{high:.3f})'


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def flops_ratio(arm: str, flops: list[float]) -> float:
    """FLOPs of a step of ``arm`` divided by those of a plain step at the base
    scale; ``flops`` are those of an image at each scale."""
    others = sum(flops[1:])
    total = {'ssbn': flops[0], 'partition': sum(flops) / len(flops),
             'two_scales': flops[0] + others / max(len(flops) - 1, 1)}
    return total.get(arm, sum(flops)) / flops[0]


def step_rows(step: dict, peaks: dict, scales: tuple,
              flops: list) -> list[dict]:
    """One row per arm, first the plain ones, whose name is their scale."""
    base = scales[0]
    total = [sum(each) for each in zip(*(step[s] for s in scales),
                                       strict=True)]
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


def step_table(title: str, base: int, rows: list[dict]) -> Table:
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


def print_benchmark(result: dict) -> None:
    """Print what :func:`benchmark` returns."""
    args, base = result['args'], result['scales'][0]
    console = Console(width=110)
    console.print(step_table(
        f'{osp.basename(args["config"])}, batch {args["batch_size"]}, '
        f'{result["device"]}', base, result['training']))
    if result['beside_plain']:
        console.print(f'training step at {base}, SSBN / BN in one process: '
                      + spread(result['beside_plain']))
    shares = result['shares']
    if shares:
        console.print('inference, SSBN / BN: ' + ', '.join(
            f'{spread(r)} at {s}' for s, r in result['inference'].items()))
        console.print(f'Of a per_scale step: resize '
                      f'{shares["resize"]:.1%}; the data loader, if it ran '
                      'alone, ' + (f'{shares["loader"]:.1%}.' if 'loader' in
                                   shares else 'not run: no data set.'))


def benchmark(config: str, batch_size: int = 16, rounds: int = 5,
              calls: int | None = None, arms: Sequence[str] = ARMS,
              amp: str | None = None, channels_last: bool = False,
              out: str | None = None) -> dict:
    """Time and memory of a training step of each arm, and of inference.

    Args:
        config: path of a config with SSBN. The batch is noise for a
            classifier, and training images for a detector.
        rounds: turns of each arm, after one to warm up.
        calls: steps in a turn, of which the median counts; None: 1 on a CPU,
            10 on a GPU.
        arms: of :data:`ARMS`; plain training is measured in any case.
        amp: 'float16' or 'bfloat16' for mixed precision on a GPU.
        out: write the result to this JSON file.

    Returns:
        dict: ``device``, ``scales``, ``args``; ``training``, one row per arm;
        ``beside_plain`` (arm ssbn), ``inference`` and ``shares`` (arm
        per_scale): ratios of times, one per round.

    Raises:
        UserError, ValueError: for too few rounds, a model without SSBN, mixed
            precision without a GPU, an ``out`` that cannot be written, or if
            memory runs out.
    """
    if out:
        check_outputs([out], force=True)
    if calls is None:
        calls = 10 if torch.cuda.is_available() else 1
    settings = Settings(config, batch_size, rounds, calls, list(arms), amp,
                        channels_last)
    scales = check_settings(settings)
    plain = {scale: Arm('plain', scale, settings) for scale in scales}
    sct = {name: Arm(name, None, settings) for name in arms}
    result = measure(plain, sct, settings)
    if out:
        dump(result, out)
    return result


def measure(plain: dict[int, Arm], sct: dict[str, Arm],
            settings: Settings) -> dict:
    """The result of :func:`benchmark`, from the processes of its arms."""
    scales, rounds, calls = tuple(plain), settings.rounds, settings.calls
    flops = [arm.ask('flops') for arm in plain.values()]
    step = measure_training({**plain, **sct}, rounds, calls)
    peaks = {name: arm.ask('peak') for name, arm in {**plain, **sct}.items()}
    result = dict(
        device=plain[scales[0]].ask('device_name'), scales=scales,
        args=settings._asdict(),
        training=step_rows(step, peaks, scales, flops),
        beside_plain=[], shares={}, inference={})
    if 'ssbn' in sct:
        result['beside_plain'] = [
            sct['ssbn'].ask('beside_plain', calls)
            for _ in track(range(rounds), 'SSBN beside BN')]
    if 'per_scale' in sct:
        arm = sct['per_scale']
        result['inference'] = measure_inference(scales, arm, rounds, calls)
        result['shares'] = measure_shares(
            arm, statistics.median(step['per_scale']))
    return result


def check_settings(settings: Settings) -> Sequence[int]:
    """The scales of the config's model.

    Raises:
        UserError, ValueError: for settings that cannot be measured.
    """
    from mmengine.registry import MODELS, init_default_scope
    check_int('rounds', settings.rounds, 3, 'The spread needs them.')
    check_int('batch_size', settings.batch_size, 1, 'The default is 16.')
    check_int('calls', settings.calls, 1, 'Leave it out for the default.')
    if settings.amp and not torch.cuda.is_available():
        raise UserError(f'`amp` needs a GPU, but got {settings.amp!r} and '
                        'torch sees none. Leave it out.')
    cfg = load_config(settings.config)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    scales = scales_of(MODELS.build(cfg.model))
    if scales is None:
        raise UserError(f'The config must have SSBN, but {settings.config!r} '
                        "has none. Set norm_cfg=dict(type='SSBN').")
    if 'partition' in settings.arms:
        check_shares(settings.batch_size, dict.fromkeys(scales, 1.0))
    return scales


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', nargs='?', default=DEFAULT,
                        help='any config with SSBN; default: ResNet-50. The '
                        'batch is noise for a classifier, and training images '
                        'for a detector')
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--rounds', type=int, default=5,
                        help='turns of each arm, after one to warm up')
    parser.add_argument('--calls', type=int,
                        help='steps in a turn, of which the median counts; '
                        'default: 1 on a CPU, 10 on a GPU')
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=ARMS,
                        metavar='ARM', help='of ' + ', '.join(ARMS)
                        + '; plain training is measured in any case')
    parser.add_argument('--amp', choices=('float16', 'bfloat16'),
                        help='mixed precision (on a GPU)')
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--out', help='write the result to this JSON file')
    return parser.parse_args()


def main() -> None:
    print_benchmark(benchmark(**vars(parse_args())))


if __name__ == '__main__':
    cli(main)
