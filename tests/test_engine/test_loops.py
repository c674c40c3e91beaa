"""Validation and test at several sizes: one pair of hooks, one data set."""
import copy
import re
from contextlib import closing

import numpy as np
import pytest
import torch
from conftest import SCALES, TinyModel
from images import COUNT, Images, loader, model, runner, trained
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import METRICS

from sct_mm import SSBN, SCTLossHook, extract_scale, set_scale
from sct_mm.engine.loops import join_metrics
from sct_mm.models.size_selection import ssbn_layers
from sct_mm.utils.errors import UserError
from sct_mm.utils.sizes import expand_sizes


@METRICS.register_module(force=True)
class OnlyLarge(BaseMetric):
    """Finds something in images of 16 pixels alone, as a bad detector."""

    def process(self, data_batch, data_samples):
        self.results.append(data_batch['inputs'][0].shape[-1])

    def compute_metrics(self, results):
        return {'mAP': 0.5} if max(results) == 16 else {}


def stock(folder, size, state):
    """The host's own ValLoop on a pipeline of one size, with the plain
    network that was extracted at it."""
    data = loader()
    data['dataset']['pipeline'][0]['scale'] = size
    run = runner(folder, dict(type='ValLoop'), val_dataloader=data)
    run.model.load_state_dict(state)
    run.model = extract_scale(run.model, size)
    return run.val()


@pytest.mark.parametrize('sizes, want', [
    ('8:16:4', (16, 12, 8)), ('16:8:4', (16, 12, 8)), ('8:15:4', (12, 8)),
    ('15:8:4', (15, 11)), ('8:10', (10, 9, 8)), ('9:9:3', (9, )),
    ([16, '8:12:2', '10'], (16, 12, 10, 8)), (range(8, 13, 4), (12, 8)),
    (('8', 8), (8, ))])
def test_ranges_of_sizes(sizes, want):
    assert expand_sizes(sizes) == want


@pytest.mark.parametrize('workers', [
    {}, dict(num_workers=2, persistent_workers=True),
    dict(num_workers=1, persistent_workers=False)],
    ids=['none', 'persistent', 'of a moment'])
def test_each_size_is_what_the_stock_loop_gives(workers, tmp_path):
    run = trained(tmp_path / 'a')
    state = run.model.state_dict()
    Images.loaded = 0
    ours = runner(tmp_path / 'b', dict(type='ScalesValLoop',
                                       sizes=('12:16:2', 8)),
                  val_dataloader=dict(loader(), **workers))
    ours.model.load_state_dict(state)
    for _ in range(2):  # workers that live on change their size again
        got = ours.val()
        assert [name for name in got if 'top1' in name] == [
            *(f'{s}/accuracy/top1' for s in (16, 14, 12, 8)),
            'mean/accuracy/top1']
        assert 'mean/logits' not in got
    assert Images.loaded == 1
    top1 = []
    for size in (16, 14, 12, 8):
        want = stock(tmp_path / f'{size}', size, state)
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
    monkeypatch.setattr(Images, 'get_cat_ids',
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
        pins = {layer.pinned_size for layer in ssbn_layers(runner.model)}
        self.sizes.append((data_batch['inputs'][0].shape[-1], pins.pop()))

    def after_val_epoch(self, runner, metrics):
        self.calls.append('after_val_epoch')
        self.pins = [m.pinned_size for m in ssbn_layers(runner.model)]

    def after_val(self, runner):
        self.calls.append('after_val')


def test_the_log_names_each_size_before_its_lines(tmp_path):
    trained(tmp_path, log_level='INFO')
    text = next(tmp_path.rglob('*.log')).read_text()
    lines = re.findall(r'Images of (\d+) px \(val\):|(Epoch\(val\))', text)
    assert [int(size) for size, _ in lines if size] == [*SCALES] * 2


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
                               averaged['net.0.weight'].cpu())
    logged = run.message_hub.log_scalars['val/8/accuracy/top1'].current()
    want = stock(tmp_path / 'b', 8, averaged)['accuracy/top1']
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
    assert {m.pinned_size for m in ssbn_layers(run.model)} == {8}
    item = run.val_loop.dataloader.dataset[0]
    assert item['inputs'].shape[-1] == 16


@pytest.mark.parametrize('error, kind, match', [
    (KeyError('gt_instances'), UserError, "`val_evaluator` need labels, but "
     "the images have no 'gt_instances'. .* by tools/test.py --against-base"),
    (AttributeError("'DataSample' object has no attribute 'gt_score'"),
     UserError, "have no 'gt_score'"),
    (KeyError('scores'), KeyError, 'scores')])
def test_a_metric_that_finds_no_labels(error, kind, match, tmp_path):
    def process(batch, samples):
        raise error

    run = runner(tmp_path)
    run.val_loop.evaluator.metrics[0].process = process
    with pytest.raises(kind, match=match):
        run.val()


def test_a_caller_that_stops_between_sizes_unpins_the_model(tmp_path):
    run = runner(tmp_path)
    loop, layers = run.val_loop, ssbn_layers(run.model)
    with closing(loop.iter_sizes()) as results:
        assert next(results)[0] == 16
        size, metrics = next(results)
        assert size == 12 and 'accuracy/top1' in metrics
        assert {layer.pinned_size for layer in layers} == {12}
        assert loop.dataloader.dataset[0]['inputs'].shape[-1] == 12
    assert {layer.pinned_size for layer in layers} == {None}
    assert loop.dataloader.dataset[0]['inputs'].shape[-1] == 16


def test_a_test_is_not_stopped_by_what_a_training_monitors(tmp_path):
    run = runner(
        tmp_path, test_dataloader=loader(), test_evaluator=dict(type='Logits'),
        test_cfg=dict(type='ScalesTestLoop'),
        default_hooks=dict(checkpoint=dict(
            type='CheckpointHook', save_best='accuracy/top1')))
    assert '8/accuracy/top1' in run.test()


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
        EventAccumulator,
    )
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
    got = join_metrics({2: {'of_one_class': np.array([1.]), 'name': 'x',
                            'text': np.array(['x']), 'true': torch.ones(1)}})
    assert got['mean/of_one_class'] == got['mean/true'] == 1 and len(got) == 6


def test_save_best_of_a_detector_that_finds_nothing_at_first(tmp_path):
    trained(tmp_path, val_evaluator=dict(type='OnlyLarge'),
            default_hooks=dict(checkpoint=dict(
                type='CheckpointHook', interval=10, rule='greater',
                save_best=['mean/mAP', '16/mAP'])))
    assert [p.name for p in tmp_path.glob('best*')] == [
        'best_16_mAP_epoch_1.pth']
