"""Print what tools/test.py measured as tables, and write it as JSON and as a
plot."""
import os.path as osp
from collections.abc import Callable, Sequence

from rich.table import Table

from ..utils.checkpoint import dump
from ..utils.cli import console_for, device_name
from .early_exit import METRIC
from .measure import WORTHLESS
from .plots import draw_cascade, draw_sizes
from .results_file import keep_earlier, metric_names, quality_names

NOT_RELIABLE = ('? not reliable: quartiles more than '
                f'{100 * WORTHLESS:.0f} % of the median apart')


def short(value: float) -> str:
    """Three digits of a number of at least 1."""
    return f'{value:.{2 if value < 10 else 1 if value < 100 else 0}f}'


def spread(row: dict, quantity: str, unit: str) -> str:
    """Median and quartiles of :func:`spread_of`, with '?' if not reliable;
    '-' if ``row`` has none."""
    name = f'{quantity}_{unit}'
    if name not in row:
        return '-'
    low, high = map(short, row[f'{name}_quartiles'])
    mark = '' if row[f'{quantity}_reliable'] else ' ?'
    return f'{short(row[name])} ({low}-{high}){mark}'


def formatted(value: float, rows: list[dict], name: str) -> str:
    """``value`` with two decimals; three for a metric between -1 and 1, as
    mAP (-1 if there is no object to find)."""
    values = [row['metrics'].get(name, 0) for row in rows]
    return f'{value:.{3 if max(map(abs, values)) <= 1 else 2}f}'


def make_table(title: str, rows: list[dict],
               columns: dict[str, Callable[[dict], str]]) -> Table:
    """A line for each of ``rows``; ``columns`` are ``{head: function}``, and
    each function makes a cell of a row."""
    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify='right')
    lines = [[cell(row) for cell in columns.values()] for row in rows]
    for line in lines:
        table.add_row(*line)
    if any(cell.endswith('?') for line in lines for cell in line):
        table.caption = NOT_RELIABLE
    return table


def make_size_table(title: str, rows: list[dict]) -> Table:
    """One row a size, the largest first, as :func:`sct_mm.apis.test` returns
    them."""
    def metric(name: str) -> Callable[[dict], str]:
        return lambda row: formatted(
            row['metrics'].get(name, float('nan')), rows, name)

    return make_table(title, rows, {
        'size': lambda row: str(row['scale']),
        'served\nby': lambda row: '+'.join(map(str, row['served_by'] or '-')),
        **{name.replace('/', '\n'): metric(name)
           for name in metric_names(rows)},
        'GFLOPs': lambda row: f'{row["gflops"]:.4g}',
        'latency\nms': lambda row: spread(row, 'latency', 'ms'),
        'images\nper s': lambda row: spread(row, 'images', 'per_s')})


def make_comparison(models: list[dict]) -> Table:
    """The first metric of several models, one row a size, the largest first;
    '-' where a model was not tested."""
    name = metric_names([row for model in models for row in model['rows']])[0]
    table = Table(title=f'{name}; *: trained at this size')
    table.add_column('size', justify='right')
    for model in models:
        table.add_column(model['label'], justify='right')
    for size in sorted({row['scale'] for model in models
                        for row in model['rows']}, reverse=True):
        found = [[row for row in model['rows'] if row['scale'] == size
                  and name in row['metrics']] for model in models]
        table.add_row(str(size), *(
            formatted(rows[0]['metrics'][name], model['rows'], name)
            + ('*' if size in model['trained'] else ' ') if rows else '- '
            for rows, model in zip(found, models, strict=True)))
    return table


def make_cascade_table(model: dict) -> Table:
    """One row a size, the largest first, one of the cascade, and one of
    random choice."""
    cascade, largest = model['cascade'], model['rows'][0]['gflops']
    together = dict(share_decided=1)
    rows = [*model['rows'], {'scale': 'cascade', **cascade, **together},
            {'scale': 'random', **cascade['random'], **together}]
    title = f'{model["label"]}, ' + ' -> '.join(map(str, cascade['sizes']))
    return make_table(title, rows, {
        'size': lambda row: str(row['scale']),
        METRIC.replace('/', '\n'): lambda row: f'{row["metrics"][METRIC]:.2f}',
        'GFLOPs': lambda row: f'{row["gflops"]:.4g}',
        'GFLOPs\n/ largest': lambda row: f'{row["gflops"] / largest:.3f}',
        'decided\n%': lambda row: f'{100 * row["share_decided"]:.1f}',
        'AUROC': lambda row: f'{row["auroc"]:.3f}' if 'auroc' in row else '-',
        'images\nper s': lambda row: spread(row, 'images', 'per_s')})


def short_share(value: float) -> str:
    """A threshold or a share, with the digits that tell it from 0 and 1."""
    return f'{value:.4g}'


def sentences(model: dict) -> list[str]:
    """What the table of a cascade does not say: where its threshold is from.
    """
    cascade = model['cascade']
    limits = ', '.join(map(short_share, cascade['thresholds']))
    found = cascade['held_out']
    lines = [f'Threshold {limits}, as given.']
    if found:
        lines = [
            f'Threshold {limits}, found on {found["source"]}: '
            f'{found["accuracy"]:.2f} there, {found["base_accuracy"]:.2f} by '
            f'{cascade["sizes"][-1]} alone, target {found["target"]:g}. No '
            'image of the test was used.']
    if cascade['gflops_ratio'] >= 1:
        change = 'a target above 0' if found else 'a lower threshold'
        lines.append(f'It saves nothing: {cascade["sizes"][-1]} alone costs '
                     f'less. Take a smaller first size, or {change}.')
    return [*lines, 'AUROC: the chance that a right answer has more '
            'confidence than a wrong one, over all images. random: sizes '
            'drawn by chance, with the same shares.']


def write_report(models: list[dict], path: str, draw: Callable[[str], None],
                 tables: Sequence[Table], lines: Sequence[str]) -> None:
    """Write ``models`` as JSON to ``path``, and a plot beside it by ``draw``;
    print ``tables`` and ``lines``, also if nothing can be written. An earlier
    result there is kept if it has more (:func:`keep_earlier`)."""
    console, device = console_for(*tables), device_name()
    plot = osp.splitext(path)[0] + '.png'
    try:  # first, since who reads the output may have closed the pipe
        kept = keep_earlier(path, models)
        dump(dict(device=device, models=models), path)
        draw(plot)
    finally:
        for table in tables:
            console.print(table)
        for line in lines:
            console.print(line, highlight=False, soft_wrap=True)
    console.print(f'{path} and {osp.basename(plot)} beside it hold the same '
                  f'({device}).', highlight=False, soft_wrap=True)
    if kept:
        console.print(f'{kept} is the earlier test of other sizes or '
                      'checkpoints.', highlight=False, soft_wrap=True)


def report_sizes(models: list[dict], out: str) -> None:
    """Print a table for each of ``models`` and one of all; write scales.json
    and scales.png to the folder ``out``.

    Args:
        models: as :func:`sct_mm.apis.test` returns them.
    """
    tables = [make_size_table(model['label'], model['rows'])
              for model in models]
    if len(models) > 1 and all(metric_names(model['rows'])
                               for model in models):
        tables.append(make_comparison(models))
    arrays = dict.fromkeys(name for model in models for row in model['rows']
                           for name in row.get('arrays', ()))
    lines = [f'{", ".join(arrays)}: no single number, in scales.json alone.']
    write_report(models, osp.join(out, 'scales.json'),
                 lambda path: draw_sizes(models, path), tables,
                 lines if arrays else ())


def describe_reference(model: dict) -> str:
    """What the table of a fidelity does not say: what the answers are compared
    with."""
    found = model['reference']
    own = found['checkpoint'] == model['checkpoint']
    lines = [
        f'{model["label"]} is compared with '
        f'{"its own answers" if own else "those of " + found["label"]} at '
        f'{found["size"]} pixels on {found["images"]} images, without labels.']
    for name, count in found.items():
        if name.endswith('sure_images'):
            lines += [f'The reference is sure of {count} (confidence above '
                      f'{found["least"]:g}); kl: KL(reference || size) in '
                      'nats.']
        elif name.endswith('truth_boxes'):
            lines += [f'{count} boxes of a score of at least '
                      f'{found["least"]:g} are taken for the truth.']
    return ' '.join(lines)


def report_fidelity(models: list[dict], out: str) -> None:
    """Print a table for each of ``models`` and one of all; write
    fidelity.json and fidelity.png to the folder ``out``.

    Args:
        models: as :func:`sct_mm.apis.fidelity` returns them.
    """
    tables = [make_size_table(model['label'], model['rows'])
              for model in models]
    if len(models) > 1:
        tables.append(make_comparison(models))
    names = quality_names(models)[:2]
    write_report(models, osp.join(out, 'fidelity.json'),
                 lambda path: draw_sizes(models, path, names), tables,
                 [*map(describe_reference, models)])


def report_cascade(model: dict, out: str) -> None:
    """Print a table of a cascade; write cascade.json, which tools/pick.py
    reads, and cascade.png to the folder ``out``.

    Args:
        model: as :func:`sct_mm.apis.test_cascade` returns it.
    """
    write_report([model], osp.join(out, 'cascade.json'),
                 lambda path: draw_cascade(model, path),
                 [make_cascade_table(model)], sentences(model))
