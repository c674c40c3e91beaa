"""The result of a test at several sizes, as a table, as JSON, as a plot."""
import os.path as osp
from typing import List

import torch
from rich.console import Console
from rich.table import Table

from ..engine.checkpoint import dump


def metric_names(rows: List[dict]) -> List[str]:
    """Names of the metrics of ``rows``, in the order of the evaluators."""
    return list(dict.fromkeys(name for row in rows for name in row['metrics']))


def formatted(value: float, rows: List[dict], name: str) -> str:
    """``value`` with two decimals; three for a metric between -1 and 1, as
    mAP (-1 where there is no object to find)."""
    values = [row['metrics'].get(name, 0) for row in rows]
    return f'{value:.{3 if max(map(abs, values)) <= 1 else 2}f}'


def make_table(title: str, rows: List[dict]) -> Table:
    """One row a size, the largest first, as of :func:`test_scales`."""
    table = Table(title=title)
    table.add_column('scale', justify='right')
    table.add_column('served\nby', justify='right')
    names = metric_names(rows)
    for name in (*names, 'GFLOPs', 'latency/ms', 'pictures/per s'):
        table.add_column(name.replace('/', '\n'), justify='right')
    for row in rows:
        served_by = row['served_by']
        table.add_row(
            str(row['scale']), '-' if served_by is None else str(served_by),
            *(formatted(row['metrics'].get(name, float('nan')), rows, name)
              for name in names),
            f'{row["gflops"]:.4g}', f'{row["latency_ms"]:.2f}',
            f'{row["pictures_per_s"]:.0f}')
    return table


def draw(models: List[dict], path: str) -> None:
    """Draw the first metric of each model over the scale into a PNG.

    Filled markers are scales with statistics of their own.
    """
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    names = metric_names([row for model in models for row in model['rows']])
    name = names[0] if names else 'no metric'  # a detector that found nothing
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout='constrained')
    for model in models:
        rows = [row for row in model['rows'] if name in row['metrics']]
        x = [row['scale'] for row in rows]
        y = [row['metrics'][name] for row in rows]
        line, = axes.plot(x, y, label=model['label'])
        for row, left, bottom in zip(rows, x, y):
            own = row['served_by'] == row['scale']
            axes.plot(left, bottom, 'o', color=line.get_color(),
                      fillstyle='full' if own else 'none')
    sizes = sorted({row['scale'] for m in models for row in m['rows']})
    axes.set_xticks(sizes)
    axes.set_xlabel('size of the input (pixels)')
    axes.set_ylabel(name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def report(models: List[dict], out: str) -> None:
    """Print a table a model, and write scales.json and scales.png to the
    folder ``out``; see :func:`test_scales` for what a model is."""
    tables = [make_table(model['label'], model['rows']) for model in models]
    console = Console()
    if not console.is_terminal:  # a file or a pipe has room for all columns
        wide = Console(width=1000)
        console = Console(width=max(
            80, *(wide.measure(table).maximum for table in tables)))
    for table in tables:
        console.print(table)
    device = (torch.cuda.get_device_name() if torch.cuda.is_available()
              else f'CPU, {torch.get_num_threads()} threads')
    path = osp.join(out, 'scales.json')
    dump(dict(device=device, models=models), path)
    draw(models, osp.join(out, 'scales.png'))
    console.print(f'{path} and scales.png beside it hold the same '
                  f'({device}).')
