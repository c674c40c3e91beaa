"""To SSBN and back, for whatever a host's norm does and whoever asks."""
import copy
import pickle

import pytest
import torch
from conftest import TinyModel
from helpers import apart, plain_net, randomised
from mmengine.registry import MODELS
from mmengine.runner.activation_checkpointing import (
    turn_on_activation_checkpointing,
)
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrize import register_parametrization
from torch.optim.swa_utils import update_bn
from torch.testing import assert_close

from sct_mm import (
    SSBN,
    SyncSSBN,
    WithSSBN,
    add_scale,
    convert_to_ssbn,
    extract_scale,
    use_scale,
)
from sct_mm.models.size_selection import ssbn_layers

SCALES = (16, 12, 8)


def test_convert_keeps_the_function_and_extract_gives_it_back():
    net = plain_net()
    x = torch.randn(4, 3, 8, 8)
    net(x)
    want = copy.deepcopy(net).eval()(x)
    keys = list(net.state_dict())
    converted = convert_to_ssbn(net, SCALES)
    assert converted is net and isinstance(net[1], SSBN)
    assert [k for k in net.state_dict() if '_extra' not in k] == keys
    for scale in SCALES:
        with use_scale(net.eval(), scale):
            assert_close(net(x), want, rtol=0, atol=0)
    net[1].row(12)['bias'].data += 1
    net[1].bias.requires_grad = False
    plain = extract_scale(net, 12)
    assert type(plain[1]) is nn.BatchNorm2d
    assert type(plain[4]) is nn.BatchNorm1d
    assert not plain[1].bias.requires_grad
    with use_scale(net, 12):
        assert_close(plain(x), net(x), rtol=0, atol=0)
    plain_net().load_state_dict(plain.state_dict())
    plain[1].weight.data.zero_()  # independent of its source
    assert net[1].weight.abs().sum() > 0


def test_convert_is_idempotent_and_replaces_a_root_and_a_shared_layer():
    bn = nn.BatchNorm2d(3)
    net = convert_to_ssbn(nn.Sequential(bn, bn), SCALES)
    assert net[0] is net[1] and isinstance(net[0], SSBN)
    layer = net[0]
    assert convert_to_ssbn(net, SCALES)[0] is layer
    assert isinstance(convert_to_ssbn(nn.BatchNorm2d(3), SCALES), SSBN)


def test_ssbn_of_other_scales_is_refused():
    net = convert_to_ssbn(plain_net(), SCALES)
    with pytest.raises(ValueError, match=r'\(16, 12, 8\), but got \(224, 160'):
        WithSSBN(net, (160, 224))


def pruned():
    return prune.l1_unstructured(nn.BatchNorm2d(4), 'weight', 0.5)


@pytest.mark.parametrize('wrap', [
    lambda model: turn_on_activation_checkpointing(model, ['net', 'net.1']),
    lambda model: setattr(model, 'forward', torch.compile(
        model.forward, backend='eager'))])
def test_an_extracted_network_runs_itself(wrap):
    """Also where the host has wrapped the `forward` of a module."""
    model = TinyModel(lambda c: apart(SSBN(c, SCALES)))
    want = extract_scale(model, 12).eval()
    wrap(model)
    got = extract_scale(model, 12).eval()
    got.load_state_dict({name: torch.zeros_like(value) for name, value
                         in got.state_dict().items()})
    x = torch.randn(2, 3, 12, 12, requires_grad=True)
    assert not got(x).any() and want(x).any()
    got.load_state_dict(want.state_dict())
    assert_close(got(x), want(x), rtol=0, atol=0)


def test_what_a_pass_has_left_in_a_network():
    """As the head of mmdet's CondInst keeps its outputs."""
    net = convert_to_ssbn(plain_net(), SCALES)
    x = torch.randn(4, 3, 8, 8)
    with use_scale(net, 12):
        net.kept = dict(levels=[(net(x), 'a')])
    alone = extract_scale(net, 12)
    (kept, _), = alone.kept['levels']
    assert torch.equal(kept, net.kept['levels'][0][0]) and kept.is_leaf
    assert net.kept['levels'][0][0].requires_grad
    with use_scale(net.eval(), 12):
        assert_close(alone.eval()(x), net(x), rtol=0, atol=0)


def test_extract_errors():
    with pytest.raises(ValueError, match='Sequential has none'):
        extract_scale(plain_net(), 8)
    with pytest.raises(ValueError, match='`size` must be an int from 1'):
        extract_scale(convert_to_ssbn(plain_net(), SCALES), 0)


def test_sync_becomes_sync_and_back():
    net = convert_to_ssbn(plain_net(sync=True), SCALES)
    assert isinstance(net[1], SyncSSBN) and isinstance(net[1],
                                                       nn.BatchNorm2d)
    assert not isinstance(net[1], nn.SyncBatchNorm)
    assert type(extract_scale(net, 8)[1]) is nn.SyncBatchNorm
    assert type(pickle.loads(pickle.dumps(net))[1]) is type(net[1])


def test_a_sync_norm_of_a_config_is_extracted_for_volumes():
    """mmaction2's R(2+1)D has SyncBN behind convolutions of videos."""
    net = nn.Sequential(nn.Conv3d(3, 4, 3),
                        randomised(SyncSSBN(4, SCALES))).eval()
    x = torch.randn(2, 3, 4, 8, 8)
    alone = extract_scale(net, 8)
    assert type(alone[1]) is nn.SyncBatchNorm
    with use_scale(net, 8):
        assert torch.equal(alone(x), net(x))
    plain = nn.SyncBatchNorm(4)
    assert vars(alone[1]).keys() == vars(plain).keys()
    assert alone[1].process_group is None


class Doubled(nn.BatchNorm2d):
    """A norm that does more, in a forward of its own."""

    def __init__(self, *args):
        super().__init__(*args)
        self.factor = nn.Parameter(torch.tensor(2.))

    def forward(self, x):
        return super().forward(x) * self.factor


class Named(nn.BatchNorm2d):
    """A norm that only has another name."""


@pytest.mark.parametrize('norm', [Doubled, Named])
def test_a_norm_of_ones_own_goes_on_doing_what_it_does(norm):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4)).eval()
    seen = []
    handle = net[1].register_forward_hook(lambda *args: seen.append(1))
    x = torch.randn(2, 3, 16, 16)
    want = net(x)
    convert_to_ssbn(net, SCALES)
    assert isinstance(net[1], norm) and len(net[1].row(8)['weight']) == 4
    assert_close(net(x), want, rtol=0, atol=0)
    assert len(seen) == 2
    with use_scale(net.train(), 8):
        net(x).sum().backward()
    grad = net[1].weight.grad.view(3, 4)
    assert (grad[:2] == 0).all() and net[1].running_var[2].ne(1).all()
    assert net[1].num_batches_tracked.tolist() == [0, 0, 1]
    plain = extract_scale(randomised(net.eval()), 8)
    assert type(plain[1]) is norm
    with use_scale(net, 8):
        assert_close(plain(x), net(x), rtol=0, atol=0)
    handle.remove()  # it cannot be pickled
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(other[1]) is type(net[1]) and other(x).equal(net(x))


@torch.no_grad()  # LeViT keeps what it computed, which no copy may hold
@pytest.mark.parametrize('name', [
    'resnet18', 'mobilenetv3_small_100', 'efficientnet_b0', 'densenet121',
    'regnetx_002', 'levit_128s'])
def test_timms_networks(name):
    import timm
    net = timm.create_model(name, num_classes=4).eval()
    size = 224 if 'levit' in name else 64
    x = torch.randn(1, 3, size, size)
    want, keys = net(x), list(net.state_dict())
    kinds = [type(m) for m in net.modules()]
    net = randomised(convert_to_ssbn(net, (size, 32)))
    assert ssbn_layers(net)
    assert_close(net(x), want)
    plain = extract_scale(net, 32).eval()
    assert [type(m) for m in plain.modules()] == kinds
    assert list(plain.state_dict()) == keys
    with use_scale(net, 32):
        assert_close(plain(x), net(x))
    assert not torch.allclose(plain(x), want)


def test_what_was_frozen_stays_frozen():
    net = plain_net()
    net[1].eval().requires_grad_(False)
    net[1].eps, net[1].momentum = 1e-3, 0.01
    layer = convert_to_ssbn(net, SCALES)[1]
    assert not layer.training and not layer.weight.requires_grad
    assert (layer.eps, layer.momentum) == (1e-3, 0.01)
    plain = extract_scale(net, 8)[1]
    assert not plain.training and not plain.weight.requires_grad
    assert (plain.eps, plain.momentum) == (1e-3, 0.01)


def test_a_norm_under_a_second_name_is_replaced_there_too():
    net = plain_net()
    net.norms = [net[1], net[4]]
    net.__dict__['first'] = net[1]
    convert_to_ssbn(net, SCALES)
    assert net.norms[0] is net[1] is net.__dict__['first']
    plain = extract_scale(net, 8)
    assert plain.norms[1] is plain[4] and net.norms[0] is net[1]


def test_frozen_norms_of_torchvision_are_named():
    from torchvision.ops import FrozenBatchNorm2d
    frozen = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4))
    with pytest.raises(ValueError, match='Sequential has 1 FrozenBatchNorm2d'):
        convert_to_ssbn(frozen, SCALES)
    with pytest.warns(UserWarning, match='keeps 1 FrozenBatchNorm2d'):
        convert_to_ssbn(nn.Sequential(frozen, nn.BatchNorm2d(4)), SCALES)


class SyncAndMore(nn.SyncBatchNorm):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize('model, error, match', [
    (nn.Linear(2, 2), ValueError, 'Linear has none'),
    (nn.Sequential(nn.LazyBatchNorm2d()), TypeError, 'LazyBatchNorm2d'),
    (nn.Sequential(SyncAndMore(3)), TypeError, 'SyncAndMore'),
    (nn.Sequential(pruned()), TypeError, 'or pruning, first'),
    ('resnet50', TypeError, 'but got a str')])
def test_what_cannot_be_converted(model, error, match):
    with pytest.raises(error, match=match):
        convert_to_ssbn(model, SCALES)


@pytest.mark.parametrize('name', ['weight', 'bias'])
def test_a_norm_with_one_of_weight_and_bias(name):
    norm = nn.BatchNorm2d(4)
    setattr(norm, name, None)
    reference = copy.deepcopy(norm)
    net = convert_to_ssbn(nn.Sequential(norm), (16, 8))
    x = torch.randn(2, 4, 8, 8)
    with use_scale(net, 8):
        assert_close(net(x), reference(x), rtol=0, atol=0)
        net.eval()
        assert_close(net(x), reference.eval()(x), rtol=0, atol=0)
    plain = extract_scale(net, 8)
    assert_close(plain(x), reference(x), rtol=0, atol=0)
    assert list(plain[0].state_dict()) == list(reference.state_dict())
    with pytest.warns(UserWarning, match='scale 16, which have seen no batch'):
        extract_scale(net, 12)
    net[0].reset_parameters()


@pytest.mark.parametrize('change', [
    lambda net: extract_scale(net, 16), lambda net: extract_scale(net, 10),
    lambda net: add_scale(net, 10),
    lambda net: convert_to_ssbn(extract_scale(net, 8), SCALES, 2)])
def test_what_inference_mode_has_made_can_be_trained(change):
    torch.manual_seed(0)
    net = randomised(convert_to_ssbn(nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), SCALES, 2))
    x, found = torch.randn(2, 3, 16, 16), []
    for mode in (False, True):
        with torch.inference_mode(mode):
            made = change(net if mode else copy.deepcopy(net))
        loss = made.train()(x).square().sum()
        loss.backward()
        found.append([p.grad for p in made.parameters()])
    assert_close(found[1], found[0], rtol=0, atol=0)


@pytest.mark.parametrize('change', [
    lambda norm: prune.l1_unstructured(norm, 'weight', 0.5),
    lambda norm: register_parametrization(norm, 'weight', nn.Tanh())])
@pytest.mark.parametrize('function, size', [(extract_scale, 8),
                                            (add_scale, 10)])
def test_rows_that_are_not_the_layers_own(change, function, size):
    net = nn.Sequential(SSBN(4, SCALES), SSBN(4, SCALES))
    change(net[1])
    net(torch.randn(2, 4, 16, 16))
    with pytest.raises(TypeError, match='has a .*SSBN, whose parameters are '
                       'not its own. .* remove the param'):
        function(net, size)
    assert net[0].scales == SCALES


def test_with_ssbn_is_the_stock_model_with_rows():
    """EfficientNet's own norm_cfg sets eps; it asks for BatchNorm2d."""
    import mmpretrain.models  # noqa: F401
    config = dict(type='mmpretrain.EfficientNet', arch='b0', norm_eval=True)
    stock = MODELS.build(config)
    stock.eval()  # which returns None there
    net = MODELS.build(dict(type='WithSSBN', scales=(64, 32), model=config))
    assert type(net) is type(stock)
    net.load_state_dict(stock.state_dict())
    x = torch.randn(1, 3, 64, 64)
    net.eval()
    assert_close(net(x)[-1], stock(x)[-1], rtol=0, atol=0)
    assert {layer.eps for layer in ssbn_layers(net)} == {1e-3}
    net.train()
    assert not any(layer.training for layer in ssbn_layers(net))


def test_with_ssbn_hands_on_the_runners_preprocessor():
    config = dict(type='TinyModel', norm=nn.BatchNorm2d)
    net = MODELS.build(dict(type='WithSSBN', scales=SCALES, model=config,
                            data_preprocessor=dict(
                                type='ImgDataPreprocessor', mean=[1.],
                                std=[2.])))
    assert net.data_preprocessor.mean.item() == 1
    assert 'data_preprocessor' not in config
    with pytest.raises(TypeError, match='must be the config of a model, but '
                       'got a NoneType'):
        WithSSBN(None, SCALES)


def test_hosts_initialise_and_spare_it_as_batchnorm():
    from mmengine.model import ConstantInit
    from mmengine.optim import build_optim_wrapper
    for norm in (SSBN, SyncSSBN):
        for name in ('_BatchNorm', 'BatchNorm2d'):
            net = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4, SCALES))
            ConstantInit(val=3., layer=name)(net)
            assert (net[1].weight == 3).all()
        for rule in (dict(flat_decay_mult=0.), dict(norm_decay_mult=0.,
                                                    bias_decay_mult=0.)):
            optim = build_optim_wrapper(net, dict(
                optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1),
                paramwise_cfg=rule)).optimizer
            assert [p.shape for group in optim.param_groups
                    for p in group['params'] if group['weight_decay']] == [
                        (4, 3, 3, 3)]


def test_statistics_are_reset_and_calibrated_one_row_at_a_time():
    net = convert_to_ssbn(plain_net()[:2], (16, 8))
    images = {s: [torch.randn(4, 3, s, s) + s for _ in range(3)]
                for s in (16, 8)}
    for scale in (8, 16):
        with use_scale(net, scale):
            update_bn(images[scale], net)
    for scale in (16, 8):
        plain = extract_scale(net, scale)
        update_bn(images[scale], plain)
        for name in ('running_mean', 'running_var', 'num_batches_tracked'):
            assert_close(net[1].row(scale)[name], getattr(plain[1], name),
                         rtol=0, atol=0)
    before = net[1].running_mean.clone()
    with pytest.warns(UserWarning, match='base scale 16 alone'):
        net[1].reset_running_stats()
    assert (net[1].running_mean[0] == 0).all()
    assert_close(net[1].running_mean[1], before[1])
    net[1].weight.data += 1
    net[1].reset_parameters()
    assert (net[1].weight == 1).all() and (net[1].running_var == 1).all()
