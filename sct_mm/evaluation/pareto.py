"""Accuracy over cost: every size of every model, and which ones are best."""
import itertools
import math
from collections.abc import Sequence

from ..utils.checkpoint import save_plot

_COSTS = dict(gflops='GFLOPs (multiply-adds)',
              latency_ms='latency of one image (ms)')


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, quality) to which no other is at least as
    good in both and better in one, from the cheapest up."""
    order = sorted(range(len(points)),
                   key=lambda i: (points[i][0], -points[i][1]))
    best: list[int] = []
    for index in order:
        if not best or points[index][1] > points[best[-1]][1] or (
                points[index] == points[best[-1]]):
            best.append(index)
    return best


def draw(models: list[dict], metric: str, chosen: dict,
         limits: dict[str, float], path: str) -> None:
    """Draw ``metric`` over GFLOPs and over latency into a PNG.

    Each model is a line of its sizes; the dashed line is the Pareto front of
    all of them; the chosen size has a ring, a most that was asked for a
    vertical line.

    Args:
        chosen: the row of the chosen size.
        limits: ``{'gflops': most, 'latency_ms': most}``, or less.
    """
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), sharey=True,
                                layout='constrained')
    for axis, (cost, title) in zip(axes, _COSTS.items(), strict=True):
        _draw_one(axis, models, metric, chosen, cost)
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


def _draw_one(axis, models: list[dict], metric: str, chosen: dict,
              cost: str) -> None:
    """The lines of all models over one cost."""
    points = []
    # Sizes of several models are often at one place: beside it, by turns.
    for model, (x, y) in zip(models, itertools.cycle(
            ((4, 5), (4, -11), (-14, 5), (-14, -11)))):
        # One that is no number, as of a detector that found nothing, is
        # neither drawn nor compared.
        rows = sorted((row for row in model['rows'] if math.isfinite(
            row['metrics'].get(metric, math.nan))), key=lambda r: r[cost])
        found = [(row[cost], row['metrics'][metric]) for row in rows]
        line, = axis.plot([point[0] for point in found],
                          [point[1] for point in found], 'o-',
                          label=model['label'], markersize=4)
        points += found
        for row, point in zip(rows, found, strict=True):
            axis.annotate(str(row['scale']), point, fontsize=8,
                          color=line.get_color(), xytext=(x, y),
                          textcoords='offset points')
    best = [points[index] for index in front(points)]
    axis.plot(*zip(*best,
                   strict=True), '--', color='black', alpha=0.6, linewidth=1,
              label='Pareto front')
    axis.plot(chosen[cost], chosen['metrics'][metric], 'o', markersize=14,
              color='black', fillstyle='none', linestyle='none',
              label='chosen')
