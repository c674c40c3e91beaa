"""The table and the plot of a test at several sizes."""
import itertools
import json
import math
import os
import time

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from sct_mm.evaluation.plots import (
    draw_costs,
    draw_sizes,
    tick_sizes,
    with_room,
)
from sct_mm.evaluation.report import (
    make_comparison,
    make_size_table,
    report_sizes,
    write_report,
)
from sct_mm.evaluation.results_file import read_result


def row(size, served_by, top1=90.0, latency=(11.9, 12.34, 13.1),
        images=(1410.0, 1502.0, 1530.0), reliable=True):
    return dict(
        scale=size, served_by=served_by, metrics={'accuracy/top1': top1},
        gflops=1.5, latency_ms=latency[1],
        latency_ms_quartiles=[latency[0], latency[2]],
        latency_reliable=reliable, images_per_s=images[1],
        images_per_s_quartiles=[images[0], images[2]],
        images_reliable=True)


def model(label, sizes, trained):
    return dict(label=label, trained=trained,
                rows=[row(size, None) for size in sizes])


def printed(rows):
    console = Console(width=100)
    with console.capture() as capture:
        console.print(make_size_table('name', rows))
    return [line.split('│')[1:-1] for line in capture.get().splitlines()
            if '│' in line], capture.get()


def written(folder, sizes):
    models = [dict(model('a', sizes, sizes), config='a.py',
                   checkpoint='a.pth')]
    write_report(models, str(folder / 'scales.json'), lambda path: None,
                 [make_size_table('a', models[0]['rows'])], ())


@pytest.mark.parametrize('label', ['a[v1]', 'a[/v1]', 'a:car:'])
def test_brackets_in_a_path_are_no_markup(label, tmp_path, capsys):
    """rich would leave out [v1], and raise at [/v1]."""
    out = tmp_path / label
    models = [dict(model(label, (28, 14), (28, )), config='a.py',
                   checkpoint='a.pth')]
    report_sizes(models, str(out))
    shown = capsys.readouterr().out
    assert shown.split()[0] == label
    assert f'{out / "scales.json"} and scales.png' in shown


def test_a_result_outlives_who_reads_the_output(tmp_path, monkeypatch):
    """As of `tools/test.py ... | head`."""
    def closed(*args, **kwargs):
        raise BrokenPipeError

    monkeypatch.setattr(Console, 'print', closed)
    with pytest.raises(BrokenPipeError):
        written(tmp_path, (28, 14))
    assert len(read_result(str(tmp_path / 'scales.json'))['models']) == 1


def test_an_earlier_test_that_has_more_is_kept(tmp_path, capsys):
    for sizes in ((28, 14), (28, 14), (28, 21, 14)):
        written(tmp_path, sizes)
    assert [each.name for each in tmp_path.iterdir()] == ['scales.json']
    assert 'the earlier test' not in capsys.readouterr().out
    os.utime(tmp_path / 'scales.json', (0, time.mktime(
        (2026, 1, 2, 3, 4, 5, 0, 0, -1))))
    written(tmp_path, (28, 24))
    kept = tmp_path / 'scales-20260102_030405.json'
    assert f'{kept} is the earlier test' in capsys.readouterr().out
    for path, want in ((kept, [28, 21, 14]),
                       (tmp_path / 'scales.json', [28, 24])):
        rows = read_result(str(path))['models'][0]['rows']
        assert [each['scale'] for each in rows] == want


def test_a_result_that_cannot_be_written_leaves_the_earlier(tmp_path):
    written(tmp_path, (28, 14))
    model_of_none = dict(model('a', (28, ), (28, )), config='a.py',
                         checkpoint='a.pth', unwritable=object())
    with pytest.raises(TypeError, match='object'):
        write_report([model_of_none], str(tmp_path / 'scales.json'),
                     lambda path: None, [], ())
    rows = read_result(str(tmp_path / 'scales.json'))['models'][0]['rows']
    assert [each['scale'] for each in rows] == [28, 14]


def test_what_is_no_number_is_null_in_json(tmp_path):
    """Any reader of JSON takes the file; ours finds NaN again."""
    rows = [row(28, [28]), row(14, [14], top1=float('nan'))]
    rows[1]['arrays'] = {'classwise': [
        1.0, [float('inf'), np.float32('nan')], np.array([[np.nan, 2.0]])]}
    models = [dict(label='a', config='a.py', checkpoint='a.pth', trained=[],
                   rows=rows)]
    path = str(tmp_path / 'scales.json')
    write_report(models, path, lambda plot: draw_sizes(models, plot),
                 [make_size_table('a', rows)], ())

    def refuse(name):
        raise ValueError(f'{name} is no JSON')

    with open(path) as file:
        found = json.load(file, parse_constant=refuse)['models'][0]['rows'][1]
    assert found['metrics'] == {'accuracy/top1': None}
    assert found['arrays'] == {
        'classwise': [1.0, [None, None], [[None, 2.0]]]}
    read = read_result(path)['models']
    assert math.isnan(read[0]['rows'][1]['metrics']['accuracy/top1'])
    assert read[0]['rows'][0]['metrics'] == {'accuracy/top1': 90.0}
    assert math.isnan(models[0]['rows'][1]['metrics']['accuracy/top1'])
    draw_costs(read, 'accuracy/top1', read[0]['rows'][0], {},
               str(tmp_path / 'costs.png'))
    assert 'nan' in printed(read[0]['rows'])[1]


def test_table_of_scales_and_of_sizes_between():
    rows = [row(224, [224]), row(208, [224, 192]), row(28, None)]
    cells, text = printed(rows)
    assert [[c.strip() for c in line[:2]] for line in cells] == [
        ['224', '224'], ['208', '224+192'], ['28', '-']]
    assert [c.strip() for c in cells[0][-2:]] == [
        '12.3 (11.9-13.1)', '1502 (1410-1530)']
    assert '?' not in text


def test_table_marks_times_that_are_worthless():
    slow = row(28, [28], latency=(1.0, 3.25, 650.0), reliable=False)
    cells, text = printed([row(224, [224]), slow])
    assert cells[1][-2].strip() == '3.25 (1.00-650) ?'
    assert '?' not in ''.join(cells[0]) + cells[1][-1]
    assert '? not reliable: quartiles more than 25 % of the median' in text


def test_one_table_of_all_models():
    console = Console(width=100)
    with console.capture() as capture:
        console.print(make_comparison([
            model('a', (28, 24), (28, )), model('b', (28, 14), (14, ))]))
    assert [[c.strip() for c in line.split('│')[1:-1]]
            for line in capture.get().splitlines() if '│' in line] == [
        ['28', '90.00*', '90.00'], ['24', '90.00', '-'],
        ['14', '-', '90.00*']]
    assert 'accuracy/top1' in capture.get()


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """draw_sizes(models) -> the figure that it saves."""
    kept = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure, path, **options):
        save(figure, path, **options)
        kept.append(figure)

    monkeypatch.setattr(matplotlib.figure.Figure, 'savefig', keep)

    def run(models):
        draw_sizes(models, str(tmp_path / 'a.png'))
        assert (tmp_path / 'a.png').read_bytes()[:4] == b'\x89PNG'
        return kept[-1].axes[0]

    return run


@pytest.mark.parametrize('sizes, trained, least', [
    (range(28, 13, -1), (28, 21, 14), 15),
    (range(512, 63, -16), (512, 384, 256, 128), 10),
    (range(1333, 400, -9), (800, 640, 480), 7), ([224], (), 1)])
def test_labels_of_the_sizes_do_not_meet(sizes, trained, least, drawn):
    axes = drawn([model('name', sizes, trained)])
    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    boxes = [label.get_window_extent(canvas.get_renderer())
             for label in axes.get_xticklabels()]
    assert len(boxes) >= least
    for left, right in itertools.pairwise(boxes):
        assert left.x1 + 3 < right.x0
    assert {int(t) for t in axes.get_xticks()} >= set(trained) & set(sizes)


def test_ticks_of_the_trained_scales_come_first():
    assert tick_sizes(range(100, 201), (143, ), 20) == [100, 115, 143, 158,
                                                        173, 200]
    assert tick_sizes([28], ()) == [28]


def test_labels_of_a_curve_that_have_room():
    named = {14: (1.0, 80.0), 16: (1.02, 82.0), 18: (1.02, 90.0),
             28: (2.0, 90.0)}
    points = [*named.values(), (1.5, 10.0)]
    assert with_room(named, points) == [28, 18, 16]
    assert with_room({28: (2.0, 90.0)}, [(2.0, 90.0)]) == [28]
    assert with_room({}, []) == []


def test_marks_stand_at_what_was_trained(drawn):
    axes = drawn([model('a', (28, 24, 21, 18, 14), (28, 21, 14)),
                  model('b', (28, 24, 21), (28, )),
                  dict(label='c', trained=(), rows=[
                      dict(row(28, None), metrics={})])])
    lines = {line.get_label(): line for line in axes.lines}
    for name, want in (('a', [28, 21, 14]), ('b', [28]), ('c', [])):
        x = lines[name].get_xdata()
        assert [x[i] for i in lines[name].get_markevery()] == want
    assert list(lines['a'].get_xdata()) == [28, 24, 21, 18, 14]
    marks = {lines[name].get_marker() for name in 'abc'}
    assert len(marks) == 3 and 'None' not in marks
