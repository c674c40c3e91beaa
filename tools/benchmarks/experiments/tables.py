"""Write the tables of README.md and docs/*.md from docs/results, and draw a
figure of each result."""
import argparse
import glob
import json
import math
import os.path as osp
import re
from collections.abc import Sequence

import numpy as np
from experiments import EXPERIMENTS, Experiment

from sct_mm.evaluation.plots import new_figure, save_plot
from sct_mm.utils.checkpoint import AtomicLocalBackend, dump
from sct_mm.utils.cli import cli
from sct_mm.utils.errors import UserError

REPRODUCE = 'tools/benchmarks/experiments/reproduce.py'
# A table in a page, with the comments before and after it.
_BLOCK = re.compile(r'(?P<start>^<!-- table: (?P<name>\S+)(?P<options>[^\n]*?)'
                    r' -->\n)(?P<table>(?:(?!<!-- table:).)*?)'
                    r'(?P<end><!-- /table -->)', re.S | re.M)


def _number(value: float | None, metric: str) -> str:
    if value is None:  # NaN, in JSON
        return 'nan'
    return f'{value:.2f}' if metric.startswith('accuracy') else f'{value:.1f}'


def cells_of(result: dict, metric: str,
             sizes: Sequence[int] | None = None) -> list[list[str]]:
    """The rows of a table; the first is its header.

    Args:
        result: what reproduce.py returns and writes.
        sizes: columns; default: all of the result.

    Raises:
        KeyError: for a metric or a size that the result does not have.
    """
    arms: dict[str, dict] = {
        arm: {int(size): value for size, value in found.items()}
        for arm, found in result[metric].items()}
    known = list(dict.fromkeys(size for found in arms.values()
                               for size in found))
    sizes = sizes or known
    if set(sizes) - set(known):
        raise KeyError(min(set(sizes) - set(known)))
    rows = [['network', 'compute', *map(str, sizes)]]
    for arm, found in arms.items():
        row = [arm, f'{result["compute"][arm]:.1f}']
        for size in sizes:
            if size not in found:  # an arm of one network per size
                row.append('')
                continue
            mean, deviation = found[size]
            spread = f'±{_number(deviation, metric)}'
            row.append(_number(mean, metric)
                       + (spread if len(result['seeds']) > 1 else ''))
        rows.append(row)
    return rows


def markdown_of(result: dict, metric: str,
                sizes: Sequence[int] | None = None) -> str:
    """The table as Markdown; the best mean of each size is bold."""
    header, *rows = cells_of(result, metric, sizes)
    for column in range(2, len(header)):
        means = [float(row[column].partition('±')[0] or '-inf')
                 for row in rows]
        for row, mean in zip(rows, means, strict=True):
            if len(rows) > 1 and mean == max(means):
                row[column] = f'**{row[column]}**'
    lines = [header, ['---'] * len(header), *rows]
    return ''.join('| ' + ' | '.join(line) + ' |\n' for line in lines)


def results_of(folder: str) -> dict[str, dict]:
    """{experiment: its result} of the files in ``folder`` that reproduce.py
    wrote."""
    found = {}
    for path in sorted(glob.glob(osp.join(folder, '*.json'))):
        name = osp.splitext(osp.basename(path))[0]
        if name in EXPERIMENTS:
            with open(path, encoding='utf-8') as file:
                found[name] = json.load(file)
    return found


def take_results(source: str, root: str) -> list[str]:
    """Copy results from ``source``, a folder of reproduce.py, to docs/results
    of the repository at ``root``. A result replaces one of the same
    experiment that does not have more seeds; others, and those of
    ``--images``, are left out.

    Returns:
        list: the paths of the files.
    """
    folder, written = osp.join(root, 'docs', 'results'), []
    before, found = results_of(folder), results_of(source)
    for name in sorted(before.keys() & found.keys()):
        if 'images' not in found[name] and (
                len(found[name]['seeds']) >= len(before[name]['seeds'])):
            written.append(osp.join(folder, f'{name}.json'))
            dump(found[name], written[-1])
    return written


def with_tables(text: str, results: dict[str, dict]) -> str:
    """``text`` with a table in each pair of comments as these::

        <!-- table: any-size metric=accuracy/top1 sizes=28,21,14 rows=1,4 -->
        <!-- /table -->

    ``metric`` defaults to the first of the experiment, ``sizes`` and ``rows``
    to all; the first row is 1.

    Raises:
        UserError: for an experiment, metric, size or row without a result, for
            another option, and for a table without an end.
    """
    def fill(block: 're.Match') -> str:
        name = block['name']
        options = dict(word.partition('=')[::2]
                       for word in block['options'].split())
        if set(options) - {'metric', 'sizes', 'rows'}:
            raise UserError('A table takes metric=NAME, sizes=28,21,14 and '
                            'rows=1,4, but got '
                            f'{block["options"].strip()!r}. Fix it.')
        if name not in results:
            raise UserError(f'A table needs the result of {name!r}, but there '
                            f'are {sorted(results)}. Run {REPRODUCE} {name} '
                            'and put its JSON into docs/results.')
        metric = options.get('metric') or next(iter(
            EXPERIMENTS[name].metrics))
        sizes, result = options.get('sizes', ''), results[name]
        try:
            if 'rows' in options:
                arms = dict(enumerate(result[metric].items(), 1))
                result = {**result, metric: dict(
                    arms[int(row)] for row in options['rows'].split(','))}
            table = markdown_of(result, metric, [
                int(size) for size in sizes.split(',') if size])
        except (KeyError, ValueError) as error:
            raise UserError(f'The result of {name!r} has no {error} for a '
                            f'table of {metric}, {sizes}. Fix its options, '
                            f'or run {REPRODUCE} {name}.') from None
        return block['start'] + table + block['end']
    made, count = _BLOCK.subn(fill, text)
    begun = len(re.findall('^<!-- table:', text, re.M))
    if count != begun:
        raise UserError('Each <!-- table: ... --> must end by <!-- /table -->'
                        f', but {count} of {begun} do. Fix the text.')
    return made


def draw(result: dict, experiment: Experiment, path: str) -> None:
    """Draw the first metric into a PNG: over the size with a line per arm, or
    over the compute of the training in a panel per size."""
    metric, label = next(iter(experiment.metrics.items()))
    found = {arm: {int(size): value for size, value in sizes.items()}
             for arm, sizes in result[metric].items()}
    names = list(dict.fromkeys(
        arm.rpartition(', ')[0] if experiment.panels else arm
        for arm in found))
    half = math.ceil(len(names) / 2)  # two columns, if they are not too wide
    columns = 1 if sum(max(map(len, part), default=0) for part in (
        names[:half], names[half:])) > 74 else 2
    legend = 0.23 * math.ceil(len(names) / columns)
    figure, panels = new_figure(10 if experiment.panels else 6.4, 3.9 + legend,
                                max(len(experiment.panels), 1))
    if experiment.panels:
        _over_compute(panels, found, result['compute'], experiment, names)
    else:
        _over_size(panels[0], found)
    panels[0].set_ylabel(label)
    for axes in panels:
        axes.grid(alpha=0.3)
    lines = {line.get_label(): line for axes in panels
             for line in axes.containers}
    figure.legend([lines[name] for name in names], names,
                  loc='outside lower center', ncols=columns)
    save_plot(figure, path, 110)


def _line(axes, name: str, at: Sequence[float],
          values: Sequence[Sequence[float | None]], **style) -> None:
    means, deviations = np.array(values, dtype=float).T  # NaN for None
    axes.errorbar(at, means, deviations, label=name, **{
        'marker': 'o', 'capsize': 3,
        'linewidth': 2.5 if name.startswith('SCT, SSBN') else 1.2,
        'linestyle': '-' if name.startswith('SCT') else '--', **style})


def _over_size(axes, found: dict[str, dict[int, list]]) -> None:
    known = {size for sizes in found.values() for size in sizes}
    for arm, sizes in found.items():  # few sizes: one network per size
        _line(axes, arm, list(sizes), list(sizes.values()),
              **(dict(linestyle='', marker='*', markersize=11, zorder=3)
                 if len(sizes) < len(known) else {}))
    axes.set_xticks(sorted(known))
    axes.set_xlabel('size of the input (pixels)')


def _over_compute(panels, found: dict[str, dict[int, list]],
                  compute: dict[str, float], experiment: Experiment,
                  names: list[str]) -> None:
    """A panel shows the networks that were trained at its size."""
    for axes, size in zip(panels, experiment.panels, strict=True):
        for color, name in enumerate(names):
            arms = [arm for arm in found if arm.rpartition(', ')[0] == name
                    and size in experiment.arms[arm].seen]
            if arms:
                _line(axes, name, [compute[arm] for arm in arms],
                      [found[arm][size] for arm in arms], color=f'C{color}')
        axes.set_title(f'{size} pixels')
        axes.set_xlabel(f'compute (epochs at {max(experiment.sizes)})')


def write_tables(root: str) -> list[str]:
    """Write the tables of the repository at ``root`` from its docs/results,
    and the figures beside the results.

    Returns:
        list: the paths of the files.

    Raises:
        UserError: if there are no results; see also :func:`with_tables`.
    """
    folder = osp.join(root, 'docs', 'results')
    results = results_of(folder)
    if not results:
        raise UserError(f'{folder!r} must hold results of {REPRODUCE}, but '
                        'has none of it. Name the repository by --root.')
    written = []
    for path in (osp.join(root, 'README.md'),
                 *sorted(glob.glob(osp.join(root, 'docs', '*.md')))):
        with open(path, encoding='utf-8') as file:
            text = file.read()
        if re.search('^<!-- table:', text, re.M):
            AtomicLocalBackend().put(
                with_tables(text, results).encode(), path)
            written.append(path)
    for name, result in results.items():
        written.append(osp.join(folder, f'{name}.png'))
        draw(result, EXPERIMENTS[name], written[-1])
    return written


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.', metavar='FOLDER',
                        help='of the repository (default: this one)')
    parser.add_argument('--take', metavar='FOLDER',
                        help='of reproduce.py, from which newer results are '
                        'copied to docs/results first')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    taken = take_results(args.take, args.root) if args.take else []
    for path in [*taken, *write_tables(args.root)]:
        print(path)


if __name__ == '__main__':
    cli(main)
