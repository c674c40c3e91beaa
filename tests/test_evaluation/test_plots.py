"""Plots are written whole, and leave matplotlib as a user has set it."""
import errno
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from sct_mm.evaluation.plots import new_figure, save_plot

DRAW = '''
import sys
import matplotlib
from sct_mm.evaluation.plots import draw_cascade, draw_costs, draw_sizes
matplotlib.use('svg', force=False)
row = dict(metrics={'accuracy/top1': 90.0}, gflops=1.0, latency_ms=2.0)
rows = [dict(row, scale=28), dict(row, scale=14, gflops=0.5)]
model = dict(label='net', trained=(28, ), rows=rows, cascade=dict(
    row, random=row, curve=[[0, 90.0, 1.0], [1, 91.0, 2.0]]))
draw_sizes([model], 'sizes.png')
draw_cascade(model, 'cascade.png')
draw_costs([model], 'accuracy/top1', rows[0], dict(gflops=2.0), 'costs.png')
assert matplotlib.get_backend() == 'svg'
assert 'matplotlib.pyplot' not in sys.modules
'''


def test_nothing_of_matplotlib_is_set_for_the_process(tmp_path):
    subprocess.run([sys.executable, '-c', DRAW], check=True, cwd=tmp_path,
                   env={**os.environ, 'PYTHONPATH': ROOT})
    for name in ('sizes', 'cascade', 'costs'):
        assert (tmp_path / f'{name}.png').read_bytes()[:4] == b'\x89PNG'


def test_a_plot_that_cannot_be_written_leaves_the_one_before(tmp_path,
                                                             monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    path = tmp_path / 'a.png'
    path.write_bytes(b'before')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        save_plot(new_figure(2, 2)[0], str(path))
    assert path.read_bytes() == b'before'
    assert os.listdir(tmp_path) == ['a.png']
