"""SSBN against as many separate nn.BatchNorm layers as there are scales."""
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn import build_norm_layer, is_norm
from torch import nn
from torch.testing import assert_close

from sct_mm import SSBN, SSBN1d, SSBN3d, SyncSSBN, set_scale, use_scale

SCALES = (16, 12, 8)


def paired(scales=SCALES, channels=3, **options):
    """An SSBN with random rows, and one plain BN for each of them."""
    layer = SSBN(channels, scales, **options)
    plain = {}
    for scale in scales:
        bn = nn.BatchNorm2d(channels, **options)
        for name, value in bn.state_dict().items():
            if value.is_floating_point():
                value.uniform_(0.5, 2.0)
                layer.row(scale)[name].data.copy_(value)
        plain[scale] = bn
    return layer, plain


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 4), h=st.integers(1, 5), w=st.integers(1, 5),
    channels=st.integers(1, 4),
    momentum=st.sampled_from([None, 0.0, 0.1, 1.0]), affine=st.booleans(),
    track=st.booleans(), channels_last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    steps=st.lists(st.tuples(st.sampled_from(SCALES), st.booleans()),
                   min_size=1, max_size=5), seed=st.integers(0, 99))
def test_each_scale_is_a_batchnorm_of_its_own(
        n, h, w, channels, momentum, affine, track, channels_last, dtype,
        steps, seed):
    torch.manual_seed(seed)
    layer, plain = paired(channels=channels, momentum=momentum, affine=affine,
                          track_running_stats=track)
    layer = layer.to(dtype)
    for bn in plain.values():
        bn.to(dtype)
    for scale, training in steps:
        x = torch.randn(n, channels, h, w, dtype=dtype)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        with use_scale(layer.train(training), scale):
            ours = layer(a)
        theirs = plain[scale].train(training)(b)
        assert_close(ours, theirs, rtol=0, atol=0)
        assert ours.stride() == theirs.stride()
        weight = torch.randn_like(ours)
        (ours * weight).sum().backward()
        (theirs * weight).sum().backward()
        assert_close(a.grad, b.grad, rtol=0, atol=0)
    for row, scale in enumerate(SCALES):
        bn = plain[scale]
        for name, value in bn.state_dict().items():
            assert_close(layer.row(scale)[name], value, rtol=0, atol=0)
        for name, parameter in bn.named_parameters():
            grad = getattr(layer, name).grad
            want = parameter.grad
            if grad is not None:
                want = torch.zeros_like(parameter) if want is None else want
                assert_close(grad.view(3, -1)[row], want, rtol=0, atol=0)


def test_several_scales_before_one_backward():
    layer, plain = paired()
    xs = {s: torch.randn(2, 3, s, s) for s in SCALES}
    total = 0
    for scale, x in xs.items():
        with use_scale(layer, scale):
            total = total + layer(x).pow(3).sum()
    total.backward()
    for row, scale in enumerate(SCALES):
        plain[scale](xs[scale]).pow(3).sum().backward()
        assert_close(layer.weight.grad.view(3, -1)[row],
                     plain[scale].weight.grad)
        assert_close(layer.running_var[row], plain[scale].running_var)


def test_empty_batch_is_as_batchnorm():
    layer, plain = paired()
    x = torch.randn(0, 3, 4, 4)
    assert_close(layer.eval()(x), plain[16].eval()(x))


@pytest.mark.parametrize('norm, bn, shape', [
    (SSBN1d, nn.BatchNorm1d, (4, 3)), (SSBN1d, nn.BatchNorm1d, (4, 3, 5)),
    (SSBN3d, nn.BatchNorm3d, (2, 3, 4, 4, 4))])
def test_other_dimensions(norm, bn, shape):
    x = torch.randn(shape)
    layer = norm(3, SCALES)
    assert isinstance(layer, bn) and not isinstance(layer, nn.BatchNorm2d)
    assert_close(layer(x), bn(3)(x))
    with pytest.raises(ValueError, match='dimensions, but got shape'):
        layer(torch.zeros(2, 3, 4, 4))


def test_hosts_take_it_for_a_batchnorm():
    name, layer = build_norm_layer(
        dict(type='SSBN', scales=SCALES, requires_grad=False), 3, postfix=1)
    assert name == 'bn1' and is_norm(layer)
    assert isinstance(layer, nn.BatchNorm2d)
    assert not layer.weight.requires_grad
    assert set(layer.state_dict()) == {*nn.BatchNorm2d(3).state_dict(),
                                       '_extra_state'}


def test_default_scales_and_order():
    assert SSBN(2).scales == (224, 192, 160, 128)
    assert SSBN(2, [8, 16, 12]).scales == SCALES


@pytest.mark.parametrize('scales, error, match', [
    ((), ValueError, r'distinct positive ints, but got \(\)'),
    ((8, 8), ValueError, r'\(8, 8\)'),
    ((8, 0), ValueError, r'\(8, 0\)'),
    ((8, 4.0), TypeError, r'\(8, 4.0\)'),
    (8, TypeError, 'tuple of ints'),
    (None, TypeError, 'but got None'),
])
def test_bad_scales(scales, error, match):
    with pytest.raises(error, match=match):
        SSBN(3, scales)


@pytest.mark.parametrize('shape, match', [
    ((2, 4, 5, 5), r'3 channels, but got shape \(2, 4, 5, 5\)'),
    ((2, 3, 5), '4 dimensions')])
def test_input_it_was_not_built_for(shape, match):
    with pytest.raises(ValueError, match=match):
        SSBN(3, SCALES)(torch.zeros(shape))


@pytest.mark.parametrize('options, error, match', [
    (dict(eps='1e-5'), TypeError, "`eps` must be a number, but got '1e-5'"),
    (dict(eps=-1.), ValueError, '`eps` must be a finite number of at least'),
    (dict(momentum='x'), TypeError, "`momentum` must be a number"),
    (dict(momentum=2), ValueError, '`momentum` must be .* from 0 to 1'),
    (dict(affine='no'), TypeError, "`affine` must be True or False"),
    (dict(track_running_stats=1), TypeError, '`track_running_stats` must'),
    (dict(num_features=0), ValueError, 'an int from 1 to .*, but got 0'),
    (dict(num_features=2.5), TypeError, '`num_features` must be an int')])
def test_bad_options(options, error, match):
    with pytest.raises(error, match=match):
        SSBN(**{'num_features': 3, **options})


# -- checkpoints


def test_stock_checkpoint_fills_every_scale():
    bn = nn.BatchNorm2d(3)
    bn(torch.randn(4, 3, 5, 5))
    layer = SSBN(3, SCALES)
    layer.load_state_dict(bn.state_dict())
    x = torch.randn(2, 3, 4, 4)
    for scale in SCALES:
        with use_scale(layer.eval(), scale):
            assert_close(layer(x), bn.eval()(x), rtol=0, atol=0)
    layer.row(16)['weight'].data += 1  # rows are not views of one another
    assert_close(layer.row(12)['weight'], bn.weight)


def test_assigned_rows_have_memory_of_their_own():
    layer = SSBN(3, SCALES)
    layer.load_state_dict(nn.BatchNorm2d(3).state_dict(), assign=True)
    with use_scale(layer, 8):
        layer(torch.randn(2, 3, 4, 4) + 5)
    assert layer.running_mean[2].abs().min() > 0
    assert layer.running_mean[:2].abs().max() == 0
    assert layer.num_batches_tracked.tolist() == [0, 0, 1]


def test_a_checkpoint_whose_rows_are_a_matrix():
    layer, _ = paired()
    state = layer.state_dict()
    for name in ('weight', 'bias'):
        state[name] = state[name].view(3, 3)
    loaded = SSBN(3, SCALES)
    loaded.load_state_dict(state)
    assert_close(loaded.weight, layer.weight, rtol=0, atol=0)


def test_the_record_goes_through_tensors_alone(tmp_path):
    from safetensors.torch import load_file, save_file
    layer, _ = paired()
    with use_scale(layer, 8):
        layer(torch.randn(2, 3, 4, 4))
    save_file(layer.state_dict(), tmp_path / 'a.safetensors')
    loaded = SSBN(3, SCALES)
    loaded.load_state_dict(load_file(tmp_path / 'a.safetensors'))
    assert loaded.extents == {8: [4, 4]}


def test_state_dict_round_trip_with_weights_only():
    layer, _ = paired()
    for scale in SCALES:
        with use_scale(layer, scale):
            layer(torch.randn(2, 3, scale // 2, scale // 2))
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    loaded = SSBN(3, SCALES)
    loaded.load_state_dict(torch.load(stream, weights_only=True))
    assert loaded.extents == layer.extents == {16: [8, 8], 12: [6, 6],
                                               8: [4, 4]}
    for name, value in layer.state_dict().items():
        assert_close(loaded.state_dict()[name], value)


def test_parameters_alone_are_rows_of_their_own():
    layer, other = SSBN(4, SCALES), SSBN(4, SCALES)
    layer.weight.data.uniform_()
    other.load_state_dict(dict(layer.named_parameters()), strict=False)
    assert torch.equal(other.weight, layer.weight)


def test_a_row_that_is_none():
    with pytest.raises(ValueError, match=r'\(16, 12, 8\), but got 10'):
        SSBN(4, SCALES).row(10)


def test_a_clip_tells_its_size_not_its_length():
    layer = SSBN3d(3, SCALES)
    for scale in (16, 8):
        with use_scale(layer, scale):
            layer(torch.randn(2, 3, 4, scale, scale))
    assert layer.extents == {16: [16, 16], 8: [8, 8]}


def test_checkpoint_with_other_number_of_scales():
    with pytest.raises(ValueError, match=r'2 scales in weight, but the '
                       r'model has 3 \(\(16, 12, 8\)\)'):
        SSBN(3, SCALES).load_state_dict(SSBN(3, (16, 8)).state_dict())


def test_a_plain_checkpoint_of_other_channels_is_a_mismatch():
    """Also one of as many channels as there are rows in all."""
    for channels in (6, 9):
        with pytest.raises(RuntimeError, match='size mismatch for weight'):
            SSBN(3, SCALES).load_state_dict(
                nn.BatchNorm2d(channels).state_dict())


def test_checkpoint_with_other_scales_loads_by_rank_without_extents():
    source, _ = paired()
    with use_scale(source, 8):
        source(torch.randn(2, 3, 4, 4))
    target = SSBN(3, (800, 640, 480))
    target.load_state_dict(source.state_dict())
    assert_close(target.weight, source.weight)
    assert target.extents == {}


def test_sync_over_processes_on_a_cpu_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda group: 2)
    layer, x = SyncSSBN(3, SCALES), torch.randn(4, 3, 5, 5)
    with pytest.raises(RuntimeError, match='2 processes on a GPU only'):
        layer(x)
    assert_close(layer.eval()(x), SSBN(3, SCALES).eval()(x))


def test_sync_is_ssbn_in_one_process():
    sync, layer = SyncSSBN(3, SCALES), SSBN(3, SCALES)
    x = torch.randn(4, 3, 5, 5)
    assert_close(sync(x), layer(x), rtol=0, atol=0)
    set_scale(sync, 8)
    assert sync.pinned_size == 8
