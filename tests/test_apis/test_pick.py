"""pick(): the size that is chosen, the front that is drawn, and refusals."""
import json
import os.path as osp
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from exports import tiny_files, tiny_network

from sct_mm.apis import pick, pick_file
from sct_mm.apis.pick import Limits, choose
from sct_mm.evaluation.pareto import front
from sct_mm.evaluation.results_file import counts_errors
from sct_mm.utils.errors import UserError


def model(label, rows, **more):
    """A model of rows (size, GFLOPs, milliseconds, top-1)."""
    return dict(label=label, config=f'configs/{label}.py',
                checkpoint=f'work dirs/{label}.pth', rows=[
                    dict(scale=size, served_by=[size], gflops=gflops,
                         latency_ms=ms, metrics={'accuracy/top1': top1},
                         **more) for size, gflops, ms, top1 in rows])


MODELS = [model('ours', [(28, 4.0, 8.0, 92.0), (21, 2.0, 5.0, 91.0),
                         (14, 1.0, 3.0, 89.0)]),
          model('plain', [(28, 4.0, 6.0, 91.5), (14, 1.0, 2.5, 40.0)])]


@pytest.fixture
def result(tmp_path):
    def write(**changes):
        path = tmp_path / 'scales.json'
        path.write_text(json.dumps(dict(
            dict(device='a CPU', models=MODELS), **changes)))
        return str(path)
    return write


@pytest.mark.parametrize('limits, label, size', [
    (Limits(latency=5.0), 'ours', 21), (Limits(latency=7.0), 'plain', 28),
    (Limits(gflops=3.9), 'ours', 21), (Limits(gflops=100), 'ours', 28),
    (Limits(latency=2.9), 'plain', 14),
    (Limits(least={'accuracy/top1': 88}), 'ours', 14),
    (Limits(least={'accuracy/top1': 91.2}), 'plain', 28),  # of 4, the faster
    (Limits(gflops=2, least={'accuracy/top1': 80}), 'ours', 21),
    (Limits(latency=2.5), 'plain', 14)])
def test_choose(limits, label, size):
    choice = choose(MODELS, limits, 'accuracy/top1')
    assert (choice.model['label'], choice.row['scale']) == (label, size)


@pytest.mark.parametrize('limits, match', [
    (Limits(latency=1.0), r'must have at most 1 ms \(the least is 2.5\), but '
     'none has. Raise the limit of cost, or test other sizes.'),
    (Limits(least={'accuracy/top1': 95}), 'has. Lower --min, or test'),
    (Limits(gflops=0.5, least={'accuracy/top1': 95}),
     r'at most 0.5 GFLOPs \(the least is 1\) and accuracy/top1 of at least '
     r'95 \(the best is 92\), but none has. Raise .* cost, or lower --min')])
def test_limits_that_no_size_keeps_to(limits, match):
    with pytest.raises(UserError, match=match):
        choose(MODELS, limits, 'accuracy/top1')


def test_a_size_without_the_metric_is_not_picked():
    nothing = model('a', [(14, 1.0, 1.0, float('nan')), (28, 4.0, 4.0, 1.0)])
    nothing['rows'].append(dict(nothing['rows'][0], scale=12, metrics={}))
    for limits in (Limits(gflops=9), Limits(least={'accuracy/top1': 0})):
        assert choose([nothing], limits, 'accuracy/top1').row['scale'] == 28


@pytest.mark.parametrize('name', [
    'NME', 'val/EPE', 'MPJPE', 'P-MPJPE_Walking', 'abs_rel', 'rmse_log',
    'crowd_human/mMR'])
def test_of_errors_the_least_is_the_best(name, result, monkeypatch):
    drawn = []
    monkeypatch.setattr('sct_mm.evaluation.plots.front', lambda points: (
        drawn.append(points), front(points))[1])
    rows = [dict(row, metrics={name: error}) for row, error in zip(
        MODELS[0]['rows'], (0.04, 0.05, 0.09), strict=True)]
    path = result(models=[dict(MODELS[0], rows=rows)])
    assert [pick(path, max_gflops=most)['row']['scale']
            for most in (9, 3, 1)] == [28, 21, 14]
    assert drawn[0] == [(1.0, -0.09), (2.0, -0.05), (4.0, -0.04)]
    with pytest.raises(UserError, match=f"--min must name .* but got '{name}'"
                       '.*Give a limit of cost'):
        pick(path, least={name: 0.05})
    assert not counts_errors(f'{name}s'.replace('_', ''))


def test_what_is_no_number_hides_no_other(result, monkeypatch):
    """The cheapest size found nothing, so the others make the front; a loss
    is no metric to choose by."""
    drawn = []
    monkeypatch.setattr('sct_mm.evaluation.plots.front', lambda points: (
        drawn.append(points), front(points))[1])
    rows = [dict(row, metrics={'test_loss': 9.0, **row['metrics']})
            for row in model('a', [(14, 1.0, 1.0, float('nan')), (
                28, 4.0, 4.0, 1.0)])['rows']]
    path = result(models=[dict(MODELS[0], rows=rows)])
    found = pick(path, max_gflops=9)
    assert found['metric'] == 'accuracy/top1' and found['row']['scale'] == 28
    assert drawn == [[(4.0, 1.0)]] * 2
    with pytest.raises(UserError, match="of accuracy/top1, but got 'test_lo"):
        pick(path, max_gflops=9, metric='test_loss')
    with pytest.raises(UserError, match='must be a file, but .* is a folder'):
        pick(path, max_gflops=9, out=osp.dirname(path))


@pytest.mark.parametrize('points, best', [
    ([(1, 1), (2, 2), (3, 1)], [0, 1]), ([(3, 3), (1, 1), (2, 5)], [1, 2]),
    ([(1, 2), (1, 3)], [1]), ([(1, 1), (1, 1)], [0, 1]), ([], [])])
def test_front(points, best):
    assert front(points) == best


def test_pick_names_the_command_and_draws(result, tmp_path):
    found = pick(Path(result()), max_latency=5)
    assert found['row']['scale'] == 21 and found['device'] == 'a CPU'
    assert shlex.split(found['command']) == [
        'python', 'tools/export.py', 'configs/ours.py',
        'work dirs/ours.pth', '--size', '21', '--format', 'onnx', '--out',
        'ours-21px.onnx']
    assert found['plot'] == str(tmp_path / 'pareto.png')
    assert (tmp_path / 'pareto.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('changes, match', [
    (dict(models=[]), 'has no `models`'), (dict(models=3), 'has no `models`'),
    (dict(models=[dict(label='a', config='b', rows=[])]),
     r'has no models\[0\].checkpoint'),
    (dict(models=[dict(MODELS[0], rows=[])]), r'has no models\[0\].rows'),
    (dict(models=[dict(MODELS[0], rows=[dict(scale=1, metrics={})])]),
     'has no number gflops')])
def test_a_result_of_another_version(changes, match, result):
    with pytest.raises(UserError, match=f'{match}.*another kind or version'):
        pick(result(**changes), max_latency=5)


@pytest.mark.parametrize('arguments, kind, match', [
    (dict(), UserError, 'A limit must be given .* but got none'),
    (dict(max_latency=-1), ValueError, '`max_latency` must be a finite'),
    (dict(max_gflops='1'), TypeError, '`max_gflops` must be a number'),
    (dict(least={'mAP': 1}), UserError, "one of accuracy/top1, but got 'mAP'"),
    (dict(least=['mAP']), TypeError, "`least` must be a dict, but got .'mAP"),
    (dict(max_gflops=1, metric='mAP'), UserError, "but got 'mAP'"),
    (dict(max_gflops=1, out='a.jpg'), UserError, r"a .png, but got 'a.jpg'")])
def test_what_is_no_limit(arguments, kind, match, result):
    with pytest.raises(kind, match=match):
        pick(result(), **arguments)


@pytest.mark.parametrize('changes, match', [
    (dict(gflops=float('nan')), 'no number gflops'),
    (dict(latency_ms=-1.0), 'no number latency_ms'),
    (dict(scale=14.5), 'a scale 14.5'), (dict(scale=0), 'a scale 0'),
    (dict(metrics={'accuracy/top1': '92'}), 'no number accuracy/top1'),
    (dict(metrics={'accuracy/top1': True}), 'no number accuracy/top1')])
def test_a_result_that_was_edited_wrongly(changes, match, result):
    """A cost that is not a number would keep to any limit."""
    edited = dict(MODELS[0], rows=[dict(MODELS[0]['rows'][0], **changes)])
    with pytest.raises(UserError, match=match):
        pick(result(models=[MODELS[1], edited]), max_gflops=100)


def test_options_that_were_edited_wrongly(result):
    models = [dict(MODELS[0], cfg_options=['a=1'])]
    with pytest.raises(UserError, match=r'no dict models\[0\].cfg_options'):
        pick(result(models=models), max_gflops=100)


@pytest.mark.parametrize('value', [float('nan'), None])  # as JSON has it
def test_a_metric_that_is_no_number(value, result):
    models = [dict(MODELS[0], rows=[dict(MODELS[0]['rows'][0], metrics={
        'accuracy/top1': value})])]
    for limits in (dict(least={'accuracy/top1': 1}), dict(max_gflops=100)):
        with pytest.raises(UserError, match="'accuracy/top1' must be a number "
                           'at a size at least, but is none at any'):
            pick(result(models=models), **limits)


def test_a_result_without_a_metric(result):
    models = [dict(MODELS[0], rows=[dict(MODELS[0]['rows'][0], metrics={})])]
    with pytest.raises(UserError, match='has no metric to choose by'):
        pick(result(models=models), max_gflops=100)


def test_the_command_has_the_options_of_the_test(result):
    """The file is named by the config, since a label may hold folders."""
    models = [dict(MODELS[0], label='ours (a/b.pth)', cfg_options={
        'model.scales': [28, 21], 'data_root': '/my data'})]
    words = shlex.split(pick(result(models=models), max_latency=5)['command'])
    assert words[-4:] == ['ours-21px.onnx', '--cfg-options',
                          'model.scales=[28,21]', 'data_root=/my data']


def test_a_result_that_is_none(tmp_path):
    with pytest.raises(UserError, match='must be a file, but got'):
        pick(str(tmp_path / 'scales.json'), max_latency=5)
    (tmp_path / 'scales.json').write_text('{')
    with pytest.raises(UserError, match='is no JSON'):
        pick(str(tmp_path / 'scales.json'), max_latency=5)


def test_a_file_is_measured_here(tmp_path, monkeypatch, capsys):
    tiny_files(tiny_network(), tmp_path)
    module = sys.modules[pick_file.__module__]
    monkeypatch.setattr(module, 'latencies_ms', lambda files: {
        size: size / 4 for size in files})
    found = pick_file(tmp_path, 3.2)
    assert found == dict(size=12, file=str(tmp_path / 'net-12px.onnx'),
                         latencies={16: 4.0, 12: 3.0, 8: 2.0})
    with pytest.raises(UserError, match='at most 1 ms an image here: the '
                       'nearest is 8 pixels, 2 ms'):
        pick_file(str(tmp_path), 1)
    with pytest.raises(UserError, match="file, but got 'none.onnx'"):
        pick_file('none.onnx', 1)
    with pytest.raises(TypeError, match='`max_latency` must be a number'):
        pick_file(str(tmp_path), '1')
    monkeypatch.setattr('sys.argv', ['pick.py', '--file', str(tmp_path),
                                     '--max-latency', '3ms'])
    run = runpy.run_path(osp.join(ROOT, 'tools', 'pick.py'))
    run['main']()
    said = capsys.readouterr().out
    assert '16 pixels: 4 ms an image' in said
    assert f'is 12 pixels: {tmp_path / "net-12px.onnx"}' in said


@pytest.mark.parametrize('words, match', [
    ((), 'name either a result'), (('a.json', '--file', 'b'), 'name either'),
    (('--file', 'b'), 'picked by --max-latency alone'),
    (('--file', 'b', '--max-latency', '1', '--min', 'a', '1'),
     'picked by --max-latency alone')])
def test_a_file_or_a_result(words, match, monkeypatch, capsys):
    parse = runpy.run_path(osp.join(ROOT, 'tools', 'pick.py'))['parse_args']
    with pytest.raises(SystemExit):
        parse(words)
    assert match in capsys.readouterr().err


def test_the_tool(run_tool, result, tmp_path):
    models = [model('ours', [(28, 4.0, 8.0, 92.0)], latency_reliable=False)]
    path = result(models=models)
    code, output = run_tool('pick.py', path, '--max-latency', '0.01s',
                            '--min', 'accuracy/top1', 88, '--out',
                            tmp_path / 'p.png')
    assert code == 0, output
    assert ('28 pixels of ours: accuracy/top1 92, 4 GFLOPs, 8.00 ms an image'
            in output)
    assert 'Its latency varied' in output
    assert 'tools/export.py configs/ours.py' in output
    assert (tmp_path / 'p.png').exists()
    code, output = run_tool('pick.py', path, '--max-latency', '5ms')
    assert code == 2 and '(the least is 8), but none has' in output
    code, output = run_tool('pick.py', path, '--max-latency', '5 pixels')
    assert code == 2 and 'invalid' in output
    code, output = run_tool('pick.py', path, '--min', 'a', 1, '--min', 'a', 2)
    assert code == 2 and 'metric once, but got a 1 and a 2. Leave' in output
    code, output = run_tool('pick.py', path, '--min', 'accuracy/top1=88')
    assert code == 2 and '[--min accuracy/top1 88]' in output
    code, output = run_tool('pick.py', path, '--min', 'a', '8o')
    assert code == 2 and 'got a 8o. Write e.g. --min accuracy/top1' in output
