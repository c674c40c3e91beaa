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
from sct_mm.schedule import (check_scales_per_step, scales_of_step,
                             shares_of_step, weights_of_step)

from conftest import SCALES, TinyModel
from test_sct_hook import batch, grads


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


@given(pictures=st.integers(1, 40), count=st.integers(1, 5),
       step=st.integers(0, 10**6))
def test_every_picture_is_at_one_scale(pictures, count, step):
    scales = tuple(range(count, 0, -1))
    shares = shares_of_step(pictures, scales, step)
    taken = sorted(i for share in shares.values()
                   for i in range(pictures)[share])
    assert taken == list(range(pictures))
    assert next(iter(shares)) == scales[0]
    sizes = [len(range(pictures)[s]) for s in shares.values()]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(2, pictures)
    assert len(shares) == count or pictures < 2 * count


@pytest.mark.parametrize('pictures', [32, 20, 5])
def test_shares_are_fair_over_the_steps(pictures):
    total = Counter()
    for step in range(60):
        shares = shares_of_step(pictures, (28, 21, 14), step)
        total.update({s: len(range(pictures)[p]) for s, p in shares.items()})
    if pictures >= 6:
        assert set(total.values()) == {pictures * 20}
    else:  # the base is in every step, the others take turns
        assert total[21] == total[14]


def test_partition_is_a_loop_over_the_parts():
    model, by_hand = [TinyModel(lambda c: SSBN(c, SCALES)) for _ in range(2)]
    by_hand.load_state_dict(model.state_dict())
    data = batch(n=7)
    SCTLossHook(partition=True).attach(model)
    losses = model(**data, mode='loss')
    losses['loss'].backward()
    target = torch.tensor([s.gt_label for s in data['data_samples']])
    total = 0
    for scale, part in zip(SCALES, (slice(0, 2), slice(2, 4), slice(4, 7))):
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
