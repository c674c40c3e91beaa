"""Odd arguments of the layers and of the functions beside them."""
import copy

import pytest
import torch
from conftest import SCALES, TinyModel
from helpers import ssbn_model
from hypothesis import assume, given
from hypothesis import strategies as st
from odd import (
    LAYOUTS,
    NAN,
    ODD,
    assert_unpinned,
    attempt,
    cases,
    counts,  # noqa: F401
    options,
    tensor,
)
from torch import nn

from sct_mm import (
    SSBN,
    SSBN1d,
    SSBN3d,
    SyncSSBN,
    WithSSBN,
    convert_to_ssbn,
    extract_scale,
    set_scale,
    use_scale,
)

pytestmark = pytest.mark.filterwarnings(
    'ignore:.*rows of its base scale', 'ignore:.*outside of the scales')
SHAPES = st.one_of(
    st.tuples(st.integers(0, 3), st.sampled_from([4, 4, 4, 3]),
              st.integers(0, 5), st.integers(1, 6)),
    st.lists(st.integers(1, 4), min_size=1, max_size=6).map(tuple))
DTYPES = st.sampled_from([torch.float32] * 4 + [
    torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8,
    torch.bool, torch.complex64])
PLAIN = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm1d,
         4: nn.BatchNorm2d, 5: nn.BatchNorm3d, 6: nn.BatchNorm3d}


@given(kind=st.sampled_from([SSBN, SSBN, SSBN1d, SSBN3d, SyncSSBN]),
       options=options(num_features=[4], scales=[(16, 8), [8]],
                       eps=[0, 1e-3], momentum=[None, 0, 1, 0.5],
                       affine=[True, False], dtype=[None, torch.float64],
                       track_running_stats=[True, False]),
       shape=SHAPES, dtype=DTYPES, layout=LAYOUTS, training=st.booleans(),
       index=st.integers(0, 3))
@cases(150, 2500)
def test_a_layer_is_batch_norm_or_refuses(kind, options, shape, dtype, layout,
                                          training, index):
    options = {'num_features': 4, **options}
    plain = {k: v for k, v in options.items() if k != 'scales'}
    plain_type = PLAIN[len(shape)]
    layer = attempt(lambda: kind(**options), host=lambda: plain_type(**plain))
    if layer is None:
        return
    reference, x = plain_type(**plain), tensor(shape, dtype, layout)
    scale = layer.scales[index % len(layer.scales)]
    copied = copy.deepcopy(layer)

    def run(norm):
        own = x.clone().requires_grad_(x.is_floating_point())
        out = norm.train(training)(own)
        out.sum().mul(2).backward()
        return out, own.grad

    def pinned():
        with use_scale(layer, scale):
            return run(layer)

    result = attempt(pinned, host=lambda: run(reference))
    assert_unpinned(layer)
    for other in set(layer.scales) - {scale}:
        for name, value in layer.row(other).items():
            assert value is None or torch.equal(value, copied.row(other)[name])
    if result is None:
        return
    expected = run(reference)
    torch.testing.assert_close(result, expected, rtol=0, atol=0,
                               equal_nan=True)
    for name, value in layer.row(scale).items():
        torch.testing.assert_close(value, getattr(reference, name), rtol=0,
                                   atol=0, equal_nan=True)
    if layer.affine:
        torch.testing.assert_close(
            layer.weight.grad.unflatten(0, (len(layer.scales), -1))[
                layer.scales.index(scale)], reference.weight.grad,
            rtol=0, atol=0, equal_nan=True)


STATES = st.one_of(ODD, st.lists(st.lists(
    st.sampled_from([16, 12, 8, 0, -1, 3, 2**40, NAN]), min_size=3,
    max_size=3), min_size=1, max_size=4).map(torch.tensor))


@given(state=STATES, size=st.integers(1, 20))
@cases(50, 700)
def test_a_record_is_read_or_refused(state, size):
    model = ssbn_model()
    tensors = {**model.state_dict(), 'net.1._extra_state': state}
    attempt(lambda: model.load_state_dict(tensors), model)
    with torch.no_grad():
        model.eval()(torch.randn(2, 3, size, size))
    for low, high in model.net[1].extents.values():
        assert 0 < low <= high
    copy.deepcopy(model).load_state_dict(model.state_dict())


@given(scale=ODD | st.sampled_from(SCALES), record=ODD | st.booleans(),
       edge=ODD | st.just(16), size=st.integers(1, 20), with_=st.booleans(),
       model=st.sampled_from([ssbn_model] * 6 + [nn.ReLU, lambda: 'model']))
@cases(80, 1200)
def test_a_pin_holds_or_is_refused(scale, record, edge, size, with_, model):
    model = model()
    known = model if isinstance(model, TinyModel) else nn.Module()

    def pinned():
        with use_scale(model, scale, record, edge):
            # Outside of the scales the row of the end serves.
            assert all(m.pinned_size == (scale if scale is None else min(
                max(scale, min(m.scales)), max(m.scales)))
                       for m in known.modules() if isinstance(m, SSBN))
            known.train()
            return known(torch.randn(3, 3, size, size)) if list(
                known.children()) else True

    attempt(pinned, known)
    assert_unpinned(known)
    if not with_:
        attempt(lambda: set_scale(model, scale, record, edge) or True, known)


def plain_net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.BatchNorm2d(4, affine=False))


@given(scales=ODD | st.sampled_from([(16, 8), [8], (8, 12, 16)]),
       extracted=ODD | st.sampled_from([16, 8]), odd_model=ODD,
       model=st.sampled_from(['net', 'net', 'norm', 'odd']),
       with_ssbn=st.booleans())
@cases(80, 1200)
def test_conversion_keeps_the_function_or_refuses(scales, extracted,
                                                  odd_model, model,
                                                  with_ssbn):
    model = dict(net=plain_net(), norm=nn.BatchNorm2d(3),
                 odd=odd_model)[model]
    assume(not isinstance(model, dict) or 'type' not in model)
    plain = copy.deepcopy(model) if isinstance(model, nn.Module) else None
    net = attempt(lambda: (WithSSBN if with_ssbn else convert_to_ssbn)(
        model, scales), plain and model)
    x = torch.randn(4, 3, 9, 9)
    if net is None:
        attempt(lambda: extract_scale(model, extracted) or True,
                plain and model)
        return
    torch.testing.assert_close(net.eval()(x), plain.eval()(x), rtol=0, atol=0)
    back = attempt(lambda: extract_scale(net, extracted), net)
    if back is not None:
        torch.testing.assert_close(back(x), plain(x), rtol=0, atol=0)
        assert back.state_dict().keys() == plain.state_dict().keys()
