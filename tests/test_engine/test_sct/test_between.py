"""Training between the scales: what is drawn, and what it trains."""
from collections import Counter

import pytest
import torch
from conftest import SCALES, TinyModel
from helpers import batch, grads, ssbn_model
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as tv

from sct_mm import SSBN, SCTLossHook, use_scale
from sct_mm.engine.sct.monitor import joined
from sct_mm.engine.sct.schedule import Schedule, sizes_between, sizes_of_step
from sct_mm.models.size_selection import ssbn_layers

pytestmark = pytest.mark.usefixtures('double_precision')


def chance(index, count):
    """That the mean of two uniform numbers lies in a part of [0, 1]: two
    triangles, here counted on a fine grid."""
    grid = (torch.arange(1200) + 0.5) / 1200
    means = (grid[:, None] + grid[None]) / 2
    return ((means * count).int() == index).double().mean().item()


def test_the_middle_of_each_gap_is_drawn_more_often():
    scales, choices = (224, 192, 128), sizes_between((224, 192, 128), 8)
    assert {s: list(c) for s, c in choices.items()} == {
        192: [200, 208, 216], 128: list(range(136, 192, 8))}
    seen = {scale: Counter() for scale in scales}
    for step in range(8000):
        sizes = sizes_of_step(scales, 0.25, 8, 3, step)
        assert len(set(map(int.__eq__, sizes.values(), scales))) <= 2
        for scale, size in sizes.items():
            seen[scale][size] += 1
    assert seen[224] == {224: 8000}
    for scale in scales[1:]:
        assert seen[scale][scale] == pytest.approx(6000, abs=2)
        assert set(seen[scale]) == {scale, *choices[scale]}
        for index, size in enumerate(choices[scale]):
            assert seen[scale][size] == pytest.approx(2000 * chance(
                index, len(choices[scale])), rel=0.05, abs=5)


def test_the_share_of_the_steps_is_even():
    for share, seed in ((0.5, 0), (0.1, 1), (1.0, 2), (0.0, 3)):
        between = [sizes_of_step(SCALES, share, 1, seed, step)[8] != 8
                   for step in range(1000)]
        for first in (0, 77, 500):
            assert sum(between[first:first + 100]) == pytest.approx(
                100 * share, abs=2)
    runs = [[sizes_of_step(SCALES, 0.5, 1, seed, step) for step in range(20)]
            for seed in (4, 4, 5)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize('options', [
    dict(count=1), dict(count=2), dict(count=3), dict(count=3,
                                                      partition=True)])
def test_what_is_drawn_does_not_depend_on_the_scales_drawn(options):
    """Of the passes of each smaller scale the same share is between, and
    its sizes are drawn as :func:`chance` says."""
    schedule = Schedule(dict(zip(SCALES, (0.2, 0.3, 0.5),
                                 strict=True)), seed=1,
                        between=0.4, **options)
    seen = {scale: Counter() for scale in SCALES}
    for step in range(12000):
        passes = schedule.passes(12, step)
        assert sum(p.weight for p in passes) == pytest.approx(1)
        for p in passes:
            seen[p.scale][p.size] += 1
    for scale, sizes in sizes_between(SCALES, 1).items():
        total = sum(seen[scale].values())
        assert set(seen[scale]) == {scale, *sizes}
        assert seen[scale][scale] / total == pytest.approx(0.6, abs=0.02)
        for index, size in enumerate(sizes):
            assert seen[scale][size] / total == pytest.approx(
                0.4 * chance(index, len(sizes)), abs=0.02)


@pytest.mark.parametrize('norm', [lambda c: SSBN(c, SCALES), nn.BatchNorm2d])
@pytest.mark.parametrize('options', [
    {}, dict(scales_per_step=1), dict(scales_per_step=2),
    dict(partition=True), dict(backward='joint')])
def test_loss_and_gradients_are_those_of_a_loop(norm, options):
    model, by_hand = [TinyModel(norm) for _ in range(2)]
    by_hand.load_state_dict(model.state_dict())
    hook = SCTLossHook(scales=SCALES, between=1.0, **options)
    hook.attach(model)
    between = 0
    for hook.step in range(4):
        data = batch(n=9, seed=hook.step)
        total = 0
        for p in hook.sct.schedule.passes(9, hook.step):
            share = p.share or slice(None)
            x = tv.resize(data['inputs'][share], [p.size] * 2, antialias=True)
            with use_scale(by_hand, p.size):
                losses = by_hand(x, data['data_samples'][share], 'loss')
            total = total + p.weight * losses['loss']
            between += p.size not in SCALES
        loss = model(**data, mode='loss')['loss']
        assert_close(loss, total)
        for net, value in ((model, loss), (by_hand, total)):
            net.zero_grad()
            value.backward()
        assert_close(grads(model), grads(by_hand))
        assert_close(dict(model.named_buffers()),
                     dict(by_hand.named_buffers()))
    assert between >= 2


def test_the_log_names_the_nearest_scale_and_loses_no_size():
    """Of 16, 15 and 10 the first two are nearest to 16."""
    model = TinyModel(nn.BatchNorm2d)
    hook = SCTLossHook(scales=SCALES, between=1.0, loss_weights=(3., 1., 1.))
    hook.attach(model)
    wanted = dict(zip(SCALES, (16, 15, 9), strict=True))
    hook.step = next(step for step in range(999) if sizes_of_step(
        SCALES, 1.0, 1, 0, step) == wanted)
    data = batch()
    losses = model(**data, mode='loss')
    assert set(losses) == {'loss', *(f's{s}/{n}' for s in (16, 8)
                                     for n in ('total', 'accuracy'))}
    alone = []
    for size in wanted.values():
        x = tv.resize(data['inputs'], [size] * 2, antialias=True)
        alone.append(model.forward(x, data['data_samples'], 'loss')['loss'])
    assert_close(losses['s16/total'], (3 * alone[0] + alone[1]) / 4)
    assert_close(losses['s8/total'], alone[2])
    assert_close(losses['loss'], 3 * alone[0] + alone[1] + alone[2])


def test_values_under_one_name_are_averaged_by_weight():
    one, two = torch.tensor(1.), torch.tensor(4.)
    assert joined([(1., dict(a=one)), (2., dict(a=two, b=one))]) == dict(
        a=torch.tensor(3.), b=one)
    assert joined([(0., dict(a=one)), (0., dict(a=two))])['a'] == 2.5


def test_sizes_are_multiples_of_both_divisors():
    model = TinyModel(nn.BatchNorm2d)
    model.data_preprocessor.pad_size_divisor = 4
    for ours, want in ((1, 4), (6, 12), (8, 8)):
        hook = SCTLossHook(scales=(64, 32), between=0.5, size_divisor=ours)
        hook.attach(model)
        assert hook.sct.schedule.divisor == want
        hook.detach()


@pytest.mark.parametrize('options, match', [
    (dict(size_divisor=32, scales=(224, 208)),
     'a multiple of 32 between 224 and 208'),
    (dict(scales=(16, 15, 8)), 'a multiple of 1 between 16 and 15'),
    (dict(scales=(16, )), r'two scales .* got \(16,\)'),
    (dict(between=1.5), '`between` must .* from 0 to 1, but got 1.5'),
    (dict(between=-0.1), '`between` must .* but got -0.1'),
    (dict(size_divisor=0), '`size_divisor` must be .* but got 0')])
def test_bad_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        SCTLossHook(**{**dict(between=0.5), **options}).attach(
            TinyModel(nn.BatchNorm2d))


class Breaks(TinyModel):
    def forward(self, inputs, data_samples=None, mode='tensor'):
        if inputs.shape[-1] not in SCALES and self.error:
            raise self.error
        losses = super().forward(inputs, data_samples, mode)
        if inputs.shape[-1] not in SCALES:
            losses['loss'] = losses['loss'] / 0
        return losses


def test_messages_name_the_size():
    model = Breaks(nn.BatchNorm2d)
    hook = SCTLossHook(scales=SCALES, between=1.0)
    hook.attach(model)
    size = sizes_of_step(SCALES, 1.0, 1, 0, 0)[12]
    for model.error, match in (
            (None, f'loss of size {size} is NaN or inf at step 0'),
            (RuntimeError('mine'), rf'mine \(in .* at size {size}\)')):
        with pytest.raises(RuntimeError, match=match):
            model(**batch(), mode='loss')


def test_boxes_follow_their_image_to_a_size_between():
    class Detector(TinyModel):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            self.seen += [(min(sample.img_shape), float(
                sample.gt_instances.bboxes.max())) for sample in data_samples
                if torch.is_grad_enabled()]
            return dict(loss=self.net(inputs).mean())

    model = Detector(lambda c: SSBN(c, (64, 32)))
    model.seen = []
    sample = DetDataSample(metainfo=dict(
        img_shape=(48, 64), batch_input_shape=(64, 64), scale_factor=(1, 1),
        ori_shape=(48, 64)))
    model.net[7] = nn.Identity()  # one image
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[4., 4., 20., 32.]]), labels=torch.tensor([1]))
    hook = SCTLossHook(between=1.0, size_divisor=16, scales_per_step=2)
    hook.attach(model)
    model(inputs=torch.rand(1, 3, 64, 64), data_samples=[sample],
          mode='loss')
    assert model.seen == [(48, 32.), (36, 24.)]


def test_it_leaves_the_trained_scales_alone_where_it_is_off():
    models = [ssbn_model() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, options in zip(models, ({}, dict(between=0.0)), strict=True):
        SCTLossHook(**options).attach(model)
        model(**batch(), mode='loss')['loss'].backward()
    assert_close(*map(grads, models), rtol=0, atol=0)


# It says so of the rows that the step did not train.
@pytest.mark.filterwarnings('ignore:Images of .* pixels')
@pytest.mark.parametrize('options', [
    dict(between=1.0), dict(scales_per_step=1), dict(scales_per_step=2),
    dict(between=1.0, partition=True)])
def test_after_one_step_the_network_knows_every_scale(options):
    """And recording moved nothing: not the mode, not a statistic."""
    model, other = ssbn_model(), ssbn_model()
    other.load_state_dict(model.state_dict())
    SCTLossHook(**options).attach(model)
    modes = [m.training for m in model.modules()]
    model(**batch(n=9), mode='loss')
    assert [m.training for m in model.modules()] == modes
    for layer in ssbn_layers(model):
        assert set(layer.extents) == set(SCALES)
    for scale in SCALES:
        x = torch.rand(2, 3, scale, scale)
        with torch.no_grad(), use_scale(model.eval(), scale):
            want = model(x)
        assert_close(model(x), want, rtol=0, atol=0)
