"""apis.test: against the host's own test; other hosts' configs; TTA."""
import json
import os
import os.path as osp
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from arms import Worker
from conftest import ROOT
from images import COUNT
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from sct_mm import apis, extract_scale, use_scale
from sct_mm.apis.test import name_apart, trained_sizes
from sct_mm.apis.test import test_config as config_of_test
from sct_mm.datasets.rescale_pipeline import rescale_pipeline
from sct_mm.models.size_selection import ssbn_layers
from sct_mm.utils.errors import UserError

FASHION = osp.join('configs', 'sct_resnet18_1xb128_fashion-mnist.py')
ARMS = osp.join('tools', 'benchmarks', 'experiments', 'configs')
FEW = {'test_dataloader.dataset.indices': 40,
       'test_dataloader.batch_size': 20}
NEW_BASE = '''
from mmcv.transforms import Resize
from mmengine.dataset import DefaultSampler
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.datasets import FashionMNIST, PackInputs
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import (
    ClsDataPreprocessor, CrossEntropyLoss, GlobalAveragePooling,
    ImageClassifier, LinearClsHead, ResNet_CIFAR)
from torch.optim import SGD

default_scope = None
model = dict(
    type=ImageClassifier,
    backbone=dict(type=ResNet_CIFAR, depth=18, in_channels=1,
                  base_channels=8, stem_channels=8),
    data_preprocessor=dict(type=ClsDataPreprocessor, mean=[72.], std=[90.],
                           num_classes=10, to_rgb=False),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=10, in_channels=64,
              loss=dict(type=CrossEntropyLoss)))
val_dataloader = dict(
    batch_size=20, num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=FashionMNIST, data_root='data/fashion-mnist',
                 split='test', test_mode=True, indices=40, pipeline=[
                     dict(type=Resize, scale=28, backend='pillow'),
                     dict(type=PackInputs)]))
test_dataloader = val_dataloader
train_dataloader = dict(
    batch_size=20, num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(type=FashionMNIST, data_root='data/fashion-mnist',
                 indices=40, pipeline=[dict(type=PackInputs)]))
val_evaluator = test_evaluator = dict(type=Accuracy, topk=(1, ))
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1)
test_cfg = dict()
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01))
'''
NEW = '''
from mmengine.config import read_base
with read_base():
    from .base import *
from sct_mm import SSBN, SCTLossHook, ScalesValLoop
model['backbone'].update(norm_cfg=dict(type=SSBN, scales=(28, 21)))
custom_hooks = [dict(type=SCTLossHook)]
val_cfg = dict(type=ScalesValLoop)
'''


def with_statistics(cfg):
    """A network of random weights that has seen its scales."""
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    for scale in (28, 21, 14)[:len(ssbn_layers(model)[0].scales)]:
        with use_scale(model, scale):
            for _ in range(3):
                model(torch.randn(8, 1, scale, scale) * 28 / scale)
    return model.eval()


@pytest.fixture
def fashion(tmp_path, monkeypatch, small_root):
    """Path of a checkpoint of the demo's network."""
    monkeypatch.chdir(small_root)
    model = with_statistics(Config.fromfile(FASHION))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    return str(tmp_path / 'a.pth')


def stock(folder, checkpoint, change):
    """The host's own test of the demo's config, after change(cfg)."""
    cfg = Config.fromfile(FASHION)
    cfg.work_dir, cfg.load_from = str(folder), checkpoint
    cfg.log_level = 'ERROR'
    cfg.experiment_name = f'evaluate-{next(COUNT)}'
    cfg.merge_from_dict(FEW)
    change(cfg)
    return Runner.from_cfg(cfg)


def test_rows_are_those_of_the_hosts_test(fashion, tmp_path, capsys):
    """With the plain network that is extracted at the size."""
    with pytest.warns(UserWarning) as warned:
        result, = apis.test(
            FASHION, fashion, ['14:28:7', 18, 10], str(tmp_path),
            {**FEW, 'test_dataloader.num_workers': 1,
             'test_dataloader.persistent_workers': True})
    assert capsys.readouterr().out.count('Loads checkpoint') <= 1
    texts = sorted(str(w.message) for w in warned if 'pixels' in str(w))
    assert texts[1:] == [
        '18 pixels lie between the scales 21 and 14, whose rows are mixed.',
        '18, 10 pixels are no multiple of the stride 8 of the network, which '
        'costs accuracy.']
    assert texts[0] == ('10 pixels lie outside of the scales (28, 21, 14): '
                        'the rows of scale 14 serve them.')
    assert result['label'] == osp.basename(FASHION)[:-3]
    assert result['trained'] == (28, 21, 14)
    rows = {row['scale']: row for row in result['rows']}
    assert {size: row['served_by'] for size, row in rows.items()} == {
        28: [28], 21: [21], 18: [21, 14], 14: [14], 10: [14]}
    for size, row in rows.items():

        def change(cfg, size=size):
            data = cfg.test_dataloader.dataset
            data.pipeline = rescale_pipeline(data.pipeline, size)

        runner = stock(tmp_path, None, change)
        runner.model.load_state_dict(torch.load(fashion)['state_dict'])
        runner.model = extract_scale(runner.model, max(size, 14))
        assert runner.test() == row['metrics']


def test_no_two_models_have_one_label():
    def labels(*models):
        results = [dict(label='net', config=config, checkpoint=checkpoint)
                   for config, checkpoint in models]
        name_apart(results)
        return [result['label'] for result in results]

    one, other = 'a/net.py', 'b/net.py'
    assert labels((one, 'x.pth')) == ['net']
    assert labels((one, 'u/1.pth'), (one, 'u/2.pth')) == [
        'net (1.pth)', 'net (2.pth)']
    assert labels((one, 'x.pth'), (other, 'x.pth')) == [
        f'net ({one})', f'net ({other})']
    assert labels((one, 'x.pth'), (other, 'x.pth'), (one, 'y.pth')) == [
        f'net (x.pth) ({one})', f'net (x.pth) ({other})', 'net (y.pth)']


def test_times_come_with_quartiles(fashion, tmp_path):
    result, = apis.test(Path(FASHION), Path(fashion), (28, ), tmp_path, FEW)
    row, = json.loads(json.dumps(result['rows']))
    for name in ('latency_ms', 'images_per_s'):
        low, high = row[f'{name}_quartiles']
        assert 0 < low <= row[name] <= high
    assert {type(row['latency_reliable']), type(row['images_reliable'])} == {
        bool}


@pytest.mark.parametrize('config, want', [
    (FASHION, (28, 21, 14)),
    (osp.join(ARMS, 'sct-shared-bn_resnet18_1xb128_fashion-mnist.py'),
     (28, 21, 14)),
    (osp.join(ARMS, 'resnet18_1xb128_fashion-mnist-21px.py'), (21, ))])
def test_what_a_config_trains_at(config, want):
    cfg = Config.fromfile(osp.join(ROOT, config))
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    assert trained_sizes(cfg, model) == want
    cfg.custom_hooks = cfg.train_dataloader = None
    assert trained_sizes(cfg, model) == (want if config == FASHION else ())


def test_one_model_one_data_set(fashion, tmp_path, monkeypatch):
    from mmpretrain.datasets import FashionMNIST
    from mmpretrain.models import ImageClassifier
    built = []
    for kind in (FashionMNIST, ImageClassifier):
        init = kind.__init__

        def count(self, *args, kind=kind, init=init, **kwargs):
            built.append(kind.__name__)
            init(self, *args, **kwargs)

        monkeypatch.setattr(kind, '__init__', count)
    result, = apis.test(FASHION, fashion, None, str(tmp_path), FEW)
    assert [row['scale'] for row in result['rows']] == [28, 21, 14]
    assert sorted(built) == ['FashionMNIST', 'ImageClassifier']


def test_a_config_with_the_loop_of_all_sizes(fashion, tmp_path):
    result, = apis.test(
        FASHION, fashion, None, str(tmp_path),
        {**FEW, 'test_cfg.type': 'ScalesTestLoop',
         'test_cfg.sizes': '28:14:14'})
    assert [row['scale'] for row in result['rows']] == [28, 14]
    assert 'accuracy/top1' in result['rows'][1]['metrics']


@pytest.mark.parametrize('missing', [
    ['train_cfg'], ['optim_wrapper'], ['train_dataloader'], ['val_evaluator'],
    ['train_cfg', 'optim_wrapper', 'val_dataloader']])
def test_a_config_without_parts_of_a_training(missing, fashion, tmp_path):
    want, got = (apis.test(FASHION, fashion, [14], str(tmp_path),
                           {**FEW, **dict.fromkeys(names)})[0]['rows']
                 for names in ([], missing))
    assert got[0]['metrics'] == want[0]['metrics']
    if 'train_dataloader' not in missing:
        done, = apis.fidelity(FASHION, fashion, [14], out=tmp_path,
                              cfg_options={**FEW, **dict.fromkeys(missing)})
        assert [row['scale'] for row in done['rows']] == [28, 14]
        done = apis.test_cascade(
            FASHION, fashion, (14, 28), 0.5, out=tmp_path,
            cfg_options={**FEW, **dict.fromkeys(missing)})
        assert done['cascade']['sizes'] == (14, 28)


def test_the_config_of_a_training_stays_as_it_is(fashion, tmp_path):
    there = tmp_path / osp.basename(FASHION)
    there.write_text('what a training has written')
    apis.test(FASHION, fashion, [14], str(tmp_path), FEW)
    assert there.read_text() == 'what a training has written'
    assert (tmp_path / f'test_{there.name}').is_file()


@pytest.mark.parametrize('scales, match', [
    ((0, ), r'`scales` must be positive ints \(pixels\) or .* got \(0,\)'),
    ((), '`scales` must be positive ints'), ('28:14:0', 'step of at least')])
def test_sizes_that_are_none(scales, match):
    with pytest.raises(UserError, match=match):
        apis.test('no.py', 'no.pth', scales)


def test_a_test_is_protected_and_needs_a_loader(monkeypatch):
    """Also where another loads what a config names."""
    seen = []

    def look(*args):
        seen.append(os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD'))
        raise UserError('seen')

    monkeypatch.setattr(sys.modules['sct_mm.apis.test'], 'models_of', look)
    with pytest.raises(UserError, match='seen'):
        apis.test('a.py', 'a.pth')
    assert seen == ['1']
    cfg = Config.fromfile(osp.join(ROOT, FASHION))
    cfg.test_dataloader = [cfg.test_dataloader]
    with pytest.raises(UserError, match=r'`test_dataloader`, a dict, .* \[{'):
        config_of_test(cfg, 'work_dirs/x', None)


def test_another_loop_of_a_host_is_refused():
    cfg = Config.fromfile(osp.join(ROOT, FASHION))
    cfg.test_cfg = dict(type='mmpretrain.RetrievalTestLoop')
    with pytest.raises(UserError, match="sizes, but got 'RetrievalTestLoop'"):
        config_of_test(cfg, 'work_dirs/x', None)


@pytest.fixture
def new_style(tmp_path, monkeypatch, small_root):
    """A config of classes, without a default scope, and a checkpoint."""
    monkeypatch.chdir(small_root)
    (tmp_path / 'base.py').write_text(NEW_BASE)
    (tmp_path / 'new.py').write_text(NEW)
    path = str(tmp_path / 'new.py')
    model = with_statistics(Config.fromfile(path))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    return path, str(tmp_path / 'a.pth')


def test_a_new_style_config(new_style, tmp_path):
    result, = apis.test(*new_style, out=str(tmp_path))
    assert [row['scale'] for row in result['rows']] == [28, 21]
    assert 0 < result['rows'][1]['gflops'] < result['rows'][0]['gflops']


def test_a_new_style_config_trains_and_validates(new_style, tmp_path):
    cfg = Config.fromfile(new_style[0])
    cfg.work_dir, cfg.log_level = str(tmp_path), 'ERROR'
    cfg.experiment_name = f'evaluate-{next(COUNT)}'
    runner = Runner.from_cfg(cfg)
    runner.train()
    for size in (28, 21, 'mean'):
        assert f'val/{size}/accuracy/top1' in runner.message_hub.log_scalars


def test_the_benchmark_takes_a_new_style_config(new_style):
    from benchmark import Settings, check_settings
    settings = Settings(new_style[0], 4, 3, 1, ['joint'], None, False)
    assert check_settings(settings) == (28, 21)
    assert Worker('joint', None, settings).step(1) > 0


def views(cfg, sizes=(28, 14)):
    """mmpretrain's own test-time augmentation: one view a size."""
    cfg.model = dict(type='AverageClsScoreTTA', module=dict(
        cfg.model, data_preprocessor=dict(
            cfg.data_preprocessor, type='ClsDataPreprocessor')))
    cfg.test_dataloader.dataset.pipeline = [dict(
        type='TestTimeAug', transforms=[
            [dict(type='Resize', scale=s, backend='pillow') for s in sizes],
            [dict(type='PackInputs')]])]
    # Keys of the checkpoint are those of the model within.
    cfg.load_from = None


def test_each_view_of_mmpretrains_tta_is_served_at_its_own_scale(
        fashion, tmp_path):
    runner = stock(tmp_path, fashion, views)
    model = runner.model.module
    model.load_state_dict(torch.load(fashion)['state_dict'])
    batch = next(iter(runner.test_loop.dataloader))
    model.eval()
    free = [s.pred_score for s in runner.model.test_step(batch)]
    want = []
    for i, scale in enumerate((28, 14)):
        with use_scale(model, scale):
            want.append([s.pred_score for s in model.test_step(
                {name: value[i] for name, value in batch.items()})])
    for got, large, small in zip(free, *want, strict=True):
        torch.testing.assert_close(got, (large + small) / 2)
        assert not torch.allclose(large, small)
    assert np.isfinite(runner.test()['accuracy/top1'])


def test_tta_is_refused_where_a_size_is_pinned(fashion, tmp_path):
    config = tmp_path / 'tta.py'
    cfg = Config.fromfile(FASHION)
    views(cfg)
    cfg.dump(str(config))
    with pytest.raises(UserError, match='AverageClsScoreTTA makes views of'):
        apis.test(str(config), fashion, (28, 14), str(tmp_path))
