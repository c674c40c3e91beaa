"""Draw what was measured into PNG files: metrics over sizes and over costs.

Figures are matplotlib's own objects: pyplot, which has a global state and may
open windows, is never used.
"""
import io
import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any

from ..utils.checkpoint import AtomicLocalBackend
from .early_exit import METRIC
from .pareto import front
from .results_file import counts_errors, metric_names

_COSTS = dict(gflops='GFLOPs (multiply-adds)',
              latency_ms='latency of one image (ms)')


def new_figure(width: float, height: float, columns: int = 1,
               **options) -> tuple[Any, list]:
    """A figure of matplotlib, ``width`` by ``height`` inches, and its axes,
    side by side; ``options`` are those of ``Figure.subplots``."""
    from matplotlib.figure import Figure  # takes a second to import
    figure = Figure(figsize=(width, height), layout='constrained')
    axes = figure.subplots(1, columns, squeeze=False, **options)
    return figure, list(axes[0])


def save_plot(figure: Any, path: str, dpi: int = 150) -> None:
    """Write a figure as a PNG to ``path``, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format='png')
    AtomicLocalBackend().put(buffer.getvalue(), path)


def tick_sizes(sizes: Collection[int], trained: Collection[int],
               digits: int = 42) -> list[int]:
    """Those of ``sizes`` whose labels have room under an axis as long as
    ``digits`` digits, spaces included: the ``trained`` ones first, then the
    ends, then each that is far enough from those before."""
    gap = (max(sizes) - min(sizes)) * len(str(max(sizes))) / digits
    first = [size for size in sorted(sizes) if size in trained]
    ticks: list[int] = []
    for size in (*first, min(sizes), max(sizes), *sorted(sizes)):
        if size not in ticks and all(abs(size - t) >= gap for t in ticks):
            ticks.append(size)
    return sorted(ticks)


def with_room(named: dict[int, tuple[float, float]],
              points: Sequence[tuple[float, float]]) -> list[int]:
    """Those of the sizes in ``named``, ``{size: its point}``, whose labels
    have room in a plot of all ``points``, the largest size first."""
    near = [share * (max(axis) - min(axis)) for share, axis in zip(
        (0.04, 0.05), zip(*points, strict=True), strict=bool(points))]
    kept: list[int] = []
    for size, point in sorted(named.items(), reverse=True):
        if all(any(abs(a - b) > gap for a, b, gap in zip(
                point, named[other], near, strict=True)) for other in kept):
            kept.append(size)
    return kept


def draw_sizes(models: list[dict], path: str,
               names: Sequence[str] | None = None) -> None:
    """Draw metrics of each of ``models`` over the size, a line through all
    sizes with large marks at the trained ones.

    Args:
        models: as :func:`sct_mm.apis.test` returns them.
        names: of the metrics, each dashed but the first; None: the first
            metric.
    """
    if names is None:
        names = metric_names([row for model in models
                              for row in model['rows']])[:1]
    names = names or ['no metric']  # a detector that found nothing
    figure, (axes, ) = new_figure(6.4, 4.2)
    for model, mark in zip(models, itertools.cycle('os^Dv')):
        color = None
        for name in names:
            rows = [row for row in model['rows'] if name in row['metrics']]
            x = [row['scale'] for row in rows]
            y = [row['metrics'][name] for row in rows]
            label = ', '.join([model['label'], *[name] * (len(names) > 1)])
            style = '-' if name == names[0] else '--'
            line, = axes.plot(x, y, style, label=label, marker=mark,
                              color=color,
                              markevery=[i for i, size in enumerate(x)
                                         if size in model['trained']])
            color = line.get_color()
            axes.plot(x, y, '.', markersize=4, color=color)
    sizes = {row['scale'] for m in models for row in m['rows']}
    axes.set_xticks(tick_sizes(sizes, {
        size for m in models for size in m['trained']}))
    axes.set_xticks(sorted(sizes), minor=True)
    axes.set_xlabel('size of the input (pixels); large marks: trained')
    axes.set_ylabel(', '.join(names))
    axes.grid(alpha=0.3)
    if len(models) * len(names) > 2:  # it would cover lines
        figure.legend(loc='outside lower center')
    else:
        axes.legend()
    save_plot(figure, path)


def draw_cascade(model: dict, path: str) -> None:
    """Draw accuracy over mean GFLOPs: the cascade at each threshold and at
    the one that was taken, random choice, and each size.

    Args:
        model: as :func:`sct_mm.apis.test_cascade` returns it.
    """
    cascade, rows = model['cascade'], model['rows']
    figure, (axes, ) = new_figure(6.4, 4.2)
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


def draw_costs(models: list[dict], metric: str, chosen: dict,
               limits: dict[str, float], path: str) -> None:
    """Draw ``metric`` over GFLOPs and over latency.

    Each model is a line of its sizes; the dashed line is the Pareto front of
    all of them; the chosen size has a ring, and each limit is a vertical
    line.

    Args:
        models: those of a file of tools/test.py.
        chosen: the row of the chosen size.
        limits: ``{'gflops': most, 'latency_ms': most}``, or less.
    """
    figure, axes = new_figure(10, 4.4, 2, sharey=True)
    for axis, (cost, title) in zip(axes, _COSTS.items(), strict=True):
        _draw_over(cost, axis, models, metric, chosen)
        if cost in limits:
            axis.axvline(limits[cost], color='0.5', linestyle=':')
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
        axis.margins(0.12)
    axes[0].set_ylabel(metric)
    if limits:
        axes[0].plot([], [], ':', color='0.5', label='the most asked for')
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=2,
                  loc='outside lower center')
    save_plot(figure, path)


def _draw_over(cost: str, axis: Any, models: list[dict], metric: str,
               chosen: dict) -> None:
    """The lines of all models over one cost."""
    points, lines = [], []
    for model in models:
        # A row without a number, as of a detector that found nothing, is
        # neither drawn nor compared.
        rows = sorted((row for row in model['rows'] if math.isfinite(
            row['metrics'].get(metric, math.nan))), key=lambda r: r[cost])
        found = [(row[cost], row['metrics'][metric]) for row in rows]
        line, = axis.plot([point[0] for point in found],
                          [point[1] for point in found], 'o-',
                          label=model['label'], markersize=4)
        points += found
        lines.append((line.get_color(), dict(zip(
            [row['scale'] for row in rows], found, strict=True))))
    # Points of several models often coincide: their labels stand around them.
    for (color, named), offset in zip(lines, itertools.cycle(
            ((4, 5), (4, -11), (-14, 5), (-14, -11)))):
        for size in with_room(named, points):
            axis.annotate(str(size), named[size], fontsize=8, color=color,
                          xytext=offset, textcoords='offset points')
    sign = -1 if counts_errors(metric) else 1
    best = [points[index] for index in front(
        [(spent, sign * value) for spent, value in points])]
    axis.plot(*zip(*best, strict=True), '--', color='black', alpha=0.6,
              linewidth=1, label='Pareto front')
    axis.plot(chosen[cost], chosen['metrics'][metric], 'o', markersize=14,
              color='black', fillstyle='none', linestyle='none',
              label='chosen')
