"""Tables of README and docs hold the figures of docs/results."""
import glob
import json
import os.path as osp

import pytest
import tables
from conftest import ROOT
from experiments import EXPERIMENTS
from tables import (
    cells_of,
    draw,
    markdown_of,
    results_of,
    take_results,
    with_tables,
    write_tables,
)

from sct_mm.utils.errors import UserError

RESULT = dict(seeds=[0, 1], compute={'a': 3.0, 'b': 4.75}, **{
    'accuracy/top1': {'a': {'28': [91.254, 0.1], '14': [20.0, 0.25]},
                      'b': {'28': [91.0, 0.0], '14': [89.5, 1.0]}},
    'accuracy/top5': {'a': {'28': [99.0, 0.0], '14': [50.0, 0.0]}}})
TABLE = ('| network | compute | 28 | 14 |\n'
         '| --- | --- | --- | --- |\n'
         '| a | 3.0 | **91.25±0.10** | 20.00±0.25 |\n'
         '| b | 4.8 | 91.00±0.00 | **89.50±1.00** |\n')


def test_the_best_of_each_size_is_bold():
    assert markdown_of(RESULT, 'accuracy/top1') == TABLE


def test_one_seed_has_no_deviation_and_map_one_digit():
    result = dict(RESULT, seeds=[0], **{'coco/bbox_mAP': {
        'a': {'28': [41.26, 0.0]}}})
    assert cells_of(result, 'coco/bbox_mAP') == [
        ['network', 'compute', '28'], ['a', '3.0', '41.3']]


def test_a_network_for_each_of_some_sizes_has_no_others(tmp_path,
                                                        monkeypatch):
    result = dict(RESULT, **{'accuracy/top1': {
        'a': {'28': [91.0, 0.1], '20': [85.0, 0.1], '14': [20.0, 0.25]},
        'b': {'28': [92.0, 0.0], '14': [89.5, 1.0]}}})
    rows = markdown_of(result, 'accuracy/top1').splitlines()
    assert rows[2] == '| a | 3.0 | 91.00±0.10 | **85.00±0.10** | 20.00±0.25 |'
    assert rows[3] == '| b | 4.8 | **92.00±0.00** |  | **89.50±1.00** |'
    figures = []
    monkeypatch.setattr(tables, 'save_plot',
                        lambda figure, *_: figures.append(figure))
    draw(result, EXPERIMENTS['any-size'], str(tmp_path / 'any-size.png'))
    axes, = figures[0].axes
    lines = {line.get_label(): line.lines[0] for line in axes.containers}
    assert lines['a'].get_linestyle() == '--'
    assert lines['b'].get_linestyle() == 'None'  # points of their own
    assert lines['b'].get_xdata().tolist() == [28, 14]
    assert axes.get_xticks().tolist() == [14, 20, 28]


def test_a_block_is_filled_and_filled_again():
    text = ('Before.\n<!-- table: any-size{} -->\nold | lines\n'
            '<!-- /table -->\nAfter.\n')
    results = {'any-size': RESULT}
    made = with_tables(text.format(''), results)
    assert made == ('Before.\n<!-- table: any-size -->\n' + TABLE
                    + '<!-- /table -->\nAfter.\n')
    assert with_tables(made, results) == made
    made = with_tables(text.format(' metric=accuracy/top5 sizes=14'), results)
    assert '| a | 3.0 | 50.00±0.00 |' in made and '| 28 |' not in made
    made = with_tables(text.format(' rows=2'), results)
    assert '| b | 4.8 | 91.00±0.00 | 89.50±1.00 |' in made
    assert '| a |' not in made


@pytest.mark.parametrize('options, match', [
    (': between', "result of 'between', but there are \\['any-size'\\]"),
    (': any-size metric=none', "has no 'none' for a table"),
    (': any-size sizes=13', 'has no 13 for a table'),
    (': any-size sizes=28;14', "28;14' for a table"),
    (': any-size size=14', "takes metric=.* but got 'size=14'"),
    (': any-size rows=3', 'has no 3 for a table'),
    (':', '0 of 1 do')])
def test_a_table_without_a_result_is_refused(options, match):
    with pytest.raises(UserError, match=match):
        with_tables(f'<!-- table{options} -->\n<!-- /table -->',
                    {'any-size': RESULT})


def test_a_block_without_an_end_takes_nothing_with_it():
    text = ('<!-- table: any-size -->\nlost\n# Heading\n'
            '<!-- table: any-size -->\n<!-- /table -->\n')
    with pytest.raises(UserError, match='1 of 2 do'):
        with_tables(text, {'any-size': RESULT})


def test_the_tool_writes_tables_and_figures(tmp_path):
    folder = tmp_path / 'docs' / 'results'
    folder.mkdir(parents=True)
    (tmp_path / 'README.md').write_text('nothing')
    with pytest.raises(UserError, match='has none of it'):
        write_tables(str(tmp_path))
    (folder / 'any-size.json').write_text(json.dumps(RESULT))
    page = tmp_path / 'docs' / 'results.md'
    page.write_text('<!-- table: any-size -->\n<!-- /table -->\n')
    assert write_tables(str(tmp_path)) == [
        str(page), str(folder / 'any-size.png')]
    assert TABLE in page.read_text()
    assert (folder / 'any-size.png').stat().st_size > 1000


def test_results_are_taken_of_no_fewer_seeds(tmp_path):
    runs, folder = tmp_path / 'runs', tmp_path / 'docs' / 'results'
    for path in (runs, folder):
        path.mkdir(parents=True)
    more = dict(RESULT, seeds=[0, 1, 2])
    for name, old, found in (('any-size', RESULT, more),
                             ('longer', more, RESULT),
                             ('longest', more, dict(more, images=256))):
        (folder / f'{name}.json').write_text(json.dumps(old))
        (runs / f'{name}.json').write_text(json.dumps(found))
    (runs / 'distill.json').write_text(json.dumps(RESULT))
    assert take_results(str(runs), str(tmp_path)) == [
        str(folder / 'any-size.json')]
    assert results_of(str(folder)) == {
        'any-size': more, 'longer': more, 'longest': more}


def test_schedules_are_drawn_over_compute_where_they_trained(
        tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(tables, 'save_plot',
                        lambda figure, *_: figures.append(figure))
    experiment = EXPERIMENTS['compute']
    draw(dict(compute={arm: i for i, arm in enumerate(experiment.arms)}, **{
        'accuracy/top1': {arm: {str(size): [size + i / 8, 0.1]
                                for size in experiment.sizes}
                          for i, arm in enumerate(experiment.arms)}}),
        experiment, str(tmp_path / 'compute.png'))
    panels = figures[0].axes
    assert [panel.get_title() for panel in panels] == [
        '28 pixels', '21 pixels', '14 pixels']
    lines = [{line.get_label(): line.lines[0].get_xydata().tolist()
              for line in panel.containers} for panel in panels]
    assert [{name for name in each if 'only' in name} for each in lines] == [
        {'trained at 28 px only'}, {'trained at 21 px only'},
        {'trained at 14 px only'}]
    assert lines[1]['trained at 21 px only'] == [
        [4, 21.5], [5, 21.625], [6, 21.75]]
    assert all(len(each['SCT, SSBN']) == 4 for each in lines)


def test_the_tables_of_the_repository_are_those_of_its_results():
    results = results_of(osp.join(ROOT, 'docs', 'results'))
    assert results
    for path in (osp.join(ROOT, 'README.md'),
                 *glob.glob(osp.join(ROOT, 'docs', '*.md'))):
        with open(path, encoding='utf-8') as file:
            text = file.read()
        assert with_tables(text, results) == text, (
            f'{path}: run tools/benchmarks/experiments/tables.py')
