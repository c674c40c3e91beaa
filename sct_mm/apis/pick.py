"""Choose a size by the result of a test, or by the latency of exported files,
within limits of cost or quality."""
import os.path as osp
import shlex
from typing import NamedTuple

from ..evaluation.plots import draw_costs
from ..evaluation.results_file import (
    counts_errors,
    quality_names,
    read_result,
)
from ..runtime import (
    NetworkFile,
    files_in,
    largest_within,
    latencies_ms,
    sizes_in,
)
from ..utils.arguments import (
    StrPath,
    check_int,
    check_number,
    check_path,
    optional_dict,
)
from ..utils.checkpoint import check_outputs
from ..utils.config import config_name
from ..utils.errors import UserError
from ..utils.package import tool_command
from ..utils.safe_load import protected_loading


def quality_of(row: dict, metric: str) -> float:
    """The metric in ``row`` of a result, more is better: errors are negative;
    -inf if it has none, as for a detector that found nothing."""
    value = row['metrics'].get(metric)
    if value is None or value != value:
        return float('-inf')
    return -value if counts_errors(metric) else value


class Limits(NamedTuple):
    """The limits that the chosen size must keep to.

    Args:
        latency: the most milliseconds for one image; None: any number.
        gflops: the most multiply-adds, in 1e9; None: any number.
        least: ``{metric: its least value}``.
    """
    latency: float | None = None
    gflops: float | None = None
    least: dict[str, float] = {}

    def misses(self, row: dict) -> list[str]:
        """The names of the limits that ``row`` does not keep to."""
        missed = [name for name, most in self.costs().items()
                  if row[name] > most]
        return missed + [name for name, value in self.least.items()
                         if quality_of(row, name) < value]

    def costs(self) -> dict[str, float]:
        """The limits of cost that are set, by the names of a result."""
        limits = dict(latency_ms=self.latency, gflops=self.gflops)
        return {name: most for name, most in limits.items()
                if most is not None}


class Choice(NamedTuple):
    """A model of a result, and one of its rows: a size."""
    model: dict
    row: dict


def rows_in(models: list[dict]) -> list[Choice]:
    return [Choice(model, row) for model in models for row in model['rows']]


def choose(models: list[dict], limits: Limits, metric: str) -> Choice:
    """The size to take of those that keep to ``limits``.

    If a limit of cost is set, it is the best by ``metric``, of equals the
    cheaper; else, the one of the fewest GFLOPs, of equals the better.

    Raises:
        UserError: if no size keeps to them, naming what the nearest has.
    """
    fitting = [each for each in rows_in(models)
               if not limits.misses(each.row)
               and quality_of(each.row, metric) > float('-inf')]
    if not fitting:
        raise UserError(_refusal(models, limits, metric))

    def rank(each: Choice) -> tuple:
        quality = -quality_of(each.row, metric)
        cost = (each.row['gflops'], each.row['latency_ms'])
        return (quality, *cost) if limits.costs() else (*cost, quality)

    return min(fitting, key=rank)


def _refusal(models: list[dict], limits: Limits, metric: str) -> str:
    """The sentence that says why no size keeps to ``limits``."""
    each = [choice.row for choice in rows_in(models)]
    each = [row for row in each
            if quality_of(row, metric) > float('-inf')] or each
    names = dict(latency_ms='ms', gflops='GFLOPs')
    found = [f'at most {most:g} {names[name]} (the least is '
             f'{min(row[name] for row in each):.4g})'
             for name, most in limits.costs().items()]
    for name, value in limits.least.items():
        best = max(quality_of(row, name) for row in each)
        found.append(f'{name} of at least {value:g} (the best is '
                     f'{best:.4g})')
    change = [*['Raise the limit of cost'] * bool(limits.costs()),
              *['lower --min'] * bool(limits.least), 'test other sizes']
    fix = ', or '.join(change)
    return (f'A size must have {" and ".join(found)}, but none has. '
            f'{fix[0].upper()}{fix[1:]}.')


def check_metrics(models: list[dict], names: list[str]) -> None:
    """Refuse a metric that is not in the result or a number nowhere, or a
    loss.

    Raises:
        UserError: naming the metrics that can be chosen by.
    """
    known = quality_names(models)
    for name in names:
        if name not in known:
            raise UserError(f'The metric must be one of {", ".join(known)}, '
                            f'but got {name!r}. Name one of them.')
        if all(quality_of(each.row, name) == float('-inf')
               for each in rows_in(models)):
            raise UserError(f'The metric {name!r} must be a number at a size '
                            'at least, but is none at any. Name another.')


def check_least(least: dict[str, float]) -> None:
    """Refuse a least value of what should be small.

    Raises:
        UserError: naming the metric.
    """
    for name in filter(counts_errors, least):
        raise UserError(f'--min must name a metric of which more is better, '
                        f'but got {name!r}, which counts errors. Give a limit '
                        'of cost: within it the size of the fewest errors is '
                        'chosen.')


def export_command(choice: Choice) -> str:
    """The command that writes the chosen size as a file."""
    size, model = choice.row['scale'], choice.model
    options = [
        f'{name}={value if isinstance(value, str) else text}' for name, value
        in (model.get('cfg_options') or {}).items()
        for text in [str(value).replace(' ', '')]]  # a list as one word
    return shlex.join([
        *tool_command('export'), model['config'], model['checkpoint'],
        '--size', str(size), '--format', 'onnx', '--out',
        f'{config_name(model["config"])}-{size}px.onnx',
        *(['--cfg-options', *options] if options else [])])


@protected_loading()
def pick(result: StrPath, max_latency: float | None = None,
         max_gflops: float | None = None,
         least: dict[str, float] | None = None,
         metric: str | None = None, out: StrPath | None = None) -> dict:
    """Name the size to take, and draw all sizes that were tested: what
    tools/pick.py calls.

    Args:
        result: path of the scales.json of tools/test.py.
        max_latency: the most milliseconds for one image.
        max_gflops: the most multiply-adds, in 1e9.
        least: ``{metric: its least value}``, of metrics of which more is
            better.
        metric: the metric by which the best size is chosen if it must keep to
            a limit of cost; None: the first of the result. Of errors, as
            mmpose's NME, the least is the best
            (:func:`~sct_mm.evaluation.results_file.counts_errors`).
        out: path of the plot, a PNG; None: pareto.png beside the result.

    Returns:
        dict: ``model`` and ``row`` of the result that were chosen,
        ``metric``, ``device``, ``command`` of the export, ``plot``.

    Raises:
        UserError, TypeError, ValueError: for a result of another kind, a
            limit that is not a number, a metric that the result does not
            have, and limits that no size keeps to.
    """
    for name, value in (('max_latency', max_latency),
                        ('max_gflops', max_gflops)):
        if value is not None:
            check_number(name, value, 0, 'Leave it out for any.')
    limits = Limits(max_latency, max_gflops, optional_dict(
        'least', least, "Write e.g. {'accuracy/top1': 90}."))
    for name, value in limits.least.items():
        check_number(name, value, float('-inf'), 'Leave it out for any.')
    if not limits.costs() and not limits.least:
        raise UserError('A limit must be given to choose a size by, but got '
                        'none. Give --max-latency, --max-gflops or --min.')
    result = check_path('result', result)
    out = (osp.join(osp.dirname(result), 'pareto.png') if out is None
           else check_path('out', out))
    check_outputs([out], force=True, ending='.png')
    data = read_result(result)
    names = quality_names(data['models'])
    if not names:
        raise UserError(f'The result {result!r} has no metric to choose by. '
                        'Test with a `test_evaluator` that gives a number.')
    metric = metric or next(iter([*limits.least, *names]))
    check_metrics(data['models'], [metric, *limits.least])
    check_least(limits.least)
    choice = choose(data['models'], limits, metric)
    draw_costs(data['models'], metric, choice.row, limits.costs(), out)
    return dict(model=choice.model, row=choice.row, metric=metric,
                device=data.get('device'), command=export_command(choice),
                plot=out)


def pick_file(file: StrPath, max_latency: float, threads: int = 1) -> dict:
    """Measure exported files on this machine, and name the largest size within
    a latency: what tools/pick.py --file calls. Where there is no torch,
    ``sct_mm.runtime.Predictor(file, budget_ms=...)`` does the same.

    Args:
        file: path of an ONNX file of tools/export.py, or of the folder of
            ``--size all``.
        max_latency: the most milliseconds for one image, without its
            preparation.
        threads: of the CPU.

    Returns:
        dict: ``size`` in pixels, ``file``, the path of the file that serves
        it, and ``latencies``, {size: milliseconds}.

    Raises:
        UserError, TypeError, ValueError: for a file of another kind or
            version, a limit that is not a number, and one that no size keeps
            to.
    """
    file = check_path('file', file)
    check_number('max_latency', max_latency, 0, 'Give milliseconds.')
    check_int('threads', threads, 1, 'Give e.g. 1.')
    files = sizes_in([NetworkFile(path, threads) for path in files_in(file)])
    latencies = latencies_ms(files)
    size = largest_within(latencies, max_latency)
    return dict(size=size, file=files[size].path, latencies=latencies)
