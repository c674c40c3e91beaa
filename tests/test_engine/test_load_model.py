"""A checkpoint fits if it does so once the host has converted it, and if no
weight stays as it was initialised."""
import copy
import re

import pytest
import torch
from helpers import plain_net
from mmengine.registry import MODELS
from torch import nn
from torch.testing import assert_close

from sct_mm import convert_to_ssbn, extract_scale
from sct_mm.apis.test import check_fits
from sct_mm.engine.load_model import state_in, warn_one_row
from sct_mm.utils.checkpoint import check_checkpoint
from sct_mm.utils.errors import UserError

LAYERS = dict(embed_dims=8, num_layers=1, num_heads=2,
              feedforward_channels=16)
HOSTS = dict(
    VisionTransformer=dict(arch=LAYERS, patch_size=8),
    SwinTransformer=dict(arch=dict(embed_dims=8, depths=[1, 1],
                                   num_heads=[1, 2]), use_abs_pos_embed=True,
                         out_indices=(1, )))


def built(name, size):
    import mmpretrain.models  # noqa: F401
    return MODELS.build(dict(type=f'mmpretrain.{name}', img_size=size,
                             **HOSTS[name]))


@pytest.mark.parametrize('name, size', [
    ('VisionTransformer', 48), ('SwinTransformer', 64)])
def test_what_the_host_resizes_on_loading_fits(name, size):
    """E.g. the position embeddings of a network for another image size."""
    state = built(name, 32).state_dict()
    model = built(name, size)
    assert any(value.shape != state[key].shape
               for key, value in model.state_dict().items())
    before = copy.deepcopy(state)
    check_fits(model, state, 'a.pth')
    assert_close(state, before, rtol=0, atol=0)
    wanted = built(name, size)
    wanted.load_state_dict(state)
    assert_close(dict(model.named_parameters()),
                 dict(wanted.named_parameters()))
    state['patch_embed.projection.weight'] = torch.zeros(4, 3, 8, 8)
    with pytest.raises(UserError, match="'a.pth' does not fit the config: "
                       'size mismatch for patch_embed.projection.weight'):
        check_fits(model, state, 'a.pth')


class Renamed(nn.Module):
    """Loads checkpoints of an older version, as mmcv's deformable convolution
    and mmdet's heads do."""
    _version = 2

    def __init__(self):
        super().__init__()
        self.current = nn.Parameter(torch.zeros(3))

    def _load_from_state_dict(self, state_dict, prefix, metadata, *args):
        if metadata.get('version', 1) < 2:
            state_dict[prefix + 'current'] = state_dict.pop(prefix + 'old')
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)


def test_what_the_host_renames_on_loading_fits():
    model = nn.Sequential(Renamed())
    check_fits(model, {'module.0.old': torch.ones(3)}, 'a.pth')
    assert model[0].current.tolist() == [1, 1, 1]
    check_fits(model, model.state_dict(), 'a.pth')  # by its version
    with pytest.raises(UserError, match="does not fit .*KeyError: '0.old'"):
        check_fits(model, {}, 'a.pth')


def test_rows_fit_and_what_is_of_plain_bn_fills_them():
    net = convert_to_ssbn(plain_net(), (16, 8))
    check_fits(net, copy.deepcopy(net).state_dict(), 'a.pth')
    plain = extract_scale(net, 8)
    check_fits(net, plain.state_dict(), 'a.pth')
    with pytest.raises(UserError, match='size mismatch for 1.weight'):
        check_fits(plain, net.state_dict(), 'a.pth')
    three = convert_to_ssbn(plain_net(), (16, 12, 8))
    with pytest.raises(ValueError, match='has 3 scales in 1.weight'):
        check_fits(net, three.state_dict(), 'a.pth')


def test_rows_of_other_scales_are_refused():
    """They would load by their order: 12 would get the parameters of 10."""
    net = convert_to_ssbn(plain_net(), (16, 12, 8))
    state = convert_to_ssbn(plain_net(), (16, 10, 8)).state_dict()
    with pytest.raises(UserError, match=re.escape(
            "'a.pth' was trained at the scales (16, 10, 8), but the config "
            'has (16, 12, 8)')):
        check_fits(net, {f'module.{name}': value
                         for name, value in state.items()}, 'a.pth')


def test_a_network_for_one_size_in_all_rows_is_warned_of():
    net = convert_to_ssbn(plain_net(), (16, 8))
    with pytest.warns(UserWarning, match="'a.pth' is of a network for one"):
        warn_one_row(net, plain_net().state_dict(), 'a.pth')
    warn_one_row(net, net.state_dict(), 'a.pth')


@pytest.mark.parametrize('checkpoint, held', [
    ({1: 2}, '1'), (dict(state_dict=None), "'state_dict'"), ({}, 'nothing'),
    (dict(state_dict=[]), "'state_dict'"),
    (dict(model=dict(a=torch.ones(1)), optimizer={}), "'model', 'optimizer'")])
def test_what_holds_no_weights(checkpoint, held):
    with pytest.raises(UserError, match="'a.pth' must hold weights by their "
                       f'names, .* but holds {held}. Name'):
        state_in(checkpoint, 'a.pth')


def test_an_average_of_torch_fits_without_its_count():
    net = plain_net()
    average = torch.optim.swa_utils.AveragedModel(net)
    assert 'n_averaged' in average.state_dict()
    assert check_fits(net, average.state_dict(), 'a.pth') == []


@pytest.mark.parametrize('name', ['weight', 'running_var'])
def test_weights_of_a_training_that_diverged(name):
    net = nn.Sequential(nn.BatchNorm2d(3))
    state = net.state_dict()
    state[f'0.{name}'] = torch.tensor([1., float('nan'), 1.])
    for value, named in (('nan', 'NaN'), ('inf', 'inf'), ('-inf', 'inf')):
        state[f'0.{name}'] = torch.tensor([1., float(value), 1.])
        with pytest.raises(UserError,
                           match=f"'a.pth' .* 0.{name} holds {named}"):
            check_fits(net, state, 'a.pth')
    state[f'0.{name}'] = torch.ones(3)
    net.register_buffer('mask', torch.tensor([0., float('-inf')]))
    state['mask'] = net.mask.clone()
    assert check_fits(net, state, 'a.pth') == []
    net.register_buffer('last_loss', torch.tensor(float('nan')))  # its own
    net.register_buffer('meta', torch.empty(1, device='meta'))
    assert check_fits(net, state, 'a.pth') == []


@pytest.mark.parametrize('name', ['weight', 'running_mean', 'running_var'])
def test_weights_without_statistics(name):
    net = convert_to_ssbn(plain_net(), (16, 8))
    for state in (net.state_dict(), plain_net().state_dict()):
        state = {key: value for key, value in state.items()
                 if not key.endswith(name)}
        with pytest.raises(UserError, match=f'{name} .*is missing there'):
            check_fits(net, state, 'a.pth')


def test_weights_that_have_no_place_are_returned():
    net = plain_net()
    state = {**net.state_dict(), 'more.weight': torch.zeros(1)}
    assert check_fits(net, state, 'a.pth') == ['more.weight']


def test_a_file_of_safetensors_is_refused_with_its_conversion():
    with pytest.raises(UserError, match="file of torch, but got .*a.safetens"
                       r'ors.* torch.save\(dict\(state_dict=safetensors'):
        check_checkpoint('a.safetensors')


def test_what_is_missing_is_named_once_for_all_its_names():
    net = plain_net()
    state = net.state_dict()
    state['more'] = torch.zeros(1)  # another head, say
    del state['1.num_batches_tracked']
    check_fits(net, state, 'a.pth')
    del state['3.weight']
    with pytest.raises(UserError, match=re.escape(
            "'a.pth' does not fit the config: 3.weight of shape (5, 144) is "
            'missing there.')):
        check_fits(net, state, 'a.pth')
    tied = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    tied[1].weight = tied[0].weight
    state = tied.state_dict()
    del state['0.weight']
    check_fits(tied, state, 'a.pth')
    del state['1.weight']
    with pytest.raises(UserError, match='0.weight of shape'):
        check_fits(tied, state, 'a.pth')
