"""The tables of README and docs/ have the numbers of docs/results."""
import json
import re
from pathlib import Path

import pytest
from conftest import ROOT

# The results that reproduce.py wrote, and the pages that have tables of them.
RESULTS = sorted(Path(ROOT, 'docs/results').glob('*.json'))
PAGES = ('README.md', 'docs/results.md')


def rows_of(text):
    """[{column: cell}] of all Markdown tables; the first column is `arm`."""
    rows, header = [], None
    for line in text.splitlines():
        cells = [cell.strip(' *') for cell in line.split('|')[1:-1]]
        if not cells:
            header = None
        elif header is None:
            header = ['arm', *cells[1:]]
        elif not re.fullmatch('[-: ]+', ''.join(cells)):
            rows.append(dict(zip(header, cells, strict=True)))
    return rows


def rows_on(page):
    return rows_of(Path(ROOT, page).read_text(encoding='utf-8'))


def as_written(cell, mean, deviation):
    """Mean and deviation with as many decimals as the cell has; only the
    mean for one seed."""
    decimals = len(re.match(r'-?\d*\.?(\d*)', cell)[1])
    if not deviation and '±' not in cell:
        return f'{mean:.{decimals}f}'
    return f'{mean:.{decimals}f}±{deviation:.{decimals}f}'


def right_and_wrong(row, sizes):
    """The sizes at which a row has the measured numbers, and its others."""
    right = {size for size in sizes.keys() & row.keys()
             if row[size] == as_written(row[size], *sizes[size])}
    return right, sizes.keys() & row.keys() - right


def rows_with(page, arm, sizes):
    """The rows of an arm with more right numbers than wrong ones: the arm may
    be in tables of other experiments, too."""
    found = []
    for row in rows_on(page):
        right, wrong = right_and_wrong(row, sizes)
        if row['arm'] == arm and len(right) > len(wrong):
            found.append(row)
    return found


def arms():
    for path in RESULTS:
        for metric, found in json.loads(path.read_text()).items():
            if '/' in metric:
                yield from (pytest.param(sizes, arm, id=f'{path.stem}-{arm}')
                            for arm, sizes in found.items())


@pytest.mark.parametrize('sizes, arm', list(arms()))
def test_a_table_is_what_was_measured(sizes, arm):
    found = [row for page in PAGES for row in rows_with(page, arm, sizes)]
    assert found, (arm, sizes)
    for row in found:
        assert not right_and_wrong(row, sizes)[1], row


def test_readmes_first_table_was_measured():
    measured = json.loads(Path(ROOT, 'docs/results/any-size.json'
                               ).read_text())['accuracy/top1']
    found = [(row, measured[row['arm']]) for row in rows_on('README.md')
             if row['arm'] in measured]
    assert len(found) == 4
    for row, sizes in found:
        right, wrong = right_and_wrong(row, sizes)
        assert len(right) == 5 and not wrong, row
