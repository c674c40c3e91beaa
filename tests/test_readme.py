"""README's tables hold the figures of docs/results."""
import json
import os.path as osp
import re

import pytest

from conftest import ROOT

# What tools/reproduce.py NAME wrote.
NAMES = ('any-size', 'between')


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
            rows.append(dict(zip(header, cells)))
    return rows


@pytest.mark.parametrize('name', NAMES)
def test_a_table_is_what_was_measured(name):
    with open(osp.join(ROOT, 'docs', 'results', f'{name}.json')) as f:
        result = json.load(f)
    with open(osp.join(ROOT, 'README.md')) as f:
        rows = rows_of(f.read())
    for arm, sizes in result['accuracy/top1'].items():
        told = {size: f'{mean:.2f}±{deviation:.2f}'
                for size, (mean, deviation) in sizes.items()}
        found = [row for row in rows if row['arm'] == arm and any(
            row.get(size) == value for size, value in told.items())]
        assert found, (arm, told)
        for row in found:
            wrong = {size: row[size] for size in told.keys() & row.keys()
                     if row[size] != told[size]}
            assert not wrong, (arm, wrong)
