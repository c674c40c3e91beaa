"""A layer between two scales: the mix of their rows, in every form."""
import copy

import numpy as np
import pytest
import torch
from conftest import SCALES
from helpers import apart
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize, prune
from torch.testing import assert_close

from sct_mm import (
    SSBN,
    SSBN1d,
    SSBN3d,
    SyncSSBN,
    convert_to_ssbn,
    set_scale,
    use_scale,
)
from sct_mm.models.row_mix import rows_serving

FORMS = {SSBN: (4, 3, 9, 9), SSBN1d: (4, 3, 9), SSBN3d: (4, 3, 9, 9, 9),
         SyncSSBN: (4, 3, 9, 9)}


def foreign(plain=None):
    class Shifted(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) + 1

    return apart(convert_to_ssbn((plain or Shifted)(3), SCALES))


def numbers(layer, size):
    """BN's tensors at ``size``, mixed by numpy."""
    scales = sorted(layer.scales)
    rows = [layer.row(scale) for scale in scales]
    return {name: torch.from_numpy(np.stack([
        np.interp(size, scales, [row[name][c].item() for row in rows])
        for c in range(layer.num_features)])).to(layer.weight.dtype)
        for name in ('weight', 'bias', 'running_mean', 'running_var')}


def reference(layer, size, plain=nn.BatchNorm2d):
    bn = plain(layer.num_features, dtype=layer.weight.dtype)
    bn.load_state_dict(numbers(layer, size), strict=False)
    return bn.train(layer.training)


def test_the_rows_that_serve_a_size():
    assert rows_serving((16, 12, 8), 12) == ((12, 1), )
    assert rows_serving((16, 12, 8), 11) == ((12, 0.75), (8, 0.25))
    assert rows_serving((16, 12, 8), 15.5) == ((16, 0.875), (12, 0.125))
    assert rows_serving((16, 12, 8), 40) == ((16, 1), )
    assert rows_serving((16, 12, 8), 3) == ((8, 1), )
    assert rows_serving((16, ), 20) == ((16, 1), )


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('training', [True, False])
def test_a_size_between_is_bn_with_the_mix(double_precision, form, training):
    layer = apart(form(3, SCALES)).train(training)
    bn = reference(layer, 11, form.plain_type)
    ours = torch.randn(FORMS[form], requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    with use_scale(layer, 11):
        y = layer(ours)
    want = bn(theirs)
    assert_close(y, want)
    probe = torch.randn_like(y)
    (y * probe).sum().backward()
    (want * probe).sum().backward()
    assert_close(ours.grad, theirs.grad)
    for name in ('weight', 'bias'):
        base, larger, smaller = getattr(layer, name).grad.chunk(3)
        assert not base.any()
        assert_close(larger, getattr(bn, name).grad * 0.75)
        assert_close(smaller, getattr(bn, name).grad * 0.25)


def test_the_statistics_go_to_both_rows_by_their_shares():
    layer = apart(SSBN(3, SCALES))
    rows = [{'running_mean': layer.row(scale)['running_mean'].clone()}
            for scale in (16, 12, 8)]
    bn = reference(layer, 11)
    before = copy.deepcopy(bn)
    x = torch.randn(4, 3, 9, 9) * 2 + 1
    with use_scale(layer, 11):
        layer(x)
    bn(x)
    change = bn.running_mean - before.running_mean
    assert torch.equal(layer.row(16)['running_mean'], rows[0]['running_mean'])
    for scale, old, share in ((12, rows[1], 0.75), (8, rows[2], 0.25)):
        assert_close(layer.row(scale)['running_mean'],
                     old['running_mean'] + share * change)
    assert layer.num_batches_tracked.tolist() == [0, 1, 1]


def test_what_the_mix_sees_for_long_is_what_it_has():
    """Both ends stay where a trend that is linear in the size puts them.

    Of a mean within the noise: 1024 numbers a channel and step, of which a
    momentum of 0.1 keeps some 20 steps: size / (1024 * 20)**0.5, 0.7 %. At 12
    the mean of the variances 16**2 and 8**2 is the square of 12.6, not of 12,
    which moves both ends by some 5 %.
    """
    layer = SSBN(3, (16, 8))
    for step in range(400):
        size = (16, 8, 12, 10, 14)[step % 5]
        with use_scale(layer, size):
            layer(torch.randn(64, 3, 4, 4) * size + size)
    for size in (16, 14, 12, 10, 8):
        row = layer.plain(size)
        assert_close(row.running_mean, torch.full((3, ), float(size)),
                     rtol=0.1, atol=0)
        assert_close(row.running_var.sqrt(), torch.full((3, ), float(size)),
                     rtol=0.1, atol=0)


def test_variances_stay_positive():
    layer = SSBN(1, (16, 8), momentum=0.9)
    layer.running_var.copy_(torch.tensor([[1e-3], [100.]]))
    with use_scale(layer, 12):
        for _ in range(5):
            layer(torch.randn(8, 1, 4, 4) * 1e-3)
    assert (layer.running_var > 0).all()
    assert layer.running_var.isfinite().all()


def test_a_variance_of_zero_grows_again():
    layer = SSBN(1, (16, 8))
    layer.running_var.zero_()
    with use_scale(layer, 12):
        layer(torch.zeros(4, 1, 2, 2))
        assert not layer.running_var.any()
        layer(torch.randn(4, 1, 2, 2))
    assert (layer.running_var > 0).all()


def test_cumulative_averages_count_both():
    layer = SSBN(2, (16, 8), momentum=None)
    for _ in range(3):
        with use_scale(layer, 12):
            layer(torch.randn(8, 2, 4, 4) + 3)
    mean = layer.running_mean
    assert torch.equal(mean[0], mean[1]) and (mean > 0).all()
    assert layer.num_batches_tracked.tolist() == [3, 3]


@pytest.mark.parametrize('training', [True, False])
def test_norms_of_ones_own_between(training):
    layer = foreign().train(training)
    bn = reference(layer, 11)
    x = torch.randn(4, 3, 9, 9)
    with use_scale(layer, 11):
        assert_close(layer(x), bn(x) + 1)
    assert layer.num_batches_tracked.tolist() == [0, training, training]


def test_norms_that_rebind_their_statistics():
    class Rebinds(nn.BatchNorm2d):
        def forward(self, x):
            self.running_mean = self.running_mean + 1
            return super().forward(x)

    layer = foreign(Rebinds).eval()
    old = layer.running_mean.clone()
    for size in (12, 10):
        with use_scale(layer, size):
            layer(torch.randn(4, 3, 9, 9))
    assert_close(layer.running_mean[0], old[0])
    assert_close(layer.running_mean[1], old[1] + 1)


def test_half_precision_under_autocast():
    layer = apart(SSBN(3, SCALES)).eval()
    x = torch.randn(4, 3, 9, 9)
    with torch.autocast('cpu', torch.bfloat16), use_scale(layer, 10):
        got = layer(x.bfloat16())
        want = reference(layer, 10)(x.bfloat16())
    assert got.dtype == want.dtype
    assert_close(got, want)


def fresh(layer, name):
    """Twice: the second tensor gets the memory of the one before."""
    tensor = getattr(layer, name)
    for _ in range(2):
        tensor.data = torch.empty_like(tensor).uniform_(0.5, 1.5)


def another(layer):
    return apart(SSBN(layer.num_features, SCALES))


def swapped_with_an_average(layer):
    """As mmengine's EMAHook does before and after an evaluation."""
    average = another(layer)
    for own, other in zip(layer.state_dict(keep_vars=True).values(),
                          average.state_dict(keep_vars=True).values(),
                          strict=True):
        own.data, other.data = other.data, own.data


def averaged(layer):
    """As EMA does while its source trains: autograd does not see it."""
    source = SSBN(3, SCALES)
    with torch.enable_grad(), use_scale(source, 8):
        source(torch.randn(2, 3, 8, 8))
    layer.weight.data.mul_(2)


def loaded(layer, **options):
    state = another(layer).state_dict()
    del state['_extra_state']
    layer.load_state_dict(state, strict=False, **options)


def loaded_by_swapping(layer):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        loaded(layer)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def pruned(layer):
    prune.identity(layer, 'weight')
    return layer.weight_orig.data


def parametrized(layer):
    parametrize.register_parametrization(layer, 'weight', nn.Identity())
    return layer.parametrizations.weight.original.data


CHANGES = dict(
    weight=lambda layer: fresh(layer, 'weight'),
    bias=lambda layer: fresh(layer, 'bias'),
    mean=lambda layer: fresh(layer, 'running_mean'),
    variance=lambda layer: fresh(layer, 'running_var'),
    copied=lambda layer: layer.weight.data.copy_(layer.weight + 1),
    row=lambda layer: [t.mul_(2) for t in layer.running_var],
    moved=lambda layer: layer.double().float().weight.mul_(2),
    loaded=loaded, assigned=lambda layer: loaded(layer, assign=True),
    loaded_by_swapping=loaded_by_swapping, averaged=averaged,
    swapped=swapped_with_an_average)


def seen():
    """A layer in evaluation mode that knows the extent of each scale."""
    layer = apart(SSBN(256, SCALES)).eval()
    for scale in SCALES:
        with use_scale(layer, scale, record=True):
            layer(torch.randn(2, 256, scale, scale))
    return layer


@pytest.mark.parametrize('size', [12, 10])
@pytest.mark.parametrize('pinned', [True, False])
@pytest.mark.parametrize('change', CHANGES)
def test_a_changed_tensor_serves_at_once(change, pinned, size):
    layer = seen()
    x = torch.randn(2, 256, size, size)
    with torch.no_grad(), use_scale(layer, size if pinned else None):
        before = layer(x)
        for _ in range(5):
            CHANGES[change](layer)
            got = layer(x)
            assert_close(got, reference(layer, size)(x))
            assert not torch.allclose(got, before)
            before = got


@pytest.mark.parametrize('size', [12, 10])
@pytest.mark.parametrize('pinned', [True, False])
@pytest.mark.parametrize('kind', [pruned, parametrized])
def test_a_weight_that_is_made_in_each_pass(kind, pinned, size):
    layer = seen()
    x = torch.randn(2, 256, size, size)
    with torch.no_grad(), use_scale(layer, size if pinned else None):
        want = layer(x)
        own = kind(layer)
        assert_close(layer(x), want)
        own.zero_()
        assert not torch.allclose(layer(x), want)
        assert_close(layer(x), reference(layer, size)(x))


@pytest.mark.filterwarnings('ignore')  # of a trace
@pytest.mark.parametrize('pinned', [True, False])
def test_views_of_one_pass_serve_no_record_of_another(pinned):
    layer, x = apart(SSBN(3, SCALES)).eval(), torch.randn(2, 3, 12, 12)
    with torch.no_grad(), use_scale(layer, 12, record=True):
        with FakeTensorMode(allow_non_fake_inputs=True):
            layer(x)
        assert_close(layer(x), reference(layer, 12)(x))
    with torch.no_grad(), use_scale(layer, 12 if pinned else None):
        layer(x)
        traced = torch.jit.trace(layer, x)
        fresh(layer, 'weight')
        assert_close(traced(x), reference(layer, 12)(x))


@pytest.mark.parametrize('size', [12, 10])
def test_frozen_it_is_the_same_until_the_block_ends(size):
    layer = apart(SSBN(3, SCALES)).eval()
    x = torch.randn(2, 3, size, size)
    with torch.no_grad(), use_scale(layer, size):
        want = layer(x)
        with use_scale(layer, size, freeze=True):
            assert torch.equal(layer(x), want)
            fresh(layer, 'weight')
            assert torch.equal(layer(x), want)
            assert copy.deepcopy(layer).pin.frozen is None
            with use_scale(layer, size):
                assert not torch.allclose(layer(x), want)
        assert_close(layer(x), reference(layer, size)(x))


def test_what_trains_is_not_frozen():
    layer = apart(SSBN(3, SCALES))
    x = torch.randn(2, 3, 10, 10)
    with use_scale(layer, 10, freeze=True):
        layer(x).sum().backward()
        assert layer.weight.grad is not None
        assert layer.num_batches_tracked.tolist() == [0, 1, 1]
        layer.eval()(x).pow(2).sum().backward()
    assert layer.weight.grad[3:].all()
    with pytest.raises(TypeError, match='`freeze` must be True or False'):
        use_scale(layer, 10, freeze=1).__enter__()
    assert layer.pin.size is None


def test_a_frozen_layer_passes_gradients_after_inference():
    layer = apart(SSBN(3, SCALES)).eval().requires_grad_(False)
    x = torch.randn(2, 3, 9, 9)
    with use_scale(layer, 10):
        with torch.inference_mode():
            layer(x)
        layer(x.requires_grad_()).sum().backward()
    assert x.grad is not None


def test_sizes_outside_are_served_by_the_end():
    layer = apart(SSBN(3, SCALES)).eval()
    x = torch.randn(2, 3, 9, 9)
    for size, end in ((100, 16), (3, 8)):
        with pytest.warns(UserWarning, match=f'^{size} pixels lie outside of '
                          rf'the scales \(16, 12, 8\): the rows of scale '
                          f'{end} serve them'):
            set_scale(layer, size)
        got = layer(x)
        with use_scale(layer, end):
            assert torch.equal(layer(x), got)


def test_a_mix_cannot_be_reset():
    layer = SSBN(3, SCALES)
    with use_scale(layer, 10):
        for method in (layer.reset_running_stats, layer.reset_parameters):
            with pytest.raises(RuntimeError, match='10 pixels are pinned. '
                               'Give it some by add_scale'):
                method()
