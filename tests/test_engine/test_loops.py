"""Validation and test at several sizes: one pair of hooks, one data set."""
import copy
import itertools

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseTTAModel
from mmengine.registry import DATASETS, METRICS
from mmengine.runner import Runner

from sct_mm import SSBN, SCTLossHook, set_scale
from sct_mm.engine.config import UserError
from sct_mm.engine.loops import join_metrics
from sct_mm.models.scale import ssbn_layers

from conftest import SCALES, TinyModel

COUNT = itertools.count()


@DATASETS.register_module(force=True)
class Pictures(BaseDataset):
    """Pictures of 16 pixels; counts how often they are read anew."""
    loaded = 0

    def load_data_list(self):
        type(self).loaded += 1
        rng = np.random.default_rng(0)
        return [dict(img=rng.integers(0, 255, (16, 16, 3)).astype(np.float32),
                     gt_label=i % 5) for i in range(10)]


@METRICS.register_module(force=True)
class Logits(BaseMetric):
    """Top-1, and the logits as a list."""

    def process(self, data_batch, data_samples):
        labels = [int(s.gt_label) for s in data_batch['data_samples']]
        self.results += [(row.tolist(), label)
                         for row, label in zip(data_samples, labels)]

    def compute_metrics(self, results):
        top1 = np.mean([np.argmax(row) == label for row, label in results])
        return {'accuracy/top1': float(top1),
                'logits': [row for row, _ in results]}


@METRICS.register_module(force=True)
class OnlyLarge(BaseMetric):
    """Finds something in pictures of 16 pixels alone, as a bad detector."""

    def process(self, data_batch, data_samples):
        self.results.append(data_batch['inputs'][0].shape[-1])

    def compute_metrics(self, results):
        return {'mAP': 0.5} if max(results) == 16 else {}


def model(norm=None):
    return dict(type='TinyModel', norm=norm or (lambda c: SSBN(c, SCALES)),
                data_preprocessor=dict(type='ImgDataPreprocessor',
                                       mean=[127.] * 3, std=[64.] * 3))


def loader(wrap=None, **options):
    dataset = dict(type='Pictures', pipeline=[
        dict(type='mmcv.Resize', scale=16),
        dict(type='mmpretrain.PackInputs')])
    return dict(batch_size=4, num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=wrap(dataset) if wrap else dataset, **options)


def runner(folder, val=None, **options):
    name = f'loops-{next(COUNT)}'
    settings = dict(
        model=model(), work_dir=str(folder), experiment_name=name,
        val_dataloader=loader(), val_evaluator=dict(type='Logits'),
        val_cfg=val or dict(type='ScalesValLoop'), log_level='ERROR')
    settings.update(options)
    torch.manual_seed(0)
    return Runner(**settings)


def trained(folder, epochs=2, **options):
    options.setdefault('custom_hooks', [SCTLossHook()])
    run = runner(
        folder, train_dataloader=loader(),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05)), **options)
    run.train()
    return run


def stock(folder, size, state, scale, wrap=None):
    """The host's own ValLoop on a pipeline of one size, pinned by hand."""
    data = loader(wrap)
    inner = data['dataset']
    while 'dataset' in inner:
        inner = inner['dataset']
    inner['pipeline'][0]['scale'] = size
    run = runner(folder, dict(type='ValLoop'), val_dataloader=data)
    run.model.load_state_dict(state)
    set_scale(run.model, scale)
    return run.val()


@pytest.mark.parametrize('workers', [
    {}, dict(num_workers=2, persistent_workers=True),
    dict(num_workers=1, persistent_workers=False)],
    ids=['none', 'persistent', 'of a moment'])
def test_each_size_is_what_the_stock_loop_gives(workers, tmp_path):
    run = trained(tmp_path / 'a')
    state = run.model.state_dict()
    Pictures.loaded = 0
    ours = runner(tmp_path / 'b', dict(type='ScalesValLoop',
                                       sizes=(16, 14, 12, 8)),
                  val_dataloader=dict(loader(), **workers))
    ours.model.load_state_dict(state)
    for _ in range(2):  # workers that live on change their size again
        got = ours.val()
        assert [name for name in got if 'top1' in name] == [
            *(f'{s}/accuracy/top1' for s in (16, 14, 12, 8)),
            'mean/accuracy/top1']
        assert 'mean/logits' not in got
    assert Pictures.loaded == 1
    top1 = []
    for size, scale in ((16, 16), (14, 16), (12, 12), (8, 8)):
        want = stock(tmp_path / f'{size}', size, state, scale)
        np.testing.assert_allclose(got[f'{size}/logits'], want['logits'],
                                   rtol=1e-5, atol=1e-6)
        assert got[f'{size}/accuracy/top1'] == want['accuracy/top1']
        top1.append(want['accuracy/top1'])
    assert got['mean/accuracy/top1'] == pytest.approx(np.mean(top1))
    assert not np.allclose(got['16/logits'], got['14/logits'])


@pytest.mark.parametrize('wrap', [
    lambda d: dict(type='RepeatDataset', times=2, dataset=d),
    lambda d: dict(type='ClassBalancedDataset', oversample_thr=1e-3,
                   dataset=d),
    lambda d: dict(type='ConcatDataset',
                   datasets=[copy.deepcopy(d), copy.deepcopy(d)])],
    ids=['repeat', 'balanced', 'concat'])
def test_wrappers_of_the_data_set(wrap, tmp_path, monkeypatch):
    monkeypatch.setattr(Pictures, 'get_cat_ids',
                        lambda self, i: [i % 5], raising=False)
    plain = runner(tmp_path / 'a')
    got = runner(tmp_path / 'b', val_dataloader=loader(wrap))
    got.model.load_state_dict(plain.model.state_dict())
    want, got = plain.val(), got.val()
    for size in SCALES:
        rows = got[f'{size}/logits']
        np.testing.assert_allclose(rows[:10], want[f'{size}/logits'],
                                   rtol=1e-5, atol=1e-6)
        assert len(rows) in (10, 20)


def test_a_part_of_the_data_set(tmp_path):
    run = runner(tmp_path, val_dataloader=loader(num_batch_per_epoch=2))
    got = run.val()
    assert [len(got[f'{s}/logits']) for s in SCALES] == [8, 8, 8]


class Count(Hook):

    def __init__(self):
        self.calls, self.sizes = [], []

    def before_val(self, runner):
        self.calls.append('before_val')

    def before_val_epoch(self, runner):
        self.calls.append('before_val_epoch')

    def after_val_iter(self, runner, batch_idx, data_batch, outputs):
        pins = {layer.pinned_scale for layer in ssbn_layers(runner.model)}
        self.sizes.append((data_batch['inputs'][0].shape[-1], pins.pop()))

    def after_val_epoch(self, runner, metrics):
        self.calls.append('after_val_epoch')
        self.pins = [m.pinned_scale for m in ssbn_layers(runner.model)]

    def after_val(self, runner):
        self.calls.append('after_val')


def test_hooks_see_one_validation_and_ema_swaps_once(tmp_path):
    hook = Count()
    run = trained(tmp_path, custom_hooks=[
        SCTLossHook(), EMAHook(momentum=0.5), hook])
    assert hook.calls == ['before_val', 'before_val_epoch',
                          'after_val_epoch', 'after_val'] * 2
    assert hook.sizes == [(s, s) for s in SCALES for _ in range(3)] * 2
    assert hook.pins == [None] * 3
    ema = [h for h in run.hooks if isinstance(h, EMAHook)][0].ema_model
    raw, averaged = run.model.state_dict(), ema.module.state_dict()
    assert not torch.equal(raw['net.0.weight'], averaged['net.0.weight'])
    checkpoint = torch.load(tmp_path / 'epoch_2.pth')
    # mmengine writes the average as `state_dict`, before it validates.
    torch.testing.assert_close(checkpoint['state_dict']['net.0.weight'],
                               averaged['net.0.weight'])
    logged = run.message_hub.log_scalars['val/8/accuracy/top1'].current()
    want = stock(tmp_path / 'b', 8, averaged, 8)['accuracy/top1']
    assert logged == want


def test_an_error_unpins_and_gives_the_pipeline_back(tmp_path):
    class Fail(Hook):
        def after_val_iter(self, runner, batch_idx, data_batch, outputs):
            if data_batch['inputs'][0].shape[-1] == 12:
                raise RuntimeError('on purpose')

    run = runner(tmp_path, custom_hooks=[Fail()])
    set_scale(run.model, 8)
    with pytest.raises(RuntimeError, match='on purpose'):
        run.val()
    assert {m.pinned_scale for m in ssbn_layers(run.model)} == {8}
    item = run.val_loop.dataloader.dataset[0]
    assert item['inputs'].shape[-1] == 16


@pytest.mark.parametrize('best, name', [
    ('mean/accuracy/top1', 'best_mean_accuracy_top1'),
    ('8/accuracy/top1', 'best_8_accuracy_top1'),
    ('auto', 'best_16_accuracy_top1')])
def test_save_best_of_any_size(best, name, tmp_path):
    run = trained(tmp_path, default_hooks=dict(checkpoint=dict(
        type='CheckpointHook', interval=10, save_best=best)))
    saved, = [p.name for p in tmp_path.glob('best*')]
    assert saved.startswith(name) and saved.endswith('.pth')
    hook = [h for h in run.hooks if hasattr(h, 'key_indicators')][0]
    assert hook.rules == ['greater']


def test_tensorboard_has_a_curve_for_each_size(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator)
    run = trained(tmp_path, visualizer=dict(
        type='Visualizer', name=f'tb-{next(COUNT)}',
        vis_backends=[dict(type='TensorboardVisBackend')]))
    run.visualizer.close()
    file, = tmp_path.rglob('events.out.tfevents*')
    events = EventAccumulator(str(file)).Reload()
    for size in (*SCALES, 'mean'):
        curve = events.Scalars(f'{size}/accuracy/top1')
        assert [point.step for point in curve] == [1, 2]
        last = run.message_hub.log_scalars[f'val/{size}/accuracy/top1']
        assert curve[-1].value == pytest.approx(last.current())


def test_val_loss_of_each_size(tmp_path):
    pytest.importorskip('mmengine.runner.loops')
    from mmengine.structures import BaseDataElement

    class WithLoss(TinyModel):
        def val_step(self, data):
            size = data['inputs'][0].shape[-1]
            return [*super().val_step(data), BaseDataElement(
                loss=dict(loss_a=torch.tensor(float(size))))]

    net = WithLoss(lambda c: SSBN(c, SCALES), model()['data_preprocessor'])
    got = runner(tmp_path, model=net).val()
    assert [got[f'{s}/val_loss'] for s in SCALES] == [16, 12, 8]
    assert got['mean/val_loss'] == 12 == got['mean/loss_a']


def test_the_test_loop_and_half_precision(tmp_path):
    seen = []

    class Types(Hook):
        def after_test_iter(self, runner, batch_idx, data_batch, outputs):
            seen.append(outputs[0].dtype)

    run = runner(tmp_path, test_dataloader=loader(),
                 test_evaluator=dict(type='Logits'), custom_hooks=[Types()],
                 test_cfg=dict(type='ScalesTestLoop', sizes=(8, 16)))
    got = run.test()
    assert list(got)[0] == '16/accuracy/top1'
    assert {'8/accuracy/top1', 'mean/accuracy/top1'} <= set(got)
    assert len(seen) == 6 and run.test_loop.fp16 is False
    half = runner(tmp_path, dict(type='ScalesValLoop', fp16=True))
    assert half.build_val_loop(half._val_loop).fp16


def test_what_a_size_lacks_is_nan():
    got = join_metrics({16: {'a': 1, 'each': [1, 2]}, 8: {}})
    assert got['16/a'] == 1 and np.isnan(got['8/a'])
    assert np.isnan(got['mean/a']) and 'mean/each' not in got
    assert join_metrics({16: {}, 8: {}}) == {}
    got = join_metrics({2: {'a': np.float32(1)}, 1: {'a': torch.tensor(3)}})
    assert got['mean/a'] == 2


def test_save_best_of_a_detector_that_finds_nothing_at_first(tmp_path):
    trained(tmp_path, val_evaluator=dict(type='OnlyLarge'),
            default_hooks=dict(checkpoint=dict(
                type='CheckpointHook', interval=10, rule='greater',
                save_best=['mean/mAP', '16/mAP'])))
    assert [p.name for p in tmp_path.glob('best*')] == [
        'best_16_mAP_epoch_1.pth']


def batch_norm(channels):
    return torch.nn.BatchNorm2d(channels)


class Views(BaseTTAModel):

    def merge_preds(self, data_samples_list):
        return data_samples_list


def test_a_model_without_ssbn_takes_sizes(tmp_path):
    got = runner(tmp_path, dict(type='ScalesValLoop', sizes=[16, 8]),
                 model=model(batch_norm)).val()
    assert {'16/accuracy/top1', '8/accuracy/top1'} < set(got)


@pytest.mark.parametrize('options, match', [
    (dict(model=model(batch_norm)), '`sizes` must be set for a model without'),
    (dict(val=dict(type='ScalesValLoop', sizes=(16, 0))),
     r'must be positive ints \(pixels\), but got \(16, 0\)'),
    (dict(val=dict(type='ScalesValLoop', sizes=())), 'positive ints'),
    (dict(val=dict(type='ScalesValLoop', sizes='16')), 'positive ints'),
    (dict(model=Views(TinyModel(batch_norm))), 'Views makes views of sizes'),
    (dict(default_hooks=dict(checkpoint=dict(
        type='CheckpointHook', save_best='accuracy/top1'))),
     "CheckpointHook must name .* Write 'mean/accuracy/top1' or '16/acc"),
    (dict(custom_hooks=[dict(type='EarlyStoppingHook', monitor='acc')]),
     "EarlyStoppingHook must name .* got 'acc'"),
    (dict(val_dataloader=Runner.build_dataloader(loader())),
     'needs its config, but got a built one'),
    (dict(val_dataloader=dict(loader(), dataset=[1, 2])), 'but got a built'),
    (dict(val_dataloader=loader(lambda d: dict(
        d, pipeline=[dict(type='mmpretrain.PackInputs')]))), 'must have one'),
    (dict(val_dataloader=loader(lambda d: dict(
        d, pipeline=[dict(type='mmcv.Resize', scale=16),
                     dict(type='mmpretrain.RandomCrop', crop_size=16,
                          pad_if_needed=True),
                     dict(type='mmpretrain.PackInputs')]))),
     'pictures of 12 pixels, but makes 16'),
    (dict(val_dataloader=loader(lambda d: dict(type='Pictures'))),
     'with a `pipeline`, or wrap such ones, but got Pictures'),
])
def test_what_is_refused_before_anything_runs(options, match, tmp_path):
    run = runner(tmp_path, **options)
    with pytest.raises((UserError, ValueError), match=match):
        run.build_val_loop(run._val_loop)
