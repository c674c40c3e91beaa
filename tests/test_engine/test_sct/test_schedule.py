"""Which scales a step trains, and on which images."""
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from conftest import SCALES, TinyModel
from helpers import batch, grads
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from torchvision.transforms.v2 import functional as tv

from sct_mm import SSBN, SCTLossHook, set_scale
from sct_mm.engine.hooks.sct_loss_hook import batch_size_of
from sct_mm.engine.sct.schedule import (
    check_scales_per_step,
    check_shares,
    halfway,
    scales_of_step,
    shares_of_step,
    weights_of_step,
)


def test_the_base_and_each_other_scale_equally_often():
    scales = (224, 192, 160, 128)
    equal = dict.fromkeys(scales, 0.25)
    for count in (2, 3, 4):
        drawn = [scales_of_step(equal, count, 5, i) for i in range(3000)]
        assert {len(set(d)) for d in drawn} == {count}
        assert all(d == tuple(sorted(d, reverse=True)) for d in drawn)
        seen = Counter(s for d in drawn for s in d)
        assert seen[224] == 3000
        for scale in scales[1:]:
            assert seen[scale] == pytest.approx(1000 * (count - 1), rel=0.08)
    assert scales_of_step(equal, 2, 5, 7) == scales_of_step(equal, 2, 5, 7)
    assert ([scales_of_step(equal, 2, 5, i) for i in range(20)]
            != [scales_of_step(equal, 2, 6, i) for i in range(20)])


def test_the_mean_over_steps_is_the_loss_of_all_scales():
    weights = dict(zip((224, 192, 160, 128), (0.2, 0.5, 0.2, 0.1),
                       strict=True))
    for count in (1, 2, 3, 4):
        of_step = weights_of_step(weights, count)
        total = Counter()
        for step in range(6000):
            scales = scales_of_step(weights, count, 0, step)
            assert len(set(scales)) == count
            assert count == 1 or scales[0] == 224
            # Each step weighs the same.
            assert sum(of_step[s] for s in scales) == pytest.approx(1)
            for scale in scales:
                total[scale] += of_step[scale] / 6000
        assert dict(total) == pytest.approx(weights, rel=0.06)
    assert weights_of_step({16: 1.0}, 1) == {16: 1.0}


@given(images=st.integers(1, 40), step=st.integers(0, 10**6),
       weights=st.lists(st.floats(0.1, 3), min_size=1, max_size=5))
def test_every_image_is_at_one_scale(images, step, weights):
    weights = {20 - i: weight for i, weight in enumerate(weights)}
    shares = shares_of_step(images, weights, step)
    taken = [i for share in shares.values() for i in range(images)[share]]
    assert taken == list(range(images))
    assert list(shares) == [s for s in weights if s in shares]
    assert next(iter(shares)) == 20
    sizes = {s: len(range(images)[part]) for s, part in shares.items()}
    assert min(sizes.values()) >= min(2, images)
    if len(shares) == len(weights) and min(sizes.values()) > 2:
        for scale, weight in weights.items():
            assert abs(sizes[scale] - images * weight / sum(
                weights.values())) < 1 + 1e-9


@pytest.mark.parametrize('images', [128, 32, 20])
def test_shares_are_fair_over_the_steps(images):
    weights = {28: 0.6, 21: 0.9, 14: 1.5}
    total = Counter()
    for step in range(2000):
        shares = shares_of_step(images, weights, step)
        total.update({s: len(range(images)[p]) for s, p in shares.items()})
    for scale, weight in weights.items():
        assert total[scale] / 2000 == pytest.approx(images * weight / 3,
                                                    abs=0.01)


def test_a_small_batch_goes_to_fewer_scales():
    equal = {28: 1., 21: 1., 14: 1.}
    assert shares_of_step(1, equal, 0) == {28: slice(0, 1)}
    seen = {tuple(shares_of_step(5, equal, step)) for step in range(9)}
    assert (28, 21) in seen and (28, 14) in seen


def test_partition_is_a_loop_over_the_parts(double_precision):
    model, by_hand = [TinyModel(lambda c: SSBN(c, SCALES)) for _ in range(2)]
    by_hand.load_state_dict(model.state_dict())
    data = batch(n=7)
    SCTLossHook(partition=True).attach(model)
    losses = model(**data, mode='loss')
    losses['loss'].backward()
    target = torch.tensor([s.gt_label for s in data['data_samples']])
    parts = shares_of_step(7, dict.fromkeys(SCALES, 1.), 0).values()
    total = 0
    for scale, part in zip(SCALES, parts, strict=True):
        set_scale(by_hand, scale)
        x = tv.resize(data['inputs'][part], [scale, scale], antialias=True)
        loss = F.cross_entropy(by_hand.net(x), target[part])
        assert_close(losses[f's{scale}/total'], loss)
        total = total + loss * len(target[part]) / 7
    total.backward()
    assert_close(losses['loss'], total)
    assert_close(grads(model), grads(by_hand))


def test_one_scale_a_step_is_drawn_evenly():
    weights = dict(zip((224, 192, 160, 128), (0.2, 0.5, 0.0, 0.3),
                       strict=True))
    for seed in (0, 1, 2**31 - 1):
        drawn = [scales_of_step(weights, 1, seed, i) for i in range(2000)]
        for first, steps in ((0, 2000), (300, 100), (501, 30), (9, 10)):
            seen = Counter(s for s, in drawn[first:first + steps])
            for scale, weight in weights.items():
                assert abs(seen[scale] - weight * steps) < 2
    assert len({tuple(scales_of_step(weights, 1, seed, i) for i in range(9))
                for seed in range(5)}) > 1
    assert scales_of_step({16: 0., 8: 1.}, 1, 0, 0) == (8, )


@pytest.mark.parametrize('backward', ['per_scale', 'joint'])
def test_one_scale_a_step_is_one_plain_step(double_precision, backward):
    """Also where the base is not drawn: one pass, and one row moves."""
    model, by_hand = [TinyModel(lambda c: SSBN(c, SCALES)) for _ in range(2)]
    by_hand.load_state_dict(model.state_dict())
    hook = SCTLossHook(scales_per_step=1, backward=backward,
                       loss_weights=(1., 2., 3.))
    hook.attach(model)
    sizes = []
    model.net.register_forward_hook(
        lambda module, args, output: sizes.append(args[0].shape[-1])
        if torch.is_grad_enabled() else None)  # not where it records
    seen = set()
    for hook.step in range(8):
        scale, = scales_of_step({16: 1., 12: 2., 8: 3.}, 1, 0, hook.step)
        data = batch(seed=hook.step)
        x = tv.resize(data['inputs'], [scale, scale], antialias=True)
        losses = model(**data, mode='loss')
        set_scale(by_hand, scale)
        want = by_hand(x, data['data_samples'], 'loss')
        assert set(losses) == {f's{scale}/total', f's{scale}/accuracy',
                               'loss'}
        for net, loss in ((model, losses['loss']),
                          (by_hand, 6 * want['loss'])):
            net.zero_grad()
            loss.backward()
        assert_close(losses['loss'], 6 * want['loss'])
        assert_close(losses[f's{scale}/total'], want['loss'])
        assert_close(grads(model), grads(by_hand))
        assert_close(dict(model.named_buffers()),
                     dict(by_hand.named_buffers()))
        assert sizes.pop() == scale and not sizes
        seen.add(scale)
    assert seen == set(SCALES)


def test_a_step_of_two_scales_trains_two(double_precision):
    model = TinyModel(lambda c: SSBN(c, SCALES))
    hook = SCTLossHook(scales_per_step=2, loss_weights=(1., 2., 3.))
    hook.attach(model)
    seen = set()
    for step in range(8):
        hook.step = step
        losses = model(**batch(), mode='loss')
        scales = [s for s in SCALES if f's{s}/total' in losses]
        assert scales == list(scales_of_step(
            {16: 1., 12: 2., 8: 3.}, 2, 0, step))
        seen.update(scales)
        assert_close(losses['loss'], losses['s16/total'] + 5 * (
            losses[f's{scales[1]}/total']))
    assert seen == set(SCALES)


@pytest.mark.parametrize('count', [0, 4, 2.0, True])
def test_bad_scales_per_step(count):
    with pytest.raises(ValueError, match='an int from 1 to the 3 scales'):
        check_scales_per_step(count, SCALES)


@pytest.mark.parametrize('weights, least', [
    ((1., 1., 1.), 6), ((.34, .26, .4), 8), ((1., 1., 1., 1.), 8)])
def test_every_scale_is_in_every_batch_that_check_shares_takes(weights,
                                                               least):
    weights = dict(zip((28, 21, 14, 7), weights, strict=False))
    check_shares(least, weights)
    for images in range(least, 3 * least):
        for step in range(50):
            assert set(shares_of_step(images, weights, step)) == (
                set(weights))
    with pytest.raises(ValueError, match=f'batch_size to {least} or more'):
        check_shares(least - 1, weights)


def test_partition_needs_a_share_for_each_scale():
    with pytest.raises(ValueError, match='> 0 with partition=True'):
        SCTLossHook(partition=True, loss_weights=(1., 1., 0.)).attach(
            TinyModel(lambda c: SSBN(c, SCALES)))


class Loader:
    """What tells the hook of its batches."""

    def __init__(self, **options):
        self.__dict__.update(options)


@pytest.mark.parametrize('loader, want', [
    (Loader(batch_size=4), 4), (Loader(batch_size=None), None),
    (DataLoader(range(8), batch_sampler=BatchSampler(
        SequentialSampler(range(8)), 4, False)), 4),
    (Loader(batch_size=None, batch_sampler=Loader(batch_size=[3, 1])), 4),
    (DataLoader(range(8), batch_sampler=[[0, 1], [2, 3]]), None)])
def test_the_batch_size_is_known_behind_any_sampler(loader, want):
    assert batch_size_of(loader) == want


def test_a_batch_that_no_sampler_told_of_is_refused_before_it_trains():
    model = TinyModel(lambda c: SSBN(c, SCALES))
    hook = SCTLossHook(partition=True)
    hook.attach(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match='Set batch_size to 6 or more'):
        model(**batch(n=5), mode='loss')
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    model(**batch(n=6), mode='loss')
    model(**batch(n=3), mode='loss')  # a short last one


@pytest.mark.parametrize('schedule', [
    dict(partition=True), dict(partition=True, scales_per_step=2),
    dict(scales_per_step=2), dict(scales_per_step=1), {}])
def test_an_image_weighs_the_same_in_every_batch(double_precision,
                                                 schedule):
    """A loss whose gradient tells the weight of each image."""
    class Weigh(TinyModel):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            seen = torch.tensor([int(s.index) for s in data_samples])
            self.norm(inputs)
            return dict(loss=self.weights[seen].mean())

    model = Weigh(lambda c: SSBN(c, SCALES))
    model.norm = SSBN(3, SCALES)
    model.weights = torch.nn.Parameter(torch.zeros(9))
    hook = SCTLossHook(loss_weights=(0.2, 0.5, 0.3), **schedule)
    hook.attach(model)
    for hook.step in range(12):
        n = 9 if hook.step < 6 else hook.step - 5  # short ones, down to 1
        data = batch(n=n)
        for i, sample in enumerate(data['data_samples']):
            sample.index = i
        hook.sct._shares_fit = True
        model.weights.grad = None
        model(**data, mode='loss')['loss'].backward()
        want = torch.zeros(9)
        want[:n] = 1 / n
        assert_close(model.weights.grad, want)


def test_without_a_runner_each_pass_is_a_step():
    model = TinyModel(lambda c: SSBN(c, SCALES))
    SCTLossHook(scales_per_step=2).attach(model)
    seen = {name for _ in range(8) for name in model(**batch(), mode='loss')}
    assert {f's{s}/total' for s in SCALES} <= seen


def test_half_way_between_two_scales():
    assert halfway((224, 192, 128), 32) == [160]
    assert halfway((28, 21, 14), 1) == [25, 18]
    assert halfway((28, 27), 1) == halfway((28, ), 1) == []
