"""The result of a cascade, as a table, as JSON, as a plot."""
import os.path as osp
from typing import List

from rich.table import Table

from ..engine.console import console_for, device_name
from ..utils.checkpoint import dump, save_plot
from .early_exit import METRIC
from .report import NOT_RELIABLE, spread


def shown(value: float) -> str:
    """A threshold or a share with what digits tell it from 0 and 1."""
    return f'{value:.4g}'


def make_table(model: dict) -> Table:
    """A row a size, the largest first, the cascade, and random choice."""
    rows, cascade = model['rows'], model['cascade']
    table = Table(title=f'{model["label"]}, '
                  + ' -> '.join(map(str, cascade['sizes'])))
    for name in ('scale', METRIC.replace('/', '\n'), 'GFLOPs',
                 'GFLOPs\n/ largest', 'decided\n%', 'AUROC',
                 'pictures\nper s'):
        table.add_column(name, justify='right')
    base = rows[0]['gflops']

    def cells(name: str, row: dict, *more: str) -> List[str]:
        return [name, f'{row["metrics"][METRIC]:.2f}', f'{row["gflops"]:.4g}',
                f'{row["gflops"] / base:.3f}', *more]

    for row in rows:
        table.add_row(*cells(
            str(row['scale']), row, f'{100 * row["share_decided"]:.1f}',
            f'{row["auroc"]:.3f}', spread(row, 'pictures', 'per_s')))
    table.add_row(*cells('cascade', cascade, '100', '-',
                         spread(cascade, 'pictures', 'per_s')))
    table.add_row(*cells('random', cascade['random'], '100', '-', '-'))
    if not all(row['pictures_reliable'] for row in (*rows, cascade)):
        table.caption = NOT_RELIABLE
    return table


def sentences(model: dict) -> List[str]:
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
            'picture of the test was used.']
    if cascade['gflops_ratio'] >= 1:
        lines.append(f'It saves nothing: {cascade["sizes"][-1]} alone costs '
                     'less. Take a smaller first size, or a target above '
                     '0.')
    return [*lines, 'AUROC: the chance that a right answer has more '
            'confidence than a wrong one, over all pictures. random: sizes '
            'drawn by chance, with the same shares.']


def draw(model: dict, path: str) -> None:
    """Draw accuracy over mean GFLOPs into a PNG: the cascade's for all
    thresholds and the one taken, random choice, and each size."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    cascade, rows = model['cascade'], model['rows']
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout='constrained')
    _, accuracy, gflops = zip(*cascade['curve'])
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
    axes.set_xlabel('mean GFLOPs of a picture (multiply-adds)')
    axes.set_ylabel(METRIC)
    axes.grid(alpha=0.3)
    axes.legend()
    save_plot(figure, path)


def report_cascade(model: dict, out: str) -> None:
    """Print a table, and write cascade.json, which tools/pick.py reads, and
    cascade.png to the folder ``out``; see :func:`test_cascade`."""
    table = make_table(model)
    console, device = console_for(table), device_name()
    console.print(table)
    for line in sentences(model):
        console.print(line, highlight=False, soft_wrap=True)
    path = osp.join(out, 'cascade.json')
    dump(dict(device=device, models=[model]), path)
    draw(model, osp.join(out, 'cascade.png'))
    console.print(f'{path} and cascade.png beside it hold the same '
                  f'({device}).')
