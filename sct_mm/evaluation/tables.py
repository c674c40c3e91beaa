"""Tables and figures of results, in README, in docs and on the screen."""
import glob
import json
import math
import os.path as osp
import re
from typing import Dict, List, Optional, Sequence

from ..engine.checkpoint import AtomicLocalBackend, save_plot
from ..engine.config import UserError
from .experiments import EXPERIMENTS

# What stands between the two lines is made by tools/tables.py.
_BLOCK = re.compile(r'(?P<start><!-- table: (?P<name>\S+)(?P<options>[^\n]*?)'
                    r' -->\n)(?P<table>(?:(?!<!-- table:).)*?)'
                    r'(?P<end><!-- /table -->)', re.S)


def _number(value: float, metric: str) -> str:
    return f'{value:.2f}' if metric.startswith('accuracy') else f'{value:.1f}'


def cells_of(result: dict, metric: str,
             sizes: Optional[Sequence[int]] = None) -> List[List[str]]:
    """The rows of a table, the first its header.

    Args:
        result: of :func:`~sct_mm.evaluation.reproduce.reproduce`.
        metric: of the result.
        sizes: columns; default: all of the result.
    """
    arms: Dict[str, dict] = {
        arm: {int(size): value for size, value in found.items()}
        for arm, found in result[metric].items()}
    sizes = sizes or list(next(iter(arms.values())))
    rows = [['trained on', 'compute', *map(str, sizes)]]
    for arm, found in arms.items():
        row = [arm, f'{result["compute"][arm]:.1f}']
        for size in sizes:
            mean, deviation = found[size]
            spread = f'±{_number(deviation, metric)}'
            row.append(_number(mean, metric)
                       + (spread if len(result['seeds']) > 1 else ''))
        rows.append(row)
    return rows


def markdown_of(result: dict, metric: str,
                sizes: Optional[Sequence[int]] = None) -> str:
    """The table in Markdown; the best mean of each size is bold."""
    header, *rows = cells_of(result, metric, sizes)
    for column in range(2, len(header)):
        means = [float(row[column].partition('±')[0]) for row in rows]
        for row, mean in zip(rows, means):
            if len(rows) > 1 and mean == max(means):
                row[column] = f'**{row[column]}**'
    lines = [header, ['---'] * len(header), *rows]
    return ''.join('| ' + ' | '.join(line) + ' |\n' for line in lines)


def results_of(folder: str) -> Dict[str, dict]:
    """{experiment: what tools/reproduce.py wrote of it} in ``folder``."""
    found = {}
    for path in sorted(glob.glob(osp.join(folder, '*.json'))):
        name = osp.splitext(osp.basename(path))[0]
        if name in EXPERIMENTS:
            with open(path) as file:
                found[name] = json.load(file)
    return found


def with_tables(text: str, results: Dict[str, dict]) -> str:
    """``text`` with the tables that its comments ask for::

        <!-- table: any-size metric=accuracy/top1 sizes=28,21,14 -->
        <!-- /table -->

    ``metric`` defaults to the first of the experiment, ``sizes`` to all.

    Raises:
        UserError: for an experiment, metric or size without a result, and
            for a comment that is none of these.
    """
    def fill(block: 're.Match') -> str:
        name = block['name']
        options = dict(word.partition('=')[::2]
                       for word in block['options'].split())
        if set(options) - {'metric', 'sizes'}:
            raise UserError('A table takes metric=NAME and sizes=28,21,14, '
                            f'but got {block["options"].strip()!r}. Mend it.')
        if name not in results:
            raise UserError(f'A table needs the result of {name!r}, but there '
                            f'are {sorted(results)}. Run tools/reproduce.py '
                            f'{name} and put its JSON into docs/results.')
        metric = options.get('metric') or next(iter(
            EXPERIMENTS[name].metrics))
        sizes = options.get('sizes', '')
        try:
            table = markdown_of(results[name], metric, [
                int(size) for size in sizes.split(',') if size])
        except (KeyError, ValueError) as error:
            raise UserError(f'The result of {name!r} has no {error} for a '
                            f'table of {metric}, {sizes}. Mend its options, '
                            f'or run tools/reproduce.py {name}.') from None
        return block['start'] + table + block['end']
    made, count = _BLOCK.subn(fill, text)
    if count != text.count('<!-- table:'):
        raise UserError('Each <!-- table: ... --> must end by <!-- /table -->'
                        f', but {count} of {text.count("<!-- table:")} do. '
                        'Mend the text.')
    return made


def draw(result: dict, metric: str, label: str, path: str) -> None:
    """The metric over the size, a line an arm, as a picture."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    arms = result[metric]
    columns = 1 if max(map(len, arms)) > 32 else 2
    height = 3.9 + 0.23 * math.ceil(len(arms) / columns)  # with the legend
    figure, axes = plt.subplots(figsize=(6.4, height), layout='constrained')
    for arm, sizes in arms.items():
        sizes = {int(size): value for size, value in sizes.items()}
        ours = arm.startswith('SCT, SSBN')
        axes.errorbar(list(sizes), [mean for mean, _ in sizes.values()],
                      [deviation for _, deviation in sizes.values()],
                      label=arm, marker='o', capsize=3,
                      linewidth=2.5 if ours else 1.2,
                      linestyle='-' if arm.startswith('SCT') else '--')
    axes.set_xticks(list(sizes))
    axes.set_xlabel('size of the input (pixels)')
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    figure.legend(loc='outside lower center', ncols=columns)
    save_plot(figure, path, 110)


def write_tables(root: str) -> List[str]:
    """Write the tables of README.md and docs/*.md in the repository at
    ``root`` from docs/results, and their figures beside the results.

    Returns:
        list: the paths of the files.

    Raises:
        UserError: for a folder without results, and as :func:`with_tables`.
    """
    folder = osp.join(root, 'docs', 'results')
    results = results_of(folder)
    if not results:
        raise UserError(f'{folder!r} must hold what tools/reproduce.py wrote, '
                        'but has none of it. Name the repository by --root.')
    written = []
    for path in (osp.join(root, 'README.md'),
                 *sorted(glob.glob(osp.join(root, 'docs', '*.md')))):
        with open(path, encoding='utf-8') as file:
            text = file.read()
        if '<!-- table:' in text:
            AtomicLocalBackend().put(
                with_tables(text, results).encode(), path)
            written.append(path)
    for name, result in results.items():
        metric, label = next(iter(EXPERIMENTS[name].metrics.items()))
        written.append(osp.join(folder, f'{name}.png'))
        draw(result, metric, label, written[-1])
    return written
