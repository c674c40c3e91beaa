"""Which scales a step trains, and on which pictures."""
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as tv

from sct_mm import SCTLossHook, SSBN, set_scale
from sct_mm.engine.schedule import (check_scales_per_step, check_shares,
                             scales_of_step, shares_of_step, weights_of_step)

from conftest import SCALES, TinyModel
from helpers import batch, grads


def test_the_base_and_each_other_scale_equally_often():
    scales = (224, 192, 160, 128)
    for count in (2, 3, 4):
        drawn = [scales_of_step(scales, count, 5, i) for i in range(3000)]
        assert {len(set(d)) for d in drawn} == {count}
        assert all(d == tuple(sorted(d, reverse=True)) for d in drawn)
        seen = Counter(s for d in drawn for s in d)
        assert seen[224] == 3000
        for scale in scales[1:]:
            assert seen[scale] == pytest.approx(1000 * (count - 1), rel=0.08)
    assert scales_of_step(scales, 2, 5, 7) == scales_of_step(scales, 2, 5, 7)
    assert ([scales_of_step(scales, 2, 5, i) for i in range(20)]
            != [scales_of_step(scales, 2, 6, i) for i in range(20)])


def test_the_mean_over_steps_is_the_loss_of_all_scales():
    weights = dict(zip((224, 192, 160, 128), (0.4, 0.3, 0.2, 0.1)))
    for count in (2, 3, 4):
        of_step = weights_of_step(weights, count)
        total = Counter()
        for step in range(6000):
            for scale in scales_of_step(tuple(weights), count, 0, step):
                total[scale] += of_step[scale] / 6000
        assert dict(total) == pytest.approx(weights, rel=0.05)
    assert weights_of_step({16: 1.0}, 1) == {16: 1.0}


@given(pictures=st.integers(1, 40), step=st.integers(0, 10**6),
       weights=st.lists(st.floats(0.1, 3), min_size=1, max_size=5))
def test_every_picture_is_at_one_scale(pictures, step, weights):
    weights = {20 - i: weight for i, weight in enumerate(weights)}
    shares = shares_of_step(pictures, weights, step)
    taken = [i for share in shares.values() for i in range(pictures)[share]]
    assert taken == list(range(pictures))
    assert list(shares) == [s for s in weights if s in shares]
    assert next(iter(shares)) == 20
    sizes = {s: len(range(pictures)[part]) for s, part in shares.items()}
    assert min(sizes.values()) >= min(2, pictures)
    if len(shares) == len(weights) and min(sizes.values()) > 2:
        for scale, weight in weights.items():
            assert abs(sizes[scale] - pictures * weight / sum(
                weights.values())) < 1 + 1e-9


@pytest.mark.parametrize('pictures', [128, 32, 20])
def test_shares_are_fair_over_the_steps(pictures):
    weights = {28: 0.6, 21: 0.9, 14: 1.5}
    total = Counter()
    for step in range(2000):
        shares = shares_of_step(pictures, weights, step)
        total.update({s: len(range(pictures)[p]) for s, p in shares.items()})
    for scale, weight in weights.items():
        assert total[scale] / 2000 == pytest.approx(pictures * weight / 3,
                                                    abs=0.01)


def test_a_small_batch_goes_to_fewer_scales():
    equal = {28: 1., 21: 1., 14: 1.}
    assert shares_of_step(1, equal, 0) == {28: slice(0, 1)}
    seen = {tuple(shares_of_step(5, equal, step)) for step in range(9)}
    assert (28, 21) in seen and (28, 14) in seen


def test_partition_is_a_loop_over_the_parts():
    model, by_hand = [TinyModel(lambda c: SSBN(c, SCALES)) for _ in range(2)]
    by_hand.load_state_dict(model.state_dict())
    data = batch(n=7)
    SCTLossHook(partition=True).attach(model)
    losses = model(**data, mode='loss')
    losses['loss'].backward()
    target = torch.tensor([s.gt_label for s in data['data_samples']])
    parts = shares_of_step(7, dict.fromkeys(SCALES, 1.), 0).values()
    total = 0
    for scale, part in zip(SCALES, parts):
        set_scale(by_hand, scale)
        x = tv.resize(data['inputs'][part], [scale, scale], antialias=True)
        loss = F.cross_entropy(by_hand.net(x), target[part])
        assert_close(losses[f's{scale}/total'], loss)
        total = total + loss / 3
    total.backward()
    assert_close(losses['loss'], total)
    assert_close(grads(model), grads(by_hand))


def test_a_step_of_two_scales_trains_two():
    model = TinyModel(lambda c: SSBN(c, SCALES))
    hook = SCTLossHook(scales_per_step=2, loss_weights=(1., 2., 3.))
    hook.attach(model)
    seen = set()
    for hook.step in range(8):
        losses = model(**batch(), mode='loss')
        scales = [s for s in SCALES if f's{s}/total' in losses]
        assert scales == list(scales_of_step(SCALES, 2, 0, hook.step))
        seen.update(scales)
        assert_close(losses['loss'], losses['s16/total'] + 2 * (
            {12: 2, 8: 3}[scales[1]] * losses[f's{scales[1]}/total']))
    assert seen == set(SCALES)


@pytest.mark.parametrize('count', [1, 4, 2.0, True])
def test_bad_scales_per_step(count):
    with pytest.raises(ValueError, match='an int from 2 to the 3 scales'):
        check_scales_per_step(count, SCALES)


@pytest.mark.parametrize('weights, least', [
    ((1., 1., 1.), 6), ((.34, .26, .4), 8), ((1., 1., 1., 1.), 8)])
def test_every_scale_is_in_every_batch_that_check_shares_takes(weights,
                                                               least):
    weights = dict(zip((28, 21, 14, 7), weights))
    check_shares(least, weights)
    for pictures in range(least, 3 * least):
        for step in range(50):
            assert set(shares_of_step(pictures, weights, step)) == (
                set(weights))
    with pytest.raises(ValueError, match=f'batch_size to {least} or more'):
        check_shares(least - 1, weights)


def test_partition_needs_a_share_for_each_scale():
    with pytest.raises(ValueError, match='> 0 with partition=True'):
        SCTLossHook(partition=True, loss_weights=(1., 1., 0.)).attach(
            TinyModel(lambda c: SSBN(c, SCALES)))
