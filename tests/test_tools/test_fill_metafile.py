"""The cards have the figures of configs and results; openmim reads them."""
import json
import os.path as osp
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from fill_metafile import (
    card_of,
    make_cards,
    metrics_of,
    of_a_sibling,
    results_in,
)
from modelindex.load_model_index import load

from sct_mm.utils.errors import UserError

DEMO = 'sct_resnet18_1xb128_fashion-mnist'
EXPERIMENTS = osp.join(ROOT, 'tools/benchmarks/experiments/configs')
DETECTOR = 'sct_retinanet_r18_fpn_1xb8_fashion-det'


def test_the_cards_are_those_of_configs_and_results():
    made = make_cards(ROOT, results_in(osp.join(ROOT, 'docs/results')))
    assert len(made) == 2
    for path, text in made.items():
        with open(osp.join(ROOT, path)) as file:
            assert file.read() == text, 'run tools/dev/fill_metafile.py'


def test_the_hosts_read_the_index():
    index = load(osp.join(ROOT, 'model-index.yml'))
    assert not index.check(silent=True)
    models = {model.name: model for model in index.models}
    assert len(models) == len(index.models)
    for model in models.values():
        assert osp.isfile(osp.join(ROOT, model.config))
    stock = card_of(osp.join(EXPERIMENTS, 'resnet50_8xb32_in1k-224px.py'), '',
                    {})
    # of torchvision's page, and of the ResNet paper
    assert stock['Metadata']['Parameters'] == 25_557_032
    assert round(stock['Metadata']['FLOPs'] / 1e9, 2) == 4.09
    ours = models['sct_resnet50_8xb32_in1k'].metadata
    assert ours.data['Scales'] == '224/192/160/128'
    # 26,560 channels with a weight and a bias at each scale
    assert ours.parameters - 25_557_032 == 3 * 2 * 26_560
    assert models[DEMO].in_collection and 'In Collection' not in stock
    # What only the experiments use has no card, and what is not installed.
    assert {model.config for model in index.models} == {
        path.relative_to(ROOT).as_posix() for path in Path(
            ROOT, 'configs').glob('*.py') if not of_a_sibling(path)}


def test_results_of_both_tools(tmp_path):
    alone = 'resnet18_1xb128_glyphs-96px'
    base = 'resnet18_1xb128_fashion-mnist-28px'
    (tmp_path / 'compute.json').write_text(json.dumps({
        'seeds': [0, 1], 'configs': {'8 epochs': DEMO, '3 epochs': base},
        'accuracy/top1': {
            '8 epochs': {'28': [91.841, 0.2], '10': [38.4, 1.0]},
            '5 epochs': {'28': [1.0, 0.0]},
            '3 epochs': {'28': [91.28, 0.3]}}}))
    (tmp_path / 'glyphs.json').write_text(json.dumps({
        'seeds': [0], 'configs': {'96 px': alone}, 'accuracy/top1': {
            '96 px': {'28': [19.1, 3.0], '96': [89.119, 0.1]}}}))
    (tmp_path / 'run.json').write_text(json.dumps({'models': [
        dict(config=f'configs/{DETECTOR}.py', rows=[dict(
            scale=128, metrics={'coco/bbox_mAP': 0.4512, 'other': 1})]),
        dict(config=f'configs/{DEMO}.py', rows=[dict(
            scale=28, metrics={'accuracy/top1': 1})])]}))
    (tmp_path / 'any-size.json').write_text(json.dumps({
        'seeds': [0], 'configs': {'28 px': base}, 'accuracy/top1': {
            '28 px': {'28': [1.0, 0.0], '27': [90.0, 0.0]}}}))
    (tmp_path / 'of_another_kind.json').write_text('{"thresholds": []}')
    (tmp_path / 'notes.md').write_text('no result')
    results = results_in(tmp_path)
    assert set(results) == {DEMO, alone, base, DETECTOR}
    assert metrics_of(results[base], 28) == {
        'Top 1 Accuracy': 91.28, 'Top 1 Accuracy at 27': 90.0}
    assert metrics_of(results[DEMO], 28) == {
        'Top 1 Accuracy': 91.84, 'Top 1 Accuracy at 10': 38.4}
    assert list(metrics_of(results[alone], 96).items()) == [
        ('Top 1 Accuracy', 89.12), ('Top 1 Accuracy at 28', 19.1)]
    assert metrics_of(results[DETECTOR], 128) == {'box AP': 45.12}


@pytest.mark.parametrize('text', [
    'no JSON', '{"models": [{"rows": []}]}', '{"models": 1}',
    '{"seeds": [0], "accuracy/top1": {}}'])
def test_a_result_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / 'run.json').write_text(text)
    with pytest.raises(UserError, match=r"run\.json' cannot be read"):
        results_in(tmp_path)


def test_a_card_has_the_results_of_its_config(tmp_path):
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / f'{DEMO}.py').write_text(
        f"_base_ = 'sct_mm::{DEMO}.py'")
    made = make_cards(tmp_path, {DEMO: {28: {'accuracy/top1': 91.84},
                                        14: {'accuracy/top1': 89.7}}})
    card, = yaml.safe_load(made['configs/metafile-classification.yml'])[
        'Models']
    assert card['Config'] == f'configs/{DEMO}.py'
    assert card['Results'] == [dict(
        Task='Image Classification', Dataset='Fashion-MNIST', Metrics={
            'Top 1 Accuracy': 91.84, 'Top 1 Accuracy at 14': 89.7})]
