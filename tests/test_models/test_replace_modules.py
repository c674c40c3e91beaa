"""A norm is replaced wherever its host holds it; what was tied stays tied."""
import copy
from collections import OrderedDict, defaultdict, namedtuple
from types import MethodType

import pytest
import torch
from helpers import randomised
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.testing import assert_close

from sct_mm import SSBN, convert_to_ssbn, extract_scale, use_scale
from sct_mm.models.replace_modules import replace_modules

SCALES = (16, 8)
Pair = namedtuple('Pair', 'first second')


def in_defaultdict(norm):
    made = defaultdict(list)
    made['a'].append(norm)
    return made


NESTED = dict(
    list_of_lists=(lambda norm: [[norm], 1], lambda held: held[0][0]),
    dict=(lambda norm: dict(a=norm, b='b'), lambda held: held['a']),
    ordered=(lambda norm: OrderedDict(x=1, a=norm), lambda held: held['a']),
    default=(in_defaultdict, lambda held: held['a'][0]),
    dict_of_tuples=(lambda norm: {3: (0, [norm])}, lambda held: held[3][1][0]),
    tuple_of_dicts=(lambda norm: (dict(a=(norm, )), ),
                    lambda held: held[0]['a'][0]),
    method=(lambda norm: [norm.forward], lambda held: held[0].__self__),
    named=(lambda norm: [Pair(norm, 2)], lambda held: held[0].first))


@pytest.mark.parametrize('kind', NESTED)
def test_norms_in_nested_containers_are_replaced(kind):
    make, get = NESTED[kind]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.held = make(self.norm)

        def forward(self, x):
            return get(self.held)(x)

    net = convert_to_ssbn(Net(), SCALES).train()
    like = make(nn.ReLU())
    assert get(net.held) is net.norm and isinstance(net.norm, SSBN)
    assert type(net.held) is type(like) and len(net.held) == len(like)
    with use_scale(net, 8):
        net(torch.randn(2, 3, 8, 8) + 5)
    assert net.norm.num_batches_tracked.tolist() == [0, 1]
    plain = extract_scale(net.eval(), 8)
    assert get(plain.held) is plain.norm
    assert type(plain.norm) is nn.BatchNorm2d
    assert get(net.held) is net.norm
    x = torch.randn(2, 3, 8, 8)
    with use_scale(net, 8):
        assert_close(plain(x), net(x), rtol=0, atol=0)


def test_what_holds_no_norm_stays_the_same_object():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    held = dict(a=[1, (2, 3)], b=(dict(), [nn.ReLU()]), c={'x', 1}, d='text',
                e=(net[1], ), f=[(net[1], )], g=(4, [net[1]]))
    inner = {name: id(value) for name, value in held.items()}
    net.held, net.again, net[0].held = held, held, held
    net.held['me'] = held  # a cycle
    parameters = net._parameters, net._buffers, net._forward_hooks
    convert_to_ssbn(net, SCALES)
    assert net.held is net.again is net[0].held is net.held['me'] is held
    assert all(id(held[name]) == inner[name] for name in 'abcdfg')
    assert held['e'] == held['f'][0] == (net[1], )
    assert (net._parameters, net._buffers, net._forward_hooks) == parameters


def test_an_averaged_model_within_a_network_follows_its_norms():
    """A momentum encoder (BYOL, MoCo) keeps a dict of its parameters."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net.online = nn.Sequential(net[0], net[1])
    net.target = ExponentialMovingAverage(net.online, momentum=0.5)
    convert_to_ssbn(net, SCALES)
    averaged = dict(net.target.module.named_parameters())
    assert averaged.keys() == net.target.avg_parameters.keys()
    assert all(net.target.avg_parameters[name] is parameter
               for name, parameter in averaged.items())
    net.target.update_parameters(net.online)
    with torch.no_grad():
        net[1].bias.fill_(2)
    net.target.update_parameters(net.online)
    assert_close(averaged['1.bias'], torch.full((8, ), 1.))


def test_a_tuple_in_two_places_is_replaced_by_one():
    net = nn.Sequential(nn.BatchNorm2d(4))
    net.first = net.second = (net[0], 'norm')
    convert_to_ssbn(net, SCALES)
    assert net.first is net.second and net.first == (net[0], 'norm')


def test_a_module_that_is_not_registered_holds_the_same_norm():
    """As a list keeps a module out of the state dict."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net.hidden = [nn.Sequential(nn.Sequential(net[1], nn.ReLU()))]
    net.hidden[0].back = net
    convert_to_ssbn(net, SCALES)
    assert net.hidden[0][0][0] is net[1]


class _Secret(nn.Sequential):
    def __secret(self):
        return self

    def keep(self):
        self.kept = [self.__secret]


def test_methods_that_are_not_of_the_class_stay():
    """Patched on an object, a lambda, a private one."""
    net = _Secret(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net.keep()
    net.patched = MethodType(lambda self: self, net)
    net[0].patched = MethodType(lambda self: self, net[0])
    net.of_norm = net[1].forward
    convert_to_ssbn(net, SCALES)
    assert net.kept[0]() is net and net.patched() is net
    assert net[0].patched() is net[0]
    assert net.of_norm.__self__ is net[1]


def test_swap_is_asked_once_a_module_and_may_refuse():
    net = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU()))
    before, asked = list(net.modules()), []

    def swap(module):
        asked.append(module)
        if len(asked) == len(before):
            raise ValueError('refused')
        return nn.Identity() if isinstance(module, nn.ReLU) else None

    with pytest.raises(ValueError, match='refused'):
        replace_modules(net, swap)
    assert list(net.modules()) == asked == before


class Tied(nn.Module):
    """Two norms with one gamma, as in networks whose branches share it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.a, self.b = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.b.weight = self.a.weight
        self.b.running_var = self.a.running_var

    def forward(self, x):
        x = self.conv(x)
        return self.a(x) + 2 * self.b(x)


def stepped(net, scale, x):
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with use_scale(net.train(), scale):
        net(x).square().sum().backward()
    optimizer.step()
    return net


def test_norms_that_share_a_parameter_share_its_rows():
    """The reference is the plain network, trained alike."""
    torch.manual_seed(1)
    plain, x = Tied(), torch.randn(4, 3, 8, 8)
    net = convert_to_ssbn(copy.deepcopy(plain), SCALES)
    assert net.a.weight is net.b.weight and net.a.weight.shape == (8, )
    assert net.a.running_var is net.b.running_var
    assert net.a.bias is not net.b.bias
    assert net.a.running_mean is not net.b.running_mean
    assert len(list(net.parameters())) == len(list(plain.parameters()))
    stepped(net, 8, x)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    plain(x).square().sum().backward()
    optimizer.step()
    for name, value in plain.state_dict().items():
        part, leaf = name.split('.')
        if part != 'conv':
            assert_close(net.get_submodule(part).row(8)[leaf], value)


def test_what_was_tied_is_tied_in_what_was_extracted():
    net = randomised(convert_to_ssbn(Tied(), SCALES))
    plain = extract_scale(net, 8)
    assert plain.a.weight is plain.b.weight
    assert plain.a.running_var is plain.b.running_var
    assert plain.a.bias is not plain.b.bias
    assert_close(plain.a.weight, net.a.row(8)['weight'], rtol=0, atol=0)
    plain.a.weight.data.zero_()  # independent of its source
    assert net.a.weight.abs().sum() > 0
    assert len(list(plain.parameters())) == len(list(Tied().parameters()))
    assert list(plain.state_dict()) == list(Tied().state_dict())


class Scaled(nn.BatchNorm2d):
    """A norm with a parameter beside its own."""

    def __init__(self, channels, factor):
        super().__init__(channels)
        self.factor = factor

    def forward(self, x):
        return super().forward(x) * self.factor


def test_a_parameter_beside_the_rows_stays_the_one_that_others_hold():
    factor = nn.Parameter(torch.ones(()))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Scaled(4, factor),
                        Scaled(4, factor))
    net.factor = factor
    convert_to_ssbn(net, SCALES)
    assert net[1].factor is net[2].factor is net.factor is factor
    plain = extract_scale(net, 8)
    assert plain[1].factor is plain[2].factor is plain.factor is not factor


@pytest.mark.parametrize('share', ['weight', 'running_mean', 'factor'])
def test_a_tensor_shared_with_another_layer_is_refused(share):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4),
                        nn.BatchNorm2d(4))
    if share == 'running_mean':
        net[0].register_buffer('mean', net[2].running_mean)
    elif share == 'weight':
        net[0].bias = net[2].weight
    else:
        net[1] = Scaled(4, net[2].weight)
    before, kinds = net.state_dict(), list(map(type, net.modules()))
    other = dict(weight='0.bias', running_mean='0.mean', factor='1.factor')
    name = '2.running_mean' if share == 'running_mean' else '2.weight'
    with pytest.raises(ValueError, match=f'shares {name} with '
                       f'{other[share]}, which has no rows'):
        convert_to_ssbn(net, SCALES)
    assert list(map(type, net.modules())) == kinds
    assert all(a is b or a.equal(b) for a, b in zip(
        before.values(), net.state_dict().values(), strict=True))


def test_a_row_shared_with_another_layer_is_not_extracted():
    net = convert_to_ssbn(nn.Sequential(nn.Conv2d(3, 4, 3),
                                        nn.BatchNorm2d(4)), SCALES)
    net.gammas = nn.ParameterList([net[1].weight])
    with pytest.raises(ValueError, match='shares 1.weight with gammas.0'):
        extract_scale(net, 8)
