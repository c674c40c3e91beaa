"""The result of a test at several sizes, as a table, as JSON, as a plot."""
import itertools
import os.path as osp
from collections.abc import Collection

from rich.table import Table

from ..utils.checkpoint import dump, save_plot
from ..utils.cli import console_for, device_name
from .early_exit import METRIC
from .measure import WORTHLESS

NOT_RELIABLE = ('? not reliable: quartiles more than '
                f'{100 * WORTHLESS:.0f} % of the median apart')


def metric_names(rows: list[dict]) -> list[str]:
    """Names of the metrics of ``rows``, in the order of the evaluators."""
    return list(dict.fromkeys(name for row in rows for name in row['metrics']))


def formatted(value: float, rows: list[dict], name: str) -> str:
    """``value`` with two decimals; three for a metric between -1 and 1, as
    mAP (-1 where there is no object to find)."""
    values = [row['metrics'].get(name, 0) for row in rows]
    return f'{value:.{3 if max(map(abs, values)) <= 1 else 2}f}'


def short(value: float) -> str:
    """Three digits of a number of at least 1."""
    return f'{value:.{2 if value < 10 else 1 if value < 100 else 0}f}'


def spread(row: dict, quantity: str, unit: str) -> str:
    """Median and quartiles of :func:`spread_of`; '?' if not reliable."""
    name = f'{quantity}_{unit}'
    low, high = map(short, row[f'{name}_quartiles'])
    mark = '' if row[f'{quantity}_reliable'] else ' ?'
    return f'{short(row[name])} ({low}-{high}){mark}'


def make_table(title: str, rows: list[dict]) -> Table:
    """One row a size, the largest first, as of :func:`test_scales`."""
    table = Table(title=title)
    table.add_column('scale', justify='right')
    table.add_column('served\nby', justify='right')
    names = metric_names(rows)
    for name in (*names, 'GFLOPs', 'latency/ms', 'images/per s'):
        table.add_column(name.replace('/', '\n'), justify='right')
    for row in rows:
        table.add_row(
            str(row['scale']),
            '-' if row['served_by'] is None else '+'.join(
                map(str, row['served_by'])),
            *(formatted(row['metrics'].get(name, float('nan')), rows, name)
              for name in names),
            f'{row["gflops"]:.4g}', spread(row, 'latency', 'ms'),
            spread(row, 'images', 'per_s'))
    if not all(row['latency_reliable'] and row['images_reliable']
               for row in rows):
        table.caption = NOT_RELIABLE
    return table


def make_comparison(models: list[dict]) -> Table:
    """The first metric of several models, one row a size, the largest first;
    '-' where a model was not tested."""
    name = metric_names([row for model in models for row in model['rows']])[0]
    table = Table(title=f'{name}; *: rows of its own')
    table.add_column('scale', justify='right')
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


def tick_sizes(sizes: Collection[int], trained: Collection[int],
               digits: int = 42) -> list[int]:
    """Those of ``sizes`` whose labels have room under an axis as long as
    ``digits`` digits, spaces included: the ``trained`` ones first, then the
    ends, then what lies apart from both."""
    gap = (max(sizes) - min(sizes)) * len(str(max(sizes))) / digits
    first = [size for size in sorted(sizes) if size in trained]
    ticks: list[int] = []
    for size in (*first, min(sizes), max(sizes), *sorted(sizes)):
        if size not in ticks and all(abs(size - t) >= gap for t in ticks):
            ticks.append(size)
    return sorted(ticks)


def draw(models: list[dict], path: str) -> None:
    """Draw the first metric of each model over the size into a PNG: a line
    through all sizes, large marks at those that were trained."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    names = metric_names([row for model in models for row in model['rows']])
    name = names[0] if names else 'no metric'  # a detector that found nothing
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout='constrained')
    for model, mark in zip(models, itertools.cycle('os^Dv')):
        rows = [row for row in model['rows'] if name in row['metrics']]
        x = [row['scale'] for row in rows]
        y = [row['metrics'][name] for row in rows]
        line, = axes.plot(x, y, label=model['label'], marker=mark,
                          markevery=[i for i, size in enumerate(x)
                                     if size in model['trained']])
        axes.plot(x, y, '.', markersize=4, color=line.get_color())
    sizes = {row['scale'] for m in models for row in m['rows']}
    axes.set_xticks(tick_sizes(sizes, {
        size for m in models for size in m['trained']}))
    axes.set_xticks(sorted(sizes), minor=True)
    axes.set_xlabel('size of the input (pixels); large marks: trained')
    axes.set_ylabel(name)
    axes.grid(alpha=0.3)
    axes.legend()
    save_plot(figure, path)


def report(models: list[dict], out: str) -> None:
    """Print a table a model and one of all, and write scales.json and
    scales.png to the folder ``out``; see :func:`test_scales` for what a model
    is."""
    tables = [make_table(model['label'], model['rows']) for model in models]
    if len(models) > 1 and all(map(metric_names, (
            model['rows'] for model in models))):
        tables.append(make_comparison(models))
    console, device = console_for(*tables), device_name()
    for table in tables:
        console.print(table)
    arrays = dict.fromkeys(name for model in models for row in model['rows']
                           for name in row.get('arrays', ()))
    if arrays:
        console.print(f'{", ".join(arrays)}: no single number, in scales.json '
                      'alone.', highlight=False, soft_wrap=True)
    path = osp.join(out, 'scales.json')
    dump(dict(device=device, models=models), path)
    draw(models, osp.join(out, 'scales.png'))
    console.print(f'{path} and scales.png beside it hold the same '
                  f'({device}).')


def shown(value: float) -> str:
    """A threshold or a share with what digits tell it from 0 and 1."""
    return f'{value:.4g}'


def make_cascade_table(model: dict) -> Table:
    """A row a size, the largest first, the cascade, and random choice."""
    rows, cascade = model['rows'], model['cascade']
    table = Table(title=f'{model["label"]}, '
                  + ' -> '.join(map(str, cascade['sizes'])))
    for name in ('scale', METRIC.replace('/', '\n'), 'GFLOPs',
                 'GFLOPs\n/ largest', 'decided\n%', 'AUROC',
                 'images\nper s'):
        table.add_column(name, justify='right')
    base = rows[0]['gflops']

    def cells(name: str, row: dict, *more: str) -> list[str]:
        return [name, f'{row["metrics"][METRIC]:.2f}', f'{row["gflops"]:.4g}',
                f'{row["gflops"] / base:.3f}', *more]

    for row in rows:
        table.add_row(*cells(
            str(row['scale']), row, f'{100 * row["share_decided"]:.1f}',
            f'{row["auroc"]:.3f}', spread(row, 'images', 'per_s')))
    table.add_row(*cells('cascade', cascade, '100', '-',
                         spread(cascade, 'images', 'per_s')))
    table.add_row(*cells('random', cascade['random'], '100', '-', '-'))
    if not all(row['images_reliable'] for row in (*rows, cascade)):
        table.caption = NOT_RELIABLE
    return table


def sentences(model: dict) -> list[str]:
    """What the table does not say: where the threshold is from."""
    cascade = model['cascade']
    limits = ', '.join(map(shown, cascade['thresholds']))
    found = cascade['held_out']
    lines = [f'Threshold {limits}, as given.']
    if found:
        lines = [
            f'Threshold {limits}, found on {found["source"]}: '
            f'{found["accuracy"]:.2f} there, {found["base_accuracy"]:.2f} by '
            f'{cascade["sizes"][-1]} alone, target {found["target"]:g}. No '
            'image of the test was used.']
    if cascade['gflops_ratio'] >= 1:
        lines.append(f'It saves nothing: {cascade["sizes"][-1]} alone costs '
                     'less. Take a smaller first size, or a target above '
                     '0.')
    return [*lines, 'AUROC: the chance that a right answer has more '
            'confidence than a wrong one, over all images. random: sizes '
            'drawn by chance, with the same shares.']


def draw_cascade(model: dict, path: str) -> None:
    """Draw accuracy over mean GFLOPs into a PNG: the cascade's for all
    thresholds and the one taken, random choice, and each size."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    cascade, rows = model['cascade'], model['rows']
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout='constrained')
    _, accuracy, gflops = zip(*cascade['curve'], strict=True)
    axes.plot(gflops, accuracy, '-', color='C0',
              label='cascade, any threshold')
    axes.plot(cascade['gflops'], cascade['metrics'][METRIC], 'o', color='C0',
              markersize=9, label='the threshold taken')
    axes.plot([row['gflops'] for row in rows],
              [row['metrics'][METRIC] for row in rows], 's--', color='0.4',
              label='one size; random choice between')
    for row in rows:
        axes.annotate(str(row['scale']), (row['gflops'],
                                          row['metrics'][METRIC]),
                      xytext=(5, -12), textcoords='offset points')
    random = cascade['random']
    axes.plot(random['gflops'], random['metrics'][METRIC], 'x', color='C3',
              markersize=9, label='random, with the same shares')
    axes.set_xlabel('mean GFLOPs of an image (multiply-adds)')
    axes.set_ylabel(METRIC)
    axes.grid(alpha=0.3)
    axes.legend()
    save_plot(figure, path)


def report_cascade(model: dict, out: str) -> None:
    """Print a table, and write cascade.json, which tools/pick.py reads, and
    cascade.png to the folder ``out``; see :func:`test_cascade`."""
    table = make_cascade_table(model)
    console, device = console_for(table), device_name()
    console.print(table)
    for line in sentences(model):
        console.print(line, highlight=False, soft_wrap=True)
    path = osp.join(out, 'cascade.json')
    dump(dict(device=device, models=[model]), path)
    draw_cascade(model, osp.join(out, 'cascade.png'))
    console.print(f'{path} and cascade.png beside it hold the same '
                  f'({device}).')
