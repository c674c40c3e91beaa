"""Private changes of weights: against networks whose weights are composed by
hand, and to the bit at the base."""
import copy
import pickle

import pytest
import torch
from helpers import randomised
from mmengine.registry import MODELS
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrize import register_parametrization
from torch.testing import assert_close

from sct_mm import (
    WithSSBN,
    add_scale,
    calibrate,
    convert_to_ssbn,
    extract_scale,
    set_scale,
    use_scale,
)
from sct_mm.datasets.base_size import BaseSize
from sct_mm.export.any_size import AnySize
from sct_mm.models.size_selection import scale_specific
from sct_mm.models.weight_change import (
    ChangedLayer,
    changed_layers,
    noting_unread,
    shapes_of_change,
)
from sct_mm.models.weight_change import unit_of as unit_of_weight

SCALES = (16, 12, 8)
SIZES = (20, 16, 14, 12, 9, 8, 6)


class Centred(nn.Conv2d):
    """A convolution that standardises its weight, as ConvWS does."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias, self.stride,
                                    self.padding, self.dilation, self.groups)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(),
        nn.Conv2d(20, 20, 3, stride=2, padding=1, groups=20, bias=False),
        nn.Conv2d(20, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=2),
        nn.BatchNorm2d(24), Centred(24, 24, 3, padding='same'),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 20),
        nn.BatchNorm1d(20), nn.Linear(20, 4)).eval()


def changed(rank=2):
    """A network whose changes and normalization parameters are random."""
    net = randomised(convert_to_ssbn(network(), SCALES, rank))
    for layer in changed_layers(net):
        for parameter in layer.changes:
            nn.init.normal_(parameter, std=0.3)
    net.train()
    for scale in SCALES:
        with use_scale(net, scale), torch.no_grad():
            net(torch.randn(4, 3, scale, scale))
    return net.eval()


def unit_of(layer):
    return torch.stack([channel.norm() / channel.numel()**0.5
                        for channel in layer.weight.detach()])[:, None]


def by_hand(net, size):
    """The extracted network, whose weights are composed from products of
    single scales."""
    size = min(max(size, SCALES[-1]), SCALES[0])
    plain = network()
    state = extract_scale(net, size).state_dict()
    for name, layer in net.named_modules():
        if not isinstance(layer, ChangedLayer):
            continue
        total = layer.weight.detach().clone()
        for index, scale in enumerate(SCALES[1:]):
            share = max(0, 1 - abs(size - scale) / 4)
            change = layer.changes[0][index]
            if len(layer.changes) > 1:
                change = change @ layer.changes[1] / layer.rank**0.5
            change = change * unit_of(layer)
            total += share * change.detach().reshape(total.shape)
        state[f'{name}.weight'] = total
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.filterwarnings('ignore:.*outside of the scales')
def test_the_weights_of_a_size_are_composed(size):
    net, x = changed(), torch.randn(2, 3, size, size)
    want = by_hand(net, size)(x)
    with torch.no_grad():
        assert_close(net(x), want, rtol=1e-4, atol=1e-5)
        got = net(x)
        for freeze in (False, True):
            with use_scale(net, size, freeze=freeze):
                assert_close(net(x), got, rtol=0, atol=0)
        plain = extract_scale(net, size)
        assert_close(plain(x), got, rtol=0, atol=0)
    assert [type(m) for m in plain] == [type(m) for m in network()]
    assert plain.state_dict().keys() == network().state_dict().keys()


def test_gradients_are_those_of_the_composed_weight():
    net = changed().train()
    twin = by_hand(net, 12).train()
    x = torch.randn(4, 3, 12, 12)
    with use_scale(net, 12):
        net(x).square().sum().backward()
    twin(x).square().sum().backward()
    for name, layer in net.named_modules():
        if not isinstance(layer, ChangedLayer):
            continue
        grad = twin.get_submodule(name).weight.grad.flatten(1)
        grad = grad * unit_of(layer)
        rows, *shared = layer.changes
        if shared:
            grad = grad / layer.rank**0.5
            assert_close(rows.grad[0], grad @ shared[0].T, rtol=1e-3,
                         atol=1e-4)
            assert_close(shared[0].grad, rows[0].T @ grad, rtol=1e-3,
                         atol=1e-4)
        else:
            assert_close(rows.grad[0], grad, rtol=1e-3, atol=1e-4)
        assert not rows.grad[1:].any()  # the other scale


def test_the_base_is_the_stock_network_to_the_bit_and_touches_all():
    stock, net = network().train(), convert_to_ssbn(network(), SCALES, 2)
    net.train()
    x = torch.randn(4, 3, 16, 16)
    for layer in changed_layers(net):
        layer.changes[0].data.normal_()
    with use_scale(net, 16):
        loss = net(x).square().sum()
    want = stock(x).square().sum()
    assert torch.equal(loss, want)
    loss.backward()
    want.backward()
    for name, parameter in net.named_parameters():
        if '.change_' in name:
            assert not parameter.grad.any()
        elif parameter.dim() > 1:
            assert torch.equal(parameter.grad,
                               stock.get_parameter(name).grad)
    plain = extract_scale(net, 16).state_dict()
    assert all(torch.equal(value, plain[name])
               for name, value in stock.state_dict().items())


def test_changes_start_at_zero_and_count_as_documented():
    net = convert_to_ssbn(network(), SCALES, rank=2)
    assert net[0].change_in.shape == (2, 27)
    assert net[0].change_out.shape == (2, 20, 2)
    assert net[3].change_whole.shape == (2, 20, 9)
    assert net[5].change_in.shape == (2, 12 * 9)  # of a group's inputs
    x = torch.randn(2, 3, 12, 12)
    with use_scale(net, 12):
        assert torch.equal(net(x), network()(x))
    for layer in changed_layers(net):
        assert layer.changes[0].any() == False  # noqa: E712
    assert shapes_of_change((8, 4, 3, 3), 4, 3) == dict(
        change_whole=(2, 8, 36))
    assert shapes_of_change((256, 256, 3, 3), 4, 3) == dict(
        change_in=(4, 2304), change_out=(2, 256, 4))


def test_a_scale_is_added_without_a_change_of_any_size():
    net = changed()
    images = [torch.randn(2, 3, s, s) for s in SIZES[1:-1]]
    before = [net(x) for x in images]
    for size in (14, 10, 20):
        add_scale(net, size)
    assert net[0].scales == (20, 16, 14, 12, 10, 8)
    for want, x in zip(before, images, strict=True):
        with use_scale(net, x.shape[-1]):
            assert_close(net(x), want, rtol=1e-4, atol=1e-5)


def test_calibration_records_what_convolutions_see():
    net = convert_to_ssbn(network(), SCALES, 2)
    for layer in changed_layers(net):
        layer.changes[0].data.normal_()
    for size in SCALES:
        calibrate(net, [torch.randn(4, 3, size, size)] * 2, size)
    assert all(set(layer.extents) == set(SCALES)
               for layer in changed_layers(net))
    x = torch.randn(2, 3, 12, 12)
    with use_scale(net, 12):
        want = net(x)
    assert torch.equal(net(x), want)  # by its extent


def test_copies_pickles_and_checkpoints():
    net, x = changed(), torch.randn(2, 3, 12, 12)
    fresh = convert_to_ssbn(network(), SCALES, 2)
    fresh.load_state_dict(net.state_dict())
    with use_scale(net, 12, freeze=True), torch.no_grad():
        copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fresh]
    for each in copies:
        for layer in changed_layers(net):
            layer.changes[0].data.add_(0)
        assert torch.equal(each(x), net(x))
        assert each[0].pin.frozen is None
    # Where a host keeps the weights alone, the base serves all sizes.
    weights = {name: value for name, value in net.state_dict().items()
               if not name.endswith('_extra_state')}
    alone = convert_to_ssbn(network(), SCALES, 2)
    alone.load_state_dict(weights)
    for size, own in ((12, x), (16, torch.randn(2, 3, 16, 16))):
        with use_scale(net, size), use_scale(alone, size):
            assert torch.equal(alone(own), net(own))
    with pytest.warns(UserWarning, match='12 pixels by the rows of its base '
                      r'scale 16: it has no record'), use_scale(net, 16):
        assert torch.equal(alone(x), net(x))
    # A checkpoint of the plain network leaves no change.
    assert fresh.load_state_dict(network().state_dict()) is not None
    with use_scale(fresh, 8):
        assert torch.equal(fresh(x), network()(x))
    for other, match in ((convert_to_ssbn(network(), SCALES, 3), 'rank=3'),
                         (convert_to_ssbn(network(), (16, 8), 2),
                          'has 3 scales')):
        for layer in other.modules():  # the norms say the same
            if hasattr(layer, 'running_mean'):
                layer._load_from_state_dict = lambda *args: None
        with pytest.raises(ValueError, match=match):
            other.load_state_dict(net.state_dict())


def test_stays_the_same_layer_for_its_host():
    stock = network()
    stock[0].register_forward_hook(lambda m, args, y: y * 2)
    stock[4].weight.requires_grad = False
    kinds, layers = [type(m) for m in stock], list(stock)
    net = convert_to_ssbn(stock, SCALES, 2)
    assert net[0] is layers[0] and isinstance(net[7], Centred)
    assert type(net[7]).__name__ == 'Centred'
    assert not net[4].change_out.requires_grad
    assert 'rank=2' in repr(net[0])
    for size in SCALES:
        plain = extract_scale(net, size)
        assert [type(m) for m in plain] == kinds
    x = torch.randn(2, 3, 16, 16)
    with use_scale(net, 16):
        assert torch.equal(net(x), plain(x))
    MODELS.register_module('ChangedNet', force=True, module=network)
    built = WithSSBN(dict(type='ChangedNet'), SCALES, rank=2)
    assert len(changed_layers(built)) == 7
    MODELS.module_dict.pop('ChangedNet')


def test_leaves_what_it_cannot_change():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 1),
        nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 1))
    net[4].weight = net[3].weight
    register_parametrization(net[5], 'weight', nn.Identity())
    prune.random_unstructured(net[6], 'weight', 0.5)
    convert_to_ssbn(net, SCALES, 2)
    assert [isinstance(m, ChangedLayer) for m in net] == [True] + [False] * 6
    attention = nn.Sequential(nn.MultiheadAttention(4, 2), nn.BatchNorm1d(4),
                              nn.Linear(4, 4))
    convert_to_ssbn(attention, SCALES, 2)
    assert changed_layers(attention) == [attention[2]]


@pytest.mark.parametrize('make, kept', [
    # In inference torch reads the weights of its encoder, and calls no layer.
    (lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8),
                           nn.Linear(4, 4)), 1),
    (lambda: attention('BEiTAttention')(4, 2, (2, 2), False), 1),
    (lambda: attention('WindowMSAV2')(4, (2, 2), 2), 3)])
def test_leaves_a_layer_whose_weight_its_module_reads(make, kept):
    part = make()
    convert_to_ssbn(nn.Sequential(part, nn.BatchNorm1d(4)), SCALES, 2)
    assert len(changed_layers(part)) == kept
    assert not {'linear1', 'qkv'} & {
        name for name, layer in part.named_modules()
        if isinstance(layer, ChangedLayer)}


@pytest.mark.parametrize('name, arguments', [
    ('BEiTAttention', (4, 2, (2, 2), False)),
    ('WindowMSAV2', (4, (2, 2), 2))])
def test_finds_the_layers_of_a_host_without_a_table(name, arguments,
                                                    monkeypatch):
    part = attention(name)(*arguments).eval()
    monkeypatch.setattr('sct_mm.models.weight_change._READERS', {})
    convert_to_ssbn(nn.Sequential(part, nn.BatchNorm1d(4)), SCALES, 2)
    assert isinstance(part.qkv, ChangedLayer)
    with noting_unread(part) as unread, use_scale(part, 8, record=True):
        part(torch.randn(2, 4, 4))
    assert unread == ['qkv']


def attention(name):
    return getattr(pytest.importorskip(
        'mmpretrain.models.utils.attention'), name)


class Reads(nn.Module):
    """Reads the weights of some layers, as attentions of timm do."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(4, 4), nn.Linear(4, 4)
        self.listed = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.auxiliary = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x):
        x = self.proj(nn.functional.linear(x, self.qkv.weight))
        return self.listed[1](x @ self.listed[0].weight)


def test_finds_layers_whose_weight_their_module_reads():
    def made(**options):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), Reads())
        return convert_to_ssbn(net, SCALES, 2, **options)

    net, images = made(), [torch.randn(8, 4)] * 2
    with noting_unread(net) as unread:
        calibrate(net, images, 12)
    assert unread == ['2.qkv', '2.listed.0']  # not what never ran
    assert not any(m._forward_pre_hooks for m in net.modules())
    other = made(unchanged=unread)
    names = {name for name, layer in other.named_modules()
             if isinstance(layer, ChangedLayer)}
    assert names == {'0', '2.proj', '2.listed.1', '2.auxiliary.0'}
    for name in unread:
        net.get_submodule(name).stop_changes()
    assert net.state_dict().keys() == other.state_dict().keys()
    assert type(net[2].qkv) is nn.Linear
    assert vars(net[2].qkv).keys() == vars(nn.Linear(4, 4)).keys()
    with noting_unread(other) as unread:
        calibrate(other, images, 12)
    assert not unread
    with pytest.raises(ValueError, match="`unchanged` .* has no '2.no'"):
        made(unchanged=['2.no'])


def test_a_replica_and_a_shard_of_a_layer_compute_the_same():
    """Their tensors are no parameters: of DataParallel, FSDP."""
    net = changed()
    for layer in changed_layers(net):
        replica = layer._replicate_for_data_parallel()
        for name, value in layer._parameters.items():
            setattr(replica, name, None if value is None else value.clone())
        assert_close(replica.weight_at(12), layer.weight_at(12))


def test_refuses_what_is_no_rank():
    net = network()
    for rank, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match='`rank`'):
            convert_to_ssbn(net, SCALES, rank)
    with pytest.raises(ValueError, match='needs a scale below the base'):
        convert_to_ssbn(net, (16, ), 2)
    with pytest.raises(ValueError, match="has no 'head'"):
        convert_to_ssbn(net, SCALES, 2, ['head'])
    assert not scale_specific(net)  # an error leaves it as it was
    net[10] = nn.LazyLinear(20)
    with pytest.raises(TypeError, match='LazyLinear.* Run one batch'):
        convert_to_ssbn(net, SCALES, 2)
    assert not scale_specific(net)
    with pytest.raises(ValueError, match='has none'):
        convert_to_ssbn(nn.Sequential(nn.BatchNorm2d(3)), SCALES, 2)
    with pytest.raises(ValueError, match='that the model has, 2, but got 3'):
        convert_to_ssbn(convert_to_ssbn(network(), SCALES, 2), SCALES, 3)


# torch's compiler makes an object of an autograd.Function.
@pytest.mark.filterwarnings('ignore:.*should not be inst:DeprecationWarning')
def test_compiled_in_one_graph():
    net = convert_to_ssbn(nn.Sequential(
        nn.Conv2d(3, 20, 3, bias=False), nn.BatchNorm2d(20),
        nn.Conv2d(20, 20, 3, groups=20)), SCALES, 2)
    for layer in changed_layers(net):
        for parameter in layer.changes:
            nn.init.normal_(parameter)
    torch.compiler.reset()
    compiled = torch.compile(net, backend='eager', fullgraph=True)
    for size in (16, 12):
        x, grads = torch.randn(4, 3, size, size), []
        start = copy.deepcopy(net.state_dict())
        for call in (net, compiled):
            net.load_state_dict(start)
            net.zero_grad()
            with use_scale(net, size):
                call(x).square().sum().backward()
            grads.append({name: p.grad for name, p in net.named_parameters()})
        assert_close(grads[1], grads[0])
    assert [layer.extents.leads for layer in scale_specific(net)] == [
        True, False, False]


def test_channels_last():
    net, x = changed(), torch.randn(2, 3, 12, 12)
    want = net(x)
    net.to(memory_format=torch.channels_last)
    got = net(x.to(memory_format=torch.channels_last))
    assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('change', [
    lambda layer: prune.random_unstructured(layer, 'weight', 0.5),
    lambda layer: register_parametrization(layer, 'weight', nn.Identity())])
@pytest.mark.parametrize('merge', [
    lambda net: extract_scale(net, 12),
    lambda net: AnySize(net, BaseSize(16, 16, SCALES))])
def test_a_weight_that_is_not_the_layers_own_is_not_merged(change, merge):
    net = changed()
    change(net[7])
    with pytest.raises(TypeError, match='has a .*Centred, whose parameters '
                       'are not its own. .* pruning, first'):
        merge(net)


def test_refuses_to_be_exported():
    net = changed()
    set_scale(net, 12)
    with pytest.raises(RuntimeError, match='extract_scale'):
        torch.export.export(net, (torch.randn(2, 3, 12, 12), ))


def test_initialisation_of_the_plain_layer_reaches_it():
    from mmengine.model import initialize
    net = convert_to_ssbn(network(), SCALES, 2)
    initialize(net, dict(type='Constant', val=0.5, layer='Conv2d'))
    assert (net[0].weight == 0.5).all() and (net[7].weight == 0.5).all()
    assert not net[0].change_out.any()
    assert 0.5 < net[0].change_in.std() < 1.5


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_composes_in_it(dtype):
    net = changed()
    x = torch.randn(2, 3, 12, 12)
    want = net(x)
    with torch.autocast('cpu', dtype=torch.bfloat16), torch.no_grad():
        got = net(x)
    assert got.dtype == torch.bfloat16 and got.isfinite().all()
    weight = net[0].weight_at(12)
    net[0].weight.data.mul_(1e-4)  # whose squares are 0 in float16
    with torch.no_grad():
        change = net[0].weight_at(12) - net[0].weight
    assert want.dtype == torch.float32
    half = net.to(dtype)
    assert half[0].weight_at(12).dtype == dtype
    assert unit_of_weight(half[0].weight).dtype == torch.float32
    assert (unit_of_weight(half[0].weight) > 0).all()
    assert change.abs().max() < 1e-3 * weight.abs().max()
