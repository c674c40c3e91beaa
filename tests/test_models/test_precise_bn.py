"""add_scale changes no answer; calibrate re-estimates one row."""
import copy

import pytest
import torch
from conftest import SCALES, TinyModel
from helpers import plain_net, randomised
from mmengine.structures import BaseDataElement
from torch import nn
from torch.testing import assert_close

from sct_mm import (
    SSBN,
    add_scale,
    calibrate,
    convert_to_ssbn,
    extract_scale,
    use_scale,
)
from sct_mm.models import precise_bn
from sct_mm.models.size_selection import scales_of, ssbn_layers
from sct_mm.models.weight_change import changed_layers


def trained():
    model = randomised(TinyModel(lambda c: SSBN(c, SCALES)))
    for scale in SCALES:
        with use_scale(model, scale):
            model(torch.randn(4, 3, scale, scale))
    return model.eval()


def answers(model):
    found = {}
    for size in (20, 16, 15, 14, 13, 12, 11, 10, 9, 8, 6):
        x = torch.arange(3. * size * size).reshape(1, 3, size, size).sin()
        with use_scale(model, min(max(size, 6), 20)):
            found[size] = model(x), model.eval()(x)
    for size in (16, 14, 12, 10, 8):
        x = torch.arange(3. * size * size).reshape(1, 3, size, size).sin()
        found[-size] = model(x), model(x)
    return found


@pytest.mark.filterwarnings('ignore:.* lie outside')
@pytest.mark.parametrize('size', [14, 10, 20, 6])
def test_a_scale_more_changes_nothing(size):
    model = trained()
    want = answers(model)
    assert add_scale(model, size) is model
    assert scales_of(model) == tuple(sorted((*SCALES, size), reverse=True))
    for place, (got, _) in answers(model).items():
        assert_close(got, want[place][0])
    for layer in ssbn_layers(model):
        assert layer.weight.shape == (4 * layer.num_features, )
        assert layer.running_mean.shape == (4, layer.num_features)
        assert layer.num_batches_tracked.shape == (4, )
    again = TinyModel(lambda c: SSBN(c, scales_of(model))).eval()
    again.load_state_dict(model.state_dict())
    for place, (got, _) in answers(again).items():
        assert_close(got, want[place][0])


def test_frozen_stays_frozen_and_none_stays_none():
    model = nn.Sequential(SSBN(2, SCALES).requires_grad_(False),
                          SSBN(2, SCALES, affine=False),
                          SSBN(2, SCALES, track_running_stats=False))
    add_scale(model, 10)
    assert not model[0].weight.requires_grad
    assert model[1].weight is None and model[2].running_mean is None
    assert model[2].weight.requires_grad


def test_a_converted_norm_of_ones_own():
    class Own(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * 2

    model = convert_to_ssbn(nn.Sequential(Own(3)), SCALES)
    add_scale(model, 10)
    with use_scale(model, 10):
        model(torch.randn(4, 3, 5, 5))
    assert type(extract_scale(model, 10)[0]) is Own
    calibrate(model, [torch.randn(4, 3, 10, 10)] * 2, 10)


def batches(size, count=3):
    generator = torch.Generator().manual_seed(size)
    return [torch.randn(4 + n, 3, size, size, generator=generator) + n
            for n in range(count)]


def test_statistics_are_the_mean_over_the_images():
    model = trained()
    state = copy.deepcopy(model.state_dict())
    seen = batches(12)
    assert calibrate(model, iter(seen), 12) == 15
    # An independent network with BN, batch by batch.
    plain = extract_scale(model, 12)
    for bn in (plain.net[1], plain.net[4], plain.net[7]):
        bn.momentum = 1.0
    total = {n: 0 for n, _ in plain.named_buffers() if 'running' in n}
    for x in seen:
        plain.train()(x)
        total = {n: v + len(x) / 15 * plain.get_buffer(n)
                 for n, v in total.items()}
    for name, value in total.items():
        assert_close(model.get_buffer(name)[1], value)
    for name, value in model.state_dict().items():
        rows = [0, 2] if 'running' in name else slice(None)
        assert torch.equal(value[rows], state[name][rows]), name


class Shared(nn.Module):
    """A head that two levels share, whose maps have other statistics, and a
    norm that no pass calls."""

    def __init__(self):
        super().__init__()
        self.norm, self.rest = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(x).sum() + self.norm(4 * x[..., ::2, ::2] + 3).sum()


def test_a_norm_that_is_called_twice_has_the_statistics_of_both():
    model = convert_to_ssbn(Shared(), SCALES)
    seen = [x[:4] for x in batches(12)]
    calibrate(add_scale(model, 10), [x[..., :10, :10] for x in seen], 10)
    calibrate(model, seen, 12)
    plain = Shared()
    torch.optim.swa_utils.update_bn(seen, plain)  # the mean over all calls
    for name in ('running_mean', 'running_var'):
        assert_close(model.norm.row(12)[name], getattr(plain.norm, name))
        assert_close(model.rest.row(12)[name], getattr(nn.BatchNorm2d(3),
                                                       name))
    assert not model.norm._forward_hooks


def test_nothing_else_of_the_model_changes():
    model = trained()
    model.net[4].eval()
    model.net[1].train()
    modes = [m.training for m in model.modules()]
    calibrate(model, batches(8), 8)
    assert modes == [m.training for m in model.modules()]
    for layer in ssbn_layers(model):
        assert layer.momentum == 0.1
        assert layer.num_batches_tracked.tolist() == [1, 1, 1]
        assert layer.pinned_size is None


def test_batches_of_the_hosts():
    model, other = trained(), trained()
    other.load_state_dict(model.state_dict())
    given = [dict(inputs=x, data_samples=[BaseDataElement()] * len(x))
             for x in batches(8)]
    labelled = trained()
    labelled.load_state_dict(model.state_dict())
    calibrate(model, batches(8), 8)
    calibrate(other, given, 8)
    calibrate(labelled, [(x, torch.zeros(len(x))) for x in batches(8)], 8)
    for ours, *others in zip(*(m.buffers() for m in (model, other,
                                                     labelled)), strict=True):
        assert all(torch.equal(ours, want) for want in others)


@pytest.mark.parametrize('batch, error, match', [
    ('image', TypeError, 'but got a str'),
    (dict(inputs=[torch.rand(3, 8, 8)] * 2), TypeError,
     'but got a list. Take what model.data_preprocessor'),
    (torch.zeros(2, 3, 8, 8).byte(), TypeError, 'but got a torch.uint8'),
    (torch.rand(2, 3, 16, 16), ValueError,
     r'images of 8 pixels, .* but got shape \(2, 3, 16, 16\)')])
def test_batches_that_are_refused(batch, error, match):
    with pytest.raises(error, match=match):
        calibrate(trained(), [batch] * 2, 8)


@pytest.mark.parametrize('count', [0, 1])
def test_too_few_images_change_nothing(count):
    model = trained()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='at least two batches, but got '
                       f'{count}'):
        calibrate(model, batches(8, count), 8)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def pooled():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    return convert_to_ssbn(net, (16, 8))


def test_a_lone_last_image_behind_a_pooling_is_left_out():
    images, last = batches(8, 2), [torch.randn(1, 3, 8, 8)]
    models = [pooled(), pooled()]
    count = sum(map(len, images))
    assert calibrate(models[0], images + last, 8) == count
    assert calibrate(models[1], images, 8) == count
    assert_close(models[0].state_dict(), models[1].state_dict(), rtol=0,
                 atol=0)
    # Where a map has a variance, it counts.
    assert calibrate(trained(), images + last, 8) in (count, count + 1)
    net = convert_to_ssbn(nn.Sequential(nn.BatchNorm2d(3)), (16, 8))
    assert calibrate(net, images + last, 8) == count + 1


@pytest.mark.parametrize('net, image', [
    (pooled, (1, 3, 8, 8)),
    (lambda: convert_to_ssbn(nn.Sequential(nn.BatchNorm1d(3)), (16, 8)),
     (1, 3))])
def test_images_one_by_one_behind_a_pooling_change_nothing(net, image):
    model = net()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='but got 0, and 4 of one image, '
                       'which has no variance .*larger batches'):
        calibrate(model, [torch.randn(image)] * 4, 8)
    assert_close(model.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize('scales', [(16, 12, 8), (17, 16, 9), (32, 8)])
def test_smaller_scales_alone_leave_the_base_as_it_was(scales):
    """The strides round, and the pooled layer sees one extent at all sizes:
    above what was recorded, an unpinned network answers as before."""
    stock = randomised(nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten())).eval()
    for rank in (0, 2):
        net = convert_to_ssbn(copy.deepcopy(stock), scales, rank=rank).eval()
        for size in scales[1:]:
            calibrate(net, torch.randn(2, 8, 3, size, size), size)
        again = convert_to_ssbn(copy.deepcopy(stock), scales,
                                rank=rank).eval()
        again.load_state_dict(net.state_dict())
        for size in (*scales, 40):
            x = torch.randn(2, 3, size, size)
            with use_scale(net, min(size, scales[0])):
                want = net(x)
            assert torch.equal(net(x), want)
            assert torch.equal(again(x), want)
            assert torch.equal(stock(x), want) == (size >= scales[0])


class Levels(nn.Module):
    """A detector in small: a head that all levels share."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8))

    def forward(self, inputs, data_samples=None):
        x, found = self.stem(inputs), []
        for _ in range(4):
            found.append(self.head(x).mean((2, 3)))
            x = nn.functional.max_pool2d(x, 2)
        return torch.stack(found)


def behind_a_pooling():
    return nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1),
                         nn.BatchNorm2d(3), nn.Flatten())


@pytest.mark.filterwarnings('ignore:Sequential serves .* behind a pooling')
@pytest.mark.parametrize('make', [Levels, behind_a_pooling])
@pytest.mark.parametrize('records_base', [True, False])
def test_one_of_several_scales_alone_is_calibrated(make, records_base,
                                                   monkeypatch):
    """The base answers as before, also of a checkpoint that knows nothing of
    its extents; where it knows them, the scale between is found."""
    if not records_base:
        monkeypatch.setattr(precise_bn, 'record_base', lambda *args: None)
    stock = randomised(make()).eval()
    for scales in ((64, 32), (64, 48, 32)):
        net = convert_to_ssbn(copy.deepcopy(stock), scales,
                              rank=2 if make is Levels else 0).eval()
        for layer in changed_layers(net):
            nn.init.normal_(layer.changes[0])
        before = copy.deepcopy(net.state_dict())
        calibrate(net, [torch.randn(4, 3, 32, w) for w in (32, 40)], 32)
        for layer in ssbn_layers(net):
            kept = layer.row(64)['running_mean']
            assert not torch.equal(layer.row(32)['running_mean'], kept)
        for (name, value), old in zip(net.state_dict().items(),
                                      before.values(), strict=True):
            if 'running' in name:
                assert torch.equal(value[:-1], old[:-1])
        for size in (64, 65, 96, (64, 80), *scales[1:], 64):
            x = torch.randn(2, 3, *(size if isinstance(size, tuple)
                                    else (size, size)))
            edge = min(x.shape[-2:])
            with use_scale(net, min(edge, 64)):
                want = net(x)
            if edge >= 64:
                assert torch.equal(net(x), want)
                assert torch.equal(stock(x), want)
            elif make is Levels and (records_base or edge == 32):
                assert_close(net(x), want)


def test_scales_that_have_seen_no_batch_are_warned_of_after_it():
    model = TinyModel(lambda c: SSBN(c, SCALES))
    for layer in ssbn_layers(model):
        layer.row(16)['num_batches_tracked'].add_(1)
    calibrate(model.eval(), batches(8), 8)
    with pytest.warns(UserWarning, match='scale 12, which have seen no batch'):
        model(torch.randn(2, 3, 12, 12))


def test_a_batch_that_cannot_be_resized_is_calibrated_all_the_same():
    net = convert_to_ssbn(nn.Sequential(nn.BatchNorm1d(3)), (16, 8)).eval()
    calibrate(net, [torch.randn(4, 3)] * 2, 8)
    assert net[0].extents == {8: [1, 1]}
    x = torch.randn(4, 3)
    with pytest.warns(UserWarning, match='behind a pooling'):
        assert torch.equal(net(x), nn.BatchNorm1d(3).eval()(x))


def test_images_of_a_detector_are_recorded_at_their_nominal_size():
    """Long ones are narrower, and a batch is padded to a multiple."""
    model = trained()
    first = ssbn_layers(model)[0]  # deeper ones round extents of a few
    before = first.get_extra_state()
    calibrate(model, [dict(inputs=torch.randn(2, 3, h, w), data_samples=None)
                      for h, w in ((16, 24), (10, 28), (16, 16))], 16)
    assert torch.equal(first.get_extra_state(), before)


@pytest.mark.parametrize('wrong', [float('nan'), float('inf')])
def test_statistics_that_are_no_numbers(wrong):
    model = trained()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='at 12 pixels must be finite'):
        calibrate(model, [torch.randn(2, 3, 12, 12),
                          torch.full((2, 3, 12, 12), wrong)], 12)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_an_error_on_the_way_changes_nothing():
    model = trained()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match='channels'):
        calibrate(model, [*batches(8), torch.randn(2, 5, 8, 8)], 8)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize('function, size, error, match', [
    (add_scale, 12, ValueError, r'none of the scales of the model, \(16, 12'),
    (add_scale, 0, ValueError, '`size` must be an int from 1'),
    (add_scale, 9.5, TypeError, '`size` must be an int'),
    (lambda m, s: calibrate(m, batches(8), s), 10, ValueError,
     r'\(16, 12, 8\), but got 10. Give it rows by add_scale')])
def test_sizes_that_are_refused(function, size, error, match):
    with pytest.raises(error, match=match):
        function(trained(), size)


def test_models_without_ssbn_are_refused():
    with pytest.raises(ValueError, match='Sequential has none'):
        add_scale(plain_net(), 16)
    with pytest.raises(ValueError, match='None, but got 16'):
        calibrate(plain_net(), batches(8), 16)
